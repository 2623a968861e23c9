"""TVM imported the way serving needs it: its runtime only, no compiler, no torch, workers not pinned to cores."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_RUNTIME_ONLY = "TVM_USE_RUNTIME_LIB"

# Read when workers start. TVM does not pin them, so that two servers, or a server and a test, do not fight for core 0.
# TVM's own guess at the number of cores halves it on x86, for hyper-threads that a virtual machine does not have; how
# many of them work is set when a model is loaded. A worker yields this often before it sleeps: enough to stay awake
# between two kernels, while TVM's default of 300,000 would keep the core busy for a tenth of a second after each step.
os.environ.setdefault("TVM_BIND_THREADS", "0")
os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "1000")


@contextmanager
def _runtime_only() -> Iterator[None]:
    """
    Inside the block TVM is imported without its compiler, in half the time and memory.

    Child processes inherit the environment, and one may want the compiler, so it is put back afterwards.
    """
    if _RUNTIME_ONLY in os.environ:
        yield
        return
    os.environ[_RUNTIME_ONLY] = "1"
    try:
        yield
    finally:
        del os.environ[_RUNTIME_ONLY]


@contextmanager
def _without_torch() -> Iterator[None]:
    """
    Let ``import torch`` fail inside the block, unless it was imported before.

    TVM's bindings import torch where it is installed, to exchange tensors with it; that costs three seconds and
    hundreds of megabytes, and nothing here uses it.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment] # how Python is told that a module cannot be imported
    try:
        yield
    finally:
        del sys.modules["torch"]


with _runtime_only(), _without_torch():
    import tvm
    import tvm_ffi
    from tvm.runtime.vm import VirtualMachine

__all__ = ["VirtualMachine", "tvm", "tvm_ffi"]
