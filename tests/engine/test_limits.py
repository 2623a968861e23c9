"""Limits that change while requests run: what is refused, what is admitted, what becomes of cached pages."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Protocol

import pytest

from edgephi.engine.backend import F32Array, ForwardBatch
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.limits import EngineLimits
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    Finished,
    FinishReason,
    PrefillProgress,
    RequestId,
    TokenSampled,
)
from edgephi.errors import ConfigError, Overloaded, PromptTooLong
from edgephi.runtime.fake import FakeBackend

MakeRequest = Callable[..., EngineRequest]
RunToEnd = Callable[[Engine], dict[RequestId, list[EngineEvent]]]

_PATIENCE_S = 20.0


class Clock(Protocol):
    def __call__(self) -> float: ...

    def advance(self, seconds: float) -> None: ...


class TimedBackend(FakeBackend):
    """A fake whose forwards take half a second by a test's clock, and which keeps how many rows they had."""

    def __init__(self, clock: Clock | None = None, *, habit: float = 0.0) -> None:
        super().__init__(
            vocab_size=50, page_size=4, num_pages=64, max_batch_tokens=32, max_context_tokens=128, habit=habit
        )
        self._clock = clock
        self.num_rows: list[int] = []
        self.released: list[int] = []

    def forward(self, batch: ForwardBatch) -> F32Array:
        if self._clock is not None:
            self._clock.advance(0.5)
        self.num_rows.append(len(batch.tokens))
        return super().forward(batch)

    def release_pages(self, pages: object) -> None:
        super().release_pages(pages)  # type: ignore[arg-type]  # as the engine calls it
        self.released = list(pages)  # type: ignore[call-overload]


def _lowered(engine: Engine, **changes: object) -> EngineLimits:
    return dataclasses.replace(engine.max_limits, **changes)  # type: ignore[arg-type]  # whatever a test lowers


def _tokens(events: list[EngineEvent]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenSampled)]


def test_the_limits_begin_as_configured(make_request: MakeRequest) -> None:
    """Without a change the limits are those of the configuration and the backend, and refuse nothing more."""
    engine = Engine(TimedBackend(), EngineConfig(max_running=3, prefill_chunk_tokens=8, mixed_chunk_tokens=2))
    expected = EngineLimits(max_running=3, prefill_chunk_tokens=8, mixed_chunk_tokens=2, max_request_tokens=128)
    assert engine.max_limits == engine.stats().limits == expected
    engine.submit(make_request(prompt=(1,) * 100, max_tokens=28))


def test_a_configured_context_bounds_what_can_ever_run(make_request: MakeRequest) -> None:
    """max_context_tokens makes a longer request PromptTooLong, not a matter of retrying."""
    engine = Engine(TimedBackend(), EngineConfig(max_context_tokens=20))
    assert engine.context_tokens == engine.max_limits.max_request_tokens == 20
    with pytest.raises(PromptTooLong):
        engine.submit(make_request(prompt=(1,) * 18, max_tokens=3))


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_running", 0), ("max_running", 5), ("mixed_chunk_tokens", 17), ("max_request_tokens", 129)],
)
def test_limits_outside_the_configured_ones_are_refused(field: str, value: int) -> None:
    """A limit below 1 or above the configured maximum is refused by its name, and the old ones stay."""
    engine = Engine(TimedBackend(), EngineConfig())
    with pytest.raises(ConfigError, match=f"{field} is {value}"):
        engine.set_limits(_lowered(engine, **{field: value}))
    assert engine.stats().limits == engine.max_limits


