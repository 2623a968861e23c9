"""What is asked of the system for the threads that compute."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from edgephi.profile.machine.threads import ThreadPlan
from edgephi.runtime.threads import apply_to_this_thread

T = TypeVar("T")


def _in_a_thread(call: Callable[[], T]) -> T:
    """Run a call in a thread of its own, so that this one keeps its affinity and its time slice."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(call).result()


def test_a_plan_binds_the_thread_and_those_it_starts() -> None:
    """Workers inherit the CPUs of the thread that starts them; other threads keep theirs."""
    before = os.sched_getaffinity(0)
    cpu = min(before)

    def bind() -> tuple[set[int], set[int]]:
        apply_to_this_thread(ThreadPlan(1, (cpu,), "a test"))
        return os.sched_getaffinity(0), _in_a_thread(lambda: os.sched_getaffinity(0))

    assert _in_a_thread(bind) == ({cpu}, {cpu})
    assert os.sched_getaffinity(0) == before


def test_cpus_that_are_gone_are_not_insisted_on() -> None:
    """CPUs that were taken offline after the plan was made leave the thread where it was."""

    def bind() -> set[int]:
        apply_to_this_thread(ThreadPlan(1, (4095,), "a test"))
        return os.sched_getaffinity(0)

    assert _in_a_thread(bind) == os.sched_getaffinity(0)


def _slice_ns() -> int:
    """Return the time slice the kernel uses for the calling thread, from its scheduling statistics."""
    lines = Path(f"/proc/self/task/{threading.get_native_id()}/sched").read_text().splitlines()
    return next(int(line.split(":")[1]) for line in lines if line.startswith("se.slice"))


def test_the_time_slice_is_shortened_and_the_priority_kept() -> None:
    """The thread and those it starts have short slices, and a nice value that was set before is still set."""
    if not Path("/proc/self/sched").exists() or tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12):
        pytest.skip("time slices can be set from Linux 6.12 on, and seen where /proc/self/sched is built in")

    def shorten() -> tuple[int, int, int]:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7)
        apply_to_this_thread(ThreadPlan(1, None, "a test"))
        return _slice_ns(), _in_a_thread(_slice_ns), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert _in_a_thread(shorten) == (100_000, 100_000, 7)
