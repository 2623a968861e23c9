"""What the allocator keeps of memory that was freed below something that is still in use."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
from edgephi.cli.malloc import give_back_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "ours":
    assert give_back_freed_memory()
del (once := [bytes(1 << 20)])[:]  # from here on glibc takes as much from its heap, unless told otherwise
before = resident()
burst = [b"x" * (900 << 10) for _ in range(100)]
pins = [b"x" * (60 << 10) for _ in range(100)]
del burst
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "control"])
def test_a_burst_is_given_back(is_ours: bool) -> None:
    """Of 90 MB that were freed less than 20 stay in RAM; without the options more than 60 do."""
    command = [sys.executable, "-c", PROGRAM, "ours" if is_ours else "control"]
    kept = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (kept < 20e6, kept > 60e6) == (is_ours, not is_ours), kept
