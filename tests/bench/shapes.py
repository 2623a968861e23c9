"""
Phi-3-mini's shapes, and random 4-bit weights for them.

Knows no engine: each writer in ``tests/bench/models`` turns these numbers into one engine's own format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GROUP = 32  # weights that share one scale, in every format of this benchmark
_CODE_STD = math.sqrt((16**2 - 1) / 12)  # of sixteen equally likely 4-bit codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """
    Sizes of a Phi-3 decoder without biases and with as many key heads as query heads.

    Attributes:
        num_layers: Decoder layers.
        hidden: Width of the residual stream.
        num_heads: Attention heads of queries, of keys and of values.
        head_dim: Width of one head, a multiple of ``GROUP``.
        intermediate: Width between up and down projection.
        vocab: Rows of the embedding table and of the output projection, which are two tensors.
        context: Longest sequence in tokens.
        rope_theta: Base of the rotary embedding.
        norm_eps: Added to the mean square in RMSNorm.
    """

    num_layers: int
    hidden: int
    num_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


PHI3_MINI = Shapes(num_layers=32, hidden=3072, num_heads=32, head_dim=96, intermediate=8192, vocab=32_064, context=4096)


def random_codes(rng: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """
    Draw 4-bit codes, equally likely and independent.

    Returns:
        (rows, columns // 2) uint8, two codes a byte.
    """
    return rng.integers(0, 1 << 64, (rows, columns // 16), dtype=np.uint64).view(np.uint8)


def random_scales(rng: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """
    Draw one scale a group, around the value that keeps a matrix product as large as its normalized input.

    So no activation overflows or becomes denormal, whatever the depth.

    Returns:
        (rows, columns // GROUP) float32, positive.
    """
    mean = 1 / (_CODE_STD * math.sqrt(columns))
    return (mean * rng.uniform(0.5, 1.5, (rows, columns // GROUP))).astype(np.float32)
