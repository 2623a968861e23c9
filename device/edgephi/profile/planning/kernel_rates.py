"""
How fast the matrix kernel computes on each core design, with every load a cache hit.

Owns the table. ``make mca`` bounds ARM cores by LLVM's models of them; x86 was measured (both in docs/log.md). Where a
design was not bounded, a sibling stands in and the figure is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from edgephi.profile.boards.board import Evidence


@dataclass(frozen=True, slots=True)
class KernelRate:
    """
    What one core does in a cycle.

    Attributes:
        weights_per_cycle: Weights of a matrix multiplied with one token.
        products_per_cycle: Products of weights with several tokens.
        evidence: How both are known.
        source: Where they were read.
    """

    weights_per_cycle: float
    products_per_cycle: float
    evidence: Evidence
    source: str


_BYTES_PER_WEIGHT = 18 / 32  # q4f16_1: 32 codes of 4 bits and a float16 scale
_BOUND = "make mca, docs/log.md"


def _bounded(bytes_per_cycle: float, products: float) -> KernelRate:
    return KernelRate(bytes_per_cycle / _BYTES_PER_WEIGHT, products, Evidence.COMPUTED, _BOUND)


def _like(rate: KernelRate, sibling: str) -> KernelRate:
    return replace(rate, evidence=Evidence.ASSUMED, source=f"not bounded; as {sibling}, {rate.source}")


def _part(rate: KernelRate, parts: int, why: str) -> KernelRate:
    return KernelRate(rate.weights_per_cycle / parts, rate.products_per_cycle / parts, Evidence.ASSUMED, why)


_BOUNDED = {
    "Cortex-A72": _bounded(3.25, 6.9),
    "Cortex-A76": _bounded(6.84, 18.9),
    "Cortex-A55": _bounded(2.22, 6.7),
    "Cortex-X1": _bounded(13.66, 37.8),
    "Cortex-X2": _bounded(12.48, 60.0),
}
# 86.5 GB/s of weights with one token and 443 GMAC/s with 64 in cache, one Zen 5 core at 4.2 GHz.
_AVX512 = KernelRate(86.5 / 4.2 / _BYTES_PER_WEIGHT, 443 / 4.2, Evidence.MEASURED, "make bench-kernels, docs/log.md")

# Designs by the bounded one whose vector units theirs are most like: as many, as wide, or the next smaller.
_SIBLINGS = {
    "Cortex-A57": "Cortex-A72", "Cortex-A73": "Cortex-A72", "Cortex-A75": "Cortex-A72",
    "Cortex-A76AE": "Cortex-A76", "Cortex-A77": "Cortex-A76", "Cortex-A78": "Cortex-A76", "Cortex-A78AE": "Cortex-A76",
    "Cortex-A78C": "Cortex-A76", "Cortex-A710": "Cortex-A76", "Cortex-A715": "Cortex-A76", "Cortex-A720": "Cortex-A76",
    "Cortex-A725": "Cortex-A76", "Neoverse-N1": "Cortex-A76", "Neoverse-N2": "Cortex-A76",
    "Cortex-A35": "Cortex-A55", "Cortex-A53": "Cortex-A55", "Cortex-A510": "Cortex-A55", "Cortex-A520": "Cortex-A55",
    "Cortex-X3": "Cortex-X2", "Cortex-X4": "Cortex-X2", "Cortex-X925": "Cortex-X2",
    "Neoverse-V1": "Cortex-X1", "Neoverse-V2": "Cortex-X2",
}  # fmt: skip

KERNEL_RATES: Mapping[str, KernelRate] = MappingProxyType(
    _BOUNDED | {core: _like(_BOUNDED[sibling], sibling) for core, sibling in _SIBLINGS.items()}
)
"""By the names of ``edgephi.profile.machine.cores``."""

LEVEL_RATES: Mapping[str, KernelRate] = MappingProxyType(
    {
        "armv8.0": _like(_BOUNDED["Cortex-A72"], "Cortex-A72"),
        "armv8.2-dotprod": _like(_BOUNDED["Cortex-A76"], "Cortex-A76"),
        "armv8.6-i8mm": _like(_BOUNDED["Cortex-X1"], "Cortex-X1"),
        "avx512-vnni": _AVX512,
        "avx-vnni": _part(_AVX512, 2, "half as wide as AVX-512"),
        "x86-64-v3": _part(_AVX512, 4, "half as wide, and two instructions for one product"),
        "x86-64-v2": _part(_AVX512, 8, "a quarter as wide, and two instructions for one product"),
    }
)
"""For cores without a name: by the best level of instructions they have."""


def kernel_rate(core: str | None, level: str) -> KernelRate:
    """Return the rate of a core design, or where it is not known, that of the level it runs."""
    return KERNEL_RATES.get(core or "") or LEVEL_RATES.get(level) or LEVEL_RATES["armv8.0"]
