"""Guessed tokens: they change no answer, stay within every bound, and are left out where they do not pay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from edgephi.engine.backend import F32Array, ForwardBatch
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    Finished,
    FinishReason,
    RequestId,
    SamplingParams,
    TokenSampled,
)
from edgephi.engine.speculation import StepTimes
from edgephi.errors import ConfigError
from edgephi.runtime.fake import FakeBackend

MakeRequest = Callable[..., EngineRequest]
RunToEnd = Callable[[Engine], dict[RequestId, list[EngineEvent]]]

PROMPT = (1, 2, 3)


class Clock(Protocol):
    def __call__(self) -> float: ...

    def advance(self, seconds: float) -> None: ...


class TimedBackend(FakeBackend):
    """A fake that keeps its batches and whose forwards take as long, by the engine's clock, as their rows say."""

    def __init__(self, clock: Clock, *, row_s: float = 0.0, habit: float = 9.0, max_batch_tokens: int = 32) -> None:
        super().__init__(
            vocab_size=30,
            page_size=4,
            num_pages=200,
            max_batch_tokens=max_batch_tokens,
            max_context_tokens=400,
            habit=habit,
        )
        self.clock = clock
        self.row_s = row_s
        self.batches: list[ForwardBatch] = []
        self.bad_row: int | None = None

    def forward(self, batch: ForwardBatch) -> F32Array:
        self.batches.append(batch)
        self.clock.advance(1.0 + self.row_s * (len(batch.tokens) - 1))
        logits = super().forward(batch)
        if self.bad_row is not None and len(logits) > self.bad_row:
            logits[self.bad_row] = np.nan
        return logits

    @property
    def decodes(self) -> list[ForwardBatch]:
        """Batches in which every row wants logits."""
        return [batch for batch in self.batches if len(batch.logit_rows) == len(batch.tokens)]


def _engine(backend: TimedBackend, max_draft_tokens: int = 6, **config: int) -> Engine:
    return Engine(backend, EngineConfig(max_draft_tokens=max_draft_tokens, **config), clock=backend.clock)


def _drawn(events: list[EngineEvent]) -> list[object]:
    return [(e.token_id, e.logprobs) for e in events if isinstance(e, TokenSampled)]


