"""
Small vector expressions shared by the kernels.

Each function builds a TensorIR expression; none emits a statement. All are written on whole vectors so that
LLVM keeps them in registers on every target (it splits what is wider than the machine's).
"""

from __future__ import annotations

from tvm.ir import Expr
from tvm.script import tirx as T

LANES = 16
"""Lanes of a float32 vector in the elementwise kernels."""

LINE_BYTES = 64
"""Bytes of a cache line, what :func:`prefetch` asks for."""

STACK_BYTES = 1024
"""Buffers of this size and more are allocated by TVM's runtime, smaller ones lie on the stack."""


def splat(value: Expr | float, lanes: int = LANES) -> Expr:
    """Return a float32 vector with *value* in each lane."""
    return T.broadcast(T.float32(value) if isinstance(value, float | int) else value, lanes)


def intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    """Call the LLVM intrinsic *name* (with its type suffix), a pure function of *args*."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype)


def shuffle(vectors: list[Expr], *lanes: Expr | int) -> Expr:
    """Return a vector of some lanes of the *vectors*, which count as laid end to end; of one lane, a scalar."""
    return T.Shuffle(vectors, list(lanes))


def round_even(x: Expr) -> Expr:
    """Round a float32x16 to the nearest integers, ties to even (as ``numpy.rint``)."""
    return intrinsic("llvm.rint.v16f32", "float32x16", x)


def abs_(x: Expr) -> Expr:
    """Absolute value of a float32x16."""
    return intrinsic("llvm.fabs.v16f32", "float32x16", x)


def max_(a: Expr, b: Expr) -> Expr:
    """Lane-wise maximum of two float32x16."""
    return intrinsic("llvm.maxnum.v16f32", "float32x16", a, b)


def clamp(x: Expr, bound: float) -> Expr:
    """A float32x16 held between -bound and bound."""
    return intrinsic("llvm.minnum.v16f32", "float32x16", max_(x, splat(-bound)), splat(bound))


def reduce_max(x: Expr) -> Expr:
    """
    Largest lane of a float32x16.

    Compared as integers of the same order, because LLVM compares floats one after the other, for NaN's sake.
    """
    bits = T.reinterpret(x, dtype="int32x16")
    sign = T.shift_right(bits, T.broadcast(T.int32(31), 16))
    ordered = T.bitwise_xor(bits, T.bitwise_and(sign, T.broadcast(T.int32(0x7FFFFFFF), 16)))
    largest = intrinsic("llvm.vector.reduce.smax.v16i32", "int32", ordered)
    return T.reinterpret(
        T.bitwise_xor(largest, T.bitwise_and(T.shift_right(largest, T.int32(31)), T.int32(0x7FFFFFFF))), dtype="float32"
    )


def reduce_sum(x: Expr) -> Expr:
    """Sum of the lanes of a float32x16, in order: sixteen dependent additions, so keep it out of inner loops."""
    return intrinsic("llvm.vector.reduce.fadd.v16f32", "float32", T.float32(0), x)


def reduce_sum_i32(x: Expr) -> Expr:
    """Sum of the lanes of an int32x16."""
    return intrinsic("llvm.vector.reduce.add.v16i32", "int32", x)


def exp(x: Expr) -> Expr:
    """
    ``e ** x`` of a float32x16 to about one part in 10^7; inputs are clamped to -87.3 and 88.3.

    LLVM calls the C library lane by lane for ``llvm.exp``; this stays in vector registers.

    Source: Cephes expf, S. L. Moshier: x = n ln2 + r, a polynomial for e**r on [-ln2/2, ln2/2], times 2**n.
    """
    clamped = intrinsic("llvm.minnum.v16f32", "float32x16", max_(x, splat(-87.3)), splat(88.3))
    n = round_even(clamped * splat(1.44269504088896341))
    r = clamped - n * splat(0.693359375) - n * splat(-2.12194440e-4)
    poly = splat(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        poly = poly * r + splat(coefficient)
    series = poly * r * r + r + splat(1.0)
    exponent = T.shift_left(T.Cast("int32x16", n) + T.broadcast(T.int32(127), 16), T.broadcast(T.int32(23), 16))
    return series * T.reinterpret(exponent, dtype="float32x16")


@T.macro
def prefetch(address):
    """Ask for the cache line at *address*; one past the end of a buffer is harmless."""
    T.evaluate(T.call_intrin("void", "tirx.prefetch", address, 0, 3, 1))
