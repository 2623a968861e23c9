"""Gathering rows: of the 4-bit embedding table, read in MLC's own layout, and of the hidden states."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from edgephi.compiler.kernels import vector as v
from edgephi.compiler.kernels.activations import ZERO_POINT


def embed(vocab_size: int, hidden: int, scale_dtype: str) -> PrimFunc:
    """
    Build ``embed(tokens, table, scale, x)``.

    Shapes: tokens (t,) int32 below vocab_size; table (vocab_size, hidden // 8) uint32 and scale
    (vocab_size, hidden // 32) as ``artifact.quantization`` stores them; x (t, hidden) float32.
    """

    @T.prim_func(s_tir=True)
    def embed_rows(
        tokens_h: T.handle,
        table: T.Buffer((vocab_size, hidden // 8), "uint32"),
        scale: T.Buffer((vocab_size, hidden // 32), scale_dtype),
        x_h: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        t = T.int64()
        tokens = T.match_buffer(tokens_h, (t,), "int32")
        x = T.match_buffer(x_h, (t, hidden), "float32")
        for i in T.parallel(t):
            for word in T.serial(hidden // 8):
                words: T.let = T.broadcast(table[tokens[i], word], 8)
                codes: T.let = T.bitwise_and(
                    T.shift_right(words, T.Cast("uint32x8", T.ramp(0, 4, 8))), T.broadcast(T.uint32(15), 8)
                )
                x[i, T.ramp(word * 8, 1, 8)] = T.Cast(
                    "float32x8", T.Cast("int32x8", codes) - T.broadcast(T.int32(ZERO_POINT), 8)
                ) * v.splat(T.Cast("float32", scale[tokens[i], word // 4]), 8)

    return embed_rows


def take_rows(hidden: int) -> PrimFunc:
    """Build ``take(x, rows, out)``: out (r, hidden) float32 holds the rows (r,) int32 of x (t, hidden)."""

    @T.prim_func(s_tir=True)
    def take(x_h: T.handle, rows_h: T.handle, out_h: T.handle):
        T.func_attr({"tirx.noalias": True})
        t, r = T.int64(), T.int64()
        x = T.match_buffer(x_h, (t, hidden), "float32")
        rows = T.match_buffer(rows_h, (r,), "int32")
        out = T.match_buffer(out_h, (r, hidden), "float32")
        for i in T.serial(r):
            for c in T.serial(hidden // 16):
                out[i, T.ramp(c * 16, 1, 16)] = x[rows[i], T.ramp(c * 16, 1, 16)]

    return take


def embed_reference(
    tokens: npt.NDArray[np.int32], table: npt.NDArray[np.uint32], scale: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32]:
    """Return the (t, hidden) float32 rows of *tokens*, each value ``(code - 7) * scale``."""
    shifts = np.arange(8, dtype=np.uint32) * 4
    codes = (table[tokens][:, :, None] >> shifts) & 15
    values = codes.reshape(len(tokens), table.shape[1] * 8).astype(np.float32) - ZERO_POINT
    return (values * np.repeat(scale[tokens].astype(np.float32), 32, axis=1)).astype(np.float32)
