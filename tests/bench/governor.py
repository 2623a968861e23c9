"""
The governor at work: an engine with several streams in a control group whose CPU quota is cut and restored.

    python -m tests.bench.governor [--model DIR] [--streams 4] [--quota 25] [--floor-share 0.7] [--interval 30]

A process of its own serves a model to streams that ask again and again. The first phase measures the speed of a stream;
its --floor-share becomes the floor to hold. Then the group may use --quota percent of the cores that compute, then all
again. Prints the time line, each change with its reason, and how the answers ended; those that lived through a change
are asked for again at the end, alone, and compared. Needs the right to make control groups (root).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import structlog
from tests.bench.control_group import CpuGroup, NoControlGroup, cpu_group

from edgephi.artifact.synth import synthesize
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import EngineEvent, EngineRequest, Finished, RequestId, SamplingParams, TokenSampled
from edgephi.errors import Overloaded
from edgephi.profile.governor import Change, Governor, GovernorPolicy
from edgephi.profile.hysteresis import Patience
from edgephi.profile.plan import Plan
from edgephi.runtime import RuntimeOptions, load_model
from edgephi.server.governor import GovernorTask

MAX_COMPARED = 6
_RETRY_S = 0.2
_END_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """
    What is shown.

    Attributes:
        model: A model's folder.
        streams: Streams at once, and the plan's ``max_running``.
        prompt_tokens: Length of a prompt; each is random.
        answer_tokens: Length of an answer.
        floor_share: Part of the first phase's speed that becomes the floor.
        quota: Percent of the computing cores in the second phase.
        phases_s: Longest duration of the three phases.
        min_interval_s: Least time between two changes.
        down_s: How long answers must be slow.
        up_s: How long they must be fast enough.
        sample_s: Time between two samples.
    """

    model: str
    streams: int = 4
    prompt_tokens: int = 24
    answer_tokens: int = 32
    floor_share: float = 0.7
    quota: float = 25.0
    phases_s: tuple[float, float, float] = (30.0, 150.0, 300.0)
    min_interval_s: float = 30.0
    down_s: float = 5.0
    up_s: float = 30.0
    sample_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One sample of the time line; ``at_s`` counts from the beginning, the change is one made at that moment."""

    at_s: float
    quota: float
    speed_level: int
    max_running: int
    mixed_chunk_tokens: int
    running: int
    waiting: int
    stream_tokens_per_s: float | None
    change: str | None = None
    missed: str | None = None


@dataclass(slots=True)
class Story:
    """All that happened; ``ends`` counts answers by their reason."""

    floor_tokens_per_s: float = 0.0
    moments: list[Moment] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    num_compared: int = 0
    num_different: int = 0

    @property
    def changes(self) -> list[Moment]:
        """Moments of a change."""
        return [moment for moment in self.moments if moment.change is not None]


def main() -> None:
    """Show what the command line says."""
    parser = argparse.ArgumentParser(description="The governor while a CPU quota is cut and restored.")
    parser.add_argument("--model", help="folder of a model; by default a small one with random weights")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--answer-tokens", type=int, default=32)
    parser.add_argument("--quota", type=float, default=25.0, help="percent of the computing cores")
    parser.add_argument("--floor-share", type=float, default=0.7, help="floor, as a part of the speed with all cores")
    parser.add_argument(
        "--interval",
        type=float,
        default=30.0,
        help="least seconds between two changes, and of fast answers before a step up",
    )
    parser.add_argument("--phases", type=float, nargs=3, default=(30.0, 150.0, 300.0), help="longest, in seconds")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or str(synthesize("phi3-small", Path(folder) / "phi3-small"))
        scenario = Scenario(
            model=model,
            streams=given.streams,
            prompt_tokens=given.prompt_tokens,
            answer_tokens=given.answer_tokens,
            floor_share=given.floor_share,
            quota=given.quota,
            phases_s=tuple(given.phases),
            min_interval_s=given.interval,
            up_s=given.interval,
        )
        print(f"{'s':>6} {'quota':>6} {'level':>5} {'most':>4} {'chunk':>5} {'run':>4} {'wait':>5} {'tok/s each':>10}")
        try:
            story = show(scenario, tell=_print_moment)
        except NoControlGroup as error:
            sys.exit(str(error))
    print(f"\nfloor {story.floor_tokens_per_s:.1f} tok/s; answers by their end: {story.ends}")
    print(f"{story.num_compared} answers that lived through a change asked again alone: {story.num_different} differ")


