"""
What is asked of the system for the threads that compute, once edgephi.profile.machine.threads has chosen them.

Owns the two requests that carry a choice out for the calling thread. Knows no TVM: its pool's workers are started by
the thread that computes and inherit what was set there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Mapping
from types import MappingProxyType

from edgephi.profile.machine.threads import ThreadPlan

# Long enough to stay on a core for a small kernel, short enough that waiting for a turn costs little of a step.
TIME_SLICE_NS = 100_000
# Numbers of sched_setattr and sched_getattr, which older libcs have no functions for. Source: Linux, asm/unistd.h.
_SYSCALLS: Mapping[str, tuple[int, int]] = MappingProxyType({"x86_64": (314, 315), "aarch64": (274, 275)})
# size, policy, flags, nice, priority, runtime, deadline, period. Source: Linux, uapi/linux/sched/types.h.
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
_TIME_SHARING_POLICIES = frozenset({os.SCHED_OTHER, os.SCHED_BATCH})


def apply_to_this_thread(plan: ThreadPlan) -> None:
    """
    Bind the calling thread and ask for short time slices; the threads it starts from now on inherit both.

    Best effort: where the system refuses, the scheduler decides as for any other thread.
    """
    if plan.cpus is not None:
        with contextlib.suppress(OSError):  # the CPUs were taken offline or out of the cpuset meanwhile
            os.sched_setaffinity(0, plan.cpus)
    _shorten_time_slice()


def _shorten_time_slice() -> None:
    """
    Ask for short time slices, which Linux grants to anyone from 6.12 on; older kernels ignore it.

    TVM's threads wait for each other by yielding. On a busy machine each yield hands the core to another program for
    that program's slice, unless a waiting thread with a shorter slice is due earlier.
    """
    numbers = _SYSCALLS.get(platform.machine())
    if numbers is None or os.sched_getscheduler(0) not in _TIME_SHARING_POLICIES:
        return
    set_number, get_number = numbers
    libc = ctypes.CDLL(None)
    attributes = ctypes.create_string_buffer(_SCHED_ATTR.size)
    if libc.syscall(get_number, 0, attributes, _SCHED_ATTR.size, 0) != 0:
        return
    # All but the slice goes back as it was: a nice value left out would count as zero.
    _, policy, flags, nice, priority, _, _, _ = _SCHED_ATTR.unpack(attributes.raw)
    wanted = _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, flags, nice, priority, TIME_SLICE_NS, 0, 0)
    libc.syscall(set_number, 0, wanted, 0)
