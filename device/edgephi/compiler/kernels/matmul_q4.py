"""
Activations times a 4-bit weight matrix: the kernel where nearly all time goes.

Weights stay 4-bit until they are in registers. Packed layout, for BN = 64, 32 or 16 output rows a block:

    w[block, group, quad, row, j] uint8, quad 0..3, j 0..3
        low nibble   code of input group * 32 + quad * 8 + j
        high nibble  code of input group * 32 + quad * 8 + 4 + j
    s[block, group, row]  scale of the 32 inputs of the group

so that one load of 4 x lanes bytes holds 4 inputs (8 with both nibbles) of as many rows as a register has int32
lanes, on every instruction set, and a task reads its block from front to back.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tvm.ir import Expr
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from edgephi.compiler.kernels import vector as v
from edgephi.compiler.kernels.activations import GROUP, ZERO_POINT, Activations
from edgephi.compiler.targets import Dot, KernelShape
from edgephi.errors import UnsupportedModel

_NIBBLES = 0x0F0F0F0F


def block_rows(n: int) -> int:
    """
    Output rows in one packed block of a matrix with *n* rows.

    Raises:
        UnsupportedModel: If n is not a multiple of 16.
    """
    for rows in (64, 32, 16):
        if n % rows == 0:
            return rows
    raise UnsupportedModel(f"a weight matrix has {n} rows; the kernels need a multiple of 16")


def pack(
    codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.floating]]:
    """
    Rearrange a matrix for the kernel.

    Args:
        codes: (n, k) uint8, 0 to 15.
        scales: (n, k // 32) float16 or float32.

    Returns:
        w (n // BN, k // 32, 4, BN, 4) uint8 and s (n // BN, k // 32, BN) of the scales' dtype, as the module draws.
    """
    n, k = codes.shape
    rows = block_rows(n)
    blocks, groups = n // rows, k // GROUP
    tiles = codes.reshape(blocks, rows, groups, 4, 2, 4).transpose(0, 2, 3, 4, 1, 5)
    w = tiles[:, :, :, 0] | (tiles[:, :, :, 1] << 4)
    s = scales.reshape(blocks, rows, groups).transpose(0, 2, 1)
    return np.ascontiguousarray(w), np.ascontiguousarray(s)


def matmul_q4(
    n: int, k: int, shape: KernelShape, scale_dtype: str, activations: Activations, *, residual: bool
) -> PrimFunc:
    """
    Build ``matmul(activations..., w, s, [residual], out)``: ``out = x @ dequantize(w).T [+ residual]``.

    Shapes: activations of t rows and k columns as ``kernels.activations`` says; w and s as :func:`pack` makes them;
    residual and out (t, n) float32.

    Raises:
        UnsupportedModel: If n is not a multiple of 16 or k not of 32.
    """
    if k % GROUP:
        raise UnsupportedModel(f"a weight matrix has {k} columns; the kernels need a multiple of {GROUP}")
    if activations is Activations.FLOAT32:
        return _matmul_float(n, k, shape, scale_dtype, residual)
    return _matmul_int8(n, k, shape, scale_dtype, residual)


class _IntDot:
    """Multiplies one register of packed codes by four int8 activations, for one :class:`Dot`."""

    def __init__(self, shape: KernelShape) -> None:
        self.lanes = shape.lanes
        self.kind = shape.dot
        narrow = shape.dot is Dot.PMADDUBSW
        # A group's int16 sums stay below 16 products x 15 x 127 = 30,480, so they need no widening inside the group.
        self.acc_dtype = "int16" if narrow else "int32"
        self.acc_lanes = shape.lanes * 2 if narrow else shape.lanes

    def zero(self) -> Expr:
        return T.broadcast(T.int16(0) if self.acc_dtype == "int16" else T.int32(0), self.acc_lanes)

    def codes(self, packed: Expr, *, high: bool) -> Expr:
        """Return the low or high nibbles of *packed* (uint8 x 4 lanes) as bytes in int32 lanes."""
        words = T.reinterpret(packed, dtype=f"int32x{self.lanes}")
        if high:
            words = T.shift_right(words, T.broadcast(T.int32(4), self.lanes))
        return T.bitwise_and(words, T.broadcast(T.int32(_NIBBLES), self.lanes))

    def accumulate(self, acc: Expr, codes: Expr, x4: Expr) -> Expr:
        """Return acc + codes . x, *x4* being four int8 activations read as one int32."""
        lanes = self.lanes
        bytes_ = f"int8x{4 * lanes}"
        x = T.broadcast(x4, lanes)
        if self.kind is Dot.VPDPBUSD_512:
            name = "llvm.x86.avx512.vpdpbusd.512"
        elif self.kind is Dot.VPDPBUSD_256:
            name = "llvm.x86.avx512.vpdpbusd.256"
        elif self.kind is Dot.SDOT:
            name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        elif self.kind is Dot.PMADDUBSW:
            pairs = v.intrinsic(
                "llvm.x86.avx2.pmadd.ub.sw",
                f"int16x{2 * lanes}",
                T.reinterpret(codes, dtype=bytes_),
                T.reinterpret(x, dtype=bytes_),
            )
            return acc + pairs
        else:
            total = acc
            for j in range(4):
                code = T.bitwise_and(
                    T.shift_right(codes, T.broadcast(T.int32(8 * j), lanes)), T.broadcast(T.int32(15), lanes)
                )
                # Sign-extend byte j of the activations: up to the top, then arithmetically down.
                byte = T.shift_right(T.shift_left(x4, T.int32(24 - 8 * j)), T.int32(24))
                total = total + code * T.broadcast(byte, lanes)
            return total
        return v.intrinsic(
            name, f"int32x{lanes}", acc, T.reinterpret(codes, dtype=bytes_), T.reinterpret(x, dtype=bytes_)
        )

    def to_float(self, acc: Expr) -> Expr:
        """Return a group's sums as float32 lanes."""
        if self.kind is Dot.PMADDUBSW:
            ones = T.broadcast(T.int16(1), self.acc_lanes)
            acc = v.intrinsic("llvm.x86.avx2.pmadd.wd", f"int32x{self.lanes}", acc, ones)
        return T.Cast(f"float32x{self.lanes}", acc)


def _matmul_int8(n: int, k: int, shape: KernelShape, scale_dtype: str, residual: bool) -> PrimFunc:
    rows, groups, lanes = block_rows(n), k // GROUP, shape.lanes
    blocks, f32 = n // rows, f"float32x{lanes}"
    dot = _IntDot(shape)
    acc_dtype, acc_lanes = dot.acc_dtype, dot.acc_lanes
    tokens = shape.tile_tokens
    vectors = min(shape.tile_vectors, rows // lanes)
    # One token reads each weight once, so a wide tile only has more loads in flight.
    vectors_single = min(2 * shape.tile_vectors, rows // lanes)

    @T.macro
    def tile(q, s, z, w, sw, res, out, block, first_token, m, first_row, r):
        acc = T.alloc_buffer((m * r * lanes,), "float32", scope="global")
        sums = T.alloc_buffer((m * r * acc_lanes,), acc_dtype, scope="global")
        for i in T.unroll(m * r):
            acc[T.ramp(i * lanes, 1, lanes)] = v.splat(0.0, lanes)
        for g in T.serial(groups):
            for i in T.unroll(m * r):
                sums[T.ramp(i * acc_lanes, 1, acc_lanes)] = dot.zero()
            for quad in T.unroll(4):
                for c in T.unroll(r):
                    for i in T.unroll(m):
                        packed: T.let = w[block, g, quad, T.ramp((first_row + c * lanes) * 4, 1, lanes * 4)]
                        low: T.let = T.reinterpret(q[first_token + i, T.ramp(g * 32 + quad * 8, 1, 4)], dtype="int32")
                        high: T.let = T.reinterpret(
                            q[first_token + i, T.ramp(g * 32 + quad * 8 + 4, 1, 4)], dtype="int32"
                        )
                        at = T.meta_var(T.ramp((i * r + c) * acc_lanes, 1, acc_lanes))
                        sums[at] = dot.accumulate(sums[at], dot.codes(packed, high=False), low)
                        sums[at] = dot.accumulate(sums[at], dot.codes(packed, high=True), high)
            for c in T.unroll(r):
                for i in T.unroll(m):
                    at = T.meta_var(T.ramp((i * r + c) * lanes, 1, lanes))
                    scale: T.let = T.Cast(f32, sw[block, g, T.ramp(first_row + c * lanes, 1, lanes)])
                    product: T.let = dot.to_float(sums[T.ramp((i * r + c) * acc_lanes, 1, acc_lanes)])
                    acc[at] = acc[at] + scale * (
                        product * v.splat(s[first_token + i, g], lanes) - v.splat(z[first_token + i, g], lanes)
                    )
        for c in T.unroll(r):
            for i in T.unroll(m):
                at = T.meta_var(T.ramp(block * rows + first_row + c * lanes, 1, lanes))
                value: T.let = acc[T.ramp((i * r + c) * lanes, 1, lanes)]
                if residual:
                    out[first_token + i, at] = value + res[first_token + i, at]
                else:
                    out[first_token + i, at] = value

    @T.macro
    def body(q, s, z, w, sw, res, out, t):
        for block in T.parallel(blocks):
            if tokens > 1:
                for big in T.serial(t // tokens):
                    for row in T.serial(rows // (vectors * lanes)):
                        tile(q, s, z, w, sw, res, out, block, big * tokens, tokens, row * vectors * lanes, vectors)
            for single in T.serial(t % tokens if tokens > 1 else t):
                for row in T.serial(rows // (vectors_single * lanes)):
                    tile(
                        q, s, z, w, sw, res, out, block,
                        t // tokens * tokens + single if tokens > 1 else single,
                        1, row * vectors_single * lanes, vectors_single,
                    )  # fmt: skip

    if residual:

        @T.prim_func(s_tir=True)
        def matmul_int8_residual(
            q_h: T.handle, s_h: T.handle, z_h: T.handle,
            w: T.Buffer((blocks, groups, 4, rows * 4), "uint8"), sw: T.Buffer((blocks, groups, rows), scale_dtype),
            res_h: T.handle, out_h: T.handle,
        ):  # fmt: skip
            T.func_attr({"tirx.noalias": True})
            t = T.int64()
            q = T.match_buffer(q_h, (t, k), "int8")
            s = T.match_buffer(s_h, (t, groups), "float32")
            z = T.match_buffer(z_h, (t, groups), "float32")
            res = T.match_buffer(res_h, (t, n), "float32")
            out = T.match_buffer(out_h, (t, n), "float32")
            body(q, s, z, w, sw, res, out, t)

        return matmul_int8_residual

    @T.prim_func(s_tir=True)
    def matmul_int8(
        q_h: T.handle, s_h: T.handle, z_h: T.handle,
        w: T.Buffer((blocks, groups, 4, rows * 4), "uint8"), sw: T.Buffer((blocks, groups, rows), scale_dtype),
        out_h: T.handle,
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True})
        t = T.int64()
        q = T.match_buffer(q_h, (t, k), "int8")
        s = T.match_buffer(s_h, (t, groups), "float32")
        z = T.match_buffer(z_h, (t, groups), "float32")
        out = T.match_buffer(out_h, (t, n), "float32")
        body(q, s, z, w, sw, out, out, t)

    return matmul_int8


def _matmul_float(n: int, k: int, shape: KernelShape, scale_dtype: str, residual: bool) -> PrimFunc:
    """The reference path: exact float32 activations, one token at a time; not tuned."""
    rows, groups, lanes = block_rows(n), k // GROUP, shape.lanes
    blocks, f32, i32 = n // rows, f"float32x{lanes}", f"int32x{lanes}"

    def weight(packed: Expr, shift: int) -> Expr:
        """Return lane values code - 7, the code sitting *shift* bits up in each int32."""
        words = T.reinterpret(packed, dtype=i32)
        codes = T.bitwise_and(T.shift_right(words, T.broadcast(T.int32(shift), lanes)), T.broadcast(T.int32(15), lanes))
        return T.Cast(f32, codes - T.broadcast(T.int32(ZERO_POINT), lanes))

    @T.macro
    def body(x, w, sw, res, out, t):
        for block in T.parallel(blocks):
            for i in T.serial(t):
                for row in T.serial(rows // lanes):
                    acc = T.alloc_buffer((lanes,), "float32", scope="global")
                    total = T.alloc_buffer((lanes,), "float32", scope="global")
                    acc[T.ramp(0, 1, lanes)] = v.splat(0.0, lanes)
                    for g in T.serial(groups):
                        total[T.ramp(0, 1, lanes)] = v.splat(0.0, lanes)
                        for quad in T.unroll(4):
                            for j in T.unroll(4):
                                packed: T.let = w[block, g, quad, T.ramp(row * lanes * 4, 1, lanes * 4)]
                                total[T.ramp(0, 1, lanes)] = (
                                    total[T.ramp(0, 1, lanes)]
                                    + weight(packed, j * 8) * v.splat(x[i, g * 32 + quad * 8 + j], lanes)
                                    + weight(packed, j * 8 + 4) * v.splat(x[i, g * 32 + quad * 8 + 4 + j], lanes)
                                )
                        acc[T.ramp(0, 1, lanes)] = acc[T.ramp(0, 1, lanes)] + total[T.ramp(0, 1, lanes)] * T.Cast(
                            f32, sw[block, g, T.ramp(row * lanes, 1, lanes)]
                        )
                    at = T.meta_var(T.ramp(block * rows + row * lanes, 1, lanes))
                    if residual:
                        out[i, at] = acc[T.ramp(0, 1, lanes)] + res[i, at]
                    else:
                        out[i, at] = acc[T.ramp(0, 1, lanes)]

    if residual:

        @T.prim_func(s_tir=True)
        def matmul_float_residual(
            x_h: T.handle,
            w: T.Buffer((blocks, groups, 4, rows * 4), "uint8"), sw: T.Buffer((blocks, groups, rows), scale_dtype),
            res_h: T.handle, out_h: T.handle,
        ):  # fmt: skip
            T.func_attr({"tirx.noalias": True})
            t = T.int64()
            x = T.match_buffer(x_h, (t, k), "float32")
            res = T.match_buffer(res_h, (t, n), "float32")
            out = T.match_buffer(out_h, (t, n), "float32")
            body(x, w, sw, res, out, t)

        return matmul_float_residual

    @T.prim_func(s_tir=True)
    def matmul_float(
        x_h: T.handle,
        w: T.Buffer((blocks, groups, 4, rows * 4), "uint8"), sw: T.Buffer((blocks, groups, rows), scale_dtype),
        out_h: T.handle,
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True})
        t = T.int64()
        x = T.match_buffer(x_h, (t, k), "float32")
        out = T.match_buffer(out_h, (t, n), "float32")
        body(x, w, sw, out, out, t)

    return matmul_float


def matmul_q4_reference(
    x: npt.NDArray[np.float32], codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32]:
    """
    Return x (t, k) times the transposed dequantized matrix, (t, n) float32.

    For the int8 path pass ``q * s`` of :func:`~edgephi.compiler.kernels.activations.quantize_reference`.
    """
    weights = (codes.astype(np.float32) - ZERO_POINT) * np.repeat(scales.astype(np.float32), GROUP, axis=1)
    return (x @ weights.T).astype(np.float32)
