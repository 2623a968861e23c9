"""TVM imported the way serving needs it: its runtime only, no compiler, no torch, workers not pinned to cores."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Without its compiler TVM starts in half the time and memory. Workers are not pinned, so that two servers, or a
# server and a test, do not fight for core 0.
os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")
os.environ.setdefault("TVM_BIND_THREADS", "0")


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


with _without_torch():
    import tvm
    import tvm_ffi
    from tvm.runtime.vm import VirtualMachine

__all__ = ["VirtualMachine", "tvm", "tvm_ffi"]
