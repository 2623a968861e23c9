"""Engine over FakeBackend: events, limits, sharing and failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import pytest

from edgephi.engine.backend import F32Array, ForwardBatch
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    Finished,
    FinishReason,
    PrefillProgress,
    RequestId,
    SamplingParams,
    TokenSampled,
)
from edgephi.errors import ConfigError, InvalidRequest, Overloaded, PromptTooLong
from edgephi.runtime.fake import FakeBackend

MakeRequest = Callable[..., EngineRequest]
RunToEnd = Callable[[Engine], dict[RequestId, list[EngineEvent]]]


class Clock(Protocol):
    def __call__(self) -> float: ...

    def advance(self, seconds: float) -> None: ...


class RecordingBackend(FakeBackend):
    """A fake that keeps the batches it ran and can be told to break."""

    def __init__(
        self, *, num_pages: int = 64, max_batch_tokens: int = 32, script: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(
            vocab_size=50,
            page_size=4,
            num_pages=num_pages,
            max_batch_tokens=max_batch_tokens,
            max_context_tokens=128,
            script=script,
        )
        self.batches: list[ForwardBatch] = []
        self.error: Exception | None = None
        self.bad_row: int | None = None

    def forward(self, batch: ForwardBatch) -> F32Array:
        self.batches.append(batch)
        if self.error is not None:
            raise self.error
        logits = super().forward(batch)
        if self.bad_row is not None:
            logits[self.bad_row] = np.nan
        return logits


def _tokens(events: list[EngineEvent]) -> list[int]:
    return [e.token_id for e in events if isinstance(e, TokenSampled)]


def _end(events: list[EngineEvent]) -> Finished:
    ends = [e for e in events if isinstance(e, Finished)]
    assert len(ends) == 1
    assert events[-1] is ends[0]
    return ends[0]


def test_a_script_is_answered_and_ends_at_the_stop_token(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """Scripted tokens are reported, the stop token is only counted, and all pages are free at the end."""
    engine = Engine(RecordingBackend(script=(7, 8, 9)), EngineConfig())
    engine.submit(make_request(max_tokens=20, stop_token_ids=frozenset({0})))
    events = run_to_end(engine)[RequestId("r")]
    assert _tokens(events) == [7, 8, 9]
    end = _end(events)
    assert end.reason is FinishReason.STOP
    assert (end.usage.prompt_tokens, end.usage.output_tokens) == (3, 4)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    assert (stats.tokens_prefilled_total, stats.tokens_generated_total, stats.steps_total) == (3, 4, 4)


def test_max_tokens_ends_with_length(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """The last allowed token is still reported before the request ends."""
    engine = Engine(RecordingBackend(script=(7, 8, 9)), EngineConfig())
    engine.submit(make_request(max_tokens=2))
    events = run_to_end(engine)[RequestId("r")]
    assert _tokens(events) == [7, 8]
    assert _end(events).reason is FinishReason.LENGTH


def test_a_request_may_fill_the_whole_context(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """Prompt and max_tokens may add up to exactly the context, and one more is refused with the numbers."""
    engine = Engine(RecordingBackend(num_pages=8), EngineConfig())
    engine.submit(make_request(prompt=(1,) * 20, max_tokens=12))
    assert _end(run_to_end(engine)[RequestId("r")]).usage.output_tokens == 12
    with pytest.raises(PromptTooLong) as caught:
        engine.submit(make_request(prompt=(1,) * 20, max_tokens=13))
    assert (caught.value.prompt_tokens, caught.value.max_tokens, caught.value.context_tokens) == (20, 13, 32)


def test_the_backend_s_context_limits_as_well_as_the_pool(make_request: MakeRequest) -> None:
    """With a large pool the backend's own context is what counts."""
    engine = Engine(RecordingBackend(num_pages=64), EngineConfig())
    assert engine.context_tokens == 128
    with pytest.raises(PromptTooLong):
        engine.validate(make_request(prompt=(1,) * 100, max_tokens=29))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": ()}, "prompt"),
        ({"prompt": (1, 50)}, "prompt"),
        ({"prompt": (-1, 1)}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"sampling": SamplingParams(top_p=0.0)}, "top_p"),
    ],
)
def test_bad_fields_are_named(make_request: MakeRequest, changes: dict[str, object], field: str) -> None:
    """A field out of bounds refuses the request, naming the field, and nothing is queued."""
    engine = Engine(RecordingBackend(), EngineConfig())
    with pytest.raises(InvalidRequest) as caught:
        engine.submit(make_request(**changes))
    assert [v.field for v in caught.value.violations] == [field]
    assert not engine.has_work


