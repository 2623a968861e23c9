"""
How keys and values lie in memory: one tensor of pages, ``pages[layer, head, page, element]``.

A page holds PAGE_SIZE = 16 tokens of one layer and one key/value head, h being the head's width. Float pages:

    element d * 16 + token              keys, dimension by dimension, so that one vector holds 16 tokens' keys
    element 16 * h + token * h + d      values, token by token, so that they are added up along the head

Int8 pages hold bytes, arranged for instructions that add four products to an int32 lane, and a float16 scale for
each token's key and value of the head:

    byte (d // 4) * 64 + token * 4 + d % 4                          keys: 16 tokens x 4 dimensions a vector
    byte 16 * h + (token // 4) * 4 * h + d * 4 + token % 4          values: dimensions x 4 tokens a vector
    bytes 32 * h + 2 * token                                        scale of the token's key
    bytes 32 * h + 32 + 2 * token                                   scale of the token's value

The pages of one head lie together, so attention reads a sequence with consecutive pages from front to back.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tvm.ir import Expr
from tvm.script import tirx as T

from edgephi.compiler.kernels import vector as v

PAGE_SIZE = 16

_LARGEST_SCALE = 65504.0  # the largest finite float16


def page_elements(kv_dtype: str, head_dim: int) -> int:
    """Elements of *kv_dtype* in one page of one layer and head."""
    scales = 4 * PAGE_SIZE if kv_dtype == "int8" else 0
    return 2 * PAGE_SIZE * head_dim + scales


def load_scales(pages, layer, head, page, start: int) -> Expr:
    """Return the 16 float16 scales at byte *start* of an int8 page as float32x16."""
    stored = pages[layer, head, page, T.ramp(start, 1, 32)]
    return T.Cast("float32x16", T.reinterpret(stored, dtype="float16x16"))


@T.macro
def quantize_head(x, codes, scale, head_dim):
    """Quantize ``x[0:head_dim]`` into int8 ``codes`` and set ``scale[0]``, a float16 number, as the twin says."""
    largest = T.alloc_buffer((16,), "float32", scope="global")
    largest[T.ramp(0, 1, 16)] = v.splat(0.0)
    for c in T.unroll(head_dim // 16):
        largest[T.ramp(0, 1, 16)] = v.max_(largest[T.ramp(0, 1, 16)], v.abs_(x[T.ramp(c * 16, 1, 16)]))
    scale[0] = T.Cast(
        "float16",
        T.min(v.reduce_max(largest[T.ramp(0, 1, 16)]) / T.float32(127), T.float32(_LARGEST_SCALE)),
    )
    step: T.let = T.Cast("float32", scale[0])
    inverse: T.let = T.if_then_else(step > T.float32(0), T.float32(1) / step, T.float32(0))
    for c in T.unroll(head_dim // 16):
        # The scale was rounded to float16, so the largest value may be a little more than 127 steps.
        rounded: T.let = v.clamp(v.round_even(x[T.ramp(c * 16, 1, 16)] * v.splat(inverse)), 127.0)
        codes[T.ramp(c * 16, 1, 16)] = T.Cast("int8x16", T.Cast("int32x16", rounded))


def quantize_head_reference(
    x: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """
    Quantize keys or values, each head of each token by itself.

    Args:
        x: (..., head_dim) float32.

    Returns:
        Codes (..., head_dim) int8, -127 to 127, and scales (...) float16, ``max|x| / 127``; a value is code x scale.
    """
    scale = np.minimum(np.abs(x).max(axis=-1) / np.float32(127), np.float32(_LARGEST_SCALE)).astype(np.float16)
    step = scale.astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(step > 0, np.float32(1) / step, np.float32(0)).astype(np.float32)
    codes = np.clip(np.rint(x * inverse[..., None]), -127, 127).astype(np.int8)
    return codes, scale


def write_reference(
    pages: npt.NDArray[np.generic],
    layer: int,
    page: int,
    offset: int,
    keys: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
) -> None:
    """
    Store one token's *keys* and *values* (kv_heads, head_dim) at *offset* of *page* of *layer*, as the module draws.

    *pages*, which is changed, is (layers, kv_heads, pages, :func:`page_elements`) int8, float16 or float32.
    """
    head_dim = keys.shape[1]
    half = PAGE_SIZE * head_dim
    at = pages[layer, :, page]
    if pages.dtype != np.int8:
        at[:, offset:half:PAGE_SIZE] = keys
        start = half + offset * head_dim
        at[:, start : start + head_dim] = values
        return
    d = np.arange(head_dim)
    for x, code_at, scale_at in (
        (keys, (d // 4) * 64 + offset * 4 + d % 4, 2 * half),
        (values, half + (offset // 4) * 4 * head_dim + d * 4 + offset % 4, 2 * half + 32),
    ):
        codes, scales = quantize_head_reference(x)
        at[:, code_at] = codes
        at[:, scale_at + 2 * offset : scale_at + 2 * offset + 2] = scales[:, None].view(np.int8)


def read_reference(
    pages: npt.NDArray[np.generic], layer: int, page: int, offset: int, head_dim: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the keys and values (kv_heads, head_dim) float32 that :func:`write_reference` stored."""
    half = PAGE_SIZE * head_dim
    at = pages[layer, :, page]
    if pages.dtype != np.int8:
        start = half + offset * head_dim
        keys, values = at[:, offset:half:PAGE_SIZE], at[:, start : start + head_dim]
        return keys.astype(np.float32), values.astype(np.float32)
    d = np.arange(head_dim)
    found = []
    for code_at, scale_at in (
        ((d // 4) * 64 + offset * 4 + d % 4, 2 * half),
        (half + (offset // 4) * 4 * head_dim + d * 4 + offset % 4, 2 * half + 32),
    ):
        scale = np.ascontiguousarray(at[:, scale_at + 2 * offset : scale_at + 2 * offset + 2]).view(np.float16)
        found.append(at[:, code_at].astype(np.float32) * scale.astype(np.float32))
    return found[0], found[1]
