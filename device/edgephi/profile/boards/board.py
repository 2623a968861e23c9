"""
A board of the catalogue: what a kind of device has and reaches, each figure with where it comes from.

Owns the shape of the data. Reads no file and looks at no machine.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Evidence(enum.Enum):
    """How a figure is known."""

    THEORETICAL = "theoretical"  # from clocks and widths of the parts, as on paper
    MEASURED = "measured"  # by edgephi's own commands
    PUBLISHED = "published"  # by the maker or by someone who measured
    COMPUTED = "computed"  # from other figures that are named
    ASSUMED = "assumed"  # nothing was found; the source says why this value


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, how it is known, and where it was read or why it is assumed."""

    value: float
    evidence: Evidence
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardCluster:
    """
    Cores of one kind.

    Attributes:
        core: Design, as ``edgephi.profile.machine.cores`` names it, or None.
        count: How many; the source of ``max_mhz`` is its source too.
        max_mhz: Highest frequency.
    """

    core: str | None
    count: int
    max_mhz: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class ThermalEnvelope:
    """
    What is left of the speed under load without end, as fractions of the speed when cool.

    Attributes:
        sustained_fraction: As the device is sold.
        cooled_fraction: With a fan or a heat sink added; None where there is no such thing.
        throttle_celsius: Temperature of the chip at which it begins to slow down; None where not known.
    """

    sustained_fraction: Figure
    cooled_fraction: Figure | None = None
    throttle_celsius: Figure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSpeed:
    """
    What others measured on this device with a model of about Phi-3-mini's size.

    Attributes:
        model: Model and its quantization.
        runtime: Program, and what computed where that is not the CPU.
        decode_tokens_per_s: Decoding one stream.
        prefill_tokens_per_s: Computing a prompt, or None.
        source: Where it was read.
    """

    model: str
    runtime: str
    decode_tokens_per_s: float
    prefill_tokens_per_s: float | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """
    One device with one size of memory.

    Attributes:
        name: What a person types, such as ``raspberry-pi-5-8gb``.
        title: Name for reading.
        family: What the sizes of one device share, such as ``raspberry-pi-5``.
        isa_level: Best level of ``edgephi.profile.machine.isa`` it runs.
        clusters: Cores by kind, fastest first.
        memory_bytes: Memory as it is sold.
        os_reserve_bytes: Part of it that a process of ours never gets: firmware, system, other programs, or what lies
            beyond the most the system lets one app have.
        bandwidth_gbps: Memory bandwidth on paper, 10^9 bytes per second.
        effective_gbps: What all cores together reach of it by reading, 10^9 bytes per second.
        thermal: What remains of the speed when hot, or None.
        published: Speeds others measured.
        matches: Beginnings of the name its firmware gives it; empty where only its cores tell it.
    """

    name: str
    title: str
    family: str
    isa_level: str
    clusters: tuple[BoardCluster, ...]
    memory_bytes: Figure
    os_reserve_bytes: Figure
    bandwidth_gbps: Figure
    effective_gbps: Figure
    thermal: ThermalEnvelope | None = None
    published: tuple[PublishedSpeed, ...] = ()
    matches: tuple[str, ...] = ()
