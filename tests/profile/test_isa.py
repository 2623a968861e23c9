"""Instruction-set levels."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgephi.errors import CpuUnsupported
from edgephi.profile.machine.isa import (
    ISA_LEVELS,
    best_level,
    host_arch,
    host_features,
    normalize_arch,
    parse_auxiliary_vector,
    parse_features,
    supported_levels,
)

# As the kernel writes them; the Raspberry Pi 4 (Cortex-A72), the Pi 5 (Cortex-A76) and a Graviton 3.
PI4 = "fp asimd evtstrm crc32 cpuid"
PI5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
GRAVITON3 = PI5 + " sha3 sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg dcpodp svei8mm i8mm bf16"
HASWELL = (
    "fpu sse sse2 ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt xsave avx f16c rdrand lahf_lm abm fsgsbase bmi1 avx2 bmi2"
)


@pytest.mark.parametrize(
    ("features", "arch", "level"),
    [
        (PI4, "aarch64", "armv8.0"),
        (PI5, "arm64", "armv8.2-dotprod"),
        (GRAVITON3, "aarch64", "armv8.6-i8mm"),
        (HASWELL, "x86_64", "x86-64-v3"),
        (HASWELL + " avx_vnni", "AMD64", "avx-vnni"),
        (HASWELL + " avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni avx_vnni", "x86_64", "avx512-vnni"),
        (HASWELL + " avx512f avx512bw avx512cd avx512dq avx512vl", "x86_64", "x86-64-v3"),
        ("cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 avx", "x86_64", "x86-64-v2"),
    ],
)
def test_the_best_level_of_known_processors(features: str, arch: str, level: str) -> None:
    """Each processor gets the fastest level it can run."""
    assert best_level(features.split(), arch).name == level


def test_what_cannot_run_any_level_is_refused_by_what_is_missing() -> None:
    """An old CPU and an unknown architecture are errors that name what is missing or supported."""
    with pytest.raises(CpuUnsupported, match="popcnt"):
        best_level({"sse2"}, "x86_64")
    with pytest.raises(CpuUnsupported, match="aarch64, x86_64"):
        best_level({"fp"}, "riscv64")


ALL_FEATURES: list[str] = sorted({name for level in ISA_LEVELS.values() for name in level.required_features})


@given(features=st.frozensets(st.sampled_from(ALL_FEATURES)))
def test_a_level_never_needs_what_the_cpu_lacks(features: frozenset[str]) -> None:
    """Every supported level's needs are met, on its own architecture, and more features never give a worse one."""
    for arch in ("x86_64", "aarch64"):
        levels = supported_levels(features, arch)
        assert all(level.arch == arch and level.required_features <= features for level in levels)
        order = [level.name for level in ISA_LEVELS.values() if level.arch == arch]
        assert [level.name for level in levels] == sorted((level.name for level in levels), key=order.index)
        if levels:
            full = best_level(ALL_FEATURES, arch)
            assert order.index(full.name) <= order.index(levels[0].name)


def test_features_are_those_all_cores_have(tmp_path: Path) -> None:
    """With cores of different kinds, only what all of them have counts."""
    text = f"processor : 0\nFeatures : {PI5}\n\nprocessor : 1\nFeatures : {PI4}\n"
    assert parse_features(text, "aarch64") == frozenset(PI5.split()) & frozenset(PI4.split())
    assert parse_features("flags:\nflags : sse2\n", "x86_64") == frozenset()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(text)
    assert best_level(host_features(tmp_path, arch="aarch64"), "aarch64").name == "armv8.0"


def test_an_arm_without_a_feature_list_has_what_all_have(tmp_path: Path) -> None:
    """Where nothing in /proc tells a 64-bit Arm's features, the guaranteed ones remain; x86 has none."""
    assert best_level(host_features(tmp_path, arch="aarch64"), "aarch64").name == "armv8.0"
    assert host_features(tmp_path, arch="x86_64") == frozenset()


@pytest.mark.parametrize(
    ("hwcap", "hwcap2", "level"),
    [
        (0x8FB, 0, "armv8.0"),  # as QEMU's Cortex-A72, Cortex-A76 and best CPU without SVE give them to a process
        (0x119FFB, 0, "armv8.2-dotprod"),
        (0xECBFFFFB, 0x76181, "armv8.6-i8mm"),
    ],
)
def test_what_an_arm_kernel_tells_its_processes_is_believed_first(
    hwcap: int, hwcap2: int, level: str, tmp_path: Path
) -> None:
    """The auxiliary vector decides on Arm, whatever machine /proc/cpuinfo describes."""
    words = ((3, 0x5500000040), (16, hwcap), (17, 100), (26, hwcap2), (0, 0), (16, (1 << 64) - 1))
    vector = b"".join(struct.pack("<QQ", *pair) for pair in words)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/auxv").write_bytes(vector)
    for text in (f"flags : {HASWELL}\n", f"Features : {PI4}\n", f"Features : {GRAVITON3}\n"):
        (tmp_path / "proc/cpuinfo").write_text(text)
        assert best_level(host_features(tmp_path, arch="aarch64"), "aarch64").name == level
    assert host_features(tmp_path, arch="x86_64") == frozenset()


def test_the_bits_of_the_auxiliary_vector_have_the_kernels_names() -> None:
    """QEMU's Cortex-A72 and Cortex-A76 come out as these cores' features; i8mm and bf16 are bits of the second word."""
    a72 = frozenset((PI4 + " aes pmull sha1 sha2").split()) - {"evtstrm"}
    assert parse_auxiliary_vector(struct.pack("<QQ", 16, 0x8FB)) == a72
    assert parse_auxiliary_vector(struct.pack("<QQ", 16, 0x119FFB)) == frozenset(PI5.split()) - {"evtstrm"}
    assert parse_auxiliary_vector(struct.pack("<QQ", 26, 3 << 13)) == {"i8mm", "bf16"}


@given(vector=st.binary(max_size=100))
def test_a_damaged_auxiliary_vector_is_no_error(vector: bytes) -> None:
    """Any bytes are read; a pair that is not whole says nothing."""
    assert parse_auxiliary_vector(vector) == parse_auxiliary_vector(vector[: len(vector) // 16 * 16])


def test_this_machine_has_an_architecture() -> None:
    """The running machine's architecture has one spelling."""
    assert host_arch() == normalize_arch(host_arch())
    assert normalize_arch(" ARM64 ") == "aarch64"
