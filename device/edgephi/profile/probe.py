"""
What this machine is: processor, memory, limits, board and operating system; and how it is doing.

Owns the facts as data. Every function takes the folder that holds ``proc``, ``sys`` and ``etc``, so that a constructed
tree stands for any board. What cannot be read is None or empty, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgephi.profile import isa
from edgephi.profile.cgroup import read_limits
from edgephi.profile.cores import CoreCluster, read_clusters
from edgephi.profile.kernelfile import parse_cpu_list, parse_fields, parse_kib, read_int, read_text

ROOT = Path("/")

# What firmware says where its maker filled in nothing.
PLACEHOLDER_BOARDS = frozenset({"to be filled by o.e.m.", "system product name", "default string", "none", "n/a"})


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """
    The processor.

    Attributes:
        model: Marketing name, or the design of the fastest cores, or None.
        arch: ``aarch64``, ``x86_64`` or the kernel's name for others.
        features: Flags that all cores have, as the kernel spells them.
        isa_level: Best level of ``edgephi.profile.isa`` they can run, or None.
        clusters: Online cores grouped by kind, fastest first.
    """

    model: str | None
    arch: str
    features: frozenset[str]
    isa_level: str | None
    clusters: tuple[CoreCluster, ...]


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Memory in bytes: what the kernel manages, and what can be had without swapping; None where not told."""

    total_bytes: int | None
    available_bytes: int | None


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """
    Limits put on this process from outside.

    Attributes:
        memory_bytes: Smallest limit of its control groups and their ancestors, or None.
        cpu_cores: Smallest CPU quota of them, in cores, or None.
        allowed_cpus: Cores its threads may run on, ascending; empty where not told.
    """

    memory_bytes: int | None
    cpu_cores: float | None
    allowed_cpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OsFacts:
    """The operating system's name for people and its kernel's release; None where not told."""

    name: str | None
    kernel: str | None


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """All that is known of a machine when it is probed."""

    board: str | None
    cpu: CpuFacts
    memory: MemoryFacts
    limits: LimitFacts
    os: OsFacts


@dataclass(frozen=True, slots=True)
class ThermalZone:
    """A temperature in degrees Celsius and the kernel's name for what it measures."""

    name: str
    celsius: float


@dataclass(frozen=True, slots=True)
class LiveFacts:
    """
    How the machine is doing at one moment.

    Attributes:
        resident_bytes: Memory of this process that is in RAM, or None.
        available_bytes: Memory of the machine obtainable without swapping, or None.
        zones: Temperatures, in the kernel's order.
    """

    resident_bytes: int | None
    available_bytes: int | None
    zones: tuple[ThermalZone, ...]


def probe(root: Path = ROOT, *, arch: str | None = None) -> DeviceFacts:
    """
    Read what the machine is.

    Args:
        root: Folder that holds ``proc``, ``sys`` and ``etc``.
        arch: Architecture; by default that of the running machine.
    """
    limits = read_limits(root)
    status = parse_fields(read_text(root / "proc/self/status") or "")
    return DeviceFacts(
        board=read_board(root),
        cpu=read_cpu(root, arch=isa.host_arch() if arch is None else isa.normalize_arch(arch)),
        memory=read_memory(root),
        limits=LimitFacts(
            memory_bytes=limits.memory_bytes,
            cpu_cores=limits.cpu_cores,
            allowed_cpus=parse_cpu_list(status.get("Cpus_allowed_list", "")),
        ),
        os=OsFacts(name=_os_name(root), kernel=read_text(root / "proc/sys/kernel/osrelease")),
    )


def probe_live(root: Path = ROOT) -> LiveFacts:
    """Read how the machine is doing now."""
    status = parse_fields(read_text(root / "proc/self/status") or "")
    return LiveFacts(
        resident_bytes=parse_kib(status.get("VmRSS")),
        available_bytes=read_memory(root).available_bytes,
        zones=read_thermal_zones(root),
    )


def read_cpu(root: Path, *, arch: str) -> CpuFacts:
    """Read the processor's name, features and cores."""
    features = isa.host_features(root, arch=arch)
    levels = isa.supported_levels(features, arch)
    clusters = read_clusters(root)
    fields = parse_fields(read_text(root / "proc/cpuinfo") or "")
    model = fields.get("model name") or next((cluster.core for cluster in clusters if cluster.core), None)
    return CpuFacts(model, arch, features, levels[0].name if levels else None, clusters)


def read_memory(root: Path) -> MemoryFacts:
    """Read /proc/meminfo."""
    fields = parse_fields(read_text(root / "proc/meminfo") or "")
    return MemoryFacts(parse_kib(fields.get("MemTotal")), parse_kib(fields.get("MemAvailable")))


def read_board(root: Path) -> str | None:
    """Return the board's name from the device tree, or the product name of PC firmware, or None."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model", "sys/class/dmi/id/product_name"):
        name = read_text(root / path)
        if name is not None and name.lower() not in PLACEHOLDER_BOARDS:
            return name
    return None


def read_thermal_zones(root: Path) -> tuple[ThermalZone, ...]:
    """Return the temperatures the kernel reports; readings outside -60 to 200 degrees are broken and left out."""
    found: list[ThermalZone] = []
    for folder in sorted(
        (root / "sys/class/thermal").glob("thermal_zone*"), key=lambda path: (len(path.name), path.name)
    ):
        millidegrees = read_int(folder / "temp")
        if millidegrees is not None and -60_000 <= millidegrees <= 200_000:
            found.append(ThermalZone(read_text(folder / "type") or folder.name, millidegrees / 1000))
    return tuple(found)


def _os_name(root: Path) -> str | None:
    for path in ("etc/os-release", "usr/lib/os-release"):
        for line in (read_text(root / path) or "").splitlines():
            name, separator, value = line.partition("=")
            if separator and name.strip() == "PRETTY_NAME":
                return value.strip().strip("\"'") or None
    return None
