"""
The matrix kernel for ``smmla``, which multiplies two rows of eight bytes by two others: ARMv8.6's i8mm.

A register holds two rows of weights, or two tokens, with eight inputs of each, and one instruction adds 32 products to
2 x 2 sums. Nothing is rearranged in the inner loop: weights are packed in such pairs, activations are laid out in pairs
once for the whole matrix, and sums stay 2 x 2 until the last group.

Blocks, groups and the place of scales are those of ``kernels.matmul_q4``; the codes' bytes are not. Every four rows of
a block, a quad, have eight registers of codes in a group. Register 4 * pair + eighth, of pair 0..1 and eighth 0..3, is

    byte 8 * row + j                        row 0..1, j 0..7
        code of row 2 * pair + row of the quad, input group * 32 + eighth * 8 + j

A code is stored without its zero point, as a signed number of as many bits: 7 - code, which is -8 to 7, or with 3 bits
code - 4. Moved to the top of a byte or left there it is a signed byte, -16 or 32 times the weight in steps of its
scale; activations have scales that undo the factor. With 4 bits a code, a quad is

    byte (quad * 4 + plane) * 16 + i        plane 0..3
        low nibble   byte i of register 2 * plane
        high nibble  byte i of register 2 * plane + 1

and with 3 bits

    byte (quad * 3 + plane) * 16 + i        plane 0..2
        bits 0 to 2  byte i of register 2 * plane
        bits 5 to 7  byte i of register 2 * plane + 1
        bits 3, 4    of plane 0: the low bits of byte i of register 6
                     of plane 1: the low bits of byte i of register 7
                     of plane 2: the high bits of those two

Activations in pairs are ``pairs[pair, group, byte]`` int8, 80 bytes:

    byte 16 * eighth + 8 * token + j        token 0..1, eighth 0..3, j 0..7
        of token 2 * pair + token, input group * 32 + eighth * 8 + j
    byte 64 + 8 * token                     its s (kernels.activations), divided by the factor, twice

A last token without a partner is there twice. It is multiplied by ``sdot``, each sum in two lanes that are then added.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.ir import Expr
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from edgephi.artifact.quantization import ZERO_CODE_Q3, Bits
from edgephi.compiler.kernels import vector as v
from edgephi.compiler.kernels.activations import GROUP, ZERO_POINT, Activations
from edgephi.compiler.targets import KernelShape

_QUAD = 4  # rows
_PAIR_BYTES = 80
_TILE_PAIRS = 4
_GROUPS_AHEAD = 6  # as in kernels.matmul_q4
_FEW_PAIRS = 4  # laid out before other threads would have started


def pack_codes(codes: npt.NDArray[np.uint8], blocks: int, bits: Bits) -> npt.NDArray[np.uint8]:
    """
    Rearrange the codes of a matrix for the kernel.

    Args:
        codes: (n, k) uint8.
        blocks: Of n // blocks rows each.
        bits: Of a code.

    Returns:
        (blocks, k // 32, bytes) uint8, as the module draws.
    """
    n, k = codes.shape
    shape = blocks, n // blocks // _QUAD, 2, 2, k // GROUP, 4, 8
    signed = np.uint8(ZERO_POINT) - codes if bits == 4 else codes - np.uint8(ZERO_CODE_Q3)
    signed &= np.uint8((1 << bits) - 1)
    registers = signed.reshape(shape).transpose(0, 4, 1, 2, 5, 3, 6).reshape(blocks, k // GROUP, shape[1], 8, 16)
    planes: npt.NDArray[np.uint8] = registers[:, :, :, 0 : 2 * bits : 2] | registers[:, :, :, 1 : 2 * bits : 2] << (
        8 - bits
    )
    if bits == 3:
        low, high = registers[:, :, :, 6], registers[:, :, :, 7]
        planes[:, :, :, 0] |= (low & 3) << 3
        planes[:, :, :, 1] |= (high & 3) << 3
        planes[:, :, :, 2] |= (low >> 2) << 3 | (high >> 2) << 4
    return planes.reshape(blocks, k // GROUP, -1)


def pairs_shape(t: Any, k: int) -> tuple[Any, int, int]:
    """Return the shape of the room that the kernel needs for pairs; *t* may be a number or symbolic."""
    return (t + 1) // 2, k // GROUP, _PAIR_BYTES


def pairs_reference(q: npt.NDArray[np.int8], s: npt.NDArray[np.float32], bits: Bits) -> npt.NDArray[np.int8]:
    """Return activations q (t, k) and s (t, k // 32) in pairs, of :func:`pairs_shape`."""
    t, groups = s.shape
    tokens = np.minimum(np.arange(t + t % 2), t - 1).reshape(-1, 2)
    found = np.empty((len(tokens), groups, _PAIR_BYTES), np.int8)
    eighths = q[tokens].reshape(-1, 2, groups, 4, 8).transpose(0, 2, 3, 1, 4)
    found[:, :, :64] = eighths.reshape(-1, groups, 64)
    scales = np.repeat(s[tokens].transpose(0, 2, 1) / np.float32(_factor(bits)), 2, axis=2)
    found[:, :, 64:] = scales.view(np.int8)
    return found


def matmul_i8mm(
    n: int,
    k: int,
    packed: tuple[int, int, int],
    shape: KernelShape,
    scale_dtype: str,
    activations: Activations,
    *,
    residual: bool,
    bits: Bits,
) -> PrimFunc:
    """
    Build what ``kernels.matmul_q4`` does for weights of the shape *packed* and codes as :func:`pack_codes` has them.

    With int8 activations the kernel takes room for pairs behind out: int8 of :func:`pairs_shape`.
    """
    build = _matmul_float if activations is Activations.FLOAT32 else _matmul_int8
    return build(n, k, packed, shape, scale_dtype, residual, bits)


def _factor(bits: Bits) -> int:
    """Return how many times a weight in steps of its scale a code in a register is."""
    return -16 if bits == 4 else 32


def _shift_left(packed: Expr, bits: int) -> Expr:
    return T.shift_left(packed, T.broadcast(T.uint8(bits), 16))


def _mask_top(packed: Expr, bits: int) -> Expr:
    return T.bitwise_and(packed, T.broadcast(T.uint8(256 - (256 >> bits)), 16))


def _join(packed: Expr, high: Expr) -> Expr:
    """Return the codes with two low bits in bits 3 and 4 of *packed* and the third at the top of *high*."""
    low = _shift_left(packed, 3)
    # All but the top bit of *high* become those of *low*, shifted right by one.
    return _mask_top(v.intrinsic("llvm.aarch64.neon.vsri.v16i8", "uint8x16", high, low, T.int32(1)), 3)


def _signed(packed: Expr) -> Expr:
    return T.reinterpret(packed, dtype="int8x16")


@T.macro
def _unpack(codes, w, block, g, quad, bits):
    """Store the eight registers of a quad to *codes* (128,) int8."""
    for plane in T.unroll(bits):
        both: T.let = w[block, g, T.ramp((quad * bits + plane) * 16, 1, 16)]
        codes[T.ramp(plane * 32, 1, 16)] = _signed(_shift_left(both, 8 - bits))
        codes[T.ramp(plane * 32 + 16, 1, 16)] = _signed(_mask_top(both, bits))
    if bits == 3:
        plane_0: T.let = w[block, g, T.ramp(quad * 48, 1, 16)]
        plane_1: T.let = w[block, g, T.ramp(quad * 48 + 16, 1, 16)]
        plane_2: T.let = w[block, g, T.ramp(quad * 48 + 32, 1, 16)]
        codes[T.ramp(96, 1, 16)] = _signed(_join(plane_0, _shift_left(plane_2, 4)))
        codes[T.ramp(112, 1, 16)] = _signed(_join(plane_1, _shift_left(plane_2, 3)))


def _scales(w, block: Expr, g: Expr, quad: Expr, code_bytes: int, scale_dtype: str) -> Expr:
    """Return the scales of a quad's rows, float32x4."""
    size = _QUAD * np.dtype(scale_dtype).itemsize
    stored = w[block, g, T.ramp(code_bytes + quad * size, 1, size)]
    return T.Cast("float32x4", T.reinterpret(stored, dtype=f"{scale_dtype}x4"))


@T.macro
def _store(res, out, token, row, value, residual):
    """Store the results of a token and the four rows from *row* on."""
    if residual:
        out[token, T.ramp(row, 1, _QUAD)] = value + res[token, T.ramp(row, 1, _QUAD)]
    else:
        out[token, T.ramp(row, 1, _QUAD)] = value


@T.macro
def _pair(q, s, pairs, p, first, second, groups, bits):
    """Lay out two tokens as pair *p*."""
    for g in T.serial(groups):
        for half in T.unroll(2):
            a: T.let = T.reinterpret(q[first, T.ramp(g * GROUP + half * 16, 1, 16)], dtype="int64x2")
            b: T.let = T.reinterpret(q[second, T.ramp(g * GROUP + half * 16, 1, 16)], dtype="int64x2")
            pairs[p, g, T.ramp(half * 32, 1, 16)] = T.reinterpret(v.shuffle([a, b], 0, 2), dtype="int8x16")
            pairs[p, g, T.ramp(half * 32 + 16, 1, 16)] = T.reinterpret(v.shuffle([a, b], 1, 3), dtype="int8x16")
        inverse = T.meta_var(1 / _factor(bits))
        s_a: T.let = v.splat(s[first, g] * T.float32(inverse), 2)
        s_b: T.let = v.splat(s[second, g] * T.float32(inverse), 2)
        pairs[p, g, T.ramp(64, 1, 16)] = T.reinterpret(v.shuffle([s_a, s_b], 0, 1, 2, 3), dtype="int8x16")


@T.macro
def _pair_all(q, s, pairs, t, groups, bits):
    if t // 2 > _FEW_PAIRS:
        for p in T.parallel(t // 2):
            _pair(q, s, pairs, p, 2 * p, 2 * p + 1, groups, bits)
    else:
        for p in T.serial(t // 2):
            _pair(q, s, pairs, p, 2 * p, 2 * p + 1, groups, bits)
    if t % 2 == 1:
        _pair(q, s, pairs, t // 2, t - 1, t - 1, groups, bits)


def _start(pairs, p: Expr, g: Expr) -> Expr:
    """
    Return s of both tokens, twice each, float32x4.

    Sums that start from its bits come out scaled, with it added (kernels.activations), also where it is negative.
    """
    return T.reinterpret(pairs[p, g, T.ramp(64, 1, 16)], dtype="float32x4")


def _multiply_pair(pairs, codes, p: Expr, g: Expr, half: Expr) -> Expr:
    """Return products of a pair and two rows of a quad, float32x4: token 0 with row 0, token 0 with row 1, ..."""
    total = T.reinterpret(_start(pairs, p, g), dtype="int32x4")
    for eighth in range(4):
        total = v.intrinsic(
            "llvm.aarch64.neon.smmla.v4i32.v16i8", "int32x4", total,
            pairs[p, g, T.ramp(16 * eighth, 1, 16)], codes[T.ramp((4 * half + eighth) * 16, 1, 16)],
        )  # fmt: skip
    return T.reinterpret(total, dtype="float32x4") - _start(pairs, p, g)


def _multiply_single(pairs, codes, p: Expr, g: Expr) -> Expr:
    """Return products of a token that is there twice and the four rows of a quad, float32x4."""
    both = []
    for half in range(2):
        # Two lanes of each row; one of them starts from s.
        first = T.Shuffle([T.int32(-1), T.int32(0), T.int32(-1), T.int32(0)], [0, 1, 2, 3])
        total = T.bitwise_and(T.reinterpret(_start(pairs, p, g), dtype="int32x4"), first)
        for eighth in range(4):
            total = v.intrinsic(
                "llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", total,
                codes[T.ramp((4 * half + eighth) * 16, 1, 16)], pairs[p, g, T.ramp(16 * eighth, 1, 16)],
            )  # fmt: skip
        both.append(total)
    total = v.intrinsic("llvm.aarch64.neon.addp.v4i32", "int32x4", *both)
    return T.reinterpret(total, dtype="float32x4") - _start(pairs, p, g)


def _matmul_int8(
    n: int, k: int, packed: tuple[int, int, int], shape: KernelShape, scale_dtype: str, residual: bool, bits: Bits
) -> PrimFunc:
    blocks, groups, group_bytes = packed
    rows = n // blocks
    quads, code_bytes = rows // _QUAD, rows * 4 * bits
    assert shape.tile_tokens == 2 * _TILE_PAIRS, shape
    # Fewer tokens multiply more rows at once: as many sums.
    most_quads = shape.tile_vectors * _TILE_PAIRS

    @T.macro
    def prefetch(w, block, g, r):
        if r == quads:  # the tile reads all of the group
            for line in T.unroll(-(-group_bytes // v.LINE_BYTES)):
                v.prefetch(T.address_of(w[block, g + _GROUPS_AHEAD, line * v.LINE_BYTES]))

    @T.macro
    def tile(pairs, w, res, out, block, p, m, quad, r):
        """Multiply *m* pairs of tokens by *r* quads of rows."""
        acc = T.alloc_buffer((m * r * 8,), "float32", scope="global")
        codes = T.alloc_buffer((128,), "int8", scope="global")
        for i in T.unroll(m * r * 2):
            acc[T.ramp(i * 4, 1, 4)] = v.splat(0.0, 4)
        for g in T.serial(groups):
            prefetch(w, block, g, r)
            for c in T.unroll(r):
                _unpack(codes, w, block, g, quad + c, bits)
                scale: T.let = _scales(w, block, g, quad + c, code_bytes, scale_dtype)
                for i in T.unroll(m):
                    for half in T.unroll(2):
                        at = T.meta_var(T.ramp(((i * r + c) * 2 + half) * 4, 1, 4))
                        scale_2: T.let = v.shuffle([scale], 2 * half, 2 * half + 1, 2 * half, 2 * half + 1)
                        acc[at] = acc[at] + scale_2 * _multiply_pair(pairs, codes, p + i, g, half)
        for c in T.unroll(r):
            for i in T.unroll(m):
                row = T.meta_var(block * rows + (quad + c) * _QUAD)
                low: T.let = acc[T.ramp((i * r + c) * 8, 1, 4)]
                high: T.let = acc[T.ramp((i * r + c) * 8 + 4, 1, 4)]
                _store(res, out, 2 * (p + i), row, v.shuffle([low, high], 0, 1, 4, 5), residual)
                _store(res, out, 2 * (p + i) + 1, row, v.shuffle([low, high], 2, 3, 6, 7), residual)

    @T.macro
    def tiles(pairs, w, res, out, block, p, m, r):
        for i in T.serial(quads // r):
            tile(pairs, w, res, out, block, p, m, i * r, r)

    @T.macro
    def single(pairs, w, res, out, block, p, token):
        """Multiply the token without a partner, pair *p*, by a block."""
        acc = T.alloc_buffer((rows,), "float32", scope="global")
        codes = T.alloc_buffer((128,), "int8", scope="global")
        for c in T.unroll(quads):
            acc[T.ramp(c * _QUAD, 1, _QUAD)] = v.splat(0.0, _QUAD)
        for g in T.serial(groups):
            prefetch(w, block, g, quads)
            for c in T.unroll(quads):
                _unpack(codes, w, block, g, c, bits)
                at = T.meta_var(T.ramp(c * _QUAD, 1, _QUAD))
                scale: T.let = _scales(w, block, g, c, code_bytes, scale_dtype)
                acc[at] = acc[at] + scale * _multiply_single(pairs, codes, p, g)
        for c in T.unroll(quads):
            row = T.meta_var(block * rows + c * _QUAD)
            _store(res, out, token, row, acc[T.ramp(c * _QUAD, 1, _QUAD)], residual)

    @T.macro
    def body(q, s, w, res, out, pairs, t):
        _pair_all(q, s, pairs, t, groups, bits)
        for block in T.parallel(blocks):
            for big in T.serial(t // 8):
                tiles(pairs, w, res, out, block, big * 4, 4, min(most_quads // 4, quads))
            if t % 8 >= 4:
                tiles(pairs, w, res, out, block, t // 8 * 4, 2, min(most_quads // 2, quads))
            if t % 4 >= 2:
                tiles(pairs, w, res, out, block, t // 4 * 2, 1, min(most_quads, quads))
            if t % 2 == 1:
                single(pairs, w, res, out, block, t // 2, t - 1)

    if residual:

        @T.prim_func(s_tir=True)
        def matmul_pairs_residual(
            q_h: T.handle,
            s_h: T.handle,
            z_h: T.handle,
            w: T.Buffer(packed, "uint8"),
            res_h: T.handle,
            out_h: T.handle,
            pairs_h: T.handle,
        ):
            T.func_attr({"tirx.noalias": True})
            t = T.int64()
            q = T.match_buffer(q_h, (t, k), "int8")
            s = T.match_buffer(s_h, (t, groups), "float32")
            T.match_buffer(z_h, (t, groups), "int32")
            res = T.match_buffer(res_h, (t, n), "float32")
            out = T.match_buffer(out_h, (t, n), "float32")
            pairs = T.match_buffer(pairs_h, pairs_shape(t, k), "int8")
            body(q, s, w, res, out, pairs, t)

        return matmul_pairs_residual

    @T.prim_func(s_tir=True)
    def matmul_pairs(
        q_h: T.handle, s_h: T.handle, z_h: T.handle, w: T.Buffer(packed, "uint8"), out_h: T.handle, pairs_h: T.handle
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True})
        t = T.int64()
        q = T.match_buffer(q_h, (t, k), "int8")
        s = T.match_buffer(s_h, (t, groups), "float32")
        T.match_buffer(z_h, (t, groups), "int32")
        out = T.match_buffer(out_h, (t, n), "float32")
        pairs = T.match_buffer(pairs_h, pairs_shape(t, k), "int8")
        body(q, s, w, out, out, pairs, t)

    return matmul_pairs


def _matmul_float(
    n: int, k: int, packed: tuple[int, int, int], shape: KernelShape, scale_dtype: str, residual: bool, bits: Bits
) -> PrimFunc:
    """The reference path: exact float32 activations, one token at a time; not tuned."""
    blocks, groups, _ = packed
    rows = n // blocks
    code_bytes = rows * 4 * bits
    assert shape.lanes == _QUAD, shape

    def weight(codes, eighth: Expr, j: Expr) -> Expr:
        """Return what a quad's rows have for an input, float32x4, in steps of their scales."""
        pairs = [codes[T.ramp((4 * pair + eighth) * 16, 1, 16)] for pair in range(2)]
        bytes_4 = v.shuffle(pairs, j, j + 8, j + 16, j + 24)
        return T.Cast("float32x4", T.Cast("int32x4", bytes_4)) * v.splat(1 / _factor(bits), _QUAD)

    @T.macro
    def body(x, w, res, out, t):
        for block in T.parallel(blocks):
            for i in T.serial(t):
                for quad in T.serial(rows // _QUAD):
                    acc = T.alloc_buffer((_QUAD,), "float32", scope="global")
                    total = T.alloc_buffer((_QUAD,), "float32", scope="global")
                    codes = T.alloc_buffer((128,), "int8", scope="global")
                    acc[T.ramp(0, 1, _QUAD)] = v.splat(0.0, _QUAD)
                    for g in T.serial(groups):
                        total[T.ramp(0, 1, _QUAD)] = v.splat(0.0, _QUAD)
                        _unpack(codes, w, block, g, quad, bits)
                        for eighth in T.unroll(4):
                            for j in T.unroll(8):
                                total[T.ramp(0, 1, _QUAD)] = total[T.ramp(0, 1, _QUAD)] + weight(
                                    codes, eighth, j
                                ) * v.splat(x[i, g * GROUP + eighth * 8 + j], _QUAD)
                        acc[T.ramp(0, 1, _QUAD)] = acc[T.ramp(0, 1, _QUAD)] + total[T.ramp(0, 1, _QUAD)] * _scales(
                            w, block, g, quad, code_bytes, scale_dtype
                        )
                    _store(res, out, i, block * rows + quad * _QUAD, acc[T.ramp(0, 1, _QUAD)], residual)

    if residual:

        @T.prim_func(s_tir=True)
        def matmul_float_residual(
            x_h: T.handle, w: T.Buffer(packed, "uint8"), res_h: T.handle, out_h: T.handle
        ):  # fmt: skip
            T.func_attr({"tirx.noalias": True})
            t = T.int64()
            x = T.match_buffer(x_h, (t, k), "float32")
            res = T.match_buffer(res_h, (t, n), "float32")
            out = T.match_buffer(out_h, (t, n), "float32")
            body(x, w, res, out, t)

        return matmul_float_residual

    @T.prim_func(s_tir=True)
    def matmul_float(x_h: T.handle, w: T.Buffer(packed, "uint8"), out_h: T.handle):
        T.func_attr({"tirx.noalias": True})
        t = T.int64()
        x = T.match_buffer(x_h, (t, k), "float32")
        out = T.match_buffer(out_h, (t, n), "float32")
        body(x, w, out, out, t)

    return matmul_float
