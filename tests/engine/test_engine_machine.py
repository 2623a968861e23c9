"""Random submits, cancels, failures, limits and steps: whatever the interleaving, each answer is as if it ran alone."""

from __future__ import annotations

import functools
from typing import ClassVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgephi.engine.backend import F32Array, ForwardBatch
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.limits import EngineLimits
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    Finished,
    FinishReason,
    RequestId,
    SamplingParams,
    TokenLogprobs,
    TokenSampled,
)
from edgephi.errors import EngineFailed, Overloaded
from edgephi.runtime.fake import FakeBackend

_STOP_TOKEN = 3
_PREFIXES = ((), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9, 9))
_HABIT = 7.0  # makes about two of three tokens predictable
_SAMPLING = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, frequency_penalty=0.7, logprobs=2),
    SamplingParams(temperature=1.2, seed=1),
    SamplingParams(temperature=0.8, seed=2, top_k=9, top_p=0.9, repetition_penalty=1.2, presence_penalty=0.5),
)


Drawn = tuple[tuple[int, TokenLogprobs | None], ...]


class FragileBackend(FakeBackend):
    """A small fake whose next forward can be made to fail, after it has already written to its pages."""

    def __init__(self, num_pages: int) -> None:
        super().__init__(
            vocab_size=40,
            page_size=4,
            num_pages=num_pages,
            max_batch_tokens=9,
            max_context_tokens=48,
            habit=_HABIT,
        )
        self.fails_next = False

    def forward(self, batch: ForwardBatch) -> F32Array:
        logits = super().forward(batch)
        if self.fails_next:
            self.fails_next = False
            raise EngineFailed("as told")
        return logits


@functools.cache
def _alone(prompt: tuple[int, ...], max_tokens: int, sampling: SamplingParams) -> tuple[Drawn, FinishReason]:
    """The answer of a request that has an engine to itself, without guessed tokens."""
    engine = Engine(FragileBackend(num_pages=12), EngineConfig(max_running=1, prefill_chunk_tokens=9))
    engine.submit(_request("alone", prompt, max_tokens, sampling))
    events: list[EngineEvent] = []
    while engine.has_work:
        events += engine.step()
    end = events[-1]
    assert isinstance(end, Finished)
    return _drawn(events), end.reason


def _drawn(events: list[EngineEvent]) -> Drawn:
    return tuple((e.token_id, e.logprobs) for e in events if isinstance(e, TokenSampled))


def _request(name: str, prompt: tuple[int, ...], max_tokens: int, sampling: SamplingParams) -> EngineRequest:
    return EngineRequest(
        request_id=RequestId(name),
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=sampling,
        stop_token_ids=frozenset({_STOP_TOKEN}),
    )


