"""
The seam between the engine and what computes logits.

The engine owns page *accounting* (which page belongs to whom); a backend owns page *memory*. One call
computes prefill, decode and mixed batches alike: the ragged forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

I32Array = npt.NDArray[np.int32]
F32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """
    What a backend can hold and how it addresses it.

    Attributes:
        vocab_size: Width of a row of logits.
        page_size: Tokens per page.
        num_pages: Pages in the pool; page ids are 0 to num_pages - 1.
        max_batch_tokens: Most tokens (rows) in one forward.
        max_context_tokens: Longest sequence, prompt and answer together.
    """

    vocab_size: int
    page_size: int
    num_pages: int
    max_batch_tokens: int
    max_context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """
    One ragged batch: the new tokens of every scheduled sequence, flattened.

        sequence            0         1   2
        tokens         [a b c d e]  [f] [g]      t = 7 rows
        row_start      0            5   6   7    b + 1 entries
        logit_rows               4  5   6        r rows of the result

    A decoding sequence may bring guessed tokens behind its last one and want logits of all these rows; the slots of
    guesses that prove wrong are written again by later batches.

    Attributes:
        tokens: (t,) int32 token ids.
        positions: (t,) int32 position of each token in its sequence, from 0.
        slots: (t,) int32 where its key and value go: page id * page_size + offset in the page.
        row_start: (b + 1,) int32 first row of each sequence; the last entry is t.
        block_table: (b, p) int32 page ids of each sequence in order, padded with 0.
        kv_len: (b,) int32 tokens of each sequence in its pages after this step (= last position + 1).
        logit_rows: (r,) int32 rows whose logits are wanted; none (r = 0) when all rows are the middle of a prompt.
    """

    tokens: I32Array
    positions: I32Array
    slots: I32Array
    row_start: I32Array
    block_table: I32Array
    kv_len: I32Array
    logit_rows: I32Array


class Backend(Protocol):
    """
    Computes logits over pages it owns. Not thread-safe: one step loop calls it.

    The composition root creates it and closes it after the engine has stopped.
    """

    @property
    def spec(self) -> BackendSpec:
        """Sizes the engine must respect."""
        ...

    def forward(self, batch: ForwardBatch) -> F32Array:
        """
        Append the batch's keys and values to their slots and compute logits.

        Returns:
            (r, vocab_size) float32 logits of ``batch.logit_rows``; valid until the next call.

        Raises:
            EngineFailed: If the computation failed; the pages' contents are then undefined.
        """
        ...

    def release_pages(self, pages: Sequence[int]) -> None:
        """
        Give memory back to the system, as far as that is possible; what these pages held is lost.

        Args:
            pages: Ids of pages, ascending, whose slots will be written before they are read again.
        """
        ...

    def close(self) -> None:
        """Release memory and threads. Calling it again does nothing."""
        ...
