"""
How close the matrix kernel comes to what this machine can do: ``make bench-kernels``.

Two tables. In cache, one thread: bytes of weights and multiply-adds a second, where arithmetic limits. From memory, all
threads: the same with more weights than any cache holds, taken in turns with reading the same memory and doing nothing
else, where memory limits; the last column is the median ratio of the turns.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

# Read when TVM is loaded; its own guess is half the cores of an x86 machine.
os.environ["TVM_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
os.environ["TVM_BIND_THREADS"] = "0"

import tvm
import tvm_ffi

from edgephi.artifact.bundle import ALIGNMENT, STREAM_MULTIPLE
from edgephi.artifact.quantization import Bits
from edgephi.compiler.kernels.activations import Activations, quantize_reference
from edgephi.compiler.kernels.matmul_q4 import matmul_q4, pack, room_shape
from edgephi.compiler.kernels.stream import STREAM_PARTS, stream_read
from edgephi.compiler.targets import COMPILE_TARGETS
from edgephi.profile.machine.isa import host_arch, host_features, supported_levels

HIDDEN = 3072
IN_CACHE = (1536, HIDDEN)  # 2.7 MB: one thread's share of a last-level cache
FROM_MEMORY = (16384, HIDDEN)
MEMORY_BYTES = 600 << 20
TOKENS = (1, 2, 4, 8, 64)


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels of one level, and a matrix packed for them."""

    level: str
    multiply: Callable[..., None]
    read: Callable[..., None]
    packed: npt.NDArray[np.uint8]


def main() -> None:
    """Print both tables."""
    levels = [level.name for level in supported_levels(host_features(), host_arch())]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.kernels", description=main.__doc__)
    parser.add_argument("--level", default=levels[0], choices=levels)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bits", type=int, default=4, choices=(4, 3), help="of a weight's code")
    options = parser.parse_args()
    out = sys.stdout
    tvm_ffi.get_global_func("runtime.config_threadpool")(0, 1)
    out.write(f"{options.level}, one thread, {IN_CACHE[0]} x {IN_CACHE[1]} in cache\n\n")
    out.write("| tokens | GB/s of weights | GMAC/s |\n|---|---|---|\n")
    kernels = compile_for(options.level, *IN_CACHE, options.bits)
    for tokens in TOKENS:
        inputs, results = tensors(options.level, tokens, *IN_CACHE)
        weights = tvm_ffi.from_dlpack(aligned(kernels.packed))
        multiply = partial(kernels.multiply, *inputs, weights, *results)
        seconds = min(timed(multiply) for _ in range(200))
        macs = tokens * IN_CACHE[0] * IN_CACHE[1]
        out.write(f"| {tokens} | {kernels.packed.nbytes / seconds / 1e9:.1f} | {macs / seconds / 1e9:.0f} |\n")
    tvm_ffi.get_global_func("runtime.config_threadpool")(0, options.threads)
    out.write(f"\n{options.level}, {options.threads} threads, {FROM_MEMORY[0]} x {FROM_MEMORY[1]} from memory\n\n")
    out.write("| tokens | GB/s of weights | GMAC/s | GB/s reading alone | ratio |\n|---|---|---|---|---|\n")
    from_memory(compile_for(options.level, *FROM_MEMORY, options.bits), options.rounds, out.write)


def from_memory(kernels: Kernels, rounds: int, write: Callable[[str], Any]) -> None:
    """Write a row for each number of tokens, turns of multiplying and of reading alone."""
    size = kernels.packed.nbytes
    copies = MEMORY_BYTES // size
    memory = np.frombuffer(mmap.mmap(-1, copies * size), np.uint8)
    memory.reshape(copies, size)[:] = kernels.packed.reshape(-1)
    matrices = [tvm_ffi.from_dlpack(part.reshape(kernels.packed.shape)) for part in memory.reshape(copies, size)]
    whole = tvm_ffi.from_dlpack(memory[: memory.nbytes // STREAM_MULTIPLE * STREAM_MULTIPLE])
    sums = tvm_ffi.from_dlpack(aligned(np.zeros((STREAM_PARTS, 16), np.int32)))
    for tokens in TOKENS:
        inputs, results = tensors(kernels.level, tokens, *FROM_MEMORY)
        calls = [partial(kernels.multiply, *inputs, matrix, *results) for matrix in matrices]
        read = partial(kernels.read, whole, sums)
        turns = [(sum(timed(call) for call in calls), timed(read)) for _ in range(rounds)]
        speed = [copies * size / seconds for seconds, _ in turns]
        alone = [memory.nbytes / seconds for _, seconds in turns]
        ratio = statistics.median(a / b for a, b in zip(speed, alone, strict=True))
        gmacs = statistics.median(speed) / size * tokens * FROM_MEMORY[0] * FROM_MEMORY[1] / 1e9
        write(
            f"| {tokens} | {statistics.median(speed) / 1e9:.1f} | {gmacs:.0f} | {statistics.median(alone) / 1e9:.1f} "
            f"| {ratio:.2f} |\n"
        )


def compile_for(level: str, n: int, k: int, bits: Bits) -> Kernels:
    """Compile the kernels for matrices of n rows and k columns, and pack a random one."""
    target = COMPILE_TARGETS[level]
    kernel = matmul_q4(n, k, target.kernel, "float16", Activations.INT8, residual=False, bits=bits)
    functions = {"multiply": kernel, "read": stream_read()}
    module = tvm.IRModule({name: found.with_attr("global_symbol", name) for name, found in functions.items()})
    library = tvm.compile(module, target=target.tvm_target())
    rng = np.random.default_rng(0)
    codes = rng.integers(0, (1 << bits) - 1, (n, k), dtype=np.uint8)
    packed = pack(codes, rng.random((n, k // 32)).astype(np.float16), target.kernel, bits)
    return Kernels(level, library["multiply"], library["read"], packed)


def tensors(level: str, tokens: int, n: int, k: int) -> tuple[list[Any], list[Any]]:
    """Return int8 activations with their scales, and what the kernel writes to: the result and its room."""
    x = np.random.default_rng(1).standard_normal((tokens, k)).astype(np.float32)
    written: list[npt.NDArray[Any]] = [np.zeros((tokens, n), np.float32)]
    room = room_shape(tokens, k, COMPILE_TARGETS[level].kernel, Activations.INT8)
    if room is not None:
        written.append(np.zeros(room, np.int8))
    inputs, results = (
        [tvm_ffi.from_dlpack(aligned(array)) for array in arrays] for arrays in (quantize_reference(x), written)
    )
    return inputs, results


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a copy at an address the kernels may load vectors from."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy: npt.NDArray[Any] = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def timed(call: Callable[[], object]) -> float:
    """Return the seconds a call took."""
    started_at = time.perf_counter()
    call()
    return time.perf_counter() - started_at


if __name__ == "__main__":
    main()