def test_a_live_id_is_refused_and_a_finished_one_is_free_again(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """An id is unique among live requests only."""
    engine = Engine(RecordingBackend(), EngineConfig())
    engine.submit(make_request())
    with pytest.raises(InvalidRequest, match="live request"):
        engine.submit(make_request())
    run_to_end(engine)
    engine.submit(make_request())


def test_the_queue_is_bounded(make_request: MakeRequest, run_to_end: RunToEnd, clock: Clock) -> None:
    """Beyond max_running and max_waiting a request is refused with a delay that follows how long requests take."""
    engine = Engine(RecordingBackend(), EngineConfig(max_running=2, max_waiting=1), clock=clock)
    for name in "abc":
        engine.submit(make_request(name))
    with pytest.raises(Overloaded) as caught:
        engine.submit(make_request("d"))
    assert caught.value.retry_after_ms == 1000
    while engine.has_work:
        engine.step()
        clock.advance(2.0)
    assert 1000 < engine.retry_after_ms < 10_000
    engine.submit(make_request("d"))


@pytest.mark.parametrize("field", ["max_running", "prefill_chunk_tokens"])
def test_a_config_out_of_bounds_is_refused(field: str) -> None:
    """A configuration that could not serve anybody is refused with its name."""
    with pytest.raises(ConfigError, match=field):
        EngineConfig(**{field: 0})


def test_a_batch_too_small_for_all_streams_is_refused() -> None:
    """If not every running stream could have a row in each step, the engine does not start."""
    with pytest.raises(ConfigError, match="max_running"):
        Engine(RecordingBackend(max_batch_tokens=3), EngineConfig(max_running=4))


def test_a_long_prompt_never_stalls_a_stream(make_request: MakeRequest) -> None:
    """While a long prompt is computed in chunks, a running stream gets one token in every step."""
    backend = RecordingBackend()
    engine = Engine(backend, EngineConfig(prefill_chunk_tokens=8))
    engine.submit(make_request("stream", max_tokens=40))
    engine.step()
    engine.submit(make_request("long", prompt=tuple(range(45)), max_tokens=2))
    chunks: list[int] = []
    while len(chunks) < 6:
        events = engine.step()
        assert next(e.request_id for e in events if isinstance(e, TokenSampled)) == "stream"
        chunks += [e.done_tokens for e in events if isinstance(e, PrefillProgress)]
    assert chunks == [8, 16, 24, 32, 40, 45]
    assert all(len(batch.tokens) <= 9 for batch in backend.batches)


def test_a_prompt_goes_slower_beside_a_stream(make_request: MakeRequest) -> None:
    """A prompt is computed in chunks of mixed_chunk_tokens while a stream decodes, and in larger ones alone."""
    engine = Engine(RecordingBackend(), EngineConfig(prefill_chunk_tokens=16, mixed_chunk_tokens=4))
    engine.submit(make_request("stream", max_tokens=3))
    engine.step()
    engine.submit(make_request("long", prompt=tuple(range(40)), max_tokens=2))
    chunks: list[int] = []
    while not chunks or chunks[-1] < 40:
        chunks += [e.done_tokens for e in engine.step() if isinstance(e, PrefillProgress)]
    assert chunks == [4, 8, 24, 40], "two steps beside the stream's last two tokens, then alone"


def test_rows_never_exceed_the_backend_s_batch(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """A chunk shrinks to what the decodes leave of the batch."""
    backend = RecordingBackend(max_batch_tokens=5)
    engine = Engine(backend, EngineConfig(max_running=4, prefill_chunk_tokens=64))
    for name in "abcd":
        engine.submit(make_request(name, prompt=(1, 2, 3, 4, 5, 6, 7), max_tokens=12))
    run_to_end(engine)
    sizes = [len(batch.tokens) for batch in backend.batches]
    assert max(sizes) == 5
    assert max(len(batch.kv_len) for batch in backend.batches) == 4


def test_requests_start_in_order_and_no_more_than_max_running(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """First come, first served, and max_running bounds the sequences of a step."""
    backend = RecordingBackend()
    engine = Engine(backend, EngineConfig(max_running=2))
    for index in range(5):
        engine.submit(make_request(f"r{index}", prompt=(index + 1, 1), max_tokens=3))
    finished = [r for r, events in run_to_end(engine).items() if _end(events)]
    assert finished == [f"r{i}" for i in range(5)]
    assert max(len(batch.kv_len) for batch in backend.batches) == 2


def test_admission_waits_for_pages(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """A request starts only when its whole answer has pages, so a running one never has to give way."""
    backend = RecordingBackend(num_pages=8)
    engine = Engine(backend, EngineConfig())
    for name in "ab":
        engine.submit(make_request(name, prompt=(ord(name) % 50, 2, 3, 4), max_tokens=16))  # five pages of eight
    engine.step()
    engine.step()
    assert (engine.stats().running, engine.stats().waiting, engine.stats().pages_used) == (1, 1, 5)
    ends = [_end(events) for events in run_to_end(engine).values()]
    assert [end.usage.output_tokens for end in ends] == [16, 16]


def test_a_shared_prefix_is_computed_once(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """A prompt that continues an earlier conversation reuses its full pages and gets the same answer as without."""
    backend = RecordingBackend()
    engine = Engine(backend, EngineConfig(prefill_chunk_tokens=2))
    engine.submit(make_request("first", prompt=tuple(range(10)), max_tokens=9))
    first = run_to_end(engine)[RequestId("first")]
    prompt = (*range(10), *_tokens(first), 30, 31)
    engine.submit(make_request("second", prompt=prompt, max_tokens=6))
    second = run_to_end(engine)[RequestId("second")]
    assert _end(second).usage.cached_tokens == 16  # all pages full of computed tokens: 10 + 8 of the answer, by fours
    assert engine.stats().cached_tokens_total == 16

    alone = Engine(RecordingBackend(), EngineConfig())
    alone.submit(make_request("second", prompt=prompt, max_tokens=6))
    assert _tokens(run_to_end(alone)[RequestId("second")]) == _tokens(second)


def test_simultaneous_equal_prompts_share_pages(make_request: MakeRequest) -> None:
    """A request admitted beside one with the same prompt shares its pages; both count them once."""
    engine = Engine(RecordingBackend(), EngineConfig())
    for name in "ab":
        engine.submit(make_request(name, prompt=tuple(range(9)), max_tokens=3))
    engine.step()
    assert engine.stats().pages_used == 3
    engine.step()
    engine.check_integrity()
    assert engine.stats().pages_used == 4


def test_a_failing_backend_ends_only_what_runs(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """Running requests end with ERROR, cached pages are dropped, and waiting requests run once it works again."""
    backend = RecordingBackend()
    engine = Engine(backend, EngineConfig(max_running=1))
    engine.submit(make_request("cached", prompt=tuple(range(9))))
    run_to_end(engine)
    assert engine.stats().pages_cached == 3
    for name in "ab":
        engine.submit(make_request(name, prompt=tuple(range(9))))
    engine.step()
    backend.error = OSError("device lost")
    (event,) = engine.step()
    assert isinstance(event, Finished)
    assert (event.request_id, event.reason, event.error) == ("a", FinishReason.ERROR, "OSError: device lost")
    assert (engine.stats().pages_used, engine.stats().pages_cached) == (0, 0)
    engine.check_integrity()
    backend.error = None
    end = _end(run_to_end(engine)[RequestId("b")])
    assert (end.reason, end.usage.cached_tokens) == (FinishReason.LENGTH, 0)


def test_logits_of_the_wrong_shape_are_a_failure(make_request: MakeRequest) -> None:
    """A backend that answers with another number of rows ends its requests with ERROR, not with wrong tokens."""

    class ShortBackend(FakeBackend):
        def forward(self, batch: ForwardBatch) -> F32Array:
            return super().forward(batch)[:, :-1]

    engine = Engine(ShortBackend(vocab_size=50), EngineConfig())
    engine.submit(make_request())
    (event,) = engine.step()
    assert isinstance(event, Finished)
    assert event.reason is FinishReason.ERROR
    assert event.error is not None
    assert "(1, 49)" in event.error


def test_nan_logits_end_only_their_own_request(make_request: MakeRequest, run_to_end: RunToEnd) -> None:
    """A row of NaN ends its request with ERROR, its pages are not shared afterwards, and others are untouched."""
    backend = RecordingBackend()
    engine = Engine(backend, EngineConfig())
    engine.submit(make_request("good", prompt=(4, 5, 6), max_tokens=8))
    engine.step()
    engine.submit(make_request("bad", prompt=tuple(range(9))))
    backend.bad_row = 1
    events = engine.step()
    backend.bad_row = None
    end = _end([e for e in events if e.request_id == "bad"])
    assert end.reason is FinishReason.ERROR
    assert engine.stats().pages_cached == 0
    assert _end(run_to_end(engine)[RequestId("good")]).reason is FinishReason.LENGTH


def test_cancel_frees_pages_at_once(make_request: MakeRequest) -> None:
    """Cancelling a running, a waiting or an unknown request is immediate, and pages are free when it returns."""
    backend = RecordingBackend()
    engine = Engine(backend, EngineConfig(max_running=1))
    engine.submit(make_request("runs"))
    engine.submit(make_request("waits"))
    engine.step()
    end = engine.cancel(RequestId("waits"), FinishReason.DEADLINE)
    assert end is not None
    assert end.reason is FinishReason.DEADLINE
    assert end.timings.queue_s == 0.0
    end = engine.cancel(RequestId("runs"))
    assert end is not None
    assert end.usage.output_tokens == 1
    assert engine.cancel(RequestId("runs")) is None
    assert engine.stats().pages_used == 0
    assert not engine.has_work
    assert engine.step() == []
    assert len(backend.batches) == 1


def test_timings_follow_the_clock(make_request: MakeRequest, clock: Clock) -> None:
    """Queue, prefill and decode are measured from submission to first step, to first token and to last token."""

    class SlowBackend(FakeBackend):
        def forward(self, batch: ForwardBatch) -> F32Array:
            clock.advance(0.5)
            return super().forward(batch)

    engine = Engine(SlowBackend(vocab_size=50), EngineConfig(prefill_chunk_tokens=4), clock=clock)
    engine.submit(make_request(prompt=tuple(range(10)), max_tokens=5), submitted_at=clock() - 1.0)
    clock.advance(2.0)
    events: list[EngineEvent] = []
    while engine.has_work:
        events += engine.step()
    timings = _end(events).timings
    assert (timings.queue_s, timings.prefill_s, timings.decode_s) == (3.0, 1.5, 2.0)
