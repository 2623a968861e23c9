"""
Parts of constructed /proc and /sys trees.

Owns the files' names and formats as kernels write them; each function returns contents by path. A tree is the union of
some of them, and what it does not name is absent.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgephi.profile.machine.host import HostKind
from edgephi.profile.machine.memory_limits import BoundKind
from edgephi.profile.machine.power import PowerSource

MIB = 1 << 20
GIB = 1 << 30
V1_UNLIMITED = "9223372036854771712\n"

A53, A55, A72, A76 = "0xd03", "0xd05", "0xd08", "0xd0b"
A78AE, A510, A710, A715, X3 = "0xd42", "0xd46", "0xd47", "0xd4d", "0xd4e"
V80 = "fp asimd evtstrm crc32 cpuid"
V82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


class Odd(enum.Enum):
    """What stands in place of a file."""

    FOLDER = "folder"
    UNREADABLE = "unreadable"  # opening it fails, also for root


Content = str | bytes | Odd
Files = dict[str, Content]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """
    What a probe has to find in a tree.

    Attributes:
        budget: What the process may use, in bytes.
        kind: What bounds that.
        limit: Smallest memory limit of the control groups.
        cpu: CPU quota in cores.
        allowed: Number of cores it may run on.
        clusters: (cores, MHz, design) of each, fastest first.
        zones: (name, degrees, where throttling begins) of each.
        power: What the machine runs on.
        charge: Percent of each battery.
        host: What it runs inside.
        throttled: Whether something holds the cores back.
        board: Its name.
        level: Instruction-set level.
    """

    budget: int | None
    kind: BoundKind | None
    limit: int | None = None
    cpu: float | None = None
    allowed: int = 0
    clusters: tuple[tuple[int, int | None, str | None], ...] = ()
    zones: tuple[tuple[str, float, float | None], ...] = ()
    power: PowerSource | None = None
    charge: tuple[int | None, ...] = ()
    host: HostKind = HostKind.NONE
    throttled: bool | None = None
    board: str | None = None
    level: str | None = "armv8.0"


@dataclass(frozen=True, slots=True)
class Tree:
    """A machine: its name, its files and what a probe has to find."""

    name: str
    files: Files
    expected: Expected
    arch: str = "aarch64"


def plant(root: Path, files: Files) -> Path:
    """Write a tree below a folder and return the folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        elif content is Odd.FOLDER:
            path.mkdir()
        else:
            path.symlink_to(path.name)  # a link to itself: mode bits would not stop root
    return root


def ram(total_mib: int, available_mib: int, *, swap_mib: int = 0) -> Files:
    """/proc/meminfo."""
    return {
        "proc/meminfo": f"MemTotal:       {total_mib * 1024} kB\nMemFree:          100 kB\n"
        f"MemAvailable:   {available_mib * 1024} kB\nSwapTotal:      {swap_mib * 1024} kB\n"
        f"SwapFree:       {swap_mib * 1024} kB\nHugePages_Total:       0\nHugepagesize:       2048 kB\n"
    }


def process(allowed: str, *, own_mib: int = 0, tracer: int = 0) -> Files:
    """/proc/self/status of a process with so much memory of its own."""
    return {
        "proc/self/status": f"Name:\tpython\nTracerPid:\t{tracer}\nVmRSS:\t{own_mib * 1024 + 20000} kB\n"
        f"RssAnon:\t{own_mib * 1024} kB\nRssFile:\t20000 kB\nRssShmem:\t0 kB\nCpus_allowed_list:\t{allowed}\n"
    }


def address_space(limit: int | str) -> Files:
    """/proc/self/limits with a soft limit of the address space."""
    return {
        "proc/self/limits": "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max cpu time              unlimited            unlimited            seconds   \n"
        f"Max address space         {limit!s:20} unlimited            bytes     \n"
    }


def arm(*kinds: tuple[int, str, int], features: str = V82, governor: str = "ondemand", limit_mhz: int = 0) -> Files:
    """
    The processors of an Arm machine.

    Args:
        kinds: (cores, part, MHz) in the order of their numbers.
        features: What every core has.
        governor: Frequency governor of all.
        limit_mhz: Highest frequency the power mode allows; 0 is the hardware's.
    """
    files: Files = {}
    paragraphs: list[str] = []
    for count, part, mhz in kinds:
        first = len(paragraphs)
        numbers = range(first, first + count)
        for number in numbers:
            paragraphs.append(
                f"processor\t: {number}\nBogoMIPS\t: 50.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
                f"CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: {part}\nCPU revision\t: 1\n\n"
            )
            folder = f"sys/devices/system/cpu/cpu{number}/cpufreq"
            files |= {f"{folder}/cpuinfo_max_freq": f"{mhz * 1000}\n", f"{folder}/scaling_governor": f"{governor}\n"}
            files[f"{folder}/scaling_max_freq"] = f"{(limit_mhz or mhz) * 1000}\n"
        policy = f"sys/devices/system/cpu/cpufreq/policy{first}"
        files[f"{policy}/affected_cpus"] = " ".join(map(str, numbers)) + " \n"
        files[f"{policy}/scaling_cur_freq"] = f"{min(limit_mhz or mhz, mhz) * 1000}\n"
        files[f"{policy}/scaling_max_freq"] = f"{(limit_mhz or mhz) * 1000}\n"
        files[f"{policy}/cpuinfo_max_freq"] = f"{mhz * 1000}\n"
    files["proc/cpuinfo"] = "".join(paragraphs)
    files["sys/devices/system/cpu/online"] = f"0-{len(paragraphs) - 1}\n"
    return files


