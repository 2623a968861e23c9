"""
Who computes what in the next step: continuous batching with chunked prefill.

Owns the waiting queue, the running list and, through the pool, every page. Never sees logits. A step is
schedule -> run -> commit:

    rows of one step   [d][d][d][p p p p p p p p p p]
                        |        |
                        |        one chunk of prefill of the one request that is prefilling
                        every running decode, one row each

so a long prompt delays a running stream by the time of one chunk at most, and never skips its turn. Beside decodes
the chunk is smaller, because a stream waits for it; alone it is larger, because only its own first token does.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from edgephi.engine.batch import ScheduledRows
from edgephi.engine.limits import EngineLimits
from edgephi.engine.pages import PagePool, page_key
from edgephi.engine.sequence import SequenceState


class Scheduler:
    """
    First come, first served. Lives as long as its engine; needs no closing.

    A request is admitted only when the pages of its prompt and its longest answer are free, so a running request
    never has to give way. At most one request is prefilling: the next one is admitted when its prompt is done,
    which also lets it share that prompt's pages.

    Attributes:
        limits: How much it takes on; may be replaced between steps by others whose ``max_running`` is not above the
            one it was made with.
    """

    def __init__(self, pool: PagePool, limits: EngineLimits, *, max_batch_tokens: int) -> None:
        assert max_batch_tokens >= limits.max_running > 0, "a decode would be left out of a step"
        self.limits = limits
        self._pool = pool
        self._max_batch_tokens = max_batch_tokens
        self._waiting: deque[SequenceState] = deque()
        self._running: list[SequenceState] = []  # in order of admission

    @property
    def running(self) -> tuple[SequenceState, ...]:
        """Admitted sequences, oldest first."""
        return tuple(self._running)

    @property
    def num_running(self) -> int:
        """Admitted sequences."""
        return len(self._running)

    @property
    def num_decoding(self) -> int:
        """Admitted sequences whose prompt is computed."""
        return sum(not sequence.is_prefilling for sequence in self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that own no pages yet."""
        return len(self._waiting)

    def add(self, sequence: SequenceState) -> None:
        """Put a sequence at the end of the queue."""
        self._waiting.append(sequence)

    def schedule(self, now: float) -> tuple[ScheduledRows, ...]:
        """
        Choose the rows of the next step, admitting a waiting request if there is room.

        Args:
            now: Engine clock, seconds.

        Returns:
            The decodes, then the chunk of prefill if any; empty only when there is no request at all.
        """
        prefilling = next((s for s in self._running if s.is_prefilling), None)
        if prefilling is None and self._can_admit():
            prefilling = self._admit(now)
        scheduled = [
            ScheduledRows(sequence, 1, is_prefill=False, num_logits=1)
            for sequence in self._running
            if not sequence.is_prefilling
        ]
        if prefilling is not None:
            remaining = prefilling.prompt_len - prefilling.num_computed
            chunk = min(remaining, self.limits.prefill_chunk_tokens, self._max_batch_tokens - len(scheduled))
            if scheduled:
                chunk = min(chunk, self.limits.mixed_chunk_tokens)
            scheduled.append(ScheduledRows(prefilling, chunk, is_prefill=True, num_logits=int(chunk == remaining)))
        assert scheduled or not self._waiting, "a waiting request that fits an empty pool was not admitted"
        return tuple(scheduled)

    def commit(self, scheduled: tuple[ScheduledRows, ...]) -> None:
        """
        Record that a step's rows are in their pages, and offer the pages it filled for sharing.

        Rows of guessed tokens do not count until :meth:`accept`; those never accepted are overwritten by later steps.
        """
        for rows in scheduled:
            self._advance(rows.sequence, rows.num_tokens - rows.num_drafts)

    def accept(self, sequence: SequenceState) -> None:
        """Record that the next guessed token of a committed step was drawn, so that its row stays."""
        self._advance(sequence, 1)

    def remove(self, sequence: SequenceState, *, keep_content: bool = True) -> None:
        """Take out an ended sequence and free its pages; ``keep_content`` as in :meth:`PagePool.free`."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._pool.free(sequence.pages.tolist(), keep_content=keep_content)
            sequence.pages = np.empty(0, np.int32)
        else:
            self._waiting.remove(sequence)

    def _advance(self, sequence: SequenceState, num_tokens: int) -> None:
        sequence.num_computed += num_tokens
        page_size = self._pool.page_size
        while sequence.num_published < sequence.num_computed // page_size:
            index = sequence.num_published
            if index == len(sequence.keys):
                parent = sequence.keys[-1] if sequence.keys else None
                tokens = sequence.tokens[index * page_size : (index + 1) * page_size]
                sequence.keys.append(page_key(parent, tokens))
            self._pool.publish(int(sequence.pages[index]), sequence.keys[index])
            sequence.num_published += 1

    def _can_admit(self) -> bool:
        if not self._waiting or len(self._running) >= self.limits.max_running:
            return False
        oldest = self._waiting[0]
        return self._pool.can_allocate(self._pool.pages_for(oldest.max_len), oldest.keys)

    def _admit(self, now: float) -> SequenceState:
        sequence = self._waiting.popleft()
        allocation = self._pool.allocate(self._pool.pages_for(sequence.max_len), sequence.keys)
        sequence.pages = np.array(allocation.pages, np.int32)
        sequence.num_published = allocation.num_shared
        sequence.num_cached = sequence.num_computed = allocation.num_shared * self._pool.page_size
        sequence.first_scheduled_at = now
        self._running.append(sequence)
        return sequence
