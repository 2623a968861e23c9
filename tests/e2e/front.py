"""
A front as ``edgephi serve`` makes it, over an engine process that harms itself when a request asks for it.

    python -m tests.e2e.front '{"step_delay_s": 0.01}'

The engine process is that of tests/isolation. A chat whose last message is ``KILL 3 some text`` makes it meet the fault
KILL in the third forward that this chat has a part in; every other text is answered with random tokens. Prints the line
of ``edgephi serve --json`` once it takes requests.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from tests.isolation import engine_program
from tests.isolation.engine_program import CONTEXT_TOKENS, NUM_PAGES, PAGE_TOKENS, Fault

from edgephi import pocket
from edgephi.cli.compose import LocalService
from edgephi.cli.logs import LogFormat, LogLevel, configure_logs
from edgephi.cli.ready_line import announce
from edgephi.cli.sd_notify import Notifier
from edgephi.cli.serving import run_server
from edgephi.engine.admission import AdmissionConfig
from edgephi.engine.admitting_loop import AdmittingLoop
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import SamplingParams
from edgephi.generation.generator import Generator
from edgephi.isolation.liveness import LivenessSettings
from edgephi.isolation.quarantine import HOLD_S, Quarantine
from edgephi.isolation.remote_loop import RemoteLoop
from edgephi.profile.plan import Plan, PlanMemory
from edgephi.server.model_info import ModelInfo
from edgephi.server.settings import ServerSettings
from edgephi.text.template import Message
from edgephi.text.tokenizer import Tokenizer

MAX_RUNNING = 4
_MAX_TEXT_TOKEN = 800  # those above are the faults'


class FrontOptions(msgspec.Struct, frozen=True):
    """
    What a test may choose.

    Attributes:
        liveness: Fields of LivenessSettings; those that are not named are as shipped.
        has_quarantine: Whether what ended the engine twice is refused.
        is_isolated: Whether the engine is a process of its own.
        step_delay_s: How long each forward takes.
    """

    liveness: dict[str, Any] = {}
    has_quarantine: bool = True
    is_isolated: bool = True
    step_delay_s: float = 0.0


class ObedientGenerator(Generator):
    """The real one, but for prompts: a name of a fault becomes the token that asks for it."""

    def chat_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the last message's tokens, below those of faults."""
        first, _, rest = messages[-1].content.partition(" ")
        if first not in Fault.__members__:
            return self._plain(messages[-1].content)
        step, _, text = rest.partition(" ")
        return (Fault[first], int(step), *self._plain(text))

    def _plain(self, text: str) -> tuple[int, ...]:
        return (1, *(token % _MAX_TEXT_TOKEN for token in self.tokenizer.encode(text)))


def open_front(options: FrontOptions) -> LocalService:
    """Put the parts together; the order is that of ``edgephi.cli.compose``."""
    engine = engine_program.Options(step_delay_s=options.step_delay_s, max_running=MAX_RUNNING)
    encoded = msgspec.msgpack.encode(engine)
    loop: RemoteLoop | EngineLoop
    if options.is_isolated:
        loop = RemoteLoop(
            (sys.executable, str(Path(engine_program.__file__))),
            encoded,
            liveness=dataclasses.replace(LivenessSettings(), **options.liveness),
            quarantine=Quarantine(hold_s=HOLD_S if options.has_quarantine else 0.0),
        )
        loop.wait_loaded()
    else:
        loop = EngineLoop(engine_program.open_engine(encoded, lambda *_: None).engine)
    queue = AdmittingLoop(loop, AdmissionConfig())
    tokenizer = Tokenizer.from_model_dir(pocket.model_dir())
    generator = ObedientGenerator(
        tokenizer,
        queue,
        context_tokens=CONTEXT_TOKENS,
        eos_token_ids=frozenset(),
        defaults=SamplingParams(temperature=0.0),
        require_place=queue.require_place,
    )
    info = ModelInfo(
        model_id="harmful",
        display_name="harmful",
        architecture="phi3",
        quantization="none",
        context_tokens=CONTEXT_TOKENS,
    )
    plan = Plan(
        context_tokens=CONTEXT_TOKENS,
        max_running=MAX_RUNNING,
        prefill_chunk_tokens=8,
        mixed_chunk_tokens=4,
        default_max_tokens=8,
        page_tokens=PAGE_TOKENS,
        num_pages=NUM_PAGES,
        memory=PlanMemory(kv_bytes=4096),
    )
    return LocalService(generator, queue, None, info=info, plan=plan, threads=None, level=None)


def main() -> None:
    """Serve until SIGTERM."""
    options = msgspec.json.decode(sys.argv[1], type=FrontOptions)
    configure_logs(LogFormat.JSON, level=LogLevel.INFO)
    settings = ServerSettings(port=0, metrics_port=0)
    with open_front(options) as local:
        tell = functools.partial(announce, local, settings=settings, as_json=True)
        run_server(local, settings, grace_s=1.0, announce=tell, notifier=Notifier())


if __name__ == "__main__":
    main()
