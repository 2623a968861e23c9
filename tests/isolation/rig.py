"""Requests to an engine process, and what becomes of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgephi.engine.health import EngineState
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    Finished,
    RequestId,
    SamplingParams,
    TokenSampled,
)
from edgephi.isolation.liveness import LivenessSettings
from edgephi.isolation.remote_loop import RemoteLoop

PROGRAM = Path(__file__).with_name("engine_program.py")
WAIT_S = 30.0
# Short times instead of long tests. Silence must outlast what a busy machine does to a healthy process.
QUICK = LivenessSettings(heartbeat_s=0.1, max_silence_s=2.0, min_step_s=2.0, max_deaths=1000)
PATIENT = LivenessSettings(heartbeat_s=0.1, max_deaths=1000)


@dataclass
class Call:
    """A request's events, as they came."""

    events: list[EngineEvent] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)
    ended_at: float = 0.0

    def __call__(self, event: EngineEvent) -> None:
        """Take an event."""
        self.events.append(event)
        if isinstance(event, Finished):
            self.ended_at = time.monotonic()
            self.is_over.set()

    @property
    def tokens(self) -> list[int]:
        """Tokens so far."""
        return [event.token_id for event in self.events if isinstance(event, TokenSampled)]

    def end(self, timeout_s: float = WAIT_S) -> Finished:
        """Wait for the end, which must be the only one and the last event."""
        assert self.is_over.wait(timeout_s), f"no end after {timeout_s} s: {self.events[-3:]}"
        ends = [event for event in self.events if isinstance(event, Finished)]
        assert len(ends) == 1
        assert self.events[-1] is ends[0]
        return ends[0]


def request(name: str, *prompt: int, max_tokens: int = 8, **fields: Any) -> EngineRequest:
    """Return a greedy request."""
    sampling = SamplingParams(temperature=0.0)
    return EngineRequest(
        request_id=RequestId(name), prompt=prompt or (1, 2, 3), max_tokens=max_tokens, sampling=sampling, **fields
    )


def submit(loop: RemoteLoop, asked: EngineRequest) -> Call:
    """Submit a request and return what becomes of it."""
    call = Call()
    loop.submit(asked, call)
    return call


def wait_for(is_true: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_running(loop: RemoteLoop, starts: int | None = None) -> None:
    """Wait until the engine takes requests, for so many starts in all."""
    wait_for(
        lambda: loop.health().state is EngineState.RUNNING and (starts is None or loop.health().starts_total >= starts)
    )


def is_running(pid: int) -> bool:
    """Whether a process exists and is not merely waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
