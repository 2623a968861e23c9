"""
How activations travel between kernels: float32, or int8 in groups of 32 along the inner dimension.

In the int8 form a tensor (t, k) becomes three:

    q (t, k) int8          round(x / scale), -127 to 127, ties to even
    s (t, k // 32) f32     1.5 x 2^23 x scale, scale being the least power of two that keeps q in its range
    z (t, k // 32) int32   -sum(q) of the group: what one step of the weights' zero point takes off

The last bit of s is worth scale. So integers added to the bits of s add multiples of scale to its value: a kernel that
starts its integer sums there has them as floats, scaled, after one subtraction. That saves a conversion and a
multiplication for each sum (docs/decisions/0014).
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


# 1.5 x 2^23: what is added to it, up to 2^22 either way, keeps its exponent and is worth 1 a unit of the last bit.
ROOM = 1.5 * 2**23
_EXPONENT = 23  # bits of a float32 below its exponent
_BIAS = 127
_LARGEST = 127 * 2.0 ** (_BIAS - 24)  # larger activations would need an s beyond float32


@T.macro
def store_quantized(q, s, z, i, g, y0, y1):
    """Quantize the 32 values ``y0, y1`` (float32x16 each) into group *g* of row *i*."""
    largest: T.let = v.reduce_max(v.max_(v.abs_(y0), v.abs_(y1)))
    bits: T.let = T.reinterpret(largest / T.float32(127), dtype="int32")
    # The next power of two: up unless the mantissa is zero; at least the smallest normal number.
    exponent: T.let = T.max(T.shift_right(bits + T.int32(2**_EXPONENT - 1), T.int32(_EXPONENT)), T.int32(1))
    inverse: T.let = T.reinterpret(
        T.shift_left(T.max(T.int32(2 * _BIAS) - exponent, T.int32(1)), T.int32(_EXPONENT)), dtype="float32"
    )
    i0: T.let = T.Cast("int32x16", v.round_even(y0 * v.splat(inverse)))
    i1: T.let = T.Cast("int32x16", v.round_even(y1 * v.splat(inverse)))
    q[i, T.ramp(g * 32, 1, 16)] = T.Cast("int8x16", i0)
    q[i, T.ramp(g * 32 + 16, 1, 16)] = T.Cast("int8x16", i1)
    # What is not finite, or too large to scale, must not come out as a number.
    s[i, g] = T.if_then_else(
        largest <= T.float32(_LARGEST),  # false for NaN
        T.reinterpret(
            T.bitwise_or(
                T.shift_left(exponent + T.int32(_EXPONENT), T.int32(_EXPONENT)), T.int32(1 << (_EXPONENT - 1))
            ),
            dtype="float32",
        ),
        T.float32(float("inf")),
    )
    z[i, g] = T.int32(0) - v.reduce_sum_i32(i0 + i1)


def quantize_reference(
    x: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """
    Quantize activations in groups of 32.

    Args:
        x: (t, k) float32, k a multiple of 32.

    Returns:
        q (t, k) int8, s (t, k // 32) float32 and z (t, k // 32) int32 as the module says.
    """
    t, k = x.shape
    groups = x.reshape(t, k // GROUP, GROUP)
    largest = np.abs(groups).max(axis=2, initial=0)
    scale = np.exp2(np.ceil(np.log2(np.maximum(largest / np.float32(127), np.finfo(np.float32).tiny))))
    q = np.rint(groups / scale[..., None]).astype(np.int8)
    return q.reshape(t, k), scale * np.float32(ROOM), -q.sum(axis=2, dtype=np.int32)
