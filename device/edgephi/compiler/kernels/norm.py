"""RMS norm over rows, its result quantized for the next matrix product or left in float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from edgephi.compiler.kernels import vector as v
from edgephi.compiler.kernels.activations import Activations, store_quantized


@T.macro
def _inverse_rms(x, i, hidden, eps, acc, inverse):
    """Set ``inverse[0]`` to 1 / sqrt(mean(x[i] ** 2) + eps)."""
    acc[T.ramp(0, 1, 16)] = v.splat(0.0)
    for c in T.serial(hidden // 16):
        acc[T.ramp(0, 1, 16)] = acc[T.ramp(0, 1, 16)] + x[i, T.ramp(c * 16, 1, 16)] * x[i, T.ramp(c * 16, 1, 16)]
    inverse[0] = T.float32(1) / T.sqrt(v.reduce_sum(acc[T.ramp(0, 1, 16)]) / T.float32(hidden) + T.float32(eps))


def rms_norm(hidden: int, eps: float, activations: Activations) -> PrimFunc:
    """
    Build ``norm(x, weight, outputs...)``: ``x / rms(x) * weight`` row by row.

    Shapes: x (t, hidden) float32, weight (hidden,) float32; outputs of t rows as ``kernels.activations`` says.
    """
    groups = hidden // 32

    if activations is Activations.FLOAT32:

        @T.prim_func(s_tir=True)
        def norm_float(x_h: T.handle, weight: T.Buffer((hidden,), "float32"), y_h: T.handle):
            T.func_attr({"tirx.noalias": True})
            t = T.int64()
            x = T.match_buffer(x_h, (t, hidden), "float32")
            y = T.match_buffer(y_h, (t, hidden), "float32")
            for i in T.parallel(t):
                acc = T.alloc_buffer((16,), "float32", scope="global")
                inverse = T.alloc_buffer((1,), "float32", scope="global")
                _inverse_rms(x, i, hidden, eps, acc, inverse)
                for c in T.serial(hidden // 16):
                    y[i, T.ramp(c * 16, 1, 16)] = (
                        x[i, T.ramp(c * 16, 1, 16)] * weight[T.ramp(c * 16, 1, 16)] * v.splat(inverse[0])
                    )

        return norm_float

    @T.prim_func(s_tir=True)
    def norm_int8(
        x_h: T.handle,
        weight: T.Buffer((hidden,), "float32"),
        q_h: T.handle,
        s_h: T.handle,
        z_h: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        t = T.int64()
        x = T.match_buffer(x_h, (t, hidden), "float32")
        q = T.match_buffer(q_h, (t, hidden), "int8")
        s = T.match_buffer(s_h, (t, groups), "float32")
        z = T.match_buffer(z_h, (t, groups), "int32")
        for i in T.parallel(t):
            acc = T.alloc_buffer((16,), "float32", scope="global")
            inverse = T.alloc_buffer((1,), "float32", scope="global")
            _inverse_rms(x, i, hidden, eps, acc, inverse)
            for g in T.serial(groups):
                y0: T.let = x[i, T.ramp(g * 32, 1, 16)] * weight[T.ramp(g * 32, 1, 16)] * v.splat(inverse[0])
                y1: T.let = x[i, T.ramp(g * 32 + 16, 1, 16)] * weight[T.ramp(g * 32 + 16, 1, 16)] * v.splat(inverse[0])
                store_quantized(q, s, z, i, g, y0, y1)

    return norm_int8


def rms_norm_reference(
    x: npt.NDArray[np.float32], weight: npt.NDArray[np.float32], eps: float
) -> npt.NDArray[np.float32]:
    """
    Return ``x / sqrt(mean(x ** 2) + eps) * weight`` for x (t, hidden) float32.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
    """
    inverse = 1.0 / np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(eps))
    result: npt.NDArray[np.float32] = (x * weight * inverse).astype(np.float32)
    return result
