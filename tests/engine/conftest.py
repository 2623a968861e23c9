"""Helpers for the engine's tests: a clock that moves when told, and ways to run an engine to its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgephi.engine.core import Engine
from edgephi.engine.request import EngineEvent, EngineRequest, RequestId, SamplingParams

MakeRequest = Callable[..., EngineRequest]
RunToEnd = Callable[[Engine], dict[RequestId, list[EngineEvent]]]


class FakeClock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    """A clock at 100 seconds."""
    return FakeClock()


@pytest.fixture(scope="session")
def make_request() -> MakeRequest:
    """A greedy request unless told otherwise."""

    def make(
        request_id: str = "r",
        prompt: tuple[int, ...] = (1, 2, 3),
        max_tokens: int = 4,
        sampling: SamplingParams | None = None,
        stop_token_ids: frozenset[int] = frozenset(),
    ) -> EngineRequest:
        return EngineRequest(
            request_id=RequestId(request_id),
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=sampling or SamplingParams(temperature=0.0),
            stop_token_ids=stop_token_ids,
        )

    return make


@pytest.fixture(scope="session")
def run_to_end() -> RunToEnd:
    """Step an engine until it has no work and return the events of each request, checking the books after each step."""

    def run(engine: Engine) -> dict[RequestId, list[EngineEvent]]:
        events: dict[RequestId, list[EngineEvent]] = {}
        while engine.has_work:
            for event in engine.step():
                events.setdefault(event.request_id, []).append(event)
            engine.check_integrity()
        return events

    return run
