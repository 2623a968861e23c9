"""
Dot products of bytes: four products added to each int32 lane, with whatever instruction a level has for it.

Knows nothing of weights or keys; the matrix and attention kernels build on it.
"""

from __future__ import annotations

from tvm.ir import Expr
from tvm.script import tirx as T

from edgephi.compiler.kernels import vector as v
from edgephi.compiler.targets import Dot


class ByteDot:
    """
    The dot product of one :class:`~edgephi.compiler.targets.Dot` on registers of *lanes* int32 lanes.

    A lane of four bytes is an int32 word. The instructions differ in which operand may be unsigned, so the two that
    the kernels need are methods of their own.

    Some instructions leave sums of one or two products in int16 lanes, "shorts", which a second step adds up. A
    kernel whose products are small may add shorts first and take the second step once.

    Attributes:
        short_lanes: Lanes of the shorts; 0 where an instruction adds to int32 lanes itself.
    """

    def __init__(self, kind: Dot, lanes: int) -> None:
        self.kind = kind
        self.lanes = lanes
        self.short_lanes = {Dot.PMADDUBSW: 2 * lanes, Dot.SMULL: 4 * lanes}.get(kind, 0)

    @property
    def key_bias(self) -> int:
        """What :meth:`key_word` added to each signed byte; its sum with the other operand has to be taken off."""
        return 0 if self.kind.is_neon else 128

    def key_word(self, signed_bytes: Expr) -> Expr:
        """Return int8 x 4 lanes as the words :meth:`dot_key` takes, each byte with :attr:`key_bias` added."""
        words = T.reinterpret(signed_bytes, dtype=f"int32x{self.lanes}")
        if self.key_bias:
            words = T.bitwise_xor(words, T.broadcast(T.int32(-0x7F7F7F80), self.lanes))
        return words

    def dot_key(self, acc: Expr, key_words: Expr, x4: Expr) -> Expr:
        """Return acc + key . x, *x4* being four int8 of size at most 64 read as one int32."""
        return self._dot(acc, key_words, T.broadcast(x4, self.lanes))

    def dot_value(self, acc: Expr, signed_bytes: Expr, weight4: Expr) -> Expr:
        """Return acc + weight . value, *weight4* being four bytes of 0 to 127 read as one int32."""
        return self._dot(
            acc, T.broadcast(weight4, self.lanes), T.reinterpret(signed_bytes, dtype=f"int32x{self.lanes}")
        )

    def dot_code(self, acc: Expr, codes: Expr, x4: Expr) -> Expr:
        """Return acc + code . x, *codes* being words of bytes 0 to 15, *x4* four int8 read as one int32."""
        return self._dot(acc, codes, T.broadcast(x4, self.lanes))

    def _dot(self, acc: Expr, unsigned: Expr, signed: Expr) -> Expr:
        lanes = self.lanes
        if self.kind is Dot.GENERIC:
            total = acc
            for j in range(4):
                left = T.bitwise_and(
                    T.shift_right(unsigned, T.broadcast(T.int32(8 * j), lanes)), T.broadcast(T.int32(255), lanes)
                )
                # Sign-extend byte j: up to the top, then arithmetically down.
                right = T.shift_right(
                    T.shift_left(signed, T.broadcast(T.int32(24 - 8 * j), lanes)), T.broadcast(T.int32(24), lanes)
                )
                total = total + left * right
            return total
        if self.short_lanes:
            # Sums of two products stay in int16: 2 x 255 x 64 and 2 x 127 x 127 are the largest.
            return acc + self.add_shorts(self.shorts(unsigned, signed))
        name = {
            Dot.VPDPBUSD_512: "llvm.x86.avx512.vpdpbusd.512",
            Dot.VPDPBUSD_256: "llvm.x86.avx512.vpdpbusd.256",
            Dot.SDOT: "llvm.aarch64.neon.sdot.v4i32.v16i8",
            Dot.SMMLA: "llvm.aarch64.neon.sdot.v4i32.v16i8",  # smmla multiplies matrices; its CPUs have both
        }[self.kind]
        return v.intrinsic(name, f"int32x{lanes}", acc, self._bytes(unsigned), self._bytes(signed))

    def shorts(self, unsigned: Expr, signed: Expr) -> Expr:
        """Return the products of two operands' bytes as shorts."""
        a, b = self._bytes(unsigned), self._bytes(signed)
        if self.kind is Dot.PMADDUBSW:
            return v.intrinsic("llvm.x86.avx2.pmadd.ub.sw", f"int16x{self.short_lanes}", a, b)
        shorts = f"int16x{self.short_lanes}"
        return T.Cast(shorts, a) * T.Cast(shorts, b)  # smull, and with an addition smlal

    def add_shorts(self, shorts: Expr) -> Expr:
        """Return int32 lanes, each the sum of its shorts; the sum of two neighbours must not leave int16."""
        words = f"int32x{self.lanes}"
        if self.kind is Dot.PMADDUBSW:
            ones = T.broadcast(T.int16(1), self.short_lanes)
            return v.intrinsic("llvm.x86.avx2.pmadd.wd", words, shorts, ones)
        halves = (v.shuffle([shorts], *range(8)), v.shuffle([shorts], *range(8, 16)))
        pairs = v.intrinsic("llvm.aarch64.neon.addp.v8i16", "int16x8", *halves)
        return v.intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", words, pairs)

    def _bytes(self, words: Expr) -> Expr:
        return T.reinterpret(words, dtype=f"int8x{4 * self.lanes}")
