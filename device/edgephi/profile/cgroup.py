"""
Memory and CPU limits of the control groups this process is in.

Owns the walk over control groups of version 1, version 2 and both at once. A group's own file does not tell
the limit: any ancestor may have a smaller one, so the limit is the smallest on the way up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgephi.profile.kernelfile import parse_int, read_int, read_text

# Version 1 writes "no limit" as the largest page-aligned number, which differs between page sizes.
UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """
    Limits put on this process from outside; None where there is none or it cannot be read.

    Attributes:
        memory_bytes: Smallest of the memory limits and the levels at which the kernel starts to throttle.
        cpu_cores: Smallest CPU quota, in cores.
    """

    memory_bytes: int | None
    cpu_cores: float | None


@dataclass(frozen=True, slots=True)
class _Mount:
    """
    A mounted hierarchy.

    Attributes:
        point: Where it is mounted, below the root folder given.
        subtree: The group that is visible at ``point``; ``/`` unless a container mounts only its own.
        controllers: ``memory``, ``cpu`` and so on; None for version 2, which has them all.
    """

    point: Path
    subtree: PurePosixPath
    controllers: frozenset[str] | None


def read_limits(root: Path) -> CgroupLimits:
    """
    Find the limits in force for this process.

    Args:
        root: Folder that holds ``proc`` and ``sys``; ``/`` on a real machine.
    """
    memory: list[int] = []
    cores: list[float] = []
    mounts = list(_mounts(root))
    for controllers, group in _memberships(root):
        for mount in mounts:
            if mount.controllers is None and controllers is None:
                for folder in _ancestors(mount, group):
                    memory += _bytes_of(folder / "memory.max") + _bytes_of(folder / "memory.high")
                    cores += _quota_v2(folder)
            elif mount.controllers is not None and controllers is not None and mount.controllers & controllers:
                for folder in _ancestors(mount, group):
                    if "memory" in controllers:
                        memory += _bytes_of(folder / "memory.limit_in_bytes")
                    if "cpu" in controllers:
                        cores += _quota_v1(folder)
    return CgroupLimits(min(memory, default=None), min(cores, default=None))


def read_available_memory(root: Path) -> int | None:
    """
    Find how much memory the control groups leave to this process, in bytes; None where they set no limit.

    The page cache counts as available, as in the kernel's own MemAvailable: it is given up before a limit refuses
    anything, and weights that are mapped may be in it already. It is the least that any group on the way up leaves.

    Args:
        root: Folder that holds ``proc`` and ``sys``; ``/`` on a real machine.
    """
    found: list[int] = []
    mounts = list(_mounts(root))
    for controllers, group in _memberships(root):
        for mount in mounts:
            if mount.controllers is None and controllers is None:
                for folder in _ancestors(mount, group):
                    limits = _bytes_of(folder / "memory.max") + _bytes_of(folder / "memory.high")
                    found += _left(limits, folder / "memory.current", folder / "memory.stat", "")
            elif (
                mount.controllers is not None
                and controllers is not None
                and "memory" in mount.controllers & controllers
            ):
                for folder in _ancestors(mount, group):
                    limits = _bytes_of(folder / "memory.limit_in_bytes")
                    found += _left(limits, folder / "memory.usage_in_bytes", folder / "memory.stat", "total_")
    return min(found, default=None)


def _left(limits: list[int], usage: Path, statistics: Path, prefix: str) -> list[int]:
    """Return the smallest limit less what is used and not page cache; nothing where there is no limit."""
    if not limits:
        return []
    cache = 0
    for line in (read_text(statistics) or "").splitlines():
        name, _, value = line.partition(" ")
        if name in (f"{prefix}active_file", f"{prefix}inactive_file"):
            cache += max(parse_int(value) or 0, 0)
    used = max((read_int(usage) or 0) - cache, 0)
    return [max(min(limits) - used, 0)]


def _memberships(root: Path) -> Iterator[tuple[frozenset[str] | None, PurePosixPath]]:
    """Yield (controllers, group) of each hierarchy; controllers are None for version 2."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and parts[2].startswith("/"):
            controllers = None if parts[0] == "0" and not parts[1] else frozenset(parts[1].split(","))
            yield controllers, PurePosixPath(parts[2])


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        left, separator, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if not separator or len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        point = root / _unescape(fields[4]).lstrip("/")
        controllers = None if kind[0] == "cgroup2" else frozenset(kind[2].split(","))
        yield _Mount(point, PurePosixPath(_unescape(fields[3])), controllers)


def _unescape(path: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def _ancestors(mount: _Mount, group: PurePosixPath) -> Iterator[Path]:
    """Yield the group's folder and each one above it that is visible, up to the mount point."""
    # A group outside the visible subtree shows as "/.." in its own namespace; only the mount point can be read then.
    below = group.relative_to(mount.subtree) if group.is_relative_to(mount.subtree) else PurePosixPath()
    if ".." in below.parts:
        below = PurePosixPath()
    folder = mount.point.joinpath(*below.parts)
    while folder != mount.point:
        yield folder
        folder = folder.parent
    yield mount.point


def _bytes_of(path: Path) -> list[int]:
    """Return the limit a file holds, or nothing for "max", absurd numbers and absent files."""
    value = read_int(path)
    return [value] if value is not None and 0 < value < UNLIMITED_BYTES else []


def _quota_v2(folder: Path) -> list[float]:
    words = (read_text(folder / "cpu.max") or "").split()
    return _cores(parse_int(words[0]), parse_int(words[1])) if len(words) == 2 else []


def _quota_v1(folder: Path) -> list[float]:
    return _cores(read_int(folder / "cpu.cfs_quota_us"), read_int(folder / "cpu.cfs_period_us"))


def _cores(quota_us: int | None, period_us: int | None) -> list[float]:
    if quota_us is None or period_us is None or quota_us <= 0 or period_us <= 0:
        return []
    return [quota_us / period_us]
