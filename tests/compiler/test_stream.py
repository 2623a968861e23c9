"""Reading memory: that all of it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgephi.artifact.bundle import STREAM_MULTIPLE
from edgephi.compiler.kernels.stream import STREAM_PARTS, stream_read

Build = Callable[..., Any]
Run = Callable[..., None]

pytestmark = pytest.mark.tvm


@pytest.mark.parametrize("multiples", [0, 1, 3])
def test_every_byte_is_read_once(multiples: int, level: str, build: Build, run: Run) -> None:
    """Each part's sums are the exclusive or of its 64-byte pieces, so no byte is left out or read twice."""
    kernel = build(level, {"read": stream_read()})["read"]
    data = np.random.default_rng(3).integers(0, 256, multiples * STREAM_MULTIPLE, dtype=np.uint8)
    sums = np.full((STREAM_PARTS, 16), 77, np.int32)
    run(kernel, data, out=(sums,))
    pieces = data.view(np.int32).reshape(STREAM_PARTS, -1, 16)
    np.testing.assert_array_equal(sums, np.bitwise_xor.reduce(pieces, axis=1))
