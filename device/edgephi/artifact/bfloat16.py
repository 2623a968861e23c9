"""
bfloat16, the top 16 bits of a float32, for which NumPy has no type.

Owns the two conversions as MLC-LLM's weight files need them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U16Array = npt.NDArray[np.uint16]
F32Array = npt.NDArray[np.float32]


def widen_bf16(bits: U16Array) -> F32Array:
    """Return the float32 values of bfloat16 bits, any shape; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow_to_bf16(values: F32Array) -> U16Array:
    """
    Return bfloat16 bits of float32 values, any shape, rounded half to even.

    Values at or beyond the largest bfloat16 are cut, not rounded, so that they do not become infinite.

    Source: TVM python/tvm/contrib/tvmjs.py describes the same rounding; checked against files it wrote.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    largest = np.uint32(0x7F7F0000).view(np.float32)
    in_range = np.abs(values) < largest
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    bias = np.where(in_range, odd + np.uint32(0x7FFF), np.uint32(0)).astype(np.uint32)
    return ((bits + bias) >> np.uint32(16)).astype(np.uint16)
