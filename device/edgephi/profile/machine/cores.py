"""
The cores of the processor, grouped by kind.

Owns the names of Arm core designs and how cores are told apart: by design, by highest frequency and by the capacity
that the kernel gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgephi.profile.machine.kernelfile import (
    MAX_CPUS,
    parse_cpu_list,
    parse_hex,
    parse_int,
    read_int,
    read_name,
    read_text,
)

# (CPU implementer, CPU part) of /proc/cpuinfo. Source: Arm's MIDR_EL1 values in each core's reference manual.
CORE_NAMES: Mapping[tuple[int, int], str] = MappingProxyType(
    {
        (0x41, 0xD03): "Cortex-A53",
        (0x41, 0xD04): "Cortex-A35",
        (0x41, 0xD05): "Cortex-A55",
        (0x41, 0xD07): "Cortex-A57",
        (0x41, 0xD08): "Cortex-A72",
        (0x41, 0xD09): "Cortex-A73",
        (0x41, 0xD0A): "Cortex-A75",
        (0x41, 0xD0B): "Cortex-A76",
        (0x41, 0xD0C): "Neoverse-N1",
        (0x41, 0xD0D): "Cortex-A77",
        (0x41, 0xD0E): "Cortex-A76AE",
        (0x41, 0xD40): "Neoverse-V1",
        (0x41, 0xD41): "Cortex-A78",
        (0x41, 0xD42): "Cortex-A78AE",
        (0x41, 0xD44): "Cortex-X1",
        (0x41, 0xD46): "Cortex-A510",
        (0x41, 0xD47): "Cortex-A710",
        (0x41, 0xD48): "Cortex-X2",
        (0x41, 0xD49): "Neoverse-N2",
        (0x41, 0xD4B): "Cortex-A78C",
        (0x41, 0xD4D): "Cortex-A715",
        (0x41, 0xD4E): "Cortex-X3",
        (0x41, 0xD4F): "Neoverse-V2",
        (0x41, 0xD80): "Cortex-A520",
        (0x41, 0xD81): "Cortex-A720",
        (0x41, 0xD82): "Cortex-X4",
        (0x41, 0xD85): "Cortex-X925",
        (0x41, 0xD87): "Cortex-A725",
    }
)
# Designs that issue in order: the "little" cores beside others. Source: Arm's technical reference manual of each.
IN_ORDER_CORES = frozenset({"Cortex-A35", "Cortex-A53", "Cortex-A55", "Cortex-A510", "Cortex-A520"})
MAX_SANE_MHZ = 20_000
# The kernel's scale: its fastest core has this capacity.
MAX_CAPACITY = 1024


@dataclass(frozen=True, slots=True)
class CoreCluster:
    """
    Cores of the same kind.

    Attributes:
        cpus: Kernel numbers, ascending.
        max_mhz: Highest frequency, or None where the kernel does not say.
        core: Design, such as ``Cortex-A76``, or None.
        governor: Frequency governor of the first of them, or None.
        capacity: Speed of each as the kernel measured it, 1024 being the machine's fastest, or None.
        smt: The groups of CPUs that share one physical core; empty where each has its own.
        limit_mhz: Highest frequency that the power mode or cooling allowed when read; None where not told.
    """

    cpus: tuple[int, ...]
    max_mhz: int | None
    core: str | None
    governor: str | None
    capacity: int | None = None
    smt: tuple[tuple[int, ...], ...] = ()
    limit_mhz: int | None = None

    @property
    def is_in_order(self) -> bool:
        """Whether these are known to be of a small design; it does several times less a cycle than others."""
        return self.core in IN_ORDER_CORES


def read_clusters(root: Path) -> tuple[CoreCluster, ...]:
    """
    Group the online cores by design, highest frequency and capacity, fastest first.

    Args:
        root: Folder that holds ``proc`` and ``sys``; ``/`` on a real machine.

    Returns:
        The clusters; empty where neither /sys nor /proc lists any core.
    """
    designs = _designs(read_text(root / "proc/cpuinfo") or "")
    folder = root / "sys/devices/system/cpu"
    online = parse_cpu_list(read_text(folder / "online") or "") or tuple(sorted(designs))
    groups: dict[tuple[int | None, int | None, str | None], list[int]] = {}
    for cpu in online:
        groups.setdefault(
            (_capacity(folder, cpu), read_mhz(folder / f"cpu{cpu}/cpufreq/cpuinfo_max_freq"), designs.get(cpu)), []
        ).append(cpu)
    clusters = [
        CoreCluster(
            tuple(cpus),
            mhz,
            core,
            read_name(folder / f"cpu{cpus[0]}/cpufreq/scaling_governor"),
            capacity,
            _smt(folder, cpus),
            read_mhz(folder / f"cpu{cpus[0]}/cpufreq/scaling_max_freq"),
        )
        for (capacity, mhz, core), cpus in groups.items()
    ]
    return tuple(sorted(clusters, key=lambda group: (-(group.capacity or 0), -(group.max_mhz or 0), group.cpus)))


def _capacity(folder: Path, cpu: int) -> int | None:
    capacity = read_int(folder / f"cpu{cpu}/cpu_capacity")
    return capacity if capacity is not None and 0 < capacity <= MAX_CAPACITY else None


def _smt(folder: Path, cpus: list[int]) -> tuple[tuple[int, ...], ...]:
    """Return the groups of several of *cpus* that share a core, each once, ascending."""
    groups: set[tuple[int, ...]] = set()
    for cpu in cpus:
        sharing = parse_cpu_list(read_text(folder / f"cpu{cpu}/topology/thread_siblings_list") or "")
        group = tuple(other for other in sharing if other in cpus)
        if len(group) > 1 and cpu in group:
            groups.add(group)
    return tuple(sorted(groups))


def read_mhz(path: Path) -> int | None:
    """Return the frequency a file of /sys holds in kHz, in whole MHz; None where it is absent or absurd."""
    khz = read_int(path)
    mhz = khz // 1000 if khz is not None else 0
    return mhz if 0 < mhz <= MAX_SANE_MHZ else None


def _designs(cpuinfo: str) -> dict[int, str | None]:
    """Return the design of each processor in the text of /proc/cpuinfo; None where it is not in the table."""
    found: dict[int, str | None] = {}
    cpu: int | None = None
    implementer: int | None = None
    for line in cpuinfo.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "processor":
            number, implementer = parse_int(value), None
            cpu = number if number is not None and 0 <= number < MAX_CPUS else None
            if cpu is not None:
                found[cpu] = None
        elif name == "CPU implementer":
            implementer = parse_hex(value)
        elif name == "CPU part" and cpu is not None and implementer is not None:
            found[cpu] = CORE_NAMES.get((implementer, parse_hex(value) or 0))
    return found