def show(scenario: Scenario, *, tell: Callable[[Moment], None] = lambda _: None) -> Story:
    """
    Run a scenario; the last phase ends early once the plan is in force again.

    Raises:
        NoControlGroup: If this process may not limit processors.
    """
    story = Story()
    with cpu_group() as group, _worker(scenario, group) as worker:
        cores = json.loads(_read(worker))["threads"]
        start = time.monotonic()
        quota = 100.0

        def follow(seconds: float, until: Callable[[Moment], bool] = lambda _: False) -> list[Moment]:
            """Take the worker's samples for so long, or until one is what is waited for."""
            began, seen = time.monotonic(), []
            while time.monotonic() - began < seconds:
                moment = Moment(at_s=time.monotonic() - start, quota=quota, **json.loads(_read(worker)))
                seen.append(moment)
                story.moments.append(moment)
                tell(moment)
                if until(moment):
                    break
            return seen

        full, short, restored = scenario.phases_s
        speeds = sorted(m.stream_tokens_per_s for m in follow(full)[1:] if m.stream_tokens_per_s is not None)
        story.floor_tokens_per_s = speeds[len(speeds) // 2] * scenario.floor_share
        _write(worker, str(story.floor_tokens_per_s))
        group.limit(cores * scenario.quota / 100)
        quota = scenario.quota
        follow(short)
        group.limit(None)
        quota = 100.0
        follow(restored, until=lambda moment: moment.speed_level == 0)
        _write(worker, "end")
        for line in iter(worker.stdout.readline, "") if worker.stdout else ():
            last = json.loads(line)
            if "ends" in last:
                story.ends = last["ends"]
                story.num_compared, story.num_different = last["num_compared"], last["num_different"]
        worker.wait(_END_TIMEOUT_S)
    return story


def _print_moment(moment: Moment) -> None:
    speed = "-" if moment.stream_tokens_per_s is None else f"{moment.stream_tokens_per_s:.1f}"
    note = moment.change or moment.missed or ""
    if note or round(moment.at_s) % 5 == 0:
        print(
            f"{moment.at_s:6.0f} {moment.quota:5.0f}% {moment.speed_level:5} {moment.max_running:4} "
            f"{moment.mixed_chunk_tokens:5} {moment.running:4} {moment.waiting:5} {speed:>10}  {note}",
            flush=True,
        )


@contextlib.contextmanager
def _worker(scenario: Scenario, group: CpuGroup) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", "from tests.bench.governor import work; work()", json.dumps(asdict(scenario))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            group.add(process.pid)
            _write(process, "go")  # only now, so that all its threads are born in the group
            yield process
        finally:
            process.kill()


def _write(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the worker has ended; its error is above")
    return line


def work() -> None:
    """Serve the streams of the scenario on the command line; what the worker process runs."""
    sys.stdin.readline()
    scenario = Scenario(**json.loads(sys.argv[1]))
    kv_tokens = scenario.streams * (scenario.prompt_tokens + scenario.answer_tokens) * 2
    with load_model(scenario.model, RuntimeOptions(kv_tokens=kv_tokens)) as model:
        engine = Engine(model.backend, EngineConfig(max_running=scenario.streams))
        with EngineLoop(engine) as loop:
            print(json.dumps({"threads": model.threads}), flush=True)
            asyncio.run(_Serving(scenario, engine, loop).run())


def _drop(_logger: object, _level: str, _line: object) -> NoReturn:
    raise structlog.DropEvent


@dataclass(frozen=True, slots=True)
class _Answer:
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


class _Serving:
    """Streams and the governor over one engine, until the parent says that it is the end."""

    def __init__(self, scenario: Scenario, engine: Engine, loop: EngineLoop) -> None:
        self._scenario = scenario
        self._loop = loop
        self._plan = Plan(
            context_tokens=engine.context_tokens,
            max_running=scenario.streams,
            prefill_chunk_tokens=engine.config.prefill_chunk_tokens,
            mixed_chunk_tokens=engine.config.mixed_chunk_tokens,
            default_max_tokens=scenario.answer_tokens,
            page_tokens=engine.spec.page_size,
            num_pages=engine.spec.num_pages,
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
        )
        quiet = structlog.wrap_logger(structlog.PrintLogger(), processors=[_drop])  # the time line has the changes
        return GovernorTask(Governor(replace(self._plan, floor_tokens_per_s=floor), policy), self._loop, log=quiet)

    async def _report(self) -> None:
        seen = len(self._task.state.events)
        await self._task.tick()
        state, stats = self._task.state, self._loop.stats()
        new = state.events[seen:]
        notes: dict[str, Any] = {"change": None, "missed": None}
        for event in new:
            notes["change" if isinstance(event, Change) else "missed"] = event.reason
            self._num_changes += isinstance(event, Change)
        line = {
            "speed_level": state.level.speed,
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


if __name__ == "__main__":
    main()
