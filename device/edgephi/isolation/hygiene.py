"""
What a process owes its parent: it ends with it, is the first to go when memory is short, and leaves no core file.

Owns the system calls; Linux only. What the kernel does not grant is left as it is: each is a help, none a condition.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import sys
from pathlib import Path

OOM_SCORE_ADJ = 500
"""Half of the scale: before the front and what else serves the machine, after what asked to go first (1000)."""

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def settle(parent_pid: int) -> None:
    """
    Make this process a good child. Called once, before anything is loaded.

    Args:
        parent_pid: Who started it; if that process has ended meanwhile, this one ends here.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before the line above
        os._exit(0)
    # A terminal and a service manager send these to every process; the front decides what they mean, and answers that
    # may still finish need this one meanwhile.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    # Memory holds prompts. The limit is for files, the flag also for systems that pipe core dumps to a program.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    # A crash of native code says where it was, without any values.
    faulthandler.enable(sys.stderr)
