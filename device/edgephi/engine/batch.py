"""
Turns scheduled sequences into the arrays of one ragged forward. Knows the layout of ForwardBatch and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgephi.engine.backend import ForwardBatch
from edgephi.engine.sequence import SequenceState


@dataclass(frozen=True, slots=True)
class ScheduledRows:
    """
    The rows one sequence contributes to a step.

    Attributes:
        sequence: Whose they are.
        num_tokens: How many, starting at its first token not yet computed.
        is_prefill: Whether they are tokens of its prompt.
        num_logits: Of how many of its last rows the logits are wanted: 0 in the middle of a prompt, 1 where its last
            row ends all known tokens, and one more for each guessed token behind them.
    """

    sequence: SequenceState
    num_tokens: int
    is_prefill: bool
    num_logits: int

    @property
    def num_drafts(self) -> int:
        """How many of its last rows are guessed tokens (edgephi.engine.speculation)."""
        return max(self.num_logits - 1, 0)


def build_batch(scheduled: Sequence[ScheduledRows], page_size: int) -> ForwardBatch:
    """Flatten scheduled rows, at least one sequence, into a batch; sequences keep their order."""
    assert scheduled
    lengths = np.array([rows.num_tokens for rows in scheduled], np.int32)
    starts = np.array([rows.sequence.num_computed for rows in scheduled], np.int32)
    kv_len = starts + lengths
    row_start = np.zeros(len(scheduled) + 1, np.int32)
    np.cumsum(lengths, out=row_start[1:])

    tokens = np.empty(row_start[-1], np.int32)
    positions = np.empty(row_start[-1], np.int32)
    slots = np.empty(row_start[-1], np.int32)
    block_table = np.zeros((len(scheduled), -(-int(kv_len.max()) // page_size)), np.int32)
    for index, rows in enumerate(scheduled):
        sequence = rows.sequence
        span = slice(row_start[index], row_start[index + 1])
        tokens[span] = sequence.tokens[starts[index] : kv_len[index]]
        positions[span] = np.arange(starts[index], kv_len[index], dtype=np.int32)
        slots[span] = sequence.pages[positions[span] // page_size] * page_size + positions[span] % page_size
        num_pages = -(-int(kv_len[index]) // page_size)
        block_table[index, :num_pages] = sequence.pages[:num_pages]
    logit_rows = [
        row
        for rows, end in zip(scheduled, row_start[1:].tolist(), strict=True)
        for row in range(end - rows.num_logits, end)
    ]
    return ForwardBatch(
        tokens=tokens,
        positions=positions,
        slots=slots,
        row_start=row_start,
        block_table=block_table,
        kv_len=kv_len,
        logit_rows=np.array(logit_rows, np.int32),
    )
