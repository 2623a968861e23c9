"""
The default engine: a bundle's compiled library run by TVM's runtime over memory-mapped weights.

Owns the page tensors and the worker threads. Loads TVM in its runtime-only mode, never the compiler.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgephi.artifact.bundle import (
    ALIGNMENT,
    HEADER_BYTES,
    LIBRARY,
    STREAM_MULTIPLE,
    WEIGHTS,
    Bundle,
    check_digest,
    check_weights_header,
)
from edgephi.engine.backend import BackendSpec, F32Array, ForwardBatch, I32Array
from edgephi.errors import BundleInvalid, CpuUnsupported, EngineFailed, InsufficientMemory
from edgephi.profile.machine.isa import host_arch, host_features
from edgephi.profile.machine.threads import ThreadPlan
from edgephi.runtime.threads import apply_to_this_thread
from edgephi.runtime.tvm_runtime import VirtualMachine, tvm, tvm_ffi


class TvmBackend:
    """
    A loaded bundle with its pages; see :class:`edgephi.engine.backend.Backend`.

    The composition root creates it and closes it after the engine has stopped.
    """

    def __init__(self, folder: Path, bundle: Bundle, *, num_pages: int, threads: ThreadPlan) -> None:
        """
        Load a bundle.

        Args:
            folder: Where the bundle lies.
            bundle: What :func:`edgephi.artifact.bundle.read_bundle` said of it.
            num_pages: Pages to hold keys and values.
            threads: Threads that compute, the calling one included.

        Raises:
            CpuUnsupported: If this CPU lacks an instruction the library uses; nothing was loaded.
            BundleInvalid: If the library is damaged or was not made with these weights.
            InsufficientMemory: If the weights cannot be mapped or the pages not be allocated.
        """
        check_cpu(folder, bundle)
        check_digest(folder / LIBRARY, bundle.library)
        self._spec = BackendSpec(
            vocab_size=bundle.vocab_size,
            page_size=bundle.page_size,
            num_pages=num_pages,
            max_batch_tokens=bundle.max_batch_tokens,
            max_context_tokens=bundle.context_tokens,
        )
        self._threads = threads
        self._configured_thread: int | None = None
        machine = _load_machine(folder / LIBRARY)
        made_with = json.loads(str(machine["_metadata"]()))["fingerprint"]
        if made_with != bundle.fingerprint:
            raise BundleInvalid(
                f"{folder / LIBRARY} was not made with {folder / WEIGHTS} (fingerprint differs); "
                "compile the model again"
            )
        self._forward: Any = machine["forward"]
        self._stream_read: Any = machine["stream_read"]
        self._weights, self._parameters = _map_weights(folder, bundle)
        # All but the embedding table, of which a step takes a row a token.
        self._step_weight_bytes = sum(p.nbytes for p in bundle.parameters if not p.name.startswith("transformer.embd."))
        shape = (bundle.num_layers, bundle.num_kv_heads, num_pages, bundle.page_elements)
        self._page_memory, self._pages = _zeros(shape, bundle.kv_dtype)
        self._pages_tensor = tvm_ffi.from_dlpack(self._pages)

    @property
    def spec(self) -> BackendSpec:
        """Sizes the engine must respect."""
        return self._spec

    @property
    def kv_bytes(self) -> int:
        """Bytes of the page tensors; the system commits them as pages are first used."""
        return int(self._pages.nbytes)

    @property
    def step_weight_bytes(self) -> int:
        """Bytes of weights that every step reads."""
        return self._step_weight_bytes

    def read_weights(self) -> int:
        """Read all weights once, with the threads that compute, and return how many bytes that was."""
        self._configure_threads()
        whole = self._weights[: self._weights.nbytes // STREAM_MULTIPLE * STREAM_MULTIPLE]
        self._stream_read(tvm_ffi.from_dlpack(whole))
        return int(whole.nbytes)

    def forward(self, batch: ForwardBatch) -> F32Array:
        """
        Append the batch's keys and values to their slots and compute logits.

        Returns:
            (r, vocab_size) float32 logits of ``batch.logit_rows``, memory of its own.

        Raises:
            EngineFailed: If the computation failed; the pages' contents are then undefined.
        """
        if self._forward is None:
            raise EngineFailed("the backend is closed")
        arrays = (
            batch.tokens, batch.positions, batch.slots, batch.row_start, batch.block_table,
            _padded_rows(batch.logit_rows, self._spec.max_batch_tokens),
        )  # fmt: skip
        self._configure_threads()
        try:
            tensors = [tvm_ffi.from_dlpack(_aligned(array)) for array in arrays]
            logits = self._forward(*tensors, self._pages_tensor, self._parameters)
            result: F32Array = np.asarray(np.from_dlpack(logits), dtype=np.float32)
        except (RuntimeError, ValueError, TypeError) as error:
            raise EngineFailed(f"the compiled forward failed: {error}") from error
        return result[: len(batch.logit_rows)]

    def use_threads(self, count: int) -> None:
        """Compute with *count* threads from the next call on, at most as many as the process has cores."""
        self._threads = dataclasses.replace(self._threads, count=count)
        self._configured_thread = None

    def fill_pages(self) -> None:
        """
        Copy page 0 to all others, so that measurements read memory as a server's pages are.

        Pages that were never written are one page of zeros to the system, always in the cache.
        """
        self._pages[:, :, 1:] = self._pages[:, :, :1]

    def release_pages(self, pages: Sequence[int]) -> None:
        """
        Give memory back to the system, as far as that is possible; what these pages held is lost.

        A page is a few kilobytes in each head of each layer. Between two heads lie the other pages, so only runs of
        neighbours fill pages of the system, and those at the ends of a run stay.

        Args:
            pages: Ids of pages, ascending, whose slots will be written before they are read again.
        """
        if self._page_memory is None or not pages:
            return
        num_layers, num_heads, num_pages, page_elements = self._pages.shape
        page_bytes = page_elements * self._pages.itemsize
        strips = range(num_layers * num_heads)
        if len(pages) == num_pages:  # one strip of all
            strips, page_bytes, runs = range(1), self._pages.nbytes // num_pages, [(0, num_pages)]
        else:
            runs = _runs(pages)
        for first, end in runs:
            for strip in strips:
                start = -(-(strip * num_pages + first) * page_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
                length = (strip * num_pages + end) * page_bytes // mmap.PAGESIZE * mmap.PAGESIZE - start
                if length > 0:
                    with contextlib.suppress(OSError):  # locked memory cannot be given back
                        self._page_memory.madvise(mmap.MADV_DONTNEED, start, length)

    def _configure_threads(self) -> None:
        """Set which threads compute. TVM has a pool of workers for each thread that calls it, so each is told."""
        caller = threading.get_ident()
        if caller != self._configured_thread:
            # First, for the pool starts its workers when it is first used, and they inherit from this thread.
            apply_to_this_thread(self._threads)
            tvm_ffi.get_global_func("runtime.config_threadpool")(0, self._threads.count)
            self._configured_thread = caller

    def close(self) -> None:
        """Drop the library, the pages and the mapping. Calling it again does nothing."""
        self._forward = None
        self._stream_read = None
        self._parameters = None
        self._weights = np.zeros(0, dtype=np.uint8)
        self._pages_tensor = None
        self._page_memory = None
        self._pages = np.zeros(0, dtype=np.float32)


def check_cpu(folder: Path, bundle: Bundle) -> None:
    """
    Check that this CPU can run a library before it is loaded.

    Raises:
        CpuUnsupported: Naming the architecture or the features that are missing.
    """
    if bundle.arch != host_arch():
        raise CpuUnsupported(
            f"{folder} is for {bundle.arch} and this machine is {host_arch()}; compile the model for this machine"
        )
    missing = sorted(set(bundle.required_features) - host_features())
    if missing:
        raise CpuUnsupported(
            f"{folder} is for {bundle.level}, which needs {', '.join(missing)}; this CPU lacks it. "
            "Compile the model on this machine, or with --target for a lower level"
        )


def _load_machine(path: Path) -> VirtualMachine:
    """
    Load a library and what runs it.

    Raises:
        BundleInvalid: If the dynamic loader refuses the file, or it is none of ours.
    """
    try:
        machine = VirtualMachine(_load_library(path), tvm.cpu())
        machine["_metadata"]
    except (RuntimeError, OSError, AttributeError, KeyError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BundleInvalid(f"{path} cannot be loaded ({reason}); compile the model again") from error
    return machine


def _load_library(path: Path) -> Any:
    """
    Load a library, also when an older file was loaded from the same path.

    Libraries stay loaded until the process ends, and the dynamic loader takes a path that it knows for the library
    that it has. So each load goes through a link of a new name; the same file is still loaded only once.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edgephi-") as folder:
            link = Path(folder) / path.name
            link.symlink_to(path.resolve())
            # Not tvm.runtime.load_module, which would resolve the link.
            return tvm_ffi.load_module(link)
    except OSError:  # nowhere to put a link
        return tvm_ffi.load_module(path)