def _end(events: list[EngineEvent]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    prompt=st.lists(st.integers(0, 29), min_size=1, max_size=20),
    max_tokens=st.integers(1, 60),
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    top_p=st.sampled_from([0.8, 1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    max_draft_tokens=st.integers(1, 9),
    habit=st.sampled_from([4.0, 9.0]),
)
def test_guesses_change_nothing(
    seed: int,
    prompt: list[int],
    max_tokens: int,
    temperature: float,
    top_p: float,
    frequency_penalty: float,
    max_draft_tokens: int,
    habit: float,
) -> None:
    """Tokens, log-probabilities, end and counts of an answer are the same with guesses and without, drawn or greedy."""
    sampling = SamplingParams(
        temperature=temperature, top_p=top_p, frequency_penalty=frequency_penalty, seed=seed % 2**31, logprobs=2
    )
    request = EngineRequest(
        request_id=RequestId("r"),
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        sampling=sampling,
        stop_token_ids=frozenset({7}),
    )
    found = []
    for drafts in (0, max_draft_tokens):
        backend = FakeBackend(vocab_size=30, page_size=4, num_pages=40, habit=habit)
        engine = Engine(backend, EngineConfig(max_draft_tokens=drafts), clock=lambda: 0.0)
        engine.submit(request)
        events: list[EngineEvent] = []
        while engine.has_work:
            events += engine.step()
            engine.check_integrity()
        end = _end(events)
        found.append((_drawn(events), end.reason, end.usage.output_tokens))
    assert found[0] == found[1]


def test_predictable_answers_take_few_forwards(make_request: MakeRequest, run_to_end: RunToEnd, clock: Clock) -> None:
    """Where rows are free and tokens follow a habit, a forward gives several, and the counters say how many."""
    backend = TimedBackend(clock)
    engine = _engine(backend)
    engine.submit(make_request(max_tokens=120))
    end = _end(run_to_end(engine)[RequestId("r")])
    stats = engine.stats()
    assert end.usage.output_tokens == 120
    assert stats.steps_total == len(backend.batches) < 60
    assert stats.steps_total == 120 - stats.accepted_tokens_total
    assert (end.usage.drafted_tokens, end.usage.accepted_tokens) == (
        stats.drafted_tokens_total,
        stats.accepted_tokens_total,
    )
    assert stats.accepted_tokens_total <= stats.drafted_tokens_total
    assert stats.drafted_tokens_total == sum(len(batch.tokens) - 1 for batch in backend.decodes)


@pytest.mark.parametrize("habit", [0.0, 4.0, 9.0])
@pytest.mark.parametrize("row_s", [0.02, 0.3, 1.0])
def test_guesses_never_cost_much(make_request: MakeRequest, clock: Clock, row_s: float, habit: float) -> None:
    """Whatever rows cost and however predictable the answer, it takes at most 5 % longer than without guesses."""
    seconds = []
    for drafts in (0, 6):
        backend = TimedBackend(clock, row_s=row_s, habit=habit)
        engine = _engine(backend, drafts)
        started_at = clock()
        for index in range(3):
            engine.submit(make_request(f"r{index}", prompt=(index, 2, 3), max_tokens=110))
            while engine.has_work:
                engine.step()
        seconds.append(clock() - started_at)
    assert seconds[1] <= 1.05 * seconds[0]
    if habit > 4 and row_s < 0.1:
        assert seconds[1] < 0.6 * seconds[0]


def test_guesses_stop_when_rows_become_dear_and_come_back(make_request: MakeRequest, clock: Clock) -> None:
    """The cost of rows is measured all the time: when it rises guesses all but end, and they return when it falls."""
    backend = TimedBackend(clock, row_s=0.0, habit=30.0)
    engine = _engine(backend)

    def rows_of_next(count: int) -> float:
        first = len(backend.decodes)
        while len(backend.decodes) < first + count:
            if not engine.has_work:
                engine.submit(make_request(max_tokens=390))
            engine.step()
        return float(np.mean([len(batch.tokens) for batch in backend.decodes[first:]]))

    rows_of_next(16)  # until the answer repeats itself
    assert rows_of_next(4) > 4
    backend.row_s = 2.0
    rows_of_next(12)
    assert rows_of_next(60) < 1.5
    backend.row_s = 0.0
    rows_of_next(150)
    assert rows_of_next(5) > 4


def test_rows_stay_within_the_batch_and_every_stream_has_its_own(
    make_request: MakeRequest, run_to_end: RunToEnd, clock: Clock
) -> None:
    """Guesses fill what the decodes leave of the batch, and no sequence misses a step because of them."""
    backend = TimedBackend(clock, max_batch_tokens=6)
    engine = _engine(backend, max_running=4)
    for index in range(4):
        engine.submit(make_request(f"r{index}", prompt=(index, 5), max_tokens=60))
    run_to_end(engine)
    sizes = [len(batch.tokens) for batch in backend.decodes if len(batch.kv_len) == 4]
    assert max(sizes) == 6
    assert engine.stats().accepted_tokens_total > 20
    assert all(len(batch.tokens) <= 6 for batch in backend.batches)


def test_a_step_that_others_wait_for_grows_little(
    make_request: MakeRequest, run_to_end: RunToEnd, clock: Clock
) -> None:
    """Beside another stream guesses may stretch a step by a quarter, even where more would give more tokens in all."""
    backend = TimedBackend(clock, row_s=0.1)
    engine = _engine(backend, max_running=2)
    for index in range(2):
        engine.submit(make_request(f"r{index}", prompt=(index, 5), max_tokens=100))
    run_to_end(engine)
    together = [len(batch.tokens) for batch in backend.decodes if len(batch.kv_len) == 2]
    alone = TimedBackend(clock, row_s=0.1)
    engine = _engine(alone)
    engine.submit(make_request(max_tokens=100))
    run_to_end(engine)
    assert max(len(batch.tokens) for batch in alone.decodes) > 5
    # Two rows take 1.1 s, so four may be used; more only to measure them.
    assert float(np.mean(np.array(together) > 4)) < 0.1


def test_no_guesses_beside_a_prompt(make_request: MakeRequest, clock: Clock) -> None:
    """While a prompt is computed a stream brings one row a step."""
    backend = TimedBackend(clock)
    engine = _engine(backend, mixed_chunk_tokens=4)
    engine.submit(make_request("stream", max_tokens=150))
    while engine.stats().accepted_tokens_total < 10:
        engine.step()
    engine.submit(make_request("long", prompt=tuple(range(28)), max_tokens=2))
    while engine.stats().running < 2:
        engine.step()
    while engine.stats().tokens_prefilled_total < len(PROMPT) + 28:
        engine.step()
    mixed = [batch for batch in backend.batches if len(batch.kv_len) == 2 and len(batch.logit_rows) < 3]
    assert len(mixed) >= 6
    assert all(batch.row_start[1] == 1 for batch in mixed)


def test_no_guess_reaches_beyond_the_last_token(make_request: MakeRequest, run_to_end: RunToEnd, clock: Clock) -> None:
    """The last token of an answer is drawn and never computed, so no row stands where it would."""
    for max_tokens in range(1, 40):
        backend = TimedBackend(clock, habit=30.0)
        engine = _engine(backend)
        engine.submit(make_request(max_tokens=max_tokens))
        events = run_to_end(engine)[RequestId("r")]
        assert len(_drawn(events)) == max_tokens
        assert _end(events).reason is FinishReason.LENGTH
        assert max(int(batch.kv_len.max()) for batch in backend.batches) <= len(PROMPT) + max_tokens - 1


def test_each_step_gives_one_token_and_a_cancel_takes_effect_between_them(
    make_request: MakeRequest, run_to_end: RunToEnd, clock: Clock
) -> None:
    """Tokens that a forward gave at once are drawn one a step; a cancel among them ends the answer right there."""
    backend = TimedBackend(clock, habit=30.0)
    engine = _engine(backend)
    engine.submit(make_request(max_tokens=100))
    num_drawn = 0
    while engine.stats().steps_total == len(backend.batches) and engine.stats().accepted_tokens_total < 5:
        num_drawn += sum(isinstance(event, TokenSampled) for event in engine.step())
    before = len(backend.batches)
    num_drawn += sum(isinstance(event, TokenSampled) for event in engine.step())
    assert len(backend.batches) == before, "this token came from the forward before"
    end = engine.cancel(RequestId("r"))
    assert end is not None
    assert end.usage.output_tokens == num_drawn
    assert engine.stats().pages_used == 0
    engine.check_integrity()

    # The same id at once: what was left of the first request's rows is not its successor's.
    engine.submit(make_request(prompt=(9, 8), max_tokens=30))
    again = run_to_end(engine)[RequestId("r")]
    alone = _engine(TimedBackend(clock, habit=30.0), 0)
    alone.submit(make_request(prompt=(9, 8), max_tokens=30))
    assert _drawn(again) == _drawn(run_to_end(alone)[RequestId("r")])


def test_nan_counts_only_where_it_is_drawn_from(make_request: MakeRequest, run_to_end: RunToEnd, clock: Clock) -> None:
    """A row of NaN behind an accepted guess ends the answer at its place; behind a wrong guess nobody looks at it."""
    plain = _engine(TimedBackend(clock, habit=30.0), 0)
    plain.submit(make_request(max_tokens=60))
    expected = _drawn(run_to_end(plain)[RequestId("r")])
    for bad_row, habit in ((2, 30.0), (2, 0.0)):
        backend = TimedBackend(clock, habit=habit)
        engine = _engine(backend)
        engine.submit(make_request(max_tokens=60))
        backend.bad_row = bad_row
        events = run_to_end(engine)[RequestId("r")]
        if habit:
            assert _end(events).reason is FinishReason.ERROR
            assert 2 < len(_drawn(events)) < 60
            assert _drawn(events) == expected[: len(_drawn(events))]
            assert engine.stats().pages_cached == 0
        else:
            assert engine.stats().drafted_tokens_total > 0
            assert _end(events).reason is FinishReason.LENGTH


def test_a_later_request_profits_from_an_earlier_answer(
    make_request: MakeRequest, run_to_end: RunToEnd, clock: Clock
) -> None:
    """An answer like the one before takes fewer forwards, although its prompt has nothing of it."""
    script = tuple(range(10, 26))
    backend = FakeBackend(vocab_size=30, script=script, eos_token_id=0)
    engine = Engine(backend, EngineConfig(max_draft_tokens=6), clock=lambda: 0.0)
    forwards = []
    for name in ("first", "second"):
        before = engine.stats().steps_total
        engine.submit(make_request(name, max_tokens=40, stop_token_ids=frozenset({0})))
        events = run_to_end(engine)[RequestId(name)]
        assert [e.token_id for e in events if isinstance(e, TokenSampled)] == list(script)
        assert _end(events).reason is FinishReason.STOP
        forwards.append(engine.stats().steps_total - before)
    assert forwards[0] == len(script) + 1
    assert forwards[1] <= len(script) // 2


def test_a_negative_number_of_guesses_is_refused() -> None:
    """A configuration out of bounds is refused with its name."""
    with pytest.raises(ConfigError, match="max_draft_tokens is -1"):
        EngineConfig(max_draft_tokens=-1)


def test_step_times_are_read_between_and_beyond_what_was_measured() -> None:
    """Between two known times the line through them counts; beyond the last one hope, until it is measured."""
    times = StepTimes()
    assert not times.knows(1)
    for _ in range(3):
        times.observe(1, 1.0)
        times.observe(5, 3.0)
    expected = times.expected(1, 20)
    assert expected[:5] == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0])
    assert 3.0 < expected[5] < expected[6] < 3.2
    assert len(expected) == 10, "as far as ten rows, twice what is known"


def test_step_times_grow_old_and_forgive_an_interruption() -> None:
    """A time is forgotten when it was not measured for long, and one slow step hardly moves it."""
    times = StepTimes()
    for _ in range(10):
        times.observe(2, 1.0)
    times.observe(2, 50.0)
    assert times.expected(2, 0)[0] < 1.3
    for _ in range(130):
        times.observe(1, 0.5)
    assert times.knows(1)
    assert not times.knows(2)
