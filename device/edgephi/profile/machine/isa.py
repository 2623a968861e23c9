"""
Instruction-set levels a model library can be compiled for, and which of them this CPU can run.

Owns the level names used in ``build/<level>/`` and the kernel feature flags each one needs. Does not know
how a compiler is told about a level; that is the compiler's table.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgephi.errors import CpuUnsupported

ARCH_ALIASES: Mapping[str, str] = MappingProxyType({"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"})

_X86_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
# The kernel calls LZCNT "abm".
_X86_V3 = _X86_V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
_ARM_V80 = frozenset({"fp", "asimd"})
# atomics, crc32 and asimdrdm are what a compiler may use once it is told "v8.2"; asimdhp is half precision.
_ARM_V82 = _ARM_V80 | {"atomics", "crc32", "asimdrdm", "fphp", "asimdhp", "asimddp"}

# Entry types of the auxiliary vector, and its arm64 capability words: the name of each bit from bit 0, as
# /proc/cpuinfo writes it. Source: Linux, include/uapi/linux/auxvec.h and arch/arm64/include/uapi/asm/hwcap.h.
_AT_NULL, _AT_HWCAP, _AT_HWCAP2 = 0, 16, 26
_HWCAP_NAMES: Mapping[int, str] = MappingProxyType(
    {
        _AT_HWCAP: "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc "
        "dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg",
        _AT_HWCAP2: "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm "
        "svebf16 i8mm bf16",
    }
)


@dataclass(frozen=True, slots=True)
class IsaLevel:
    """
    One compile target.

    Attributes:
        name: As it appears in ``build/<name>/`` and in bundle.json.
        arch: ``x86_64`` or ``aarch64``.
        required_features: Names as in /proc/cpuinfo (``flags`` on x86, ``Features`` on Arm) that must all be present.
    """

    name: str
    arch: str
    required_features: frozenset[str]


def _table(*levels: IsaLevel) -> Mapping[str, IsaLevel]:
    return MappingProxyType({level.name: level for level in levels})


ISA_LEVELS: Mapping[str, IsaLevel] = _table(
    IsaLevel(
        "avx512-vnni", "x86_64", _X86_V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}
    ),
    IsaLevel("avx-vnni", "x86_64", _X86_V3 | {"avx_vnni"}),
    IsaLevel("x86-64-v3", "x86_64", _X86_V3),
    IsaLevel("x86-64-v2", "x86_64", _X86_V2),
    # The kernels need the i8mm instructions; bf16, which v8.6 adds as well, is not used.
    IsaLevel("armv8.6-i8mm", "aarch64", _ARM_V82 | {"i8mm"}),
    IsaLevel("armv8.2-dotprod", "aarch64", _ARM_V82),
    IsaLevel("armv8.0", "aarch64", _ARM_V80),
)
"""All levels, best first within an architecture."""


def host_arch() -> str:
    """Return this machine's architecture as ``x86_64``, ``aarch64`` or the kernel's own name for others."""
    return normalize_arch(platform.machine())


def normalize_arch(machine: str) -> str:
    """Return one spelling for the several names of an architecture; unknown ones come back in lower case."""
    name = machine.strip().lower()
    return ARCH_ALIASES.get(name, name)


def host_features(root: Path = Path("/"), *, arch: str | None = None) -> frozenset[str]:
    """
    Read the CPU features that every core of this machine has.

    On 64-bit Arm that is what the kernel tells each process it starts: only what all cores have, also where big and
    little ones differ, and what the CPU of an emulator has, whose /proc/cpuinfo is that of the machine around it.

    Args:
        root: Folder that holds ``proc``; another than ``/`` in tests.
        arch: Architecture, this machine's by default.

    Returns:
        Kernel flag names common to all cores, since a thread may run on any of them. Where the kernel reports
        none for a 64-bit Arm, what every such Linux guarantees.
    """
    arch = host_arch() if arch is None else normalize_arch(arch)
    found: frozenset[str] = frozenset()
    # This process's own vector says nothing about another architecture.
    if arch == "aarch64" and (root != Path("/") or host_arch() == arch):
        found = parse_auxiliary_vector(_read(root / "proc/self/auxv"))
    if not found:
        found = parse_features(_read(root / "proc/cpuinfo").decode(errors="replace"), arch)
    return found or (_ARM_V80 if arch == "aarch64" else frozenset())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def parse_auxiliary_vector(vector: bytes) -> frozenset[str]:
    """
    Return the arm64 features in an auxiliary vector.

    Args:
        vector: Contents of /proc/self/auxv: pairs of a type and a value, both 64-bit little-endian. Other bytes, and
            what follows the last whole pair, count as nothing.
    """
    found: set[str] = set()
    whole = len(vector) // 16 * 16
    for kind, value in struct.iter_unpack("<QQ", vector[:whole]):
        if kind == _AT_NULL:
            break
        found.update(name for bit, name in enumerate(_HWCAP_NAMES.get(kind, "").split()) if value >> bit & 1)
    return frozenset(found)


def parse_features(cpuinfo: str, arch: str) -> frozenset[str]:
    """Return the flags common to all processors listed in the text of /proc/cpuinfo; empty when it lists none."""
    key = "flags" if arch == "x86_64" else "Features"
    per_core: list[frozenset[str]] = []
    for line in cpuinfo.splitlines():
        name, separator, value = line.partition(":")
        if separator and name.strip() == key:
            per_core.append(frozenset(value.split()))
    return frozenset.intersection(*per_core) if per_core else frozenset()


def supported_levels(features: Iterable[str], arch: str) -> tuple[IsaLevel, ...]:
    """Return every level these features can run, best first."""
    present = frozenset(features)
    arch = normalize_arch(arch)
    return tuple(x for x in ISA_LEVELS.values() if x.arch == arch and x.required_features <= present)


def best_level(features: Iterable[str], arch: str) -> IsaLevel:
    """
    Choose the fastest level a CPU can run.

    Args:
        features: Kernel flag names, as ``host_features`` returns them.
        arch: Architecture name; ``amd64`` and ``arm64`` are understood.

    Raises:
        CpuUnsupported: If there is no level for the architecture, or the CPU lacks what the lowest one needs.
    """
    levels = supported_levels(features, arch)
    if levels:
        return levels[0]
    arch = normalize_arch(arch)
    lowest = [x for x in ISA_LEVELS.values() if x.arch == arch][-1:]
    if not lowest:
        known = ", ".join(sorted({x.arch for x in ISA_LEVELS.values()}))
        raise CpuUnsupported(f"architecture {arch!r} has no compile target; supported: {known}")
    missing = ", ".join(sorted(lowest[0].required_features - frozenset(features)))
    raise CpuUnsupported(f"this CPU lacks {missing}, which the lowest level {lowest[0].name} needs; use a newer CPU")
