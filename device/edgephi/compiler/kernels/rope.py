"""Rotary position embedding: the angles of a step, and rotating queries and keys on their way into the pages."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from edgephi.compiler.kernels import vector as v
from edgephi.compiler.kernels.kv_pages import PAGE_SIZE, page_elements, quantize_head


def rope_angles(half: int, attention_scale: float) -> PrimFunc:
    """
    Build ``angles(positions, inverse_frequency, cos, sin)``, computed once a step for all layers.

    Shapes: positions (t,) int32, inverse_frequency (half,) float32, cos and sin (t, half) float32, both multiplied
    by *attention_scale* (1 but for LongRoPE).
    """

    @T.prim_func(s_tir=True)
    def angles(
        positions_h: T.handle, inverse_frequency: T.Buffer((half,), "float32"), cos_h: T.handle, sin_h: T.handle
    ):
        T.func_attr({"tirx.noalias": True})
        t = T.int64()
        positions = T.match_buffer(positions_h, (t,), "int32")
        cos = T.match_buffer(cos_h, (t, half), "float32")
        sin = T.match_buffer(sin_h, (t, half), "float32")
        for i in T.parallel(t):
            for d in T.serial(half):
                angle: T.let = T.Cast("float32", positions[i]) * inverse_frequency[d]
                cos[i, d] = T.cos(angle) * T.float32(attention_scale)
                sin[i, d] = T.sin(angle) * T.float32(attention_scale)

    return angles


def rope_append(*, num_heads: int, num_kv_heads: int, head_dim: int, num_layers: int, kv_dtype: str) -> PrimFunc:
    """
    Build ``append(qkv, cos, sin, slots, pages, layer, q)``: rotate q and k, store k and v in their pages.

    Shapes: qkv (t, (num_heads + 2 x num_kv_heads) x head_dim) float32; cos, sin (t, head_dim // 2); slots (t,) int32;
    pages as :mod:`edgephi.compiler.kernels.kv_pages` draws them, changed in place; q (t, num_heads x head_dim)
    float32, rotated and multiplied by 1 / sqrt(head_dim).
    """
    half, width, per_kv = head_dim // 2, (num_heads + 2 * num_kv_heads) * head_dim, num_heads // num_kv_heads
    scale = 1.0 / math.sqrt(head_dim)
    kv16 = f"{kv_dtype}x16"
    values_at = PAGE_SIZE * head_dim
    int8 = kv_dtype == "int8"

    @T.macro
    def store_float(pages, layer, page, offset, h, key, qkv, i):
        for c in T.unroll(head_dim // 16):
            # Keys are stored dimension by dimension, hence the stride of a page.
            pages[layer, h, page, T.ramp(c * 16 * PAGE_SIZE + offset, PAGE_SIZE, 16)] = T.Cast(
                kv16, key[T.ramp(c * 16, 1, 16)]
            )
            at = T.meta_var((num_heads + num_kv_heads + h) * head_dim + c * 16)
            pages[layer, h, page, T.ramp(values_at + offset * head_dim + c * 16, 1, 16)] = T.Cast(
                kv16, qkv[i, T.ramp(at, 1, 16)]
            )

    @T.macro
    def store_int8(pages, layer, page, offset, h, key, qkv, i):
        codes = T.alloc_buffer((head_dim,), "int8", scope="global")
        value = T.alloc_buffer((head_dim,), "float32", scope="global")
        step = T.alloc_buffer((1,), "float16", scope="global")
        quantize_head(key, codes, step, head_dim)
        for quad in T.unroll(head_dim // 4):
            pages[layer, h, page, T.ramp(quad * 64 + offset * 4, 1, 4)] = codes[T.ramp(quad * 4, 1, 4)]
        pages[layer, h, page, T.ramp(2 * values_at + 2 * offset, 1, 2)] = T.reinterpret(step[0], dtype="int8x2")
        for c in T.unroll(head_dim // 16):
            at = T.meta_var((num_heads + num_kv_heads + h) * head_dim + c * 16)
            value[T.ramp(c * 16, 1, 16)] = qkv[i, T.ramp(at, 1, 16)]
        quantize_head(value, codes, step, head_dim)
        for d in T.serial(head_dim):
            pages[layer, h, page, values_at + offset // 4 * 4 * head_dim + d * 4 + offset % 4] = codes[d]
        pages[layer, h, page, T.ramp(2 * values_at + 32 + 2 * offset, 1, 2)] = T.reinterpret(step[0], dtype="int8x2")

    @T.prim_func(s_tir=True)
    def append(
        qkv_h: T.handle, cos_h: T.handle, sin_h: T.handle, slots_h: T.handle, pages_h: T.handle,
        layer: T.int64, q_h: T.handle,
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True})
        t, num_pages = T.int64(), T.int64()
        qkv = T.match_buffer(qkv_h, (t, width), "float32")
        cos = T.match_buffer(cos_h, (t, half), "float32")
        sin = T.match_buffer(sin_h, (t, half), "float32")
        slots = T.match_buffer(slots_h, (t,), "int32")
        pages = T.match_buffer(
            pages_h, (num_layers, num_kv_heads, num_pages, page_elements(kv_dtype, head_dim)), kv_dtype
        )
        q = T.match_buffer(q_h, (t, num_heads * head_dim), "float32")
        for job in T.parallel(t * num_kv_heads):
            i: T.let = job // num_kv_heads
            h: T.let = job % num_kv_heads
            for j in T.serial(per_kv):
                for c in T.unroll(half // 16):
                    at = T.meta_var((h * per_kv + j) * head_dim + c * 16)
                    low: T.let = qkv[i, T.ramp(at, 1, 16)]
                    high: T.let = qkv[i, T.ramp(at + half, 1, 16)]
                    co: T.let = cos[i, T.ramp(c * 16, 1, 16)]
                    si: T.let = sin[i, T.ramp(c * 16, 1, 16)]
                    q[i, T.ramp(at, 1, 16)] = (low * co - high * si) * v.splat(scale)
                    q[i, T.ramp(at + half, 1, 16)] = (high * co + low * si) * v.splat(scale)
            key = T.alloc_buffer((head_dim,), "float32", scope="global")
            for c in T.unroll(half // 16):
                at = T.meta_var((num_heads + h) * head_dim + c * 16)
                low: T.let = qkv[i, T.ramp(at, 1, 16)]
                high: T.let = qkv[i, T.ramp(at + half, 1, 16)]
                co: T.let = cos[i, T.ramp(c * 16, 1, 16)]
                si: T.let = sin[i, T.ramp(c * 16, 1, 16)]
                key[T.ramp(c * 16, 1, 16)] = low * co - high * si
                key[T.ramp(half + c * 16, 1, 16)] = high * co + low * si
            if int8:
                store_int8(pages, layer, slots[i] // PAGE_SIZE, slots[i] % PAGE_SIZE, h, key, qkv, i)
            else:
                store_float(pages, layer, slots[i] // PAGE_SIZE, slots[i] % PAGE_SIZE, h, key, qkv, i)

    return append


def rope_reference(
    x: npt.NDArray[np.float32],
    positions: npt.NDArray[np.int32],
    inverse_frequency: npt.NDArray[np.float32],
    attention_scale: float = 1.0,
) -> npt.NDArray[np.float32]:
    """
    Rotate x (t, heads, head_dim) float32 by its positions (t,), first half against second half of each head.

    Source: Su et al., RoFormer, 2021, in the "rotate half" form of GPT-NeoX and Llama.
    """
    angle = positions[:, None].astype(np.float32) * inverse_frequency
    cos = np.cos(angle)[:, None, :] * np.float32(attention_scale)
    sin = np.sin(angle)[:, None, :] * np.float32(attention_scale)
    low, high = np.split(x, 2, axis=2)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=2).astype(np.float32)
