"""
How each instruction-set level is compiled: TVM's target and the shape of the matrix kernels.

Owns nothing about which level a CPU can run; that is ``edgephi.profile.machine.isa``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import tvm

from edgephi.errors import CompileFailed


class Dot(enum.Enum):
    """The instruction that multiplies 4-bit weights by int8 activations, four products to an int32 lane."""

    VPDPBUSD_512 = "vpdpbusd-512"  # AVX512-VNNI, 16 lanes
    VPDPBUSD_256 = "vpdpbusd-256"  # AVX-VNNI, 8 lanes
    PMADDUBSW = "pmaddubsw"  # AVX2, 8 lanes; sums of a group stay in int16
    SMULL = "smull"  # any ARMv8, 4 lanes; sums of a group stay in int16
    SDOT = "sdot"  # ARMv8.2 dotprod, 4 lanes
    SMMLA = "smmla"  # ARMv8.6 i8mm, 2 rows by 2 tokens; sdot for one token and in attention
    GENERIC = "generic"  # shifts and multiplies that LLVM vectorizes for any CPU

    @property
    def is_neon(self) -> bool:
        """Whether it is an ARM instruction, of which all take signed bytes on both sides."""
        return self in (Dot.SMULL, Dot.SDOT, Dot.SMMLA)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShape:
    """
    The register tile of the matrix kernels.

    Attributes:
        dot: Which instruction multiplies.
        lanes: Output rows in one vector register.
        tile_vectors: Vectors of output rows in a tile; tile_vectors * lanes divides block_rows.
        tile_tokens: Tokens in a tile of the matrix-matrix kernel: 1, 2 or 4, with SMMLA 8. Accumulators: 2 x
            tile_vectors x tile_tokens.
        block_rows: Most output rows in a packed block: 16, 32 or 64.
    """

    dot: Dot
    lanes: int
    tile_vectors: int
    tile_tokens: int
    block_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileTarget:
    """
    One level as the compiler sees it.

    Attributes:
        level: Name in ``edgephi.profile.machine.isa.ISA_LEVELS``.
        triple: LLVM's target triple.
        cpu: LLVM's CPU name; only its instruction set matters.
        attributes: LLVM features added to the CPU's.
        kernel: Shape of the matrix kernels.
    """

    level: str
    triple: str
    cpu: str
    attributes: tuple[str, ...]
    kernel: KernelShape

    def tvm_target(self) -> tvm.target.Target:
        """Return TVM's target object."""
        config: dict[str, object] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu}
        if self.attributes:
            config["mattr"] = list(self.attributes)
        return tvm.target.Target(config)


_X86 = "x86_64-linux-gnu"
_ARM = "aarch64-linux-gnu"
_GENERIC_16 = KernelShape(dot=Dot.GENERIC, lanes=16, tile_vectors=1, tile_tokens=1, block_rows=16)
# More vectors or tokens spill.
_SDOT = KernelShape(dot=Dot.SDOT, lanes=4, tile_vectors=2, tile_tokens=4, block_rows=16)
_SMMLA = KernelShape(dot=Dot.SMMLA, lanes=4, tile_vectors=1, tile_tokens=8, block_rows=16)

COMPILE_TARGETS: Mapping[str, CompileTarget] = MappingProxyType(
    {
        target.level: target
        for target in (
            CompileTarget(
                level="avx512-vnni",
                triple=_X86,
                cpu="x86-64-v4",
                # LLVM's tuning for this CPU name splits 512-bit vectors in two unless told not to.
                attributes=("+avx512vnni", "-prefer-256-bit"),
                kernel=KernelShape(dot=Dot.VPDPBUSD_512, lanes=16, tile_vectors=4, tile_tokens=4, block_rows=64),
            ),
            CompileTarget(
                level="avx-vnni",
                triple=_X86,
                cpu="x86-64-v3",
                attributes=("+avxvnni",),
                kernel=KernelShape(dot=Dot.VPDPBUSD_256, lanes=8, tile_vectors=2, tile_tokens=2, block_rows=32),
            ),
            CompileTarget(
                level="x86-64-v3",
                triple=_X86,
                cpu="x86-64-v3",
                attributes=(),
                kernel=KernelShape(dot=Dot.PMADDUBSW, lanes=8, tile_vectors=2, tile_tokens=2, block_rows=32),
            ),
            CompileTarget(level="x86-64-v2", triple=_X86, cpu="x86-64-v2", attributes=(), kernel=_GENERIC_16),
            CompileTarget(
                level="armv8.6-i8mm",
                triple=_ARM,
                cpu="generic",
                attributes=("+v8.2a", "+neon", "+fullfp16", "+dotprod", "+i8mm"),
                kernel=_SMMLA,
            ),
            CompileTarget(
                level="armv8.2-dotprod",
                triple=_ARM,
                cpu="generic",
                attributes=("+v8.2a", "+neon", "+fullfp16", "+dotprod"),
                kernel=_SDOT,
            ),
            CompileTarget(
                level="armv8.0",
                triple=_ARM,
                cpu="generic",
                attributes=("+neon",),
                kernel=KernelShape(dot=Dot.SMULL, lanes=4, tile_vectors=2, tile_tokens=2, block_rows=16),
            ),
        )
    }
)
"""How to compile for each level."""


def compile_target(level: str) -> CompileTarget:
    """
    Return how to compile for *level*.

    Raises:
        CompileFailed: If no such level exists; the message lists those that do.
    """
    try:
        return COMPILE_TARGETS[level]
    except KeyError:
        raise CompileFailed(f"no compile target {level!r}; choose one of {', '.join(COMPILE_TARGETS)}") from None
