"""Memory of logits: how many rows a step asks for varies, what TVM keeps for them must not grow with that."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from edgephi.engine.backend import ForwardBatch
from edgephi.runtime import LoadedModel

Load = Callable[..., LoadedModel]
MakeBatch = Callable[..., ForwardBatch]

pytestmark = pytest.mark.tvm

MIB = 1 << 20
MOST_ROWS = 256


def test_many_numbers_of_logit_rows_leave_few_buffers(load: Load, make_batch: MakeBatch) -> None:
    """127 numbers of rows take the buffers of eight powers of two, 1 MiB of 512 logits a row, and not 32 MiB."""
    model = load("q4f16_1")
    sizes = range(3, MOST_ROWS, 2)
    assert model.bundle.vocab_size * 4 * sum(sizes) > 31 * MIB, "what one buffer for each number would take"
    pages = range(MOST_ROWS // model.backend.spec.page_size)

    def forward(num_rows: int) -> None:
        batch = make_batch((range(3, 3 + MOST_ROWS), 0, pages), logit_rows=range(num_rows))
        assert model.backend.forward(batch).shape == (num_rows, model.bundle.vocab_size)

    forward(MOST_ROWS)  # activations are committed by the first step
    before = _private_bytes()
    for num_rows in sizes:
        forward(num_rows)
    assert _private_bytes() - before < 8 * MIB


def _private_bytes() -> int:
    """Return this process's own memory; what is mapped from files comes and goes."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