def x86(count: int, model: str, *, mhz: int | None = None) -> Files:
    """The processors of a PC with 8-bit dot products."""
    flags = "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
    files: Files = {"sys/devices/system/cpu/online": f"0-{count - 1}\n"}
    files["proc/cpuinfo"] = "".join(
        f"processor\t: {n}\nmodel name\t: {model}\ncpu MHz\t\t: 2000.000\nflags\t\t: {flags}\n\n" for n in range(count)
    )
    if mhz is not None:
        files |= {f"sys/devices/system/cpu/cpu{n}/cpufreq/cpuinfo_max_freq": f"{mhz * 1000}\n" for n in range(count)}
    return files


def board(model: str, *compatible: str) -> Files:
    """The device tree's name of a board and what it is compatible with, with the NULs it has."""
    names = "".join(f"{name}\0" for name in compatible)
    return {"proc/device-tree/model": f"{model}\0", "proc/device-tree/compatible": names}


def zone(number: int, name: str, millidegrees: int | str, **trips: int) -> Files:
    """A thermal zone; trips by kind."""
    folder = f"sys/class/thermal/thermal_zone{number}"
    files: Files = {f"{folder}/type": f"{name}\n", f"{folder}/temp": f"{millidegrees}\n"}
    for index, (kind, temperature) in enumerate(trips.items()):
        files[f"{folder}/trip_point_{index}_type"] = f"{kind}\n"
        files[f"{folder}/trip_point_{index}_temp"] = f"{temperature}\n"
        files[f"{folder}/trip_point_{index}_hyst"] = "2000\n"
    return files


def cooling(number: int, kind: str, state: int, most: int) -> Files:
    """A cooling device."""
    folder = f"sys/class/thermal/cooling_device{number}"
    return {f"{folder}/type": f"{kind}\n", f"{folder}/cur_state": f"{state}\n", f"{folder}/max_state": f"{most}\n"}


def supply(name: str, kind: str, **values: str | int) -> Files:
    """A power supply."""
    folder = f"sys/class/power_supply/{name}"
    files: Files = {f"{folder}/{key}": f"{value}\n" for key, value in values.items()}
    return files | {f"{folder}/type": f"{kind}\n"}


def flags(soc: str, value: str) -> Files:
    """What Raspberry Pi firmware says about voltage and throttling."""
    return {f"sys/devices/platform/{soc}/{soc}:firmware/get_throttled": f"{value}\n"}


def v2(group: str, folders: Mapping[str, Mapping[str, str | int]], *, subtree: str = "/") -> Files:
    """
    Version 2 of control groups.

    Args:
        group: What /proc/self/cgroup says.
        folders: Files of each group that is visible, by the group's path below the mount point.
        subtree: The group that is mounted.
    """
    files: Files = {
        "proc/self/cgroup": f"0::{group}\n",
        "proc/self/mountinfo": f"30 23 0:26 {subtree} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
    }
    return files | _contents("sys/fs/cgroup", folders)


def v1(group: str, folders: Mapping[str, Mapping[str, str | int]], *, subtree: str = "/", at: str = "") -> Files:
    """
    Version 1: the memory and the cpu hierarchy, with the same groups in both.

    Args:
        group: What /proc/self/cgroup says.
        folders: Files of each group that is visible, by the group's path below the mount points.
        subtree: The group that is mounted.
        at: Mount point of the memory hierarchy, ``/sys/fs/cgroup/memory`` by default.
    """
    point = at or "/sys/fs/cgroup/memory"
    files: Files = {
        "proc/self/cgroup": f"9:memory:{group}\n8:cpu,cpuacct:{group}\n1:name=systemd:{group}\n0::/\n",
        "proc/self/mountinfo": f"31 23 0:27 {subtree} {point} ro - cgroup cgroup rw,memory\n"
        f"32 23 0:28 {subtree} /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n",
    }
    memory = {k: {n: x for n, x in v.items() if n.startswith("memory.")} for k, v in folders.items()}
    cpu = {k: {n: x for n, x in v.items() if n.startswith("cpu.")} for k, v in folders.items()}
    return files | _contents(point.lstrip("/"), memory) | _contents("sys/fs/cgroup/cpu,cpuacct", cpu)


def _contents(point: str, folders: Mapping[str, Mapping[str, str | int]]) -> Files:
    found: Files = {}
    for path, values in folders.items():
        for name, value in values.items():
            found["/".join(part for part in (point, path.strip("/"), name) if part)] = f"{value}\n"
    return found
