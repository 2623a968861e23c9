"""
What this machine is: processor, memory, limits, board and operating system; and how it is doing.

Owns the facts as data. Every function takes the folder that holds ``proc``, ``sys`` and ``etc``, so that a constructed
tree stands for any board. What cannot be read is None or empty, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from edgephi.profile.machine import isa
from edgephi.profile.machine.cgroup import read_available_memory, read_limits
from edgephi.profile.machine.cores import CoreCluster, read_clusters
from edgephi.profile.machine.disk import DiskFacts, read_disk
from edgephi.profile.machine.host import HostKind, read_host_kind
from edgephi.profile.machine.kernelfile import (
    is_name,
    parse_cpu_list,
    parse_fields,
    parse_int,
    read_name,
    read_text,
    sane_bytes,
)
from edgephi.profile.machine.meminfo import MemoryFacts, read_memory
from edgephi.profile.machine.power import PowerFacts, read_power
from edgephi.profile.machine.pressure import CgroupUse, Pressure, read_cgroup_use, read_memory_pressure
from edgephi.profile.machine.process import read_process_memory
from edgephi.profile.machine.thermal import ThermalZone, read_thermal_zones
from edgephi.profile.machine.throttle import FrequencyPolicy, ThrottleFacts, read_frequencies, read_throttle

__all__ = [
    "CpuFacts",
    "DeviceFacts",
    "LimitFacts",
    "LiveFacts",
    "MemoryFacts",
    "OsFacts",
    "ThermalZone",
    "probe",
    "probe_live",
    "read_board",
    "read_cpu",
    "read_memory",
    "read_thermal_zones",
]

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
        isa_level: Best level of ``edgephi.profile.machine.isa`` they can run, or None.
        clusters: Online cores grouped by kind, fastest first.
    """

    model: str | None
    arch: str
    features: frozenset[str]
    isa_level: str | None
    clusters: tuple[CoreCluster, ...]


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """
    Limits put on this process from outside.

    Attributes:
        memory_bytes: Smallest limit of its control groups and their ancestors, or None.
        cpu_cores: Smallest CPU quota of them, in cores, or None.
        allowed_cpus: Online cores its threads may run on, by affinity and cpuset, ascending; empty where not told.
        memory_left_bytes: What those limits left when read, page cache counted as available; None without a limit.
        address_space_bytes: Limit of its mapped address space, ``ulimit -v``, or None.
    """

    memory_bytes: int | None
    cpu_cores: float | None
    allowed_cpus: tuple[int, ...]
    memory_left_bytes: int | None = None
    address_space_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class OsFacts:
    """The operating system's name for people and its kernel's release; None where not told."""

    name: str | None
    kernel: str | None


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """
    All that is known of a machine when it is probed.

    Attributes:
        board: Name from the device tree or the firmware, or None.
        cpu: The processor.
        memory: RAM, swap and what this process uses of them.
        limits: What is put on this process from outside.
        os: The operating system.
        compatible: What the device tree says the board is compatible with, most specific first, such as
            ``raspberrypi,5-model-b``.
        host: What this process runs inside.
        zones: Temperatures when probed, with the ones at which the kernel acts.
        power: Mains or battery.
        disk: The disk of the folder that was asked about, or None.
    """

    board: str | None
    cpu: CpuFacts
    memory: MemoryFacts
    limits: LimitFacts
    os: OsFacts
    compatible: tuple[str, ...] = ()
    host: HostKind = HostKind.NONE
    zones: tuple[ThermalZone, ...] = ()
    power: PowerFacts = field(default_factory=PowerFacts)
    disk: DiskFacts | None = None


@dataclass(frozen=True, slots=True)
class LiveFacts:
    """
    How the machine is doing at one moment.

    Attributes:
        resident_bytes: Memory of this process that is in RAM, or None.
        available_bytes: Memory of the machine obtainable without swapping, or None.
        zones: Temperatures, in the kernel's order.
        pressure: Time lost to waiting for memory, or None.
        cgroup: What the control groups use and have counted.
        frequencies: Clocks of the cores; empty where not told.
        throttle: Whether heat or voltage holds the cores back.
        power: Mains or battery, and its charge.
        peak_resident_bytes: Most memory of this process that ever was in RAM, or None.
    """

    resident_bytes: int | None
    available_bytes: int | None
    zones: tuple[ThermalZone, ...]
    pressure: Pressure | None = None
    cgroup: CgroupUse = field(default_factory=CgroupUse)
    frequencies: tuple[FrequencyPolicy, ...] = ()
    throttle: ThrottleFacts = field(default_factory=ThrottleFacts)
    power: PowerFacts = field(default_factory=PowerFacts)
    peak_resident_bytes: int | None = None


