"""
Memory and CPU limits of the control groups this process is in.

Owns the walk over control groups of version 1, version 2 and both at once. A group's own file does not tell
the limit: any ancestor may have a smaller one, so the limit is the smallest on the way up. What a container's own
namespace hides cannot be read; version 1 tells it in memory.stat, version 2 does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgephi.profile.machine.kernelfile import MAX_CPUS, MAX_MEMORY_BYTES, parse_int, read_counts, read_int, read_text

MAX_PATH = 4096


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
class Group:
    """
    One control group on the way up from this process.

    Attributes:
        folder: Where its files are.
        is_v2: Whether they are those of version 2.
        is_own: Whether the process is in this group itself rather than below it.
    """

    folder: Path
    is_v2: bool
    is_own: bool


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
    memory = [limit for group in groups(root, "memory") for limit in _memory_limits(group)]
    cores = [quota for group in groups(root, "cpu") for quota in _quota(group)]
    return CgroupLimits(min(memory, default=None), min(cores, default=None))


def read_available_memory(root: Path) -> int | None:
    """
    Find how much memory the control groups leave to this process, in bytes; None where they set no limit.

    The page cache counts as available, as in the kernel's own MemAvailable: it is given up before a limit refuses
    anything, and weights that are mapped may be in it already. It is the least that any group on the way up leaves.

    Args:
        root: Folder that holds ``proc`` and ``sys``; ``/`` on a real machine.
    """
    return min((left for group in groups(root, "memory") for left in _memory_left(group)), default=None)


def groups(root: Path, controller: str) -> Iterator[Group]:
    """
    Yield the groups that may limit this process, from its own upwards, as far as they can be seen.

    Args:
        root: Folder that holds ``proc`` and ``sys``; ``/`` on a real machine.
        controller: ``memory`` or ``cpu``. Every group of version 2 is given, whether or not the controller is on.
    """
    mounts = list(_mounts(root))
    for controllers, path in _memberships(root):
        if controllers is not None and controller not in controllers:
            continue
        fitting = [
            mount
            for mount in mounts
            if (controllers is None and mount.controllers is None)
            or (controllers is not None and mount.controllers is not None and controller in mount.controllers)
        ]
        # Other parts of the hierarchy may be mounted too, such as the host's inside a container that watches it.
        above = [mount for mount in fitting if path.is_relative_to(mount.subtree)]
        for mount in above or fitting:
            yield from _upwards(mount, path, stops_at_flat=controllers is not None and controller == "memory")


def group_memory_bytes(group: Group) -> int | None:
    """Return the bytes that are charged to a group and those below it, page cache included, or None."""
    value = read_int(group.folder / ("memory.current" if group.is_v2 else "memory.usage_in_bytes"))
    return value if value is not None and 0 <= value < MAX_MEMORY_BYTES else None


def _upwards(mount: _Mount, path: PurePosixPath, *, stops_at_flat: bool) -> Iterator[Group]:
    """Yield the group at ``path`` and each one above it that is visible, up to the mount point."""
    # A group outside the visible subtree shows as "/.." in its own namespace; only the mount point can be read then.
    below = path.relative_to(mount.subtree) if path.is_relative_to(mount.subtree) else PurePosixPath()
    if ".." in below.parts:
        below = PurePosixPath()
    is_v2 = mount.controllers is None
    folder = mount.point.joinpath(*below.parts)
    yield Group(folder, is_v2, is_own=True)
    while folder != mount.point:
        folder = folder.parent
        # Kernels before 5.11 can leave the groups below uncounted, and then this one's limit is not theirs.
        if stops_at_flat and read_int(folder / "memory.use_hierarchy") == 0:
            return
        yield Group(folder, is_v2, is_own=False)


def _memory_limits(group: Group) -> list[int]:
    """Return the limits a group's files hold; nothing for "max", absurd numbers and absent files."""
    if group.is_v2:
        found = [read_int(group.folder / name) for name in ("memory.max", "memory.high")]
    else:
        found = [read_int(group.folder / "memory.limit_in_bytes")]
        if group.is_own:  # the smallest of all ancestors, also of those that a container does not show
            found.append(read_counts(group.folder / "memory.stat").get("hierarchical_memory_limit"))
    return [limit for limit in found if limit is not None and 0 < limit < MAX_MEMORY_BYTES]


def _memory_left(group: Group) -> list[int]:
    """Return the smallest limit of a group less what is used and not page cache; nothing where there is no limit."""
    limits = _memory_limits(group)
    if not limits:
        return []
    statistics, prefix = read_counts(group.folder / "memory.stat"), "" if group.is_v2 else "total_"
    cache = sum(statistics.get(f"{prefix}{name}", 0) for name in ("active_file", "inactive_file"))
    used = max((group_memory_bytes(group) or 0) - cache, 0)
    return [max(min(limits) - used, 0)]


def _quota(group: Group) -> list[float]:
    """Return the CPU quota of a group in cores; nothing where it has none."""
    if group.is_v2:
        words = (read_text(group.folder / "cpu.max") or "").split()
        quota_us, period_us = (parse_int(words[0]), parse_int(words[1])) if len(words) == 2 else (None, None)
    else:
        quota_us = read_int(group.folder / "cpu.cfs_quota_us")
        period_us = read_int(group.folder / "cpu.cfs_period_us")
    if quota_us is None or period_us is None or quota_us <= 0 or period_us <= 0:
        return []
    return [quota_us / period_us] if quota_us / period_us <= MAX_CPUS else []


def _memberships(root: Path) -> Iterator[tuple[frozenset[str] | None, PurePosixPath]]:
    """Yield (controllers, group) of each hierarchy; controllers are None for version 2."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and parts[2].startswith("/") and len(parts[2]) <= MAX_PATH:
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