class EngineMachine(RuleBasedStateMachine):
    """An engine with few pages, short pages and a small batch, so that everything happens often."""

    max_draft_tokens: ClassVar = 0

    def __init__(self) -> None:
        super().__init__()
        self.backend = FragileBackend(num_pages=14)
        self.engine = Engine(
            self.backend,
            EngineConfig(max_running=3, max_waiting=4, prefill_chunk_tokens=5, max_draft_tokens=self.max_draft_tokens),
            clock=lambda: 0.0,
        )
        self.requests: dict[RequestId, EngineRequest] = {}
        self.events: dict[RequestId, list[EngineEvent]] = {}

    @rule(
        prefix=st.sampled_from(_PREFIXES),
        rest=st.lists(st.integers(0, 39), min_size=1, max_size=9),
        max_tokens=st.integers(1, 14),
        sampling=st.sampled_from(_SAMPLING),
    )
    def submit(self, prefix: tuple[int, ...], rest: list[int], max_tokens: int, sampling: SamplingParams) -> None:
        request = _request(f"r{len(self.requests)}", (*prefix, *rest), max_tokens, sampling)
        num_live = self.engine.stats().running + self.engine.stats().waiting
        limits = self.engine.stats().limits
        has_room = num_live < limits.max_running + 4
        has_room &= len(request.prompt) + request.max_tokens <= limits.max_request_tokens
        try:
            self.engine.submit(request)
        except Overloaded:
            assert not has_room
        else:
            assert has_room
            self.requests[request.request_id] = request
            self.events[request.request_id] = []

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), reason=st.sampled_from([FinishReason.CANCELLED, FinishReason.DEADLINE, FinishReason.STOP]))
    def cancel(self, data: st.DataObject, reason: FinishReason) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        end = self.engine.cancel(request_id, reason)
        assert (end is None) == self._has_ended(request_id)
        if end is not None:
            assert end.reason is reason
            self.events[request_id].append(end)

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            before = self.engine.stats()
            for event in self.engine.step():
                self.events[event.request_id].append(event)
            self.engine.check_integrity()
            assert self.engine.stats().running <= max(before.running, before.limits.max_running)

    @rule(
        max_running=st.integers(1, 3),
        prefill=st.integers(1, 5),
        mixed=st.integers(1, 16),
        max_request_tokens=st.integers(1, 48),
        keeps_cached_pages=st.booleans(),
    )
    def limit(
        self, max_running: int, prefill: int, mixed: int, max_request_tokens: int, keeps_cached_pages: bool
    ) -> None:
        running = self.engine.stats().running
        self.engine.set_limits(
            EngineLimits(
                max_running=max_running,
                prefill_chunk_tokens=prefill,
                mixed_chunk_tokens=mixed,
                max_request_tokens=max_request_tokens,
                keeps_cached_pages=keeps_cached_pages,
            )
        )
        stats = self.engine.stats()
        assert stats.running == running
        assert keeps_cached_pages or stats.pages_cached == 0

    @rule()
    def fail(self) -> None:
        self.backend.fails_next = True

    @invariant()
    def books_hold(self) -> None:
        self.engine.check_integrity()
        for events in self.events.values():
            assert not any(isinstance(e, Finished) for e in events[:-1]), "an event after the end"
        num_live = sum(not self._has_ended(request_id) for request_id in self.requests)
        assert num_live == self.engine.stats().running + self.engine.stats().waiting

    def teardown(self) -> None:
        num_steps = 0
        while self.engine.has_work:
            self.step(1)
            num_steps += 1
            assert num_steps < 500, "the engine makes no progress"
        stats = self.engine.stats()
        assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
        assert stats.accepted_tokens_total <= stats.drafted_tokens_total <= 3 * stats.tokens_generated_total
        for request_id, events in self.events.items():
            self._check_answer(self.requests[request_id], events)

    def _has_ended(self, request_id: RequestId) -> bool:
        events = self.events[request_id]
        return bool(events) and isinstance(events[-1], Finished)

    def _check_answer(self, request: EngineRequest, events: list[EngineEvent]) -> None:
        end = events[-1]
        assert isinstance(end, Finished)
        answer = _drawn(events)
        expected, reason = _alone(request.prompt, request.max_tokens, request.sampling)
        is_complete = end.error is None and end.usage.output_tokens == len(expected) + (reason is FinishReason.STOP)
        if is_complete:
            assert (answer, end.reason) == (expected, reason)
        else:
            assert end.reason is not FinishReason.LENGTH
            assert answer == expected[: len(answer)]


class DraftingEngineMachine(EngineMachine):
    """The same with guessed tokens in most steps: the clock stands still, so they seem to cost nothing."""

    max_draft_tokens: ClassVar = 3


_SETTINGS = settings(max_examples=80, stateful_step_count=40, deadline=None)
EngineMachine.TestCase.settings = _SETTINGS
DraftingEngineMachine.TestCase.settings = _SETTINGS
TestEngine = EngineMachine.TestCase
TestDraftingEngine = DraftingEngineMachine.TestCase
