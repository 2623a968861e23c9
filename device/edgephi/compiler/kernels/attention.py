"""
Causal attention of new rows over paged keys and values, with an optional sliding window.

Pages lie as ``kernels.kv_pages`` draws them. Softmax is computed on the fly, a block of pages at a time; up to four
rows of a sequence share each page that is read. Blocks are cut at multiples of their length from the sequence's
start, whatever rows are computed together, so a row's sums have one order.

Over int8 pages scores and mixed values are dot products of bytes. Queries and softmax weights would lose accuracy
as single bytes, so each is split into two, ``value = (high x 128 + low) x step``, and multiplied twice; what int8
pages cost is then the rounding of keys and values alone.

Source: Milakov and Gimelshein, Online normalizer calculation for softmax, 2018; Dao et al., FlashAttention, 2022.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from edgephi.compiler.kernels import vector as v
from edgephi.compiler.kernels.activations import Activations, store_quantized
from edgephi.compiler.kernels.dot import ByteDot
from edgephi.compiler.kernels.kv_pages import PAGE_SIZE, load_scales, page_elements
from edgephi.compiler.targets import KernelShape

_MASKED = -1e30
# Pages in a block. With four rows the block's scores stay just below the largest buffer TVM keeps on the stack.
_BLOCK_PAGES = 3
_BLOCK = _BLOCK_PAGES * PAGE_SIZE
# Largest size of a split query, so that its high byte is at most 64 (see ByteDot.dot_key), and of a split weight.
_QUERY_STEPS = 8128.0
_WEIGHT_STEPS = 16256.0


def attention(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_layers: int,
    kv_dtype: str,
    sliding_window: int | None,
    activations: Activations,
    shape: KernelShape,
) -> PrimFunc:
    """
    Build ``attend(q, positions, row_start, block_table, pages, layer, outputs..., mixed)``.

    Shapes: q (t, num_heads x head_dim) float32, already scaled; positions (t,), row_start (b + 1,) and block_table
    (b, p) int32 as :class:`edgephi.engine.backend.ForwardBatch` says; outputs of t rows and num_heads x head_dim
    columns as ``kernels.activations`` says; mixed, there with int8 activations only, (t, num_heads x head_dim)
    float32, holds the result before it is quantized.

    A row at position i sees positions j with i - sliding_window < j <= i.
    """
    width, per_kv = num_heads * head_dim, num_heads // num_kv_heads
    elements = page_elements(kv_dtype, head_dim)
    window = sliding_window if sliding_window is not None else 1 << 30
    int8 = kv_dtype == "int8"
    lanes = shape.lanes
    parts = 16 // lanes
    dot = ByteDot(shape.dot, lanes)
    half = PAGE_SIZE * head_dim
    tiles = [rows for rows in (4, 2, 1) if rows * max(head_dim, 4 * _BLOCK) < v.STACK_BYTES]

    @T.macro
    def split_queries(q, row, head, rows, q_high, q_low, q_step, q_sum):
        """Split the queries of the tile's rows into bytes."""
        for r in T.unroll(rows):
            largest = T.alloc_buffer((16,), "float32", scope="global")
            total = T.alloc_buffer((16,), "int32", scope="global")
            largest[T.ramp(0, 1, 16)] = v.splat(0.0)
            total[T.ramp(0, 1, 16)] = T.broadcast(T.int32(0), 16)
            for c in T.unroll(head_dim // 16):
                largest[T.ramp(0, 1, 16)] = v.max_(
                    largest[T.ramp(0, 1, 16)], v.abs_(q[row + r, T.ramp(head * head_dim + c * 16, 1, 16)])
                )
            most: T.let = v.reduce_max(largest[T.ramp(0, 1, 16)])
            inverse: T.let = T.if_then_else(most > T.float32(0), T.float32(_QUERY_STEPS) / most, T.float32(0))
            for c in T.unroll(head_dim // 16):
                steps: T.let = T.Cast(
                    "int32x16",
                    v.round_even(q[row + r, T.ramp(head * head_dim + c * 16, 1, 16)] * v.splat(inverse)),
                )
                high: T.let = T.shift_right(steps + T.broadcast(T.int32(64), 16), T.broadcast(T.int32(7), 16))
                q_high[T.ramp(r * head_dim + c * 16, 1, 16)] = T.Cast("int8x16", high)
                q_low[T.ramp(r * head_dim + c * 16, 1, 16)] = T.Cast(
                    "int8x16", steps - T.shift_left(high, T.broadcast(T.int32(7), 16))
                )
                total[T.ramp(0, 1, 16)] = total[T.ramp(0, 1, 16)] + steps
            q_step[r] = most / T.float32(_QUERY_STEPS)
            q_sum[r] = v.reduce_sum_i32(total[T.ramp(0, 1, 16)]) * T.int32(dot.key_bias)

    @T.macro
    def score_int8(pages, layer, kv_head, page, ahead, rows, q_high, q_low, q_step, q_sum, score, p):
        """Set the scores of page *p* of the block, masked or not."""
        sums = T.alloc_buffer((rows * 2 * 16,), "int32", scope="global")
        for i in T.unroll(rows * 2 * parts):
            sums[T.ramp(i * lanes, 1, lanes)] = T.broadcast(T.int32(0), lanes)
        for quad in T.serial(head_dim // 4):
            v.prefetch(T.address_of(pages[layer, kv_head, ahead, quad * v.LINE_BYTES]))
            if lanes < 16:
                v.prefetch(T.address_of(pages[layer, kv_head, ahead, half + quad * v.LINE_BYTES]))
            for part in T.unroll(parts):
                key: T.let = dot.key_word(
                    pages[layer, kv_head, page, T.ramp(quad * 64 + part * lanes * 4, 1, lanes * 4)]
                )
                for r in T.unroll(rows):
                    high: T.let = T.reinterpret(q_high[T.ramp(r * head_dim + quad * 4, 1, 4)], dtype="int32")
                    low: T.let = T.reinterpret(q_low[T.ramp(r * head_dim + quad * 4, 1, 4)], dtype="int32")
                    at_high = T.meta_var(T.ramp(r * 32 + part * lanes, 1, lanes))
                    at_low = T.meta_var(T.ramp(r * 32 + 16 + part * lanes, 1, lanes))
                    sums[at_high] = dot.dot_key(sums[at_high], key, high)
                    sums[at_low] = dot.dot_key(sums[at_low], key, low)
        scale: T.let = load_scales(pages, layer, kv_head, page, 2 * half)
        for r in T.unroll(rows):
            total: T.let = (
                T.shift_left(sums[T.ramp(r * 32, 1, 16)], T.broadcast(T.int32(7), 16))
                + sums[T.ramp(r * 32 + 16, 1, 16)]
                - T.broadcast(q_sum[r], 16)
            )
            score[T.ramp(r * _BLOCK + p * 16, 1, 16)] = T.Cast("float32x16", total) * (scale * v.splat(q_step[r]))

    @T.macro
    def score_float(q, pages, layer, kv_head, page, ahead, row, head, rows, score, p):
        """Set the scores of page *p* of the block, masked or not."""
        sums = T.alloc_buffer((rows * 16,), "float32", scope="global")
        for r in T.unroll(rows):
            sums[T.ramp(r * 16, 1, 16)] = v.splat(0.0)
        for d in T.serial(head_dim):
            # As much again of the values, so that keys and values of a page are asked for in equal steps.
            v.prefetch(T.address_of(pages[layer, kv_head, ahead, d * 16]))
            v.prefetch(T.address_of(pages[layer, kv_head, ahead, half + d * 16]))
            key: T.let = T.Cast("float32x16", pages[layer, kv_head, page, T.ramp(d * 16, 1, 16)])
            for r in T.unroll(rows):
                sums[T.ramp(r * 16, 1, 16)] = sums[T.ramp(r * 16, 1, 16)] + key * v.splat(
                    q[row + r, head * head_dim + d]
                )
        for r in T.unroll(rows):
            score[T.ramp(r * _BLOCK + p * 16, 1, 16)] = sums[T.ramp(r * 16, 1, 16)]

    @T.macro
    def soften(score, rows, maximum, weight_sum, shrink):
        """Turn the block's scores into softmax weights relative to the running maximum, which moves."""
        for r in T.unroll(rows):
            at = T.meta_var([T.ramp(r * _BLOCK + p * 16, 1, 16) for p in range(_BLOCK_PAGES)])
            largest: T.let = T.max(maximum[r], v.reduce_max(v.max_(v.max_(score[at[0]], score[at[1]]), score[at[2]])))
            factor: T.let = v.exp(v.splat(maximum[r] - largest))
            shrink[T.ramp(r * 16, 1, 16)] = factor
            maximum[r] = largest
            for p in T.unroll(_BLOCK_PAGES):
                here = T.meta_var(T.ramp(r * _BLOCK + p * 16, 1, 16))
                # A row whose every score so far is masked has a masked maximum, and exp(0) would count it.
                score[here] = T.Select(
                    score[here] > v.splat(_MASKED / 2), v.exp(score[here] - v.splat(largest)), v.splat(0.0)
                )
            weight_sum[T.ramp(r * 16, 1, 16)] = (
                weight_sum[T.ramp(r * 16, 1, 16)] * factor + score[at[0]] + score[at[1]] + score[at[2]]
            )

    @T.macro
    def mix_int8(
        block_table, pages, layer, seq, kv_head, row, head, rows, score, shrink, mixed, first_page, count, last
    ):
        """Shrink what is mixed so far and add the block's values, weighted."""
        w_high = T.alloc_buffer((rows * _BLOCK,), "int8", scope="global")
        w_low = T.alloc_buffer((rows * _BLOCK,), "int8", scope="global")
        w_step = T.alloc_buffer((rows,), "float32", scope="global")
        for p in T.serial(count):
            scale: T.let = load_scales(pages, layer, kv_head, block_table[seq, first_page + p], 2 * half + 32)
            for r in T.unroll(rows):
                here = T.meta_var(T.ramp(r * _BLOCK + p * 16, 1, 16))
                # Slots past the position may hold anything, even a scale that is no number.
                score[here] = T.Select(score[here] > v.splat(0.0), score[here] * scale, v.splat(0.0))
        for r in T.unroll(rows):
            at = T.meta_var([T.ramp(r * _BLOCK + p * 16, 1, 16) for p in range(_BLOCK_PAGES)])
            most: T.let = v.reduce_max(v.max_(v.max_(score[at[0]], score[at[1]]), score[at[2]]))
            inverse: T.let = T.if_then_else(most > T.float32(0), T.float32(_WEIGHT_STEPS) / most, T.float32(0))
            w_step[r] = most / T.float32(_WEIGHT_STEPS)
            for p in T.unroll(_BLOCK_PAGES):
                here = T.meta_var(T.ramp(r * _BLOCK + p * 16, 1, 16))
                steps: T.let = T.Cast("int32x16", v.round_even(score[here] * v.splat(inverse)))
                w_high[here] = T.Cast("int8x16", T.shift_right(steps, T.broadcast(T.int32(7), 16)))
                w_low[here] = T.Cast("int8x16", T.bitwise_and(steps, T.broadcast(T.int32(127), 16)))
        for c in T.serial(head_dim // lanes):
            sums = T.alloc_buffer((rows * 2 * lanes,), "int32", scope="global")
            for i in T.unroll(rows * 2):
                sums[T.ramp(i * lanes, 1, lanes)] = T.broadcast(T.int32(0), lanes)
            for p in T.serial(count):
                page: T.let = block_table[seq, first_page + p]
                ahead: T.let = block_table[seq, T.min(first_page + _BLOCK_PAGES + p, last // PAGE_SIZE)]
                for quad in T.unroll(4):
                    if lanes == 16:  # a register is a cache line, so each is asked for once
                        v.prefetch(
                            T.address_of(pages[layer, kv_head, ahead, half + quad * 4 * head_dim + c * v.LINE_BYTES])
                        )
                    value: T.let = pages[
                        layer, kv_head, page, T.ramp(half + quad * 4 * head_dim + c * lanes * 4, 1, lanes * 4)
                    ]
                    for r in T.unroll(rows):
                        at4 = T.meta_var(T.ramp(r * _BLOCK + p * 16 + quad * 4, 1, 4))
                        at_high = T.meta_var(T.ramp(r * 2 * lanes, 1, lanes))
                        at_low = T.meta_var(T.ramp((r * 2 + 1) * lanes, 1, lanes))
                        high: T.let = T.reinterpret(w_high[at4], dtype="int32")
                        low: T.let = T.reinterpret(w_low[at4], dtype="int32")
                        sums[at_high] = dot.dot_value(sums[at_high], value, high)
                        sums[at_low] = dot.dot_value(sums[at_low], value, low)
            for r in T.unroll(rows):
                total: T.let = (
                    T.shift_left(sums[T.ramp(r * 2 * lanes, 1, lanes)], T.broadcast(T.int32(7), lanes))
                    + sums[T.ramp((r * 2 + 1) * lanes, 1, lanes)]
                )
                to = T.meta_var(T.ramp(head * head_dim + c * lanes, 1, lanes))
                mixed[row + r, to] = mixed[row + r, to] * v.splat(shrink[r * 16], lanes) + T.Cast(
                    f"float32x{lanes}", total
                ) * v.splat(w_step[r], lanes)

    @T.macro
    def mix_float(
        block_table, pages, layer, seq, kv_head, row, head, rows, score, shrink, mixed, first_page, count, last
    ):
        """Shrink what is mixed so far and add the block's values, weighted."""
        for c in T.serial(head_dim // 16):
            sums = T.alloc_buffer((rows * 16,), "float32", scope="global")
            for r in T.unroll(rows):
                sums[T.ramp(r * 16, 1, 16)] = (
                    mixed[row + r, T.ramp(head * head_dim + c * 16, 1, 16)] * shrink[T.ramp(r * 16, 1, 16)]
                )
            for p in T.serial(count):
                page: T.let = block_table[seq, first_page + p]
                # Slots past the last position may hold anything, even NaN, so they are not read as values at all.
                for j in T.serial(T.min(PAGE_SIZE, last - (first_page + p) * PAGE_SIZE + 1)):
                    value: T.let = T.Cast(
                        "float32x16", pages[layer, kv_head, page, T.ramp(half + j * head_dim + c * 16, 1, 16)]
                    )
                    for r in T.unroll(rows):
                        sums[T.ramp(r * 16, 1, 16)] = sums[T.ramp(r * 16, 1, 16)] + value * v.splat(
                            score[r * _BLOCK + p * 16 + j]
                        )
            for r in T.unroll(rows):
                mixed[row + r, T.ramp(head * head_dim + c * 16, 1, 16)] = sums[T.ramp(r * 16, 1, 16)]

    @T.macro
    def tile(q, positions, block_table, pages, layer, mixed, seq, head, row, rows):
        """Leave the attention output of *rows* rows from *row* on, and one head, in ``mixed``."""
        score = T.alloc_buffer((rows * _BLOCK,), "float32", scope="global")
        maximum = T.alloc_buffer((rows,), "float32", scope="global")
        weight_sum = T.alloc_buffer((rows * 16,), "float32", scope="global")
        shrink = T.alloc_buffer((rows * 16,), "float32", scope="global")
        q_high = T.alloc_buffer((rows * head_dim,), "int8", scope="global")
        q_low = T.alloc_buffer((rows * head_dim,), "int8", scope="global")
        q_step = T.alloc_buffer((rows,), "float32", scope="global")
        q_sum = T.alloc_buffer((rows,), "int32", scope="global")
        kv_head: T.let = head // per_kv
        last: T.let = positions[row + rows - 1]
        first: T.let = T.max(positions[row] - T.int32(window) + 1, 0)
        for r in T.unroll(rows):
            maximum[r] = T.float32(_MASKED)
            weight_sum[T.ramp(r * 16, 1, 16)] = v.splat(0.0)
            for c in T.unroll(head_dim // 16):
                mixed[row + r, T.ramp(head * head_dim + c * 16, 1, 16)] = v.splat(0.0)
        if int8:
            split_queries(q, row, head, rows, q_high, q_low, q_step, q_sum)
        for step in T.serial(last // _BLOCK - first // _BLOCK + 1):
            first_page: T.let = (first // _BLOCK + step) * _BLOCK_PAGES
            count: T.let = T.min(_BLOCK_PAGES, last // PAGE_SIZE - first_page + 1)
            for i in T.unroll(rows * _BLOCK_PAGES):
                score[T.ramp(i * 16, 1, 16)] = v.splat(_MASKED)
            for p in T.serial(count):
                page: T.let = block_table[seq, first_page + p]
                ahead: T.let = block_table[seq, T.min(first_page + _BLOCK_PAGES + p, last // PAGE_SIZE)]
                if int8:
                    score_int8(pages, layer, kv_head, page, ahead, rows, q_high, q_low, q_step, q_sum, score, p)
                else:
                    score_float(q, pages, layer, kv_head, page, ahead, row, head, rows, score, p)
                for r in T.unroll(rows):
                    here = T.meta_var(T.ramp(r * _BLOCK + p * 16, 1, 16))
                    token = T.meta_var(T.ramp((first_page + p) * PAGE_SIZE, 1, 16))
                    position = T.meta_var(positions[row + r])
                    score[here] = T.Select(
                        T.bitwise_and(
                            token <= T.broadcast(position, 16),
                            token > T.broadcast(position - T.int32(window), 16),
                        ),
                        score[here],
                        v.splat(_MASKED),
                    )
            soften(score, rows, maximum, weight_sum, shrink)
            if int8:
                mix_int8(
                    block_table, pages, layer, seq, kv_head, row, head, rows, score, shrink, mixed, first_page, count,
                    last,
                )  # fmt: skip
            else:
                mix_float(
                    block_table, pages, layer, seq, kv_head, row, head, rows, score, shrink, mixed, first_page, count,
                    last,
                )  # fmt: skip
        for r in T.unroll(rows):
            inverse: T.let = T.float32(1) / v.reduce_sum(weight_sum[T.ramp(r * 16, 1, 16)])
            for c in T.unroll(head_dim // 16):
                at = T.meta_var(T.ramp(head * head_dim + c * 16, 1, 16))
                mixed[row + r, at] = mixed[row + r, at] * v.splat(inverse)

    @T.macro
    def rows_of(q, positions, block_table, pages, layer, mixed, seq, head, start, count):
        """Compute a head of *count* rows from *start* on, as many at once as there are."""
        for big in T.serial(count // tiles[0]):
            tile(q, positions, block_table, pages, layer, mixed, seq, head, start + big * tiles[0], tiles[0])
        # The outer conditions are decided while the kernel is built.
        if tiles[0] > 2:  # noqa: SIM102
            if count % tiles[0] >= 2:
                tile(q, positions, block_table, pages, layer, mixed, seq, head, start + count // 4 * 4, 2)
        if tiles[0] > 1:  # noqa: SIM102
            if count % 2 == 1:
                tile(q, positions, block_table, pages, layer, mixed, seq, head, start + count - 1, 1)

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
            pages = T.match_buffer(pages_h, (num_layers, num_kv_heads, num_pages, elements), kv_dtype)
            y = T.match_buffer(y_h, (t, width), "float32")
            for job in T.parallel(num_heads * b):
                seq: T.let = job % b
                start: T.let = row_start[seq]
                rows_of(q, positions, block_table, pages, layer, y, seq, job // b, start, row_start[seq + 1] - start)

        return attend_float

    @T.prim_func(s_tir=True)
    def attend_int8(
        q_h: T.handle, positions_h: T.handle, row_start_h: T.handle, block_table_h: T.handle, pages_h: T.handle,
        layer: T.int64, out_q_h: T.handle, out_s_h: T.handle, out_z_h: T.handle, mixed_h: T.handle,
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True})
        t, b, p, num_pages, b1 = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        q = T.match_buffer(q_h, (t, width), "float32")
        positions = T.match_buffer(positions_h, (t,), "int32")
        row_start = T.match_buffer(row_start_h, (b1,), "int32")
        block_table = T.match_buffer(block_table_h, (b, p), "int32")
        pages = T.match_buffer(pages_h, (num_layers, num_kv_heads, num_pages, elements), kv_dtype)
        out_q = T.match_buffer(out_q_h, (t, width), "int8")
        out_s = T.match_buffer(out_s_h, (t, width // 32), "float32")
        out_z = T.match_buffer(out_z_h, (t, width // 32), "int32")
        mixed = T.match_buffer(mixed_h, (t, width), "float32")
        for job in T.parallel(num_heads * b):
            seq: T.let = job % b
            head: T.let = job // b
            start: T.let = row_start[seq]
            rows_of(q, positions, block_table, pages, layer, mixed, seq, head, start, row_start[seq + 1] - start)
            for r in T.serial(row_start[seq + 1] - start):
                for g in T.unroll(head_dim // 32):
                    at = T.meta_var(head * head_dim + g * 32)
                    store_quantized(
                        out_q, out_s, out_z, start + r, head * (head_dim // 32) + g,
                        mixed[start + r, T.ramp(at, 1, 16)], mixed[start + r, T.ramp(at + 16, 1, 16)],
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
