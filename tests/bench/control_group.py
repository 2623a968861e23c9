"""Control groups of our own: one whose share of the processors can be changed, and one with a limit of memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgephi.profile.machine.cgroup import groups
from edgephi.profile.machine.kernelfile import read_counts, read_text

_PERIOD_US = 100_000


class NoControlGroup(Exception):
    """A control group of our own cannot be made; usually the process is not root, or in a container."""


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """A group below the one this process is in; the functions of this module make and remove it."""

    folder: Path
    is_v2: bool

    @property
    def members(self) -> Path:
        """File to which a process writes its id to be moved into the group, with what it starts later."""
        return self.folder / "cgroup.procs"

    def add(self, pid: int) -> None:
        """Move a process into the group; its later threads and children are born there."""
        self.members.write_text(str(pid))


class CpuGroup(ControlGroup):
    """A group with a quota of the processors."""

    def limit(self, cores: float | None) -> None:
        """Let the group compute for so many cores at most; None for no limit."""
        quota_us = None if cores is None else max(round(cores * _PERIOD_US), 1000)
        if self.is_v2:
            (self.folder / "cpu.max").write_text(f"{'max' if quota_us is None else quota_us} {_PERIOD_US}")
        else:
            (self.folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (self.folder / "cpu.cfs_quota_us").write_text(str(-1 if quota_us is None else quota_us))


class MemoryGroup(ControlGroup):
    """A group with a limit of memory, page cache included."""

    def limit(self, size_bytes: int) -> None:
        """Let the group use so much at most, in whole pages; the kernel would round down."""
        pages = -(-size_bytes // mmap.PAGESIZE)
        name = "memory.max" if self.is_v2 else "memory.limit_in_bytes"
        (self.folder / name).write_text(str(pages * mmap.PAGESIZE))

    @property
    def needed_bytes(self) -> int:
        """What its processes use now: memory of their own, and the files charged to it that they have mapped."""
        counts = read_counts(self.folder / "memory.stat")
        names = ("anon", "file_mapped", "kernel") if self.is_v2 else ("total_rss", "total_mapped_file")
        return sum(counts[name] for name in names)

    @property
    def peak_bytes(self) -> int | None:
        """Most that was ever charged to it, page cache included; None for version 2 before Linux 5.19."""
        text = read_text(self.folder / ("memory.peak" if self.is_v2 else "memory.max_usage_in_bytes"))
        return None if text is None else int(text)

    @property
    def num_oom_kills(self) -> int:
        """Processes that were killed for want of memory."""
        return read_counts(self.folder / ("memory.events" if self.is_v2 else "memory.oom_control")).get("oom_kill", 0)

    @property
    def num_reclaims(self) -> int:
        """How often the limit was met, so that pages had to be taken back."""
        if self.is_v2:
            return read_counts(self.folder / "memory.events").get("max", 0)
        return int((self.folder / "memory.failcnt").read_text())


@contextlib.contextmanager
def cpu_group() -> Iterator[CpuGroup]:
    """
    Make a group for the block; the processes in it must have ended when the block does.

    Raises:
        NoControlGroup: If that is not allowed here, or no control group limits processors.
    """
    with _made("cpu") as (folder, is_v2):
        group = CpuGroup(folder, is_v2)
        with _refused(folder):
            group.limit(None)
        yield group


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """
    Make a group with a limit for the block; the processes in it must have ended when the block does.

    Raises:
        NoControlGroup: If that is not allowed here, or no control group limits memory.
    """
    with _made("memory") as (folder, is_v2):
        group = MemoryGroup(folder, is_v2)
        with _refused(folder):
            group.limit(limit_bytes)
        yield group


def drop_cached(folder: Path) -> None:
    """
    Let the system forget a folder's files, so that the group that reads them next is charged for them.

    What another process has mapped stays.
    """
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _made(controller: str) -> Iterator[tuple[Path, bool]]:
    own = next((group for group in groups(Path("/"), controller) if group.is_own), None)
    if own is None:
        raise NoControlGroup(f"no control group limits {controller} here")
    folder = own.folder / f"edgephi-bench-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        raise NoControlGroup(f"{folder} cannot be made ({error.strerror}); run this as root") from error
    try:
        yield folder, own.is_v2
    finally:
        _remove(folder)


@contextlib.contextmanager
def _refused(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoControlGroup(f"{folder} takes no such limit ({error.strerror})") from error


def _remove(folder: Path) -> None:
    for _ in range(50):  # a process that has ended leaves its group a moment later
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return
    folder.rmdir()
