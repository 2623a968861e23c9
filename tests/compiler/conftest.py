"""Compiling kernels one by one, and tensors for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import pytest
import tvm
from tvm.tirx import PrimFunc

from edgephi.compiler.targets import COMPILE_TARGETS
from edgephi.profile.machine.isa import host_arch, host_features, supported_levels

Build = Callable[[str, Mapping[str, PrimFunc]], Any]
Run = Callable[..., None]

RUNNABLE = frozenset(level.name for level in supported_levels(host_features(), host_arch()))


@pytest.fixture(scope="session")
def build() -> Build:
    """Compile kernels for a level, by name; the result holds them as functions."""

    def compile_kernels(level: str, kernels: Mapping[str, PrimFunc]) -> Any:
        named = {name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()}
        return tvm.compile(tvm.IRModule(named), target=COMPILE_TARGETS[level].tvm_target())

    return compile_kernels


@pytest.fixture(scope="session")
def run() -> Run:
    """Call a compiled kernel on NumPy arrays: those in ``out`` receive what the kernel left in its last arguments."""

    def call(kernel: Any, *arguments: npt.NDArray[Any] | int, out: tuple[npt.NDArray[Any], ...]) -> None:
        # tvm.runtime.tensor copies to memory that is aligned as the kernels need it.
        given = [x if isinstance(x, int) else tvm.runtime.tensor(x) for x in arguments]
        results = [tvm.runtime.tensor(x) for x in out]
        kernel(*given, *results)
        for array, result in zip(out, results, strict=True):
            array[...] = result.numpy()

    return call


@pytest.fixture(scope="module", params=[name for name in COMPILE_TARGETS if name in RUNNABLE])
def level(request: pytest.FixtureRequest) -> str:
    """Each level whose code this CPU can run; test_code.py compiles the others too."""
    name: str = request.param
    return name
