"""The machine code of every level: what it calls and which dot product it uses. Nothing here is run or linked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from edgephi.artifact.bundle import KV_DTYPES
from edgephi.compiler.kernels.activations import Activations
from edgephi.compiler.kernels.attention import attention
from edgephi.compiler.kernels.embedding import embed, take_rows
from edgephi.compiler.kernels.matmul_q4 import matmul_q4
from edgephi.compiler.kernels.norm import rms_norm
from edgephi.compiler.kernels.rope import rope_angles, rope_append
from edgephi.compiler.kernels.swiglu import swiglu
from edgephi.compiler.targets import COMPILE_TARGETS, KernelShape, compile_target
from edgephi.errors import CompileFailed
from edgephi.profile.machine.isa import ISA_LEVELS

Build = Callable[..., Any]

pytestmark = pytest.mark.tvm

# The multiplications of bytes a level's kernels are built on; the portable one has none.
DOTS_OF_LEVEL: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "avx512-vnni": frozenset({"vpdpbusd"}),
        "avx-vnni": frozenset({"vpdpbusd"}),
        "x86-64-v3": frozenset({"vpmaddubsw"}),
        "armv8.6-i8mm": frozenset({"smmla", "sdot"}),
        "armv8.2-dotprod": frozenset({"sdot"}),
        "armv8.0": frozenset({"smlal"}),
    }
)


def _kernels(shape: KernelShape) -> dict[str, PrimFunc]:
    """All kernels with both activations, matrices of three block sizes, and Phi-3's own head of 96."""
    heads: dict[str, Any] = {"num_heads": 2, "num_kv_heads": 2, "head_dim": 96, "num_layers": 2}
    found = {
        "embed": embed(32, 96, "float16"),
        "take": take_rows(96),
        "rope_angles": rope_angles(48, 1.0),
    }
    for kv_dtype in KV_DTYPES:
        found[f"rope_append_{kv_dtype}"] = rope_append(kv_dtype=kv_dtype, **heads)
        for activations in Activations:
            found[f"attention_{activations.value}_{kv_dtype}"] = attention(
                sliding_window=2047, activations=activations, kv_dtype=kv_dtype, shape=shape, **heads
            )
    for activations in Activations:
        name = activations.value
        found[f"norm_{name}"] = rms_norm(96, 1e-5, activations)
        found[f"swiglu_{name}"] = swiglu(96, activations)
        for n in (16, 32, 64):
            found[f"matmul_{n}_{name}"] = matmul_q4(n, 96, shape, "float16", activations, residual=n == 32)
        found[f"matmul_q3_{name}"] = matmul_q4(64, 96, shape, "float16", activations, residual=True, bits=3)
    return found


@pytest.fixture(scope="module", params=list(COMPILE_TARGETS))
def compiled(request: pytest.FixtureRequest, build: Build) -> tuple[str, Any]:
    """Each level, of this CPU or not, and all kernels compiled for it."""
    name: str = request.param
    return name, build(name, _kernels(COMPILE_TARGETS[name].kernel))


def test_no_kernel_allocates_memory(compiled: tuple[str, Any]) -> None:
    """
    Accumulators stay in registers and on the stack: no kernel asks TVM for workspace.

    A buffer that became a workspace call made the matrix kernel 2.5 times slower.
    """
    _, library = compiled
    code = library.mod.inspect_source("ll")
    assert "matmul_64_int8" in code
    assert "TVMBackendAllocWorkspace" not in code


def test_a_kernel_that_allocates_memory_is_noticed(build: Build) -> None:
    """The call the test above looks for is what a large local buffer becomes."""

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator] # TVM has no types
    def wasteful(x_h: T.handle, y_h: T.handle):  # type: ignore[no-untyped-def] # nor a return type in its language
        x = T.match_buffer(x_h, (4096,), "float32")
        y = T.match_buffer(y_h, (4096,), "float32")
        held = T.alloc_buffer((4096,), "float32", scope="local")
        for i in T.serial(4096):
            held[i] = x[4095 - i]
        for i in T.serial(4096):
            y[i] = held[4095 - i]

    assert "TVMBackendAllocWorkspace" in build("x86-64-v2", {"wasteful": wasteful}).mod.inspect_source("ll")


def test_each_level_uses_its_dot_product_and_no_other(compiled: tuple[str, Any]) -> None:
    """The instruction a level is named for is there, and no level uses one that its CPUs may lack."""
    level, library = compiled
    code = library.mod.inspect_source("asm")
    found = set(re.findall(r"\b(vpdpbusd|vpdpwssd|vpmaddubsw|sdot|udot|usdot|smmla|usmmla|smlal)\b", code))
    assert found == DOTS_OF_LEVEL.get(level, frozenset())
    registers = {"zmm": "%zmm", "ymm": "%ymm", "xmm": "%xmm"}
    widest = next((name for name, text in registers.items() if text in code), None)
    expected = {"avx512-vnni": "zmm", "avx-vnni": "ymm", "x86-64-v3": "ymm", "x86-64-v2": "xmm"}
    assert widest == expected.get(level)


def test_levels_are_those_of_the_profile() -> None:
    """Every level a CPU can be found to run has a compile target of the same name and architecture, and no other."""
    assert set(COMPILE_TARGETS) == set(ISA_LEVELS)
    for name, target in COMPILE_TARGETS.items():
        assert target.level == name
        assert target.triple.startswith(ISA_LEVELS[name].arch)


def test_an_unknown_level_is_refused_with_the_known_ones() -> None:
    """The message names what was asked for and what there is."""
    with pytest.raises(CompileFailed, match=r"'sparc'.*x86-64-v3.*armv8\.2-dotprod"):
        compile_target("sparc")