def _map_weights(folder: Path, bundle: Bundle) -> tuple[npt.NDArray[np.uint8], Any]:
    """
    Map weights.bin and return the mapping with the parameters as one TVM tuple; nothing is copied.

    Raises:
        BundleInvalid: If the file was replaced since the bundle was read.
        InsufficientMemory: If the address space or what the system commits to processes is too small.
    """
    size = bundle.weights.nbytes
    with (folder / WEIGHTS).open("rb") as file:
        try:
            # Copy-on-write because DLPack refuses read-only memory; nobody writes, so processes share the page cache.
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        except ValueError as error:
            raise BundleInvalid(f"{folder / WEIGHTS} is shorter than when it was checked; load it again") from error
        except OSError as error:
            raise InsufficientMemory(
                f"{size / 2**20:.0f} MiB of weights cannot be mapped ({error.strerror}); raise the limit on address "
                "space (ulimit -v), or allow the system to overcommit"
            ) from error
    check_weights_header(folder, mapped[:HEADER_BYTES], bundle)
    whole = np.frombuffer(mapped, dtype=np.uint8)
    tensors = []
    for spec in bundle.parameters:
        view = whole[spec.offset : spec.offset + spec.nbytes].view(np.dtype(spec.dtype)).reshape(spec.shape)
        tensors.append(tvm_ffi.from_dlpack(view))
    return whole, tvm_ffi.convert(tensors)