def test_fewer_places_let_what_runs_finish(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """After max_running fell from 3 to 1 all three go on, and the next one starts when only the last has left."""
    engine = Engine(TimedBackend(), EngineConfig(max_running=3))
    for index, name in enumerate("abc"):
        engine.submit(make_request(name, max_tokens=10 + index))
    engine.submit(make_request("next", max_tokens=2))
    for _ in range(4):
        engine.step()
    engine.set_limits(_lowered(engine, max_running=1))
    assert (engine.stats().running, engine.stats().waiting) == (3, 1)
    ended: list[RequestId] = []
    while engine.has_work:
        for event in engine.step():
            if event.request_id == "next":
                assert ended[:3] == ["a", "b", "c"]
            if isinstance(event, Finished):
                assert event.reason is FinishReason.LENGTH
                ended.append(event.request_id)
        engine.check_integrity()
    assert ended == ["a", "b", "c", "next"]


def test_a_shorter_queue_refuses_with_the_reason(make_request: MakeRequest) -> None:
    """With fewer places fewer requests are taken in all, and the refusal says how many and why."""
    engine = Engine(TimedBackend(), EngineConfig(max_running=4, max_waiting=0))
    engine.submit(make_request("a"))
    engine.set_limits(_lowered(engine, max_running=1, reason="8.1 of 12 tok/s"))
    with pytest.raises(Overloaded, match=r"1 requests are live and 1 is the limit \(8.1 of 12 tok/s\); retry later"):
        engine.submit(make_request("b"))


def test_chunks_become_smaller_between_two_steps(make_request: MakeRequest) -> None:
    """New chunk sizes hold from the next step on, in the middle of a prompt too, beside a stream and alone."""
    engine = Engine(TimedBackend(), EngineConfig(prefill_chunk_tokens=16, mixed_chunk_tokens=8))
    engine.submit(make_request("stream", max_tokens=5))
    engine.step()
    engine.submit(make_request("long", prompt=tuple(range(45)), max_tokens=2))
    chunks: list[int] = []

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            chunks.extend(e.done_tokens for e in engine.step() if isinstance(e, PrefillProgress))

    run(1)
    engine.set_limits(_lowered(engine, prefill_chunk_tokens=4, mixed_chunk_tokens=2))
    run(4)
    engine.set_limits(engine.max_limits)
    run(2)
    assert chunks == [8, 10, 12, 14, 18, 34, 45]


def test_a_long_request_is_refused_for_now(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """What is too long at present is Overloaded with limit, reason and delay; what never fits stays PromptTooLong."""
    engine = Engine(TimedBackend(), EngineConfig())
    engine.submit(make_request("early", prompt=(1,) * 30, max_tokens=10))
    engine.set_limits(_lowered(engine, max_request_tokens=16, reason="12 MiB of memory are left"))
    wording = r"12 prompt tokens \+ 5 max_tokens exceed the 16 tokens .* at present \(12 MiB of memory are left\)"
    with pytest.raises(Overloaded, match=wording) as refused:
        engine.submit(make_request("long", prompt=(1,) * 12, max_tokens=5))
    assert refused.value.retry_after_ms >= 30_000
    with pytest.raises(PromptTooLong):
        engine.submit(make_request("never", prompt=(1,) * 120, max_tokens=9))
    engine.submit(make_request("short", prompt=(1,) * 12, max_tokens=4))
    ends = {name: events[-1] for name, events in run_to_end(engine).items()}
    assert {name: end.reason for name, end in ends.items() if isinstance(end, Finished)} == {
        "early": FinishReason.LENGTH,  # it was accepted before
        "short": FinishReason.LENGTH,
    }


def test_cached_pages_are_dropped_and_not_kept_again(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """Without keeps_cached_pages no page stays behind a request, its memory is released, and answers are the same."""
    backend = TimedBackend()
    engine = Engine(backend, EngineConfig())
    engine.submit(make_request("first", prompt=tuple(range(10)), max_tokens=6))
    first = run_to_end(engine)[RequestId("first")]
    assert engine.stats().pages_cached > 0
    assert backend.released == []
    engine.set_limits(_lowered(engine, keeps_cached_pages=False))
    assert engine.stats().pages_cached == 0
    assert backend.released == list(range(64))
    engine.submit(make_request("again", prompt=tuple(range(10)), max_tokens=6))
    again = engine.step()
    engine.set_limits(_lowered(engine, keeps_cached_pages=False, max_running=1))
    assert len(backend.released) == 60, "what the running request owns is not released"
    again += run_to_end(engine)[RequestId("again")]
    assert len(backend.released) == 64
    assert engine.stats().pages_cached == 0

    assert _tokens(again) == _tokens(first)


def test_running_requests_still_share_pages_without_a_cache(make_request: MakeRequest) -> None:
    """Without keeps_cached_pages a prompt still shares the pages of one that runs beside it."""
    engine = Engine(TimedBackend(), EngineConfig())
    engine.set_limits(_lowered(engine, keeps_cached_pages=False))
    for name in "ab":
        engine.submit(make_request(name, prompt=tuple(range(9)), max_tokens=3))
    engine.step()
    engine.step()
    engine.check_integrity()
    assert engine.stats().pages_used == 4, "three each, two of them shared"


def test_speed_of_one_stream_follows_from_two_counters(make_request: MakeRequest, clock: Clock) -> None:
    """Tokens after the first divided by the seconds streams spent on them is what one stream gets, whatever runs."""
    engine = Engine(TimedBackend(clock), EngineConfig(max_running=2), clock=clock)
    for name in "ab":
        engine.submit(make_request(name, prompt=(ord(name) % 50, 1), max_tokens=9))
    engine.step()  # prefill of a, and its first token
    assert (engine.stats().decode_tokens_total, engine.stats().decode_stream_s_total) == (0, 0.0)
    engine.step()  # a decodes beside the prefill of b
    assert (engine.stats().decode_tokens_total, engine.stats().decode_stream_s_total) == (1, 0.5)
    clock.advance(0.1)  # as delivering the tokens would
    for _ in range(4):
        engine.step()
    stats = engine.stats()
    assert stats.decode_tokens_total == 9
    assert stats.decode_stream_s_total == pytest.approx(0.5 + 4 * 2 * 0.5 + 2 * 0.1)
    assert stats.decode_s_total == pytest.approx(0.5 + 4 * 0.5 + 0.1)
    while engine.has_work:
        engine.step()
    clock.advance(60.0)  # idle
    engine.submit(make_request("c"))
    engine.step()
    stats = engine.stats()
    assert stats.decode_tokens_total == 16
    assert stats.decode_stream_s_total == pytest.approx(8.2)
    assert stats.decode_s_total == pytest.approx(4.6)


def test_guessed_tokens_count_as_tokens(make_request: MakeRequest, run_to_end: RunToEnd, clock: Clock) -> None:
    """With guesses that come true a stream shows more tokens a second than it had forwards."""
    engine = Engine(TimedBackend(clock, habit=50.0), EngineConfig(max_draft_tokens=4), clock=clock)
    engine.submit(make_request(max_tokens=60))
    run_to_end(engine)
    stats = engine.stats()
    assert stats.accepted_tokens_total > 10
    assert stats.decode_tokens_total == 59
    assert stats.decode_stream_s_total == pytest.approx(0.5 * (stats.steps_total - 1))


def test_the_loop_applies_limits_before_its_next_step(make_request: MakeRequest) -> None:
    """Limits set from another thread judge the next submission at once and hold in the engine, idle or not."""
    engine = Engine(TimedBackend(), EngineConfig(max_running=2, max_waiting=0))
    with EngineLoop(engine) as loop:
        assert loop.limits == loop.max_limits == engine.max_limits
        with pytest.raises(ConfigError):
            loop.set_limits(dataclasses.replace(loop.max_limits, max_running=3))
        lowered = dataclasses.replace(loop.max_limits, max_running=1, max_request_tokens=20)
        loop.set_limits(lowered)
        assert loop.limits == loop.stats().limits == lowered
        with pytest.raises(Overloaded, match="20 tokens"):
            loop.submit(make_request("long", max_tokens=18), lambda _: None)
        ended = threading.Event()
        loop.submit(make_request(max_tokens=4), lambda event: ended.set() if isinstance(event, Finished) else None)
        assert ended.wait(_PATIENCE_S)
    assert engine.stats().limits == lowered


def test_limits_and_submissions_keep_their_order(make_request: MakeRequest) -> None:
    """A request accepted under old limits runs, though lower ones were set before the engine took it."""

    class StuckBackend(TimedBackend):
        entered = threading.Event()
        permit = threading.Event()

        def forward(self, batch: ForwardBatch) -> F32Array:
            self.entered.set()
            assert self.permit.wait(_PATIENCE_S)
            return super().forward(batch)

    backend = StuckBackend()
    ends: list[Finished] = []
    all_ended = threading.Event()

    def sink(event: EngineEvent) -> None:
        if isinstance(event, Finished):
            ends.append(event)
            if len(ends) == 3:
                all_ended.set()

    with EngineLoop(Engine(backend, EngineConfig(max_running=2, max_waiting=1))) as loop:
        loop.submit(make_request("a"), sink)
        assert backend.entered.wait(_PATIENCE_S)
        loop.submit(make_request("b", prompt=(1,) * 40), sink)
        loop.set_limits(dataclasses.replace(loop.max_limits, max_running=1, max_request_tokens=10))
        assert loop.stats().waiting == 1 + 1, "a is not yet counted as running, and a change of limits never"
        with pytest.raises(Overloaded):
            loop.submit(make_request("c"), sink)
        loop.set_limits(loop.max_limits)
        loop.submit(make_request("d"), sink)
        backend.permit.set()
        assert all_ended.wait(_PATIENCE_S)
    assert {(end.request_id, end.reason) for end in ends} == {(name, FinishReason.LENGTH) for name in "abd"}
