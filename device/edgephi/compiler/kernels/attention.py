"""
Causal attention of new rows over paged keys and values, with an optional sliding window.

A page holds PAGE_SIZE = 16 tokens of one layer; for each key/value head

    pages[layer, page, 0, head, d * 16 + token]         keys, dimension by dimension
    pages[layer, page, 1, head, token * head_dim + d]   values, token by token

so that one vector holds the keys of 16 tokens at one dimension (scores need no sum across lanes) and values are
added up along the head. Softmax is computed on the fly, page by page.

Source: Milakov and Gimelshein, Online normalizer calculation for softmax, 2018; Dao et al., FlashAttention, 2022.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from edgephi.compiler.kernels import vector as v
from edgephi.compiler.kernels.activations import Activations, store_quantized

PAGE_SIZE = 16
_MASKED = -1e30


def attention(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_layers: int,
    kv_dtype: str,
    sliding_window: int | None,
    activations: Activations,
) -> PrimFunc:
    """
    Build ``attend(q, positions, row_start, block_table, pages, layer, outputs...)``.

    Shapes: q (t, num_heads x head_dim) float32, already scaled; positions (t,), row_start (b + 1,) and block_table
    (b, p) int32 as :class:`edgephi.engine.backend.ForwardBatch` says; outputs of t rows and num_heads x head_dim
    columns as ``kernels.activations`` says.

    A row at position i sees positions j with i - sliding_window < j <= i.
    """
    width, per_kv = num_heads * head_dim, num_heads // num_kv_heads
    chunks = head_dim // 16
    window = sliding_window if sliding_window is not None else 1 << 30

    @T.macro
    def head_row(q, positions, block_table, pages, layer, seq, row, head, acc):
        """Leave the attention output of one row and head in ``acc``."""
        score = T.alloc_buffer((16,), "float32", scope="global")
        weight_sum = T.alloc_buffer((16,), "float32", scope="global")
        state = T.alloc_buffer((2,), "float32", scope="global")  # running maximum, rescale factor
        kv_head: T.let = head // per_kv
        position: T.let = positions[row]
        first: T.let = T.max(position - T.int32(window) + 1, 0)
        state[0] = T.float32(_MASKED)
        weight_sum[T.ramp(0, 1, 16)] = v.splat(0.0)
        for c in T.unroll(chunks):
            acc[T.ramp(c * 16, 1, 16)] = v.splat(0.0)
        for step in T.serial(position // PAGE_SIZE - first // PAGE_SIZE + 1):
            index: T.let = first // PAGE_SIZE + step
            page: T.let = block_table[seq, index]
            score[T.ramp(0, 1, 16)] = v.splat(0.0)
            for d in T.serial(head_dim):
                score[T.ramp(0, 1, 16)] = score[T.ramp(0, 1, 16)] + v.splat(q[row, head * head_dim + d]) * T.Cast(
                    "float32x16", pages[layer, page, 0, kv_head, T.ramp(d * 16, 1, 16)]
                )
            token = T.meta_var(T.ramp(index * PAGE_SIZE, 1, 16))
            score[T.ramp(0, 1, 16)] = T.Select(
                T.bitwise_and(token <= T.broadcast(position, 16), token >= T.broadcast(first, 16)),
                score[T.ramp(0, 1, 16)],
                v.splat(_MASKED),
            )
            largest: T.let = T.max(state[0], v.reduce_max(score[T.ramp(0, 1, 16)]))
            score[T.ramp(0, 1, 16)] = v.exp(score[T.ramp(0, 1, 16)] - v.splat(largest))
            state[1] = T.exp(state[0] - largest)
            state[0] = largest
            weight_sum[T.ramp(0, 1, 16)] = weight_sum[T.ramp(0, 1, 16)] * v.splat(state[1]) + score[T.ramp(0, 1, 16)]
            for c in T.unroll(chunks):
                acc[T.ramp(c * 16, 1, 16)] = acc[T.ramp(c * 16, 1, 16)] * v.splat(state[1])
            # Slots past the position may hold anything, even NaN, so they are not read as values at all.
            for j in T.serial(T.min(PAGE_SIZE, position - index * PAGE_SIZE + 1)):
                for c in T.unroll(chunks):
                    acc[T.ramp(c * 16, 1, 16)] = acc[T.ramp(c * 16, 1, 16)] + v.splat(score[j]) * T.Cast(
                        "float32x16", pages[layer, page, 1, kv_head, T.ramp(j * head_dim + c * 16, 1, 16)]
                    )
        state[1] = T.float32(1) / v.reduce_sum(weight_sum[T.ramp(0, 1, 16)])
        for c in T.unroll(chunks):
            acc[T.ramp(c * 16, 1, 16)] = acc[T.ramp(c * 16, 1, 16)] * v.splat(state[1])

    if activations is Activations.FLOAT32:

        @T.prim_func(s_tir=True)
        def attend_float(
            q_h: T.handle, positions_h: T.handle, row_start_h: T.handle, block_table_h: T.handle, pages_h: T.handle,
            layer: T.int64, y_h: T.handle,
        ):  # fmt: skip
            T.func_attr({"tirx.noalias": True})
            t, b, p, num_pages, b1 = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
            q = T.match_buffer(q_h, (t, width), "float32")
            positions = T.match_buffer(positions_h, (t,), "int32")
            row_start = T.match_buffer(row_start_h, (b1,), "int32")
            block_table = T.match_buffer(block_table_h, (b, p), "int32")
            pages = T.match_buffer(pages_h, (num_layers, num_pages, 2, num_kv_heads, PAGE_SIZE * head_dim), kv_dtype)
            y = T.match_buffer(y_h, (t, width), "float32")
            for job in T.parallel(b * num_heads):
                seq: T.let = job // num_heads
                head: T.let = job % num_heads
                for r in T.serial(row_start[seq + 1] - row_start[seq]):
                    row: T.let = row_start[seq] + r
                    acc = T.alloc_buffer((head_dim,), "float32", scope="global")
                    head_row(q, positions, block_table, pages, layer, seq, row, head, acc)
                    for c in T.unroll(chunks):
                        y[row, T.ramp(head * head_dim + c * 16, 1, 16)] = acc[T.ramp(c * 16, 1, 16)]

        return attend_float

    @T.prim_func(s_tir=True)
    def attend_int8(
        q_h: T.handle, positions_h: T.handle, row_start_h: T.handle, block_table_h: T.handle, pages_h: T.handle,
        layer: T.int64, out_q_h: T.handle, out_s_h: T.handle, out_z_h: T.handle,
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True})
        t, b, p, num_pages, b1 = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        q = T.match_buffer(q_h, (t, width), "float32")
        positions = T.match_buffer(positions_h, (t,), "int32")
        row_start = T.match_buffer(row_start_h, (b1,), "int32")
        block_table = T.match_buffer(block_table_h, (b, p), "int32")
        pages = T.match_buffer(pages_h, (num_layers, num_pages, 2, num_kv_heads, PAGE_SIZE * head_dim), kv_dtype)
        out_q = T.match_buffer(out_q_h, (t, width), "int8")
        out_s = T.match_buffer(out_s_h, (t, width // 32), "float32")
        out_z = T.match_buffer(out_z_h, (t, width // 32), "float32")
        for job in T.parallel(b * num_heads):
            seq: T.let = job // num_heads
            head: T.let = job % num_heads
            for r in T.serial(row_start[seq + 1] - row_start[seq]):
                row: T.let = row_start[seq] + r
                acc = T.alloc_buffer((head_dim,), "float32", scope="global")
                head_row(q, positions, block_table, pages, layer, seq, row, head, acc)
                for g in T.unroll(head_dim // 32):
                    store_quantized(
                        out_q, out_s, out_z, row, head * (head_dim // 32) + g,
                        acc[T.ramp(g * 32, 1, 16)], acc[T.ramp(g * 32 + 16, 1, 16)],
                    )  # fmt: skip

    return attend_int8


def attention_reference(
    q: npt.NDArray[np.float32],
    keys: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
    positions: npt.NDArray[np.int32],
    sliding_window: int | None,
) -> npt.NDArray[np.float32]:
    """
    Attend q (t, heads, d), already scaled, to one sequence's keys and values (n, kv_heads, d); (t, heads, d) float32.
    """
    per_kv = q.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, per_kv, axis=1), np.repeat(values, per_kv, axis=1)
    scores = np.einsum("thd,nhd->htn", q, keys)
    distance = positions[:, None] - np.arange(keys.shape[0])[None, :]
    seen = distance >= 0
    if sliding_window is not None:
        seen &= distance < sliding_window
    scores = np.where(seen[None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    result: npt.NDArray[np.float32] = np.einsum("htn,nhd->thd", weights, values).astype(np.float32)
    return result
