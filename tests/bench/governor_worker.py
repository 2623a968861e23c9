"""The process that tests.bench.governor watches: streams and a governor over one engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import structlog
from tests.bench.governor import Scenario

from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import EngineEvent, EngineRequest, Finished, RequestId, SamplingParams, TokenSampled
from edgephi.errors import Overloaded
from edgephi.profile.governor import Change, Governor, GovernorPolicy
from edgephi.profile.hysteresis import Patience
from edgephi.profile.machine.probe import probe_live
from edgephi.profile.plan import Plan, PlanMemory
from edgephi.runtime import RuntimeOptions, load_model
from edgephi.server.governor import GovernorTask

MAX_COMPARED = 6
_KV_TOKENS = 1024
_RETRY_S = 0.2
_MIB = 1 << 20


def work() -> None:
    """Serve the streams of the scenario on the command line; what the worker process runs."""
    sys.stdin.readline()
    scenario = Scenario(**json.loads(sys.argv[1]))
    # With room for idle prefixes and for requests long enough to be shortened.
    kv_tokens = max(scenario.streams * (scenario.prompt_tokens + scenario.answer_tokens) * 2, _KV_TOKENS)
    with load_model(scenario.model, RuntimeOptions(kv_tokens=kv_tokens)) as model:
        engine = Engine(model.backend, EngineConfig(max_running=scenario.streams))
        with EngineLoop(engine) as loop:
            print(json.dumps({"threads": model.threads}), flush=True)
            asyncio.run(_Serving(scenario, engine, loop, model.bundle.weights.nbytes).run())


def _drop(_logger: object, _level: str, _line: object) -> NoReturn:
    raise structlog.DropEvent


@dataclass(frozen=True, slots=True)
class _Answer:
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


class _Serving:
    """Streams and the governor over one engine, until the parent says that it is the end."""

    def __init__(self, scenario: Scenario, engine: Engine, loop: EngineLoop, weights_bytes: int) -> None:
        self._scenario = scenario
        self._loop = loop
        self._weights_bytes = weights_bytes
        self._plan = Plan(
            context_tokens=engine.context_tokens,
            max_running=scenario.streams,
            prefill_chunk_tokens=engine.config.prefill_chunk_tokens,
            mixed_chunk_tokens=engine.config.mixed_chunk_tokens,
            default_max_tokens=scenario.answer_tokens,
            page_tokens=engine.spec.page_size,
            num_pages=engine.spec.num_pages,
            memory=PlanMemory(weights_bytes=weights_bytes),
        )
        self._task = self._governed(None)
        self._vocab_size = engine.spec.vocab_size
        self._random = np.random.default_rng(0)
        self._serial = 0
        self._ends: Counter[str] = Counter()
        self._changed: list[_Answer] = []
        self._num_changes = 0
        self._is_over = False

    async def run(self) -> None:
        """Serve, sample and report until told the end."""
        here = asyncio.get_running_loop()
        commands: asyncio.Queue[str] = asyncio.Queue()

        def listen() -> None:
            for line in sys.stdin:
                here.call_soon_threadsafe(commands.put_nowait, line.strip())

        threading.Thread(target=listen, daemon=True).start()
        streams = [asyncio.create_task(self._stream()) for _ in range(self._scenario.streams)]
        while not self._is_over:
            await self._report()
            with contextlib.suppress(asyncio.TimeoutError):
                command = await asyncio.wait_for(commands.get(), self._scenario.sample_s)
                if command == "end":
                    self._is_over = True
                else:
                    self._task = self._governed(float(command))
        await asyncio.gather(*streams)
        different = [answer for answer in self._changed if await self._ask(answer.prompt) != answer.tokens]
        print(
            json.dumps({"ends": self._ends, "num_compared": len(self._changed), "num_different": len(different)}),
            flush=True,
        )

    def _governed(self, floor: float | None) -> GovernorTask:
        scenario = self._scenario
        policy = GovernorPolicy(
            floor_tokens_per_s=floor,
            min_interval_s=scenario.min_interval_s,
            speed=Patience(down_s=scenario.down_s, up_s=scenario.up_s),
            memory=Patience(down_s=scenario.down_s, up_s=scenario.up_s),
        )
        quiet = structlog.wrap_logger(structlog.PrintLogger(), processors=[_drop])  # the time line has the changes
        return GovernorTask(Governor(replace(self._plan, floor_tokens_per_s=floor), policy), self._loop, log=quiet)

    async def _report(self) -> None:
        seen = len(self._task.state.events)
        await self._task.tick()
        state, stats = self._task.state, self._loop.stats()
        left = (await asyncio.to_thread(probe_live)).cgroup.memory_left_bytes
        available = None if left is None else left - self._weights_bytes
        new = state.events[seen:]
        notes: dict[str, Any] = {"change": None, "missed": None}
        for event in new:
            notes["change" if isinstance(event, Change) else "missed"] = event.reason
            self._num_changes += isinstance(event, Change)
        line = {
            "speed_level": state.level.speed,
            "memory_level": state.level.memory,
            "available_mib": None if available is None else available // _MIB,
            "max_request_tokens": stats.limits.max_request_tokens,
            "max_running": stats.limits.max_running,
            "mixed_chunk_tokens": stats.limits.mixed_chunk_tokens,
            "running": stats.running,
            "waiting": stats.waiting,
            "stream_tokens_per_s": state.stream_tokens_per_s,
        }
        print(json.dumps(line | notes), flush=True)

    async def _stream(self) -> None:
        """Ask for one answer after the other, each for a prompt never asked before."""
        while not self._is_over:
            prompt = tuple(int(t) for t in self._random.integers(5, self._vocab_size, self._scenario.prompt_tokens))
            before = self._num_changes
            tokens = await self._ask(prompt)
            if self._num_changes > before and len(self._changed) < MAX_COMPARED and tokens is not None:
                self._changed.append(_Answer(prompt, tokens))

    async def _ask(self, prompt: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return an answer's tokens; None if it was refused, which is waited out."""
        here = asyncio.get_running_loop()
        ended: asyncio.Future[Finished] = here.create_future()
        tokens: list[int] = []

        def sink(event: EngineEvent) -> None:
            if isinstance(event, TokenSampled):
                tokens.append(event.token_id)
            elif isinstance(event, Finished):
                here.call_soon_threadsafe(ended.set_result, event)

        self._serial += 1
        request = EngineRequest(
            request_id=RequestId(f"s{self._serial}"),
            prompt=prompt,
            max_tokens=self._scenario.answer_tokens,
            sampling=SamplingParams(temperature=0.0),
        )
        try:
            self._loop.submit(request, sink)
        except Overloaded:
            self._ends["refused"] += 1
            await asyncio.sleep(_RETRY_S)
            return None
        self._ends[(await ended).reason.value] += 1
        return tuple(tokens)