def probe(root: Path = ROOT, *, arch: str | None = None, models: Path | None = None) -> DeviceFacts:
    """
    Read what the machine is.

    Args:
        root: Folder that holds ``proc``, ``sys`` and ``etc``.
        arch: Architecture; by default that of the running machine.
        models: Folder whose disk is wanted; it need not exist.
    """
    cpu = read_cpu(root, arch=isa.host_arch() if arch is None else isa.normalize_arch(arch))
    return DeviceFacts(
        board=read_board(root),
        cpu=cpu,
        memory=read_memory(root),
        limits=_read_limits(root, cpu.clusters),
        os=OsFacts(name=_os_name(root), kernel=read_name(root / "proc/sys/kernel/osrelease")),
        compatible=_compatible(root),
        host=read_host_kind(root),
        zones=read_thermal_zones(root),
        power=read_power(root),
        disk=read_disk(models) if models is not None else None,
    )


def probe_live(root: Path = ROOT) -> LiveFacts:
    """Read how the machine is doing now."""
    own = read_process_memory(None, root)
    return LiveFacts(
        resident_bytes=own.resident_bytes,
        available_bytes=read_memory(root).available_bytes,
        zones=read_thermal_zones(root),
        pressure=read_memory_pressure(root),
        cgroup=read_cgroup_use(root),
        frequencies=read_frequencies(root),
        throttle=read_throttle(root),
        power=read_power(root),
        peak_resident_bytes=own.peak_bytes,
    )


def read_cpu(root: Path, *, arch: str) -> CpuFacts:
    """Read the processor's name, features and cores."""
    features = isa.host_features(root, arch=arch)
    levels = isa.supported_levels(features, arch)
    clusters = read_clusters(root)
    fields = parse_fields(read_text(root / "proc/cpuinfo") or "")
    name = fields.get("model name", "")
    model = name if name and is_name(name) else next((cluster.core for cluster in clusters if cluster.core), None)
    return CpuFacts(model, arch, features, levels[0].name if levels else None, clusters)


def read_board(root: Path) -> str | None:
    """Return the board's name from the device tree, the PC firmware or the chip's driver, or None."""
    for path in (
        "proc/device-tree/model",
        "sys/firmware/devicetree/base/model",
        "sys/class/dmi/id/product_name",
        "sys/devices/soc0/machine",
    ):
        name = read_name(root / path)
        if name is not None and name.lower() not in PLACEHOLDER_BOARDS:
            return name
    return None


def _read_limits(root: Path, clusters: tuple[CoreCluster, ...]) -> LimitFacts:
    limits = read_limits(root)
    status = parse_fields(read_text(root / "proc/self/status") or "")
    allowed = parse_cpu_list(status.get("Cpus_allowed_list", ""))
    online = {cpu for cluster in clusters for cpu in cluster.cpus}
    # The kernel's mask may name cores that are switched off, or that a virtual machine could get one day.
    return LimitFacts(
        memory_bytes=limits.memory_bytes,
        cpu_cores=limits.cpu_cores,
        allowed_cpus=tuple(cpu for cpu in allowed if cpu in online) if online else allowed,
        memory_left_bytes=read_available_memory(root),
        address_space_bytes=_address_space_bytes(root),
    )


def _address_space_bytes(root: Path) -> int | None:
    """Return the soft limit of /proc/self/limits, which has columns of white space."""
    match = re.search(
        r"^Max address space +([0-9]+) .* bytes *$", read_text(root / "proc/self/limits") or "", re.MULTILINE
    )
    return sane_bytes(parse_int(match[1])) if match else None


def _compatible(root: Path) -> tuple[str, ...]:
    for path in ("proc/device-tree/compatible", "sys/firmware/devicetree/base/compatible"):
        names = (read_text(root / path) or "").split("\0")
        if all(name and name.isascii() and name.isprintable() for name in names):
            return tuple(names)
    return ()


def _os_name(root: Path) -> str | None:
    for path in ("etc/os-release", "usr/lib/os-release"):
        for line in (read_text(root / path) or "").splitlines():
            name, separator, value = line.partition("=")
            if separator and name.strip() == "PRETTY_NAME" and is_name(value):
                return value.strip().strip("\"'") or None
    return None
