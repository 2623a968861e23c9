"""SwiGLU: silu(gate) x up of the fused projection, quantized for the next matrix product or left in float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tvm.ir import Expr
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from edgephi.compiler.kernels import vector as v
from edgephi.compiler.kernels.activations import Activations, store_quantized


def _silu_times(gate: Expr, up: Expr) -> Expr:
    return gate / (v.splat(1.0) + v.exp(v.splat(0.0) - gate)) * up


def swiglu(intermediate: int, activations: Activations) -> PrimFunc:
    """
    Build ``swiglu(gate_up, outputs...)``: gate_up (t, 2 x intermediate) float32, the gate's half first.

    Outputs have t rows of ``intermediate`` values, as ``kernels.activations`` says.
    """
    groups = intermediate // 32
    n = intermediate

    if activations is Activations.FLOAT32:

        @T.prim_func(s_tir=True)
        def swiglu_float(gate_up_h: T.handle, y_h: T.handle):
            T.func_attr({"tirx.noalias": True})
            t = T.int64()
            gate_up = T.match_buffer(gate_up_h, (t, 2 * n), "float32")
            y = T.match_buffer(y_h, (t, n), "float32")
            for i in T.parallel(t):
                for c in T.serial(n // 16):
                    y[i, T.ramp(c * 16, 1, 16)] = _silu_times(
                        gate_up[i, T.ramp(c * 16, 1, 16)], gate_up[i, T.ramp(n + c * 16, 1, 16)]
                    )

        return swiglu_float

    @T.prim_func(s_tir=True)
    def swiglu_int8(gate_up_h: T.handle, q_h: T.handle, s_h: T.handle, z_h: T.handle):
        T.func_attr({"tirx.noalias": True})
        t = T.int64()
        gate_up = T.match_buffer(gate_up_h, (t, 2 * n), "float32")
        q = T.match_buffer(q_h, (t, n), "int8")
        s = T.match_buffer(s_h, (t, groups), "float32")
        z = T.match_buffer(z_h, (t, groups), "int32")
        for job in T.parallel(t * groups):
            i: T.let = job // groups
            g: T.let = job % groups
            y0: T.let = _silu_times(gate_up[i, T.ramp(g * 32, 1, 16)], gate_up[i, T.ramp(n + g * 32, 1, 16)])
            y1: T.let = _silu_times(gate_up[i, T.ramp(g * 32 + 16, 1, 16)], gate_up[i, T.ramp(n + g * 32 + 16, 1, 16)])
            store_quantized(q, s, z, i, g, y0, y1)

    return swiglu_int8


def swiglu_reference(gate_up: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """
    Return silu(gate) x up for gate_up (t, 2 x n) float32.

    Source: Shazeer, GLU Variants Improve Transformer, 2020.
    """
    gate, up = np.split(gate_up, 2, axis=1)
    return (gate / (1.0 + np.exp(-gate)) * up).astype(np.float32)
