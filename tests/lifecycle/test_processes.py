"""Ending a process together with what it has started."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from tests.lifecycle.sigterm import is_running

from edgephi.cli.processes import descendants

# A child and a grandchild that would outlive everything; their ids are printed.
_FAMILY = """
import os, subprocess, sys, time
from edgephi.cli.processes import end_now
child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline().strip(), flush=True)
sys.stdin.readline()
{end}
"""


def _family(end: str) -> tuple[subprocess.Popen[str], list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _FAMILY.format(end=end)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, [int(number) for number in process.stdout.readline().split()]


@pytest.mark.parametrize(("end", "is_left"), [("end_now(3)", False), ("os._exit(3)", True)])
def test_nothing_below_outlives_it(end: str, is_left: bool) -> None:
    """The process ends with its status and everything below it; a plain exit, the negative control, leaves both."""
    process, below = _family(end)
    try:
        assert sorted(descendants(process.pid)) == sorted(below)
        process.communicate("\n", timeout=60)
        assert process.returncode == 3
        if not is_left:
            deadline = time.monotonic() + 20
            while any(map(is_running, below)) and time.monotonic() < deadline:
                time.sleep(0.01)
        assert [is_running(process_id) for process_id in below] == [is_left, is_left]
    finally:
        for process_id in filter(is_running, below):
            os.kill(process_id, 9)
