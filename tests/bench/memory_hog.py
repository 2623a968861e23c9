"""A process that takes memory and keeps it, so that a neighbour in the same control group runs short."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from tests.bench.control_group import MemoryGroup

# Every page is written, so that it is charged; then it waits for the end of its input.
_HOLD = """
import sys
sys.stdin.readline()
held = b"x" * int(sys.argv[1])
print(len(held), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def memory_hog(group: MemoryGroup, size_bytes: int) -> Iterator[None]:
    """Hold so many bytes in a group for the block; they are taken when it begins and free when it ends."""
    command = [sys.executable, "-c", _HOLD, str(size_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            group.add(process.pid)
            process.stdin.write("go\n")  # only now, so that all it takes is charged to the group
            process.stdin.flush()
            if not process.stdout.readline():
                raise RuntimeError(f"{size_bytes} bytes could not be held")
            yield
        finally:
            process.kill()
