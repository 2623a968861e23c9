"""
A backend without a model: deterministic answers, for integrators and for tests of everything above it.

It computes nothing, but it stores and reads tokens exactly as a real backend stores and reads keys and values, so
an error in paging (a wrong slot, a stale page, a page with two owners) changes its answers or makes it refuse.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np

from edgephi.engine.backend import BackendSpec, F32Array, ForwardBatch, I32Array
from edgephi.errors import ConfigError, EngineFailed

_EMPTY = -1  # content of a slot never written; no token id
_SUCCESSOR_FACTOR = 7  # the habitual successor of token t is 7 t + 1
_SCRIPTED_LOGIT = 100.0  # leaves every other token a probability below 1e-38 at temperature 1


class FakeBackend:
    """
    Answers from a script, or with logits drawn from a hash of the whole history.

    Without a script, the logits of a row are normal random numbers seeded by every token of the sequence up to that
    row, read back through the block table; with a habit, one successor of the row's own token gets a higher one. With
    a script, each answer is the script, then ``eos_token_id`` for ever.

    Lives until closed; closing only makes later forwards fail, as they would with a real one.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 32_064,
        page_size: int = 16,
        num_pages: int = 256,
        max_batch_tokens: int = 128,
        max_context_tokens: int = 4096,
        step_delay_s: float = 0.0,
        habit: float = 0.0,
        script: Sequence[int] | None = None,
        eos_token_id: int = 0,
    ) -> None:
        """
        Choose the sizes and the behaviour.

        Args:
            vocab_size: Width of a row of logits.
            page_size: Tokens per page.
            num_pages: Pages in the pool.
            max_batch_tokens: Most rows in one forward.
            max_context_tokens: Longest sequence.
            step_delay_s: How long each forward sleeps, in seconds, to look like a real one.
            habit: What is added to the logit of one fixed successor of each token, so that answers repeat themselves;
                the random ones have a standard deviation of 2.
            script: Token ids of every answer; None answers from the hash.
            eos_token_id: Follows the script; give it to requests as a stop token.

        Raises:
            ConfigError: If a size is below 1, or a scripted token is outside the vocabulary.
        """
        sizes = {
            "vocab_size": vocab_size,
            "page_size": page_size,
            "num_pages": num_pages,
            "max_batch_tokens": max_batch_tokens,
            "max_context_tokens": max_context_tokens,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; must be at least 1")
        for token_id in (*(script or ()), eos_token_id):
            if not 0 <= token_id < vocab_size:
                raise ConfigError(f"token id {token_id} of the script is outside 0 to {vocab_size - 1}")
        self._spec = BackendSpec(**sizes)
        self._step_delay_s = step_delay_s
        self._habit = np.float32(habit)
        self._script = None if script is None else tuple(script)
        self._eos_token_id = eos_token_id
        num_slots = num_pages * page_size
        self._tokens: I32Array = np.full(num_slots, _EMPTY, np.int32)
        self._num_answered: I32Array = np.zeros(num_slots, np.int32)  # answer tokens up to and including this one
        self._asked: frozenset[int] = frozenset()  # slots whose logits the previous forward gave
        self._logits: F32Array = np.empty((0, vocab_size), np.float32)
        self._is_closed = False

    @property
    def spec(self) -> BackendSpec:
        """Sizes the engine must respect."""
        return self._spec

    def forward(self, batch: ForwardBatch) -> F32Array:
        """
        Store the batch's tokens in their slots and compute logits from what the block table leads to.

        Returns:
            (r, vocab_size) float32; overwritten with NaN by the next call, so a late reader is noticed.

        Raises:
            EngineFailed: If it is closed, or the batch contradicts itself or the spec.
        """
        if self._is_closed:
            raise EngineFailed("the backend is closed")
        if self._step_delay_s > 0:
            time.sleep(self._step_delay_s)
        self._check(batch)
        self._store(batch)
        self._logits.fill(np.nan)
        self._logits = np.empty((len(batch.logit_rows), self._spec.vocab_size), np.float32)
        for out, row in zip(self._logits, batch.logit_rows.tolist(), strict=True):
            index = int(np.searchsorted(batch.row_start, row, side="right")) - 1
            history = self._read(batch.block_table[index], int(batch.positions[row]) + 1)
            out[:] = self._hashed(history) if self._script is None else self._scripted(int(batch.slots[row]))
        self._asked = frozenset(batch.slots[batch.logit_rows].tolist())
        return self._logits

    def release_pages(self, pages: Sequence[int]) -> None:
        """Forget what pages hold; reading a slot of theirs before it is written is then an error."""
        self._tokens.reshape(-1, self._spec.page_size)[list(pages)] = _EMPTY

    def close(self) -> None:
        """Make later forwards fail. Calling it again does nothing."""
        self._is_closed = True

    def _check(self, batch: ForwardBatch) -> None:
        """Refuse a batch no real backend could run as meant."""
        spec = self._spec
        num_rows, num_sequences = len(batch.tokens), len(batch.kv_len)
        lengths = np.diff(batch.row_start)
        arrays = (
            batch.tokens,
            batch.positions,
            batch.slots,
            batch.row_start,
            batch.block_table,
            batch.kv_len,
            batch.logit_rows,
        )
        _require(all(a.dtype == np.int32 for a in arrays), "an array is not int32")
        _require(0 < num_rows <= spec.max_batch_tokens, f"{num_rows} rows; at most {spec.max_batch_tokens} fit")
        _require(batch.positions.shape == batch.slots.shape == (num_rows,), "positions and slots differ from tokens")
        _require(batch.row_start.shape == (num_sequences + 1,), "row_start does not match kv_len")
        _require(batch.row_start[0] == 0 and batch.row_start[-1] == num_rows, "row_start does not cover all rows")
        _require(bool((lengths > 0).all()), "a sequence has no rows")
        _require(batch.block_table.shape[0] == num_sequences, "block_table does not match kv_len")
        _require(_within(batch.tokens, spec.vocab_size), "a token id is outside the vocabulary")
        _require(_within(batch.block_table, spec.num_pages), "a page id is outside the pool")
        _require(_within(batch.logit_rows, num_rows), "a row of logits is outside the batch")
        _require(int(batch.kv_len.max()) <= spec.max_context_tokens, "a sequence is longer than the context")
        capacity = batch.block_table.shape[1] * spec.page_size
        _require(int(batch.kv_len.max()) <= capacity, "a sequence is longer than its row of the block table")
        owner = np.repeat(np.arange(num_sequences), lengths)
        expected = np.arange(num_rows) - batch.row_start[owner] + (batch.kv_len - lengths)[owner]
        _require(np.array_equal(batch.positions, expected), "positions do not run up to kv_len - 1")
        pages = batch.block_table[owner, expected // spec.page_size]
        _require(
            np.array_equal(batch.slots, pages * spec.page_size + expected % spec.page_size),
            "a slot is not where the block table puts its position",
        )
        _require(len(np.unique(batch.slots)) == num_rows, "two rows share a slot")

    def _store(self, batch: ForwardBatch) -> None:
        self._tokens[batch.slots] = batch.tokens
        self._num_answered[batch.slots] = 0
        if self._script is None:
            return
        wanted = np.isin(np.arange(len(batch.tokens)), batch.logit_rows)
        for index in range(len(batch.kv_len)):
            span = slice(int(batch.row_start[index]), int(batch.row_start[index + 1]))
            position = int(batch.positions[span.start])
            if position == 0 or not wanted[span].all():
                continue
            # Rows that all want logits, right after one whose logits were just given, are a decode: the first token
            # was drawn from them, the others are guesses of what comes next.
            page = int(batch.block_table[index, (position - 1) // self._spec.page_size])
            previous = page * self._spec.page_size + (position - 1) % self._spec.page_size
            if previous in self._asked:
                num_rows = span.stop - span.start
                self._num_answered[batch.slots[span]] = self._num_answered[previous] + np.arange(1, num_rows + 1)

    def _read(self, pages: I32Array, length: int) -> I32Array:
        """(length,) int32: the tokens of a sequence as its pages hold them."""
        positions = np.arange(length)
        page_size = self._spec.page_size
        history: I32Array = self._tokens[pages[positions // page_size] * page_size + positions % page_size]
        _require(bool((history != _EMPTY).all()), "a sequence reads a slot that was never written")
        return history

    def _hashed(self, history: I32Array) -> F32Array:
        digest = hashlib.blake2b(history.tobytes(), digest_size=8).digest()
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
        logits: F32Array = 2.0 * rng.standard_normal(self._spec.vocab_size, dtype=np.float32)
        logits[(_SUCCESSOR_FACTOR * int(history[-1]) + 1) % self._spec.vocab_size] += self._habit
        return logits

    def _scripted(self, slot: int) -> F32Array:
        assert self._script is not None
        index = int(self._num_answered[slot])
        logits = np.zeros(self._spec.vocab_size, np.float32)
        logits[self._script[index] if index < len(self._script) else self._eos_token_id] = _SCRIPTED_LOGIT
        return logits


def _within(values: I32Array, limit: int) -> bool:
    return bool(((values >= 0) & (values < limit)).all())


def _require(holds: bool | np.bool_, what: str) -> None:
    if not holds:
        raise EngineFailed(f"the batch is wrong: {what}")
