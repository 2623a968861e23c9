"""Ending a process at once together with every process it has started, such as a compiler or an engine."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import NoReturn


def end_now(status: int) -> NoReturn:
    """
    End this process without closing anything, and everything below it.

    Not an exception: that would wait for a forward, a compiler or a thread, which may take minutes.
    """
    for process_id in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)
    os._exit(status)


def descendants(process_id: int) -> list[int]:
    """Return the processes below one, parents before their children, from /proc."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            # The name stands in parentheses and may hold anything; the parent is the second field after it.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = list(children.get(process_id, ()))
    for child in found:  # grows while it is read
        found += children.get(child, ())
    return found
