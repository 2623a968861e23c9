"""Reading memory once from front to back, as fast as this machine can: what a decode step is measured against."""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from edgephi.artifact.bundle import STREAM_MULTIPLE
from edgephi.compiler.kernels import vector as v

_STEP = 256  # bytes an iteration: four independent chains
STREAM_PARTS = STREAM_MULTIPLE // _STEP
"""Parts a buffer is read in, so that any number of threads up to this has the same share."""
_AHEAD = 1024  # bytes that are asked for before they are needed


def stream_read() -> PrimFunc:
    """
    Build ``read(data, sums)``: data (n,) uint8, n a multiple of STREAM_MULTIPLE; sums (STREAM_PARTS, 16) int32.

    A part's sums are the exclusive or of its 64-byte pieces; they are there so that the reading is not optimized away.
    """

    @T.prim_func(s_tir=True)
    def read(data_h: T.handle, sums: T.Buffer((STREAM_PARTS, 16), "int32")):
        T.func_attr({"tirx.noalias": True})
        n = T.int64()
        data = T.match_buffer(data_h, (n,), "uint8")
        for part in T.parallel(STREAM_PARTS):
            acc = T.alloc_buffer((64,), "int32", scope="global")
            for c in T.unroll(4):
                acc[T.ramp(c * 16, 1, 16)] = T.broadcast(T.int32(0), 16)
            for i in T.serial(n // (STREAM_PARTS * _STEP)):
                start: T.let = part * (n // STREAM_PARTS) + i * _STEP
                for c in T.unroll(4):
                    v.prefetch(T.address_of(data[start + _AHEAD + c * 64]))
                    acc[T.ramp(c * 16, 1, 16)] = T.bitwise_xor(
                        acc[T.ramp(c * 16, 1, 16)],
                        T.reinterpret(data[T.ramp(start + c * 64, 1, 64)], dtype="int32x16"),
                    )
            for c in T.unroll(3):
                acc[T.ramp(0, 1, 16)] = T.bitwise_xor(acc[T.ramp(0, 1, 16)], acc[T.ramp(c * 16 + 16, 1, 16)])
            sums[part, T.ramp(0, 1, 16)] = acc[T.ramp(0, 1, 16)]

    return read
