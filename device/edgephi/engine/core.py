"""
The engine: requests in, events out, one step at a time.

Wires scheduler, batch, backend and sampler together and guarantees that every request ends exactly once. Not
thread-safe and owns no thread (edgephi.engine.loop does); knows no text. The backend is the creator's to close.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgephi.engine.backend import Backend, F32Array, ForwardBatch
from edgephi.engine.batch import ScheduledRows, build_batch
from edgephi.engine.limits import EngineLimits
from edgephi.engine.pages import PagePool, prefix_keys
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    Finished,
    FinishReason,
    PrefillProgress,
    RequestId,
    TokenSampled,
    check_request,
)
from edgephi.engine.sampling import Sampler
from edgephi.engine.scheduler import Scheduler
from edgephi.engine.sequence import SequenceState
from edgephi.engine.sinks import id_taken
from edgephi.engine.speculation import Speculation
from edgephi.engine.stats import EngineStats
from edgephi.errors import ConfigError, EngineFailed

_DEFAULT_RETRY_MS = 1_000
_MIN_RETRY_MS = 100
_MAX_RETRY_MS = 60_000
_SERVICE_TIME_WEIGHT = 0.2  # of the newest request in the moving average: about the last ten count


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """
    How much the engine does at once, at most: ``Engine.set_limits`` may lower some of it for a while.

    Attributes:
        max_running: Most requests that own pages and take part in a step, at least 1.
        max_waiting: Most requests accepted beyond ``max_running``; 0 refuses what cannot have a place of its own.
        prefill_chunk_tokens: Most prompt tokens in a step of their own, at least 1. More means a sooner first token,
            less means a sooner answer to a cancel.
        mixed_chunk_tokens: Most prompt tokens in a step that other requests decode in, at least 1. A step takes
            longer by each of them, so this bounds the gap that a long prompt makes in a running stream.
        max_draft_tokens: Most guessed tokens checked beside a sequence's next one in a step; 0 for none. Answers are
            the same with any value. How many are worth it is measured all the time (edgephi.engine.speculation).
        max_context_tokens: Longest prompt and answer together, at least 1; None for all that backend and pages hold.
    """

    max_running: int = 4
    max_waiting: int = 32
    prefill_chunk_tokens: int = 64
    mixed_chunk_tokens: int = 16
    max_draft_tokens: int = 0
    max_context_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value, low in (
            ("max_running", self.max_running, 1),
            ("max_waiting", self.max_waiting, 0),
            ("prefill_chunk_tokens", self.prefill_chunk_tokens, 1),
            ("mixed_chunk_tokens", self.mixed_chunk_tokens, 1),
            ("max_draft_tokens", self.max_draft_tokens, 0),
            ("max_context_tokens", self.max_context_tokens, 1),
        ):
            if value is not None and value < low:
                raise ConfigError(f"{name} is {value}; must be at least {low}")


class Engine:
    """
    Generates tokens for many requests at once over one backend.

    Lives from construction until it is dropped; it holds nothing that needs closing. One thread uses it.

    Raises:
        ConfigError: If the backend's batch is smaller than ``max_running``: a stream would have to skip steps.
    """

    def __init__(self, backend: Backend, config: EngineConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.spec = backend.spec
        self.config = config
        self.clock = clock
        if self.spec.max_batch_tokens < config.max_running:
            raise ConfigError(
                f"max_running is {config.max_running} but the backend takes {self.spec.max_batch_tokens} tokens a "
                "step; lower max_running or use a build with a larger batch"
            )
        self._backend = backend
        self._pool = PagePool(self.spec.num_pages, self.spec.page_size)
        self.max_limits = EngineLimits(
            max_running=config.max_running,
            prefill_chunk_tokens=config.prefill_chunk_tokens,
            mixed_chunk_tokens=config.mixed_chunk_tokens,
            max_request_tokens=self.context_tokens,
        )
        self._limits = self.max_limits
        self._scheduler = Scheduler(self._pool, self._limits, max_batch_tokens=self.spec.max_batch_tokens)
        self._speculation: Speculation | None = None
        if config.max_draft_tokens > 0:
            self._speculation = Speculation(
                max_draft_tokens=config.max_draft_tokens, max_batch_tokens=self.spec.max_batch_tokens
            )
        self._sequences: dict[RequestId, SequenceState] = {}
        # Sequences whose last token was the one guessed, with the rows behind it, of the last forward.
        self._ahead: list[tuple[SequenceState, F32Array]] = []
        self._mean_service_s: float | None = None
        self._tokens_prefilled_total = 0
        self._tokens_generated_total = 0
        self._steps_total = 0
        self._cached_tokens_total = 0
        self._drafted_tokens_total = 0
        self._accepted_tokens_total = 0
        self._decode_tokens_total = 0
        self._decode_stream_s_total = 0.0
        self._decode_s_total = 0.0
        self._decoding_since = 0.0  # when the last step ended, if it left a decoding sequence

    @property
    def context_tokens(self) -> int:
        """Longest prompt and answer together that can ever run."""
        fits = min(self.spec.max_context_tokens, self.spec.num_pages * self.spec.page_size)
        return min(fits, self.config.max_context_tokens or fits)

    @property
    def has_work(self) -> bool:
        """Whether :meth:`step` would do anything."""
        return bool(self._sequences)

    @property
    def retry_after_ms(self) -> int:
        """When a place is likely to be free, in milliseconds, judged by how long recent requests ran."""
        if self._mean_service_s is None:
            return _DEFAULT_RETRY_MS
        between_ends_ms = self._mean_service_s * 1e3 / self._limits.max_running
        return min(max(round(between_ends_ms), _MIN_RETRY_MS), _MAX_RETRY_MS)

    def validate(self, request: EngineRequest) -> None:
        """
        Check a request against every limit that does not change. Safe to call from any thread.

        Raises:
            InvalidRequest: If a field is out of bounds.
            PromptTooLong: If it needs more than the context or the whole pool.
        """
        check_request(request, vocab_size=self.spec.vocab_size, context_tokens=self.context_tokens)

    def submit(self, request: EngineRequest, *, submitted_at: float | None = None) -> None:
        """
        Accept a request into the queue, or refuse it.

        Args:
            request: What to generate.
            submitted_at: Engine clock in seconds when the caller asked, if that was earlier than now.

        Raises:
            InvalidRequest: If a field is out of bounds or the id belongs to a live request.
            PromptTooLong: If it needs more than the context or the whole pool.
            Overloaded: If ``max_running + max_waiting`` requests are live, or it needs more tokens than a request may
                have at present.
        """
        self.validate(request)
        if request.request_id in self._sequences:
            raise id_taken(request.request_id)
        self._limits.check_room(
            request,
            num_live=len(self._sequences),
            max_waiting=self.config.max_waiting,
            retry_after_ms=self.retry_after_ms,
        )
        num_prompt = len(request.prompt)
        tokens = np.zeros(num_prompt + request.max_tokens, np.int32)
        tokens[:num_prompt] = request.prompt
        sequence = SequenceState(
            request=request,
            sampler=Sampler(request.sampling, request.prompt, self.spec.vocab_size),
            submitted_at=self.clock() if submitted_at is None else submitted_at,
            tokens=tokens,
            keys=prefix_keys(tokens[:num_prompt], self.spec.page_size),
            num_tokens=num_prompt,
        )
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)

    def set_limits(self, limits: EngineLimits) -> None:
        """
        Change how much is taken on from now on. Accepted requests stay accepted and their answers stay the same.

        With fewer ``max_running`` than run, nothing is admitted until enough of them have ended.

        Raises:
            ConfigError: If a limit is below 1 or above ``max_limits``, what the engine was configured for.
        """
        limits.check_within(self.max_limits)
        self._limits = limits
        self._scheduler.limits = limits
        self._pool.set_keeps_cached(limits.keeps_cached_pages)
        self._release_memory()

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> Finished | None:
        """End a request now and free its pages; None if no such request is live."""
        sequence = self._sequences.get(request_id)
        return None if sequence is None else self._finish(sequence, reason)

    def step(self) -> list[EngineEvent]:
        """
        Draw the next token of each running sequence that can have one, at most one each.

        Runs a forward for it, unless the last one already gave the logits because its guesses were right: then only
        sequences that it ran ahead of get a token. So a cancel takes effect between any two tokens, drafted or not.

        If the backend fails, every running request ends with ERROR and no cached page is used again; waiting
        requests stay, and the next step tries anew.

        Returns:
            Events in the order they happened, each request's own in order; empty without work.
        """
        num_decoding = self._scheduler.num_decoding
        events = self._step()
        now = self.clock()
        # What passed since the last step counts too: streams wait while their tokens are delivered.
        if num_decoding:
            self._decode_stream_s_total += num_decoding * (now - self._decoding_since)
            self._decode_s_total += now - self._decoding_since
        self._decoding_since = now
        return events

    def _step(self) -> list[EngineEvent]:
        ahead = [(sequence, rows) for sequence, rows in self._ahead if self._is_live(sequence)]
        self._ahead = []
        if ahead:
            now = self.clock()
            return [event for sequence, rows in ahead for event in self._draw(sequence, rows, now)]
        started_at = self.clock()
        scheduled = self._scheduler.schedule(started_at)
        if not scheduled:
            return []
        if self._speculation is not None:
            scheduled = self._speculation.extend(scheduled)
        for rows in scheduled:
            if rows.is_prefill and rows.sequence.num_computed == rows.sequence.num_cached:
                self._cached_tokens_total += rows.sequence.num_cached
        self._steps_total += 1
        try:
            logits = self._forward(build_batch(scheduled, self.spec.page_size))
        except Exception as error:  # noqa: BLE001 - whatever a backend raises, its requests end and others go on
            return self._fail_running(error)
        self._scheduler.commit(scheduled)
        if self._speculation is not None and not scheduled[-1].is_prefill:
            num_rows = sum(rows.num_tokens for rows in scheduled)
            self._speculation.observe(num_rows, self.clock() - started_at)
        return self._collect(scheduled, logits)

    def stats(self) -> EngineStats:
        """Gauges and counters as they are now."""
        return EngineStats(
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            pages_total=self._pool.num_pages,
            pages_used=self._pool.num_used,
            pages_cached=self._pool.num_cached,
            context_tokens=sum(sequence.num_computed for sequence in self._scheduler.running),
            tokens_prefilled_total=self._tokens_prefilled_total,
            tokens_generated_total=self._tokens_generated_total,
            steps_total=self._steps_total,
            cached_tokens_total=self._cached_tokens_total,
            drafted_tokens_total=self._drafted_tokens_total,
            accepted_tokens_total=self._accepted_tokens_total,
            decode_tokens_total=self._decode_tokens_total,
            decode_stream_s_total=self._decode_stream_s_total,
            decode_s_total=self._decode_s_total,
            limits=self._limits,
        )

    def check_integrity(self) -> None:
        """Assert that every page is accounted for once. For tests and for a debug run; costs a pass over all pages."""
        running = self._scheduler.running
        self._pool.check_integrity([sequence.pages.tolist() for sequence in running])
        assert len(running) + self._scheduler.num_waiting == len(self._sequences)
        content_of: dict[int, bytes] = {}
        for sequence in running:
            for index, page in enumerate(sequence.pages.tolist()):
                history = sequence.tokens[: (index + 1) * self.spec.page_size].tobytes()
                assert content_of.setdefault(page, history) == history, f"page {page} is shared by different texts"

    def _forward(self, batch: ForwardBatch) -> F32Array:
        logits = self._backend.forward(batch)
        wanted = (len(batch.logit_rows), self.spec.vocab_size)
        if logits.shape != wanted:
            raise EngineFailed(f"the backend returned logits of shape {logits.shape}; expected {wanted}")
        return logits

    def _collect(self, scheduled: tuple[ScheduledRows, ...], logits: F32Array) -> list[EngineEvent]:
        """Draw the first tokens of a committed step; logits are (r, vocab), ``num_logits`` rows of each sequence."""
        events: list[EngineEvent] = []
        now = self.clock()
        next_row = 0
        for rows in scheduled:
            sequence = rows.sequence
            if rows.is_prefill:
                self._tokens_prefilled_total += rows.num_tokens
                events.append(
                    PrefillProgress(
                        request_id=sequence.request.request_id,
                        done_tokens=sequence.num_computed,
                        total_tokens=sequence.prompt_len,
                    )
                )
            if rows.num_logits:
                sequence.num_drafted += rows.num_drafts
                self._drafted_tokens_total += rows.num_drafts
                events += self._draw(sequence, logits[next_row : next_row + rows.num_logits], now)
                next_row += rows.num_logits
        return events

    def _draw(self, sequence: SequenceState, logits: F32Array, now: float) -> list[EngineEvent]:
        """
        Draw the next token of a sequence from the first row; if it is the guess, keep the other rows for the next step.

        Args:
            sequence: A live one.
            logits: (1 + d, vocab_size) float32; row i holds if the next i tokens are the guesses behind the known ones.
            now: Engine clock, seconds.
        """
        request = sequence.request
        guess = int(sequence.tokens[sequence.num_tokens])  # means something only if there is a second row
        try:
            sampled = sequence.sampler.sample(logits[0])
        except EngineFailed as error:
            # What computed such a row may sit in its pages, so nobody may share them.
            return [self._finish(sequence, FinishReason.ERROR, error=str(error), keep_content=False)]
        self._decode_tokens_total += int(sequence.num_output > 0)
        sequence.append(sampled.token_id, now)
        self._tokens_generated_total += 1
        if self._speculation is not None:
            self._speculation.drawn(sequence, sampled.token_id)
        if len(logits) > 1 and sampled.token_id == guess:
            self._accept(sequence, logits[1:])
        if sampled.token_id in request.stop_token_ids:
            return [self._finish(sequence, FinishReason.STOP)]
        token = TokenSampled(request_id=request.request_id, token_id=sampled.token_id, logprobs=sampled.logprobs)
        if sequence.num_output == request.max_tokens:
            return [token, self._finish(sequence, FinishReason.LENGTH)]
        return [token]

    def _release_memory(self) -> None:
        if not self._limits.keeps_cached_pages:
            self._backend.release_pages(self._pool.free_pages)

    def _accept(self, sequence: SequenceState, rows: F32Array) -> None:
        sequence.num_accepted += 1
        self._accepted_tokens_total += 1
        self._scheduler.accept(sequence)
        self._ahead.append((sequence, rows))

    def _is_live(self, sequence: SequenceState) -> bool:
        # Not only the id: it may already belong to a new request.
        return self._sequences.get(sequence.request.request_id) is sequence

    def _fail_running(self, error: Exception) -> list[EngineEvent]:
        message = f"{type(error).__name__}: {error}"
        events: list[EngineEvent] = [
            self._finish(sequence, FinishReason.ERROR, error=message, keep_content=False)
            for sequence in self._scheduler.running
        ]
        self._pool.drop_content()
        return events

    def _finish(
        self,
        sequence: SequenceState,
        reason: FinishReason,
        *,
        error: str | None = None,
        keep_content: bool = True,
    ) -> Finished:
        del self._sequences[sequence.request.request_id]
        if self._speculation is not None and keep_content:
            self._speculation.ended(sequence)
        self._scheduler.remove(sequence, keep_content=keep_content)
        self._release_memory()
        if sequence.first_scheduled_at is not None:
            service_s = self.clock() - sequence.first_scheduled_at
            mean = service_s if self._mean_service_s is None else self._mean_service_s
            self._mean_service_s = mean + _SERVICE_TIME_WEIGHT * (service_s - mean)
        return Finished(
            request_id=sequence.request.request_id,
            reason=reason,
            usage=sequence.usage(),
            timings=sequence.timings(),
            error=error,
        )
