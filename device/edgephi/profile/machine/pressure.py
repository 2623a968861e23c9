"""
How short memory and CPU time are right now: stalls, and what the control groups counted.

Owns the live side of control groups; ``edgephi.profile.machine.cgroup`` owns their limits. Counters run from the
group's creation: compare two readings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgephi.profile.machine.cgroup import Group, group_memory_bytes, groups, read_available_memory
from edgephi.profile.machine.kernelfile import read_counts, read_int, read_text


@dataclass(frozen=True, slots=True)
class Pressure:
    """
    Share of the last ten seconds lost to waiting for memory, in percent.

    Attributes:
        some_avg10: At least one task waited.
        full_avg10: All tasks waited: nothing was computed.
        is_own: Counts the tasks of this process's control group only, not those of the whole machine.
    """

    some_avg10: float
    full_avg10: float
    is_own: bool


@dataclass(frozen=True, slots=True)
class CgroupUse:
    """
    What the control groups of this process use and have counted; None where they do not tell.

    Attributes:
        memory_bytes: Charged to its own group, page cache included.
        memory_left_bytes: What the tightest group on the way up leaves, page cache counted as available.
        high_events: Times a group on the way up was slowed down for going over memory.high.
        max_events: Times a group on the way up reached its limit. Reading a large file does it too, harmlessly.
        oom_kill_events: Processes of its own group that were killed for lack of memory.
        cpu_throttled_periods: Scheduling periods in which a CPU quota on the way up was used up.
        cpu_throttled_us: Time its threads were kept waiting by a CPU quota, in microseconds.
    """

    memory_bytes: int | None = None
    memory_left_bytes: int | None = None
    high_events: int | None = None
    max_events: int | None = None
    oom_kill_events: int | None = None
    cpu_throttled_periods: int | None = None
    cpu_throttled_us: int | None = None


def read_memory_pressure(root: Path) -> Pressure | None:
    """Return the memory pressure on this process's control group, or else on the machine, or None."""
    for group in groups(root, "memory"):
        if group.is_own and group.is_v2:
            own = _pressure(group.folder / "memory.pressure", is_own=True)
            if own is not None:
                return own
    return _pressure(root / "proc/pressure/memory", is_own=False)


def read_cgroup_use(root: Path) -> CgroupUse:
    """Read what the control groups of this process use and have counted."""
    memory, cpu = tuple(groups(root, "memory")), tuple(groups(root, "cpu"))
    own = [group for group in memory if group.is_own]
    events = [_local_events(group) for group in memory]
    cpu_stats = [(group, read_counts(group.folder / "cpu.stat")) for group in cpu]
    return CgroupUse(
        memory_bytes=max((used for group in own if (used := group_memory_bytes(group)) is not None), default=None),
        memory_left_bytes=read_available_memory(root),
        high_events=_sum(counts["high"] for counts in events if "high" in counts),
        max_events=_sum(counts["max"] for counts in events if "max" in counts),
        oom_kill_events=_sum(_oom_kills(own)),
        cpu_throttled_periods=_sum(counts["nr_throttled"] for _, counts in cpu_stats if "nr_throttled" in counts),
        cpu_throttled_us=_sum(_throttled_us(group, counts) for group, counts in cpu_stats),
    )


def _pressure(path: Path, *, is_own: bool) -> Pressure | None:
    text = read_text(path) or ""
    found: dict[str, float] = {}
    for match in re.finditer(r"^(some|full) avg10=([0-9]{1,3}(?:\.[0-9]{1,4})?)(?: |$)", text, re.MULTILINE):
        found[match[1]] = float(match[2])
    some, full = found.get("some"), found.get("full")
    if some is None or full is None or not 0 <= full <= 100 or not 0 <= some <= 100:
        return None
    return Pressure(some, full, is_own)


def _local_events(group: Group) -> Mapping[str, int]:
    """Return how often this very group went over ``high`` and reached ``max``."""
    if group.is_v2:
        # memory.events also counts the groups below, which for an ancestor are neighbours; kernels before 5.2 have
        # no other file.
        local = read_counts(group.folder / "memory.events.local")
        return local or (read_counts(group.folder / "memory.events") if group.is_own else {})
    failures = read_int(group.folder / "memory.failcnt")
    return {"max": failures} if failures is not None and failures >= 0 else {}


def _oom_kills(own: Iterable[Group]) -> Iterator[int]:
    for group in own:
        counts = read_counts(group.folder / ("memory.events" if group.is_v2 else "memory.oom_control"))
        if "oom_kill" in counts:
            yield counts["oom_kill"]


def _throttled_us(group: Group, counts: Mapping[str, int]) -> int | None:
    nanoseconds = counts.get("throttled_time")
    return counts.get("throttled_usec") if group.is_v2 else nanoseconds // 1000 if nanoseconds is not None else None


def _sum(counts: Iterable[int | None]) -> int | None:
    """Return the sum of what is known, or None where nothing is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