def _zeros(shape: tuple[int, ...], dtype: str) -> tuple[mmap.mmap | None, npt.NDArray[np.generic]]:
    """Return memory and zeros in it, page-aligned; the system commits each page when it is first touched."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise InsufficientMemory(
            f"{size / 2**20:.0f} MiB for {shape[2]} pages of keys and values cannot be allocated ({error.strerror}); "
            "ask for fewer tokens"
        ) from error
    return memory, np.frombuffer(memory, dtype=dtype).reshape(shape)


def _runs(pages: Sequence[int]) -> list[tuple[int, int]]:
    """Return (first, behind the last) of each run of neighbours in ascending ids."""
    ids = np.asarray(pages)
    cuts = np.flatnonzero(np.diff(ids) > 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(ids, cuts)]


def _padded_rows(rows: I32Array, most: int) -> I32Array:
    """
    Return *rows* repeated up to a power of two, at most *most*.

    TVM keeps a buffer of logits for each number of rows that ever occurred, and never gives it back; guessed tokens
    would make it keep tens of sizes (edgephi.profile.planning.memory counts on powers of two).
    """
    if len(rows) < 2:
        return rows
    count = min(1 << (len(rows) - 1).bit_length(), most)
    return np.resize(rows, count)


def _aligned(array: I32Array) -> I32Array:
    """Return a copy at a 64-byte boundary: the kernels' vector loads assume it, and NumPy promises only 16."""
    memory = np.empty(array.nbytes + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(np.int32).reshape(array.shape)
    copy[...] = array
    return copy
