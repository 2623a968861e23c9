"""
Activations times a matrix of 4-bit or 3-bit weights: the kernel where nearly all time goes.

Weights stay packed until they are in registers. A packed matrix is ``w[block, group, byte]`` uint8: for each block of
R output rows and each group of 32 inputs, the codes and then the scales,

    byte (quad * R + row) * 4 + j           quad 0..3, j 0..3
        low nibble   code of input group * 32 + quad * 8 + j
        high nibble  code of input group * 32 + quad * 8 + 4 + j
    byte 16 * R + row * scale bytes         scale of the row's 32 inputs

so that one load of 4 x lanes bytes holds 4 inputs (8 with both nibbles) of as many rows as a register has int32
lanes, on every instruction set, and a task reads its blocks as one stream from front to back. R is the number of rows
the one-token kernel works on at once.

With 3 bits a code, two codes leave two bits of a byte free, and those of three bytes hold two more codes:

    byte (plane * R + row) * 4 + j          plane 0..2, j 0..3
        bits 0 to 2  code of input group * 32 + plane * 8 + j
        bits 3 to 5  code of input group * 32 + plane * 8 + 4 + j
        bits 6, 7    of plane 0: the low bits of the code of input group * 32 + 24 + j
                     of plane 1: the low bits of the code of input group * 32 + 28 + j
                     of plane 2: the high bits of those two codes
    byte 12 * R + row * scale bytes         scale of the row's 32 inputs

which takes 17 operations to unpack eight registers of codes; two bits in one plane and the third in another take 29,
and 4-bit codes 12.

Where smmla multiplies, codes lie otherwise in as many bytes, and the kernel is that of ``kernels.matmul_i8mm``.
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
from edgephi.compiler.kernels.dot import ByteDot
from edgephi.compiler.kernels.matmul_i8mm import matmul_i8mm, pack_codes, pairs_shape
from edgephi.compiler.targets import Dot, KernelShape
from edgephi.errors import UnsupportedModel

_GROUPS_AHEAD = 6  # how far ahead of its use a group is asked for; 2 is too late and 16 too early (docs/log.md)


def block_rows(n: int, shape: KernelShape) -> int:
    """
    Output rows in one packed block of a matrix with *n* rows.

    Raises:
        UnsupportedModel: If n is not a multiple of 16.
    """
    for rows in (64, 32, 16):
        if rows <= shape.block_rows and n % rows == 0:
            return rows
    raise UnsupportedModel(f"a weight matrix has {n} rows; the kernels need a multiple of 16")


def packed_shape(n: int, k: int, shape: KernelShape, scale_dtype: str, bits: Bits = 4) -> tuple[int, int, int]:
    """
    Return the shape (blocks, groups, bytes) of a packed matrix of *n* rows and *k* columns.

    Raises:
        UnsupportedModel: If n is not a multiple of 16 or k not of 32.
    """
    if k % GROUP:
        raise UnsupportedModel(f"a weight matrix has {k} columns; the kernels need a multiple of {GROUP}")
    rows = block_rows(n, shape)
    return n // rows, k // GROUP, rows * (4 * bits + np.dtype(scale_dtype).itemsize)


def pack(
    codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.floating], shape: KernelShape, bits: Bits = 4
) -> npt.NDArray[np.uint8]:
    """
    Rearrange a matrix for the kernel.

    Args:
        codes: (n, k) uint8, 0 to 15, or to 7 with 3 bits.
        scales: (n, k // 32) float16 or float32.
        shape: Whose blocks to make.
        bits: Of a code.

    Returns:
        uint8 of :func:`packed_shape`, as the module draws.
    """
    n, k = codes.shape
    blocks, groups, size = packed_shape(n, k, shape, scales.dtype.name, bits)
    rows, code_bytes = n // blocks, 4 * bits * (n // blocks)
    packed = np.empty((blocks, groups, size), np.uint8)
    code_packer = pack_codes if shape.dot is Dot.SMMLA else _pack_codes
    packed[:, :, :code_bytes] = code_packer(codes, blocks, bits)
    by_group = np.ascontiguousarray(scales.reshape(blocks, rows, groups).transpose(0, 2, 1))
    packed[:, :, code_bytes:] = by_group.view(np.uint8).reshape(blocks, groups, -1)
    return packed


def _pack_codes(codes: npt.NDArray[np.uint8], blocks: int, bits: Bits) -> npt.NDArray[np.uint8]:
    """Return the codes (n, k) of a matrix as the module draws them, (blocks, groups, bytes)."""
    n, k = codes.shape
    rows, groups = n // blocks, k // GROUP
    tiles = codes.reshape(blocks, rows, groups, 4, 2, 4).transpose(0, 2, 3, 4, 1, 5)
    # (blocks, groups, 4, rows, 4)
    pairs: npt.NDArray[np.uint8] = tiles[:, :, :, 0] | (tiles[:, :, :, 1] << np.uint8(bits))
    if bits == 3:
        low, high = tiles[:, :, 3, 0], tiles[:, :, 3, 1]
        pairs = pairs[:, :, :3]
        pairs[:, :, 0] |= low << 6
        pairs[:, :, 1] |= high << 6
        pairs[:, :, 2] |= (low >> 2) << 6 | (high >> 2) << 7
    return pairs.reshape(blocks, groups, -1)


def room_shape(t: Any, k: int, shape: KernelShape, activations: Activations) -> tuple[Any, ...] | None:
    """Return the shape of the int8 room that the kernel needs for *t* rows, a number or symbolic; most need none."""
    return pairs_shape(t, k) if shape.dot is Dot.SMMLA and activations is Activations.INT8 else None


def matmul_q4(
    n: int, k: int, shape: KernelShape, scale_dtype: str, activations: Activations, *, residual: bool, bits: Bits = 4
) -> PrimFunc:
    """
    Build ``matmul(activations..., w, [residual], out)``: ``out = x @ dequantize(w).T [+ residual]``.

    Shapes: activations of t rows and k columns as ``kernels.activations`` says; w as :func:`pack` makes it;
    residual and out (t, n) float32. Behind out comes the room of :func:`room_shape`, where there is any.

    Raises:
        UnsupportedModel: If n is not a multiple of 16 or k not of 32.
    """
    if shape.dot is Dot.SMMLA:
        packed = packed_shape(n, k, shape, scale_dtype, bits)
        return matmul_i8mm(n, k, packed, shape, scale_dtype, activations, residual=residual, bits=bits)
    if activations is Activations.FLOAT32:
        return _matmul_float(n, k, shape, scale_dtype, residual, bits)
    return _matmul_int8(n, k, shape, scale_dtype, residual, bits)


class _Codes:
    """
    Unpacks codes of *bits* bits into bytes in int32 lanes.

    Attributes:
        planes: Registers of packed codes in a group. Each holds two registers of codes; three hold a fourth pair too.
    """

    def __init__(self, shape: KernelShape, bits: Bits) -> None:
        self.planes: int = bits
        self._bits = bits
        self._lanes = shape.lanes
        self._is_neon = shape.dot.is_neon
        self.zero_point: int = ZERO_POINT if bits == 4 else ZERO_CODE_Q3

    def of_plane(self, packed: Expr, *, high: bool) -> Expr:
        """Return the lower or the higher codes in *packed* (uint8 x 4 lanes)."""
        mask = (1 << self._bits) - 1
        return self._field(packed, self._bits if high else 0, mask)

    def of_rest(self, packed: Expr, last: Expr, *, high: bool) -> Expr:
        """Return the codes whose low bits are left in *packed*, plane 0 or if *high* 1, and high bits in *last*."""
        return T.bitwise_or(self._field(packed, 6, 3), self._field(last, 5 if high else 4, 4))

    def _field(self, packed: Expr, shift: int, mask: int) -> Expr:
        """Return each byte of *packed* shifted right by *shift* and masked, in int32 lanes."""
        if shift and self._is_neon:
            # ARM shifts bytes, which may leave nothing to mask.
            packed = T.shift_right(packed, T.broadcast(T.uint8(shift), 4 * self._lanes))
            words = T.reinterpret(packed, dtype=f"int32x{self._lanes}")
            if 255 >> shift == mask:
                return words
        else:
            words = T.reinterpret(packed, dtype=f"int32x{self._lanes}")
            if shift:
                words = T.shift_right(words, T.broadcast(T.int32(shift), self._lanes))
        return T.bitwise_and(words, T.broadcast(T.int32(mask * 0x01010101), self._lanes))


class _GroupDot:
    """Adds up the products of one group of 32 codes and int8 activations, for one :class:`Dot`."""

    def __init__(self, shape: KernelShape) -> None:
        self.lanes = shape.lanes
        self._kind = shape.dot
        self._bytes = ByteDot(shape.dot, shape.lanes)
        # A short is the sum of 16 products (pmaddubsw), or of 8 and then of 16 with its neighbour (smull): at most
        # 16 x 15 x 127 = 30,480.
        self._short = self._bytes.short_lanes > 0
        self.acc_dtype = "int16" if self._short else "int32"
        self.acc_lanes = self._bytes.short_lanes or shape.lanes

    def start(self, bias: Expr) -> Expr:
        """Return what sums start from; *bias* (int32) is part of what :meth:`total` returns."""
        return T.broadcast(T.int16(0) if self._short else bias, self.acc_lanes)

    def word(self, q, token: Expr, start: Expr) -> Expr:
        """Return four int8 activations from *start* on, a multiple of 4, read as one int32."""
        if self._kind is Dot.SDOT:
            # sdot takes one operand from any word of a register, so one load serves four words.
            words = T.reinterpret(q[token, T.ramp(start // 16 * 16, 1, 16)], dtype="int32x4")
            return v.shuffle([words], start // 4 % 4)
        return T.reinterpret(q[token, T.ramp(start, 1, 4)], dtype="int32")

    def accumulate(self, acc: Expr, codes: Expr, x4: Expr) -> Expr:
        """Return acc + codes . x, *x4* being four int8 activations read as one int32."""
        if self._short:
            return acc + self._bytes.shorts(codes, T.broadcast(x4, self.lanes))
        return self._bytes.dot_code(acc, codes, x4)

    def total(self, acc: Expr, bias: Expr) -> Expr:
        """Return a group's sums with the bias that they :meth:`start` from, as int32 lanes."""
        return self._bytes.add_shorts(acc) + T.broadcast(bias, self.lanes) if self._short else acc


def _load_scales(w, block: Expr, group: Expr, start: Expr, lanes: int, scale_dtype: str) -> Expr:
    """Return *lanes* scales from byte *start* of a packed group as float32."""
    stored = w[block, group, T.ramp(start, 1, lanes * np.dtype(scale_dtype).itemsize)]
    return T.Cast(f"float32x{lanes}", T.reinterpret(stored, dtype=f"{scale_dtype}x{lanes}"))


def _matmul_int8(n: int, k: int, shape: KernelShape, scale_dtype: str, residual: bool, bits: Bits) -> PrimFunc:
    packed = packed_shape(n, k, shape, scale_dtype, bits)
    (blocks, groups, group_bytes), lanes = packed, shape.lanes
    rows, scale_bytes = n // blocks, np.dtype(scale_dtype).itemsize
    codes, dot = _Codes(shape, bits), _GroupDot(shape)
    planes = codes.planes
    acc_lanes = dot.acc_lanes
    tokens = shape.tile_tokens
    assert tokens in (1, 2, 4), tokens
    vectors = min(shape.tile_vectors, rows // lanes)
    # One token reads each weight once, so a wide tile only has more loads in flight.
    vectors_single = min(2 * shape.tile_vectors, rows // lanes)

    def bias(s, z, token: Expr, g: Expr) -> Expr:
        """Return the bits of s and the zero point's part of the sum; integers added to it are scaled (activations)."""
        return T.reinterpret(s[token, g], dtype="int32") + z[token, g] * T.int32(codes.zero_point)

    @T.macro
    def multiply(sums, q, low_codes, high_codes, g, quad, token, m, c, r):
        for i in T.unroll(m):
            low: T.let = dot.word(q, token + i, g * 32 + quad * 8)
            high: T.let = dot.word(q, token + i, g * 32 + quad * 8 + 4)
            at = T.meta_var(T.ramp((i * r + c) * acc_lanes, 1, acc_lanes))
            sums[at] = dot.accumulate(sums[at], low_codes, low)
            sums[at] = dot.accumulate(sums[at], high_codes, high)

    @T.macro
    def rescale(acc, sums, s, z, scale, g, token, m, c, r):
        for i in T.unroll(m):
            at = T.meta_var(T.ramp((i * r + c) * lanes, 1, lanes))
            total: T.let = dot.total(sums[T.ramp((i * r + c) * acc_lanes, 1, acc_lanes)], bias(s, z, token + i, g))
            product: T.let = T.reinterpret(total, dtype=f"float32x{lanes}") - v.splat(s[token + i, g], lanes)
            acc[at] = acc[at] + scale * product

    @T.macro
    def finish(acc, res, out, block, token, m, first_row, c, r):
        for i in T.unroll(m):
            at = T.meta_var(T.ramp(block * rows + first_row + c * lanes, 1, lanes))
            value: T.let = acc[T.ramp((i * r + c) * lanes, 1, lanes)]
            if residual:
                out[token + i, at] = value + res[token + i, at]
            else:
                out[token + i, at] = value

    @T.macro
    def tile(q, s, z, w, res, out, block, token, m, first_row, r):
        """Multiply *m* tokens by *r* vectors of rows; in two halves where one buffer would leave the stack."""
        a = T.meta_var(m if m * r * lanes * 4 < v.STACK_BYTES else m // 2)
        b = T.meta_var(m - a)
        acc_a = T.alloc_buffer((a * r * lanes,), "float32", scope="global")
        acc_b = T.alloc_buffer((max(b, 1) * r * lanes,), "float32", scope="global")
        sums_a = T.alloc_buffer((a * r * acc_lanes,), dot.acc_dtype, scope="global")
        sums_b = T.alloc_buffer((max(b, 1) * r * acc_lanes,), dot.acc_dtype, scope="global")
        for i in T.unroll(a * r):
            acc_a[T.ramp(i * lanes, 1, lanes)] = v.splat(0.0, lanes)
        # An unused half is written too: TVM would shrink it to nothing and ask the runtime for that.
        sums_b[T.ramp(0, 1, acc_lanes)] = dot.start(T.int32(0))
        for i in T.unroll(max(b * r, 1)):
            acc_b[T.ramp(i * lanes, 1, lanes)] = v.splat(0.0, lanes)
        for g in T.serial(groups):
            if r * lanes == rows:  # the tile reads all of the group
                for line in T.unroll(-(-group_bytes // v.LINE_BYTES)):
                    v.prefetch(T.address_of(w[block, g + _GROUPS_AHEAD, line * v.LINE_BYTES]))
            for i in T.unroll(a):
                for c in T.unroll(r):
                    sums_a[T.ramp((i * r + c) * acc_lanes, 1, acc_lanes)] = dot.start(bias(s, z, token + i, g))
            for i in T.unroll(b):
                for c in T.unroll(r):
                    sums_b[T.ramp((i * r + c) * acc_lanes, 1, acc_lanes)] = dot.start(bias(s, z, token + a + i, g))
            for quad in T.unroll(planes):
                for c in T.unroll(r):
                    plane: T.let = w[block, g, T.ramp((quad * rows + first_row + c * lanes) * 4, 1, lanes * 4)]
                    low_codes: T.let = codes.of_plane(plane, high=False)
                    high_codes: T.let = codes.of_plane(plane, high=True)
                    multiply(sums_a, q, low_codes, high_codes, g, quad, token, a, c, r)
                    multiply(sums_b, q, low_codes, high_codes, g, quad, token + a, b, c, r)
            if planes == 3:
                for c in T.unroll(r):
                    plane_0: T.let = w[block, g, T.ramp((first_row + c * lanes) * 4, 1, lanes * 4)]
                    plane_1: T.let = w[block, g, T.ramp((rows + first_row + c * lanes) * 4, 1, lanes * 4)]
                    plane_2: T.let = w[block, g, T.ramp((2 * rows + first_row + c * lanes) * 4, 1, lanes * 4)]
                    low_rest: T.let = codes.of_rest(plane_0, plane_2, high=False)
                    high_rest: T.let = codes.of_rest(plane_1, plane_2, high=True)
                    multiply(sums_a, q, low_rest, high_rest, g, 3, token, a, c, r)
                    multiply(sums_b, q, low_rest, high_rest, g, 3, token + a, b, c, r)
            for c in T.unroll(r):
                start = T.meta_var(planes * 4 * rows + (first_row + c * lanes) * scale_bytes)
                scale: T.let = _load_scales(w, block, g, start, lanes, scale_dtype)
                rescale(acc_a, sums_a, s, z, scale, g, token, a, c, r)
                rescale(acc_b, sums_b, s, z, scale, g, token + a, b, c, r)
        for c in T.unroll(r):
            finish(acc_a, res, out, block, token, a, first_row, c, r)
            finish(acc_b, res, out, block, token + a, b, first_row, c, r)

    @T.macro
    def tiles(q, s, z, w, res, out, block, token, m, r):
        for row in T.serial(rows // (r * lanes)):
            tile(q, s, z, w, res, out, block, token, m, row * r * lanes, r)

    @T.macro
    def body(q, s, z, w, res, out, t):
        for block in T.parallel(blocks):
            for big in T.serial(t // tokens):
                tiles(q, s, z, w, res, out, block, big * tokens, tokens, vectors if tokens > 1 else vectors_single)
            # The outer conditions are decided while the kernel is built.
            if tokens > 2:  # noqa: SIM102
                if t % tokens >= 2:
                    tiles(q, s, z, w, res, out, block, t // tokens * tokens, 2, vectors)
            if tokens > 1:  # noqa: SIM102
                if t % 2 == 1:
                    tiles(q, s, z, w, res, out, block, t - 1, 1, vectors_single)

    if residual:

        @T.prim_func(s_tir=True)
        def matmul_int8_residual(
            q_h: T.handle, s_h: T.handle, z_h: T.handle, w: T.Buffer(packed, "uint8"), res_h: T.handle, out_h: T.handle
        ):  # fmt: skip
            T.func_attr({"tirx.noalias": True})
            t = T.int64()
            q = T.match_buffer(q_h, (t, k), "int8")
            s = T.match_buffer(s_h, (t, groups), "float32")
            z = T.match_buffer(z_h, (t, groups), "int32")
            res = T.match_buffer(res_h, (t, n), "float32")
            out = T.match_buffer(out_h, (t, n), "float32")
            body(q, s, z, w, res, out, t)

        return matmul_int8_residual

    @T.prim_func(s_tir=True)
    def matmul_int8(q_h: T.handle, s_h: T.handle, z_h: T.handle, w: T.Buffer(packed, "uint8"), out_h: T.handle):
        T.func_attr({"tirx.noalias": True})
        t = T.int64()
        q = T.match_buffer(q_h, (t, k), "int8")
        s = T.match_buffer(s_h, (t, groups), "float32")
        z = T.match_buffer(z_h, (t, groups), "int32")
        out = T.match_buffer(out_h, (t, n), "float32")
        body(q, s, z, w, out, out, t)

    return matmul_int8


def _matmul_float(n: int, k: int, shape: KernelShape, scale_dtype: str, residual: bool, bits: Bits) -> PrimFunc:
    """The reference path: exact float32 activations, one token at a time; not tuned."""
    packed = packed_shape(n, k, shape, scale_dtype, bits)
    (blocks, groups, _), lanes = packed, shape.lanes
    rows, scale_bytes = n // blocks, np.dtype(scale_dtype).itemsize
    codes, zero_code = _Codes(shape, bits), ZERO_POINT if bits == 4 else ZERO_CODE_Q3
    planes = codes.planes

    def weight(words: Expr, j: Expr) -> Expr:
        """Return lane values of byte *j* of each int32 less the zero point."""
        code = T.bitwise_and(T.shift_right(words, T.broadcast(8 * j, lanes)), T.broadcast(T.int32(15), lanes))
        return T.Cast(f"float32x{lanes}", code - T.broadcast(T.int32(zero_code), lanes))

    @T.macro
    def add(total, x, low_codes, high_codes, i, g, quad):
        for j in T.unroll(4):
            total[T.ramp(0, 1, lanes)] = (
                total[T.ramp(0, 1, lanes)]
                + weight(low_codes, j) * v.splat(x[i, g * 32 + quad * 8 + j], lanes)
                + weight(high_codes, j) * v.splat(x[i, g * 32 + quad * 8 + 4 + j], lanes)
            )

    @T.macro
    def body(x, w, res, out, t):
        for block in T.parallel(blocks):
            for i in T.serial(t):
                for row in T.serial(rows // lanes):
                    acc = T.alloc_buffer((lanes,), "float32", scope="global")
                    total = T.alloc_buffer((lanes,), "float32", scope="global")
                    acc[T.ramp(0, 1, lanes)] = v.splat(0.0, lanes)
                    for g in T.serial(groups):
                        total[T.ramp(0, 1, lanes)] = v.splat(0.0, lanes)
                        for quad in T.unroll(planes):
                            plane: T.let = w[block, g, T.ramp((quad * rows + row * lanes) * 4, 1, lanes * 4)]
                            low_codes: T.let = codes.of_plane(plane, high=False)
                            high_codes: T.let = codes.of_plane(plane, high=True)
                            add(total, x, low_codes, high_codes, i, g, quad)
                        if planes == 3:
                            plane_0: T.let = w[block, g, T.ramp(row * lanes * 4, 1, lanes * 4)]
                            plane_1: T.let = w[block, g, T.ramp((rows + row * lanes) * 4, 1, lanes * 4)]
                            plane_2: T.let = w[block, g, T.ramp((2 * rows + row * lanes) * 4, 1, lanes * 4)]
                            low_rest: T.let = codes.of_rest(plane_0, plane_2, high=False)
                            high_rest: T.let = codes.of_rest(plane_1, plane_2, high=True)
                            add(total, x, low_rest, high_rest, i, g, 3)
                        start = T.meta_var(planes * 4 * rows + row * lanes * scale_bytes)
                        acc[T.ramp(0, 1, lanes)] = acc[T.ramp(0, 1, lanes)] + total[T.ramp(0, 1, lanes)] * _load_scales(
                            w, block, g, start, lanes, scale_dtype
                        )
                    at = T.meta_var(T.ramp(block * rows + row * lanes, 1, lanes))
                    if residual:
                        out[i, at] = acc[T.ramp(0, 1, lanes)] + res[i, at]
                    else:
                        out[i, at] = acc[T.ramp(0, 1, lanes)]

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


def matmul_q4_reference(
    x: npt.NDArray[np.float32], codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.floating], bits: Bits = 4
) -> npt.NDArray[np.float32]:
    """
    Return x (t, k) times the transposed dequantized matrix, (t, n) float32.

    For the int8 path pass ``q * s`` of :func:`~edgephi.compiler.kernels.activations.quantize_reference`.
    """
    zero_code = ZERO_POINT if bits == 4 else ZERO_CODE_Q3
    weights = (codes.astype(np.float32) - zero_code) * np.repeat(scales.astype(np.float32), GROUP, axis=1)
    return (x @ weights.T).astype(np.float32)
