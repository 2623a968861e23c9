"""
How activations travel between kernels: float32, or int8 in groups of 32 along the inner dimension.

In the int8 form a tensor (t, k) becomes three:

    q (t, k) int8        round(x / scale), -127 to 127, ties to even
    s (t, k // 32) f32   scale = max|x| / 127 of the group
    z (t, k // 32) f32   7 x scale x sum(q) of the group: what the weights' zero point 7 contributes
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt
from tvm.script import tirx as T

from edgephi.artifact.quantization import GROUP_SIZE, ZERO_CODE
from edgephi.compiler.kernels import vector as v

# The weights' own: a group of activations meets a group of weights, whose zero point it takes off.
GROUP = GROUP_SIZE
ZERO_POINT = ZERO_CODE


class Activations(enum.Enum):
    """Element type of the activations that enter a matrix kernel."""

    INT8 = "int8"
    FLOAT32 = "float32"


@T.macro
def store_quantized(q, s, z, i, g, y0, y1):
    """Quantize the 32 values ``y0, y1`` (float32x16 each) into group *g* of row *i*."""
    largest: T.let = v.reduce_max(v.max_(v.abs_(y0), v.abs_(y1)))
    inverse: T.let = T.if_then_else(largest > T.float32(0), T.float32(127) / largest, T.float32(0))
    i0: T.let = T.Cast("int32x16", v.round_even(y0 * v.splat(inverse)))
    i1: T.let = T.Cast("int32x16", v.round_even(y1 * v.splat(inverse)))
    q[i, T.ramp(g * 32, 1, 16)] = T.Cast("int8x16", i0)
    q[i, T.ramp(g * 32 + 16, 1, 16)] = T.Cast("int8x16", i1)
    s[i, g] = largest / T.float32(127)
    z[i, g] = largest / T.float32(127) * T.float32(ZERO_POINT) * T.Cast("float32", v.reduce_sum_i32(i0 + i1))


def quantize_reference(
    x: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """
    Quantize activations in groups of 32.

    Args:
        x: (t, k) float32, k a multiple of 32.

    Returns:
        q (t, k) int8, s (t, k // 32) float32 and z (t, k // 32) float32 as the module says.
    """
    t, k = x.shape
    groups = x.reshape(t, k // GROUP, GROUP)
    largest = np.abs(groups).max(axis=2)
    scale = (largest / np.float32(127)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(largest > 0, np.float32(127) / largest, np.float32(0)).astype(np.float32)
    q = np.rint(groups * inverse[..., None]).astype(np.int8)
    z = (scale * np.float32(ZERO_POINT) * q.sum(axis=2, dtype=np.int32)).astype(np.float32)
    return q.reshape(t, k), scale, z
