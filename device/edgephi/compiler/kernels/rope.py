"""Rotary position embedding: the angles of a step, and rotating queries and keys on their way into the pages."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from edgephi.compiler.kernels import vector as v


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


def rope_append(
    *, num_heads: int, num_kv_heads: int, head_dim: int, num_layers: int, page_size: int, kv_dtype: str
) -> PrimFunc:
    """
    Build ``append(qkv, cos, sin, slots, pages, layer, q)``: rotate q and k, store k and v in their pages.

    Shapes: qkv (t, (num_heads + 2 x num_kv_heads) x head_dim) float32; cos, sin (t, head_dim // 2); slots (t,) int32;
    pages as :mod:`edgephi.compiler.kernels.attention` draws them, changed in place; q (t, num_heads x head_dim)
    float32, rotated and multiplied by 1 / sqrt(head_dim).
    """
    half, width = head_dim // 2, (num_heads + 2 * num_kv_heads) * head_dim
    scale = 1.0 / math.sqrt(head_dim)
    kv16 = f"{kv_dtype}x16"

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
        pages = T.match_buffer(pages_h, (num_layers, num_pages, 2, num_kv_heads, page_size * head_dim), kv_dtype)
        q = T.match_buffer(q_h, (t, num_heads * head_dim), "float32")
        for i in T.parallel(t):
            page: T.let = slots[i] // page_size
            offset: T.let = slots[i] % page_size
            for h in T.serial(num_heads):
                for c in T.serial(half // 16):
                    low: T.let = qkv[i, T.ramp(h * head_dim + c * 16, 1, 16)]
                    high: T.let = qkv[i, T.ramp(h * head_dim + half + c * 16, 1, 16)]
                    co: T.let = cos[i, T.ramp(c * 16, 1, 16)]
                    si: T.let = sin[i, T.ramp(c * 16, 1, 16)]
                    q[i, T.ramp(h * head_dim + c * 16, 1, 16)] = (low * co - high * si) * v.splat(scale)
                    q[i, T.ramp(h * head_dim + half + c * 16, 1, 16)] = (high * co + low * si) * v.splat(scale)
            for h in T.serial(num_kv_heads):
                for c in T.serial(half // 16):
                    at = T.meta_var((num_heads + h) * head_dim + c * 16)
                    low: T.let = qkv[i, T.ramp(at, 1, 16)]
                    high: T.let = qkv[i, T.ramp(at + half, 1, 16)]
                    co: T.let = cos[i, T.ramp(c * 16, 1, 16)]
                    si: T.let = sin[i, T.ramp(c * 16, 1, 16)]
                    # Keys are stored dimension by dimension, hence the stride of a page.
                    pages[layer, page, 0, h, T.ramp(c * 16 * page_size + offset, page_size, 16)] = T.Cast(
                        kv16, low * co - high * si
                    )
                    pages[layer, page, 0, h, T.ramp((half + c * 16) * page_size + offset, page_size, 16)] = T.Cast(
                        kv16, high * co + low * si
                    )
                for c in T.serial(head_dim // 16):
                    at = T.meta_var((num_heads + num_kv_heads + h) * head_dim + c * 16)
                    pages[layer, page, 1, h, T.ramp(offset * head_dim + c * 16, 1, 16)] = T.Cast(
                        kv16, qkv[i, T.ramp(at, 1, 16)]
                    )

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
