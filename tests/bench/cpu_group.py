"""A control group whose share of the processors can be changed while processes run in it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgephi.profile.cgroup import groups

_PERIOD_US = 100_000


class NoCpuGroup(Exception):
    """A control group with a CPU quota cannot be made; usually the process is not root, or in a container."""


@dataclass(frozen=True, slots=True)
class CpuGroup:
    """A group of its own, below the one this process is in; :func:`cpu_group` makes and removes it."""

    folder: Path
    is_v2: bool

    def add(self, pid: int) -> None:
        """Move a process into the group; its later threads and children are born there."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def limit(self, cores: float | None) -> None:
        """Let the group compute for so many cores at most; None for no limit."""
        quota_us = None if cores is None else max(round(cores * _PERIOD_US), 1000)
        if self.is_v2:
            (self.folder / "cpu.max").write_text(f"{'max' if quota_us is None else quota_us} {_PERIOD_US}")
        else:
            (self.folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (self.folder / "cpu.cfs_quota_us").write_text(str(-1 if quota_us is None else quota_us))


@contextlib.contextmanager
def cpu_group() -> Iterator[CpuGroup]:
    """
    Make a group for the block; the processes in it must have ended when the block does.

    Raises:
        NoCpuGroup: If that is not allowed here, or no control group limits processors.
    """
    own = next((group for group in groups(Path("/"), "cpu") if group.is_own), None)
    if own is None:
        raise NoCpuGroup("no control group limits processors here")
    made = CpuGroup(own.folder / f"edgephi-bench-{os.getpid()}", own.is_v2)
    try:
        made.folder.mkdir()
    except OSError as error:
        raise NoCpuGroup(f"{made.folder} cannot be made ({error.strerror}); run this as root") from error
    try:
        try:
            made.limit(None)
        except OSError as error:
            raise NoCpuGroup(f"{made.folder} takes no CPU quota ({error.strerror})") from error
        yield made
    finally:
        _remove(made.folder)


def _remove(folder: Path) -> None:
    for _ in range(50):  # a process that has ended leaves its group a moment later
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return
    folder.rmdir()
