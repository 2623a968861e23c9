"""Limits of the running kernel: a child is put under real ones and probes them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

MIB, GIB = 1 << 20, 1 << 30
CGROUPS = Path("/sys/fs/cgroup")
NAME = f"edgephi-test-{os.getpid()}"
# Once the parent has set its limits it prints what it sees of them before and after using them.
CHILD = """
import json, sys, time
from edgephi.profile.machine.memory_limits import memory_budget
from edgephi.profile.machine.probe import probe, probe_live
print("ready", flush=True)
sys.stdin.readline()
facts, before = probe(), probe_live()
used = bytearray(64 << 20) if "use" in sys.argv else b""
end = time.process_time() + (0.15 if "use" in sys.argv else 0)
while time.process_time() < end:
    pass
after, then = probe_live(), probe()
budget, later = memory_budget(facts), memory_budget(then)
print(json.dumps({
    "limit": facts.limits.memory_bytes, "left": facts.limits.memory_left_bytes, "cpu": facts.limits.cpu_cores,
    "space": facts.limits.address_space_bytes, "allowed": facts.limits.allowed_cpus, "budget": budget.bytes,
    "kind": budget.kind.value, "later": later.bytes, "charged": before.cgroup.memory_bytes,
    "charged_later": after.cgroup.memory_bytes, "throttled_us": after.cgroup.cpu_throttled_us,
    "throttled_us_before": before.cgroup.cpu_throttled_us,
}))
"""


@contextmanager
def group(folder: Path, **limits: int) -> Iterator[Path]:
    """Make a control group with limits by file name, ``_`` for its first dot; skip where that is not permitted."""
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    try:
        for name, value in limits.items():
            (folder / name.replace("_", ".", 1)).write_text(str(value))
        yield folder
    finally:
        for _ in range(50):  # a group stays busy for a moment after its last process
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.02)


def ask(*arguments: str, groups: tuple[Path, ...] = (), address_space: int | None = None) -> dict[str, object]:
    """Run a child in the groups and return what it saw."""
    command = [sys.executable, "-c", CHILD, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for folder in groups:
            (folder / "cgroup.procs").write_text(str(child.pid))
        if address_space is not None:
            resource.prlimit(child.pid, resource.RLIMIT_AS, (address_space, address_space))
        out, _ = child.communicate("go\n", timeout=60)
    assert child.returncode == 0
    found: dict[str, object] = json.loads(out)
    return found


def test_a_child_sees_the_limits_of_version_1() -> None:
    """Under a real memory limit on an ancestor and a real CPU quota, a process reads both and what it may use."""
    memory, cpu = CGROUPS / "memory", CGROUPS / "cpu"
    if not (memory / "memory.limit_in_bytes").exists() or not (cpu / "cgroup.procs").exists():
        pytest.skip("no control groups of version 1 are mounted at /sys/fs/cgroup")
    with ExitStack() as stack:
        parent = stack.enter_context(group(memory / NAME, memory_limit_in_bytes=512 * MIB))
        own = stack.enter_context(group(parent / "own", memory_limit_in_bytes=768 * MIB))
        quota = stack.enter_context(group(cpu / NAME, cpu_cfs_period_us=100_000, cpu_cfs_quota_us=20_000))
        found = ask("use", groups=(own, quota))
    check(found)


def test_a_child_sees_the_limits_of_version_2() -> None:
    """The same under version 2, where the controllers can be delegated."""
    controllers = CGROUPS / "cgroup.subtree_control"
    if not controllers.exists() or not {"memory", "cpu"} <= set(controllers.read_text().split()):
        pytest.skip("no control groups of version 2 with memory and cpu at /sys/fs/cgroup")
    with ExitStack() as stack:
        parent = stack.enter_context(group(CGROUPS / NAME, memory_max=512 * MIB))
        try:
            (parent / "cpu.max").write_text("20000 100000")
            (parent / "cgroup.subtree_control").write_text("+memory")
        except OSError as error:
            pytest.skip(f"controllers cannot be delegated here: {error}")
        own = stack.enter_context(group(parent / "own", memory_max=768 * MIB))
        found = ask("use", groups=(own,))
    check(found)


def check(found: dict[str, object]) -> None:
    """A child that took 64 MiB and 150 ms under 512 MiB and a fifth of a core saw all of it."""
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    assert (found["limit"], found["cpu"], found["kind"]) == (512 * MIB, 0.2, "cgroup")
    assert 400 * MIB < numbers["left"] <= 512 * MIB
    assert numbers["left"] <= numbers["budget"] <= 512 * MIB
    assert numbers["charged_later"] - numbers["charged"] >= 60 * MIB
    # What the process takes itself stays its to use: the budget does not shrink as the server loads.
    assert abs(numbers["later"] - numbers["budget"]) < 16 * MIB
    assert numbers["throttled_us"] > numbers["throttled_us_before"]


def test_a_child_sees_its_address_space_limit() -> None:
    """A process under ulimit -v reads the limit and leaves room for what it maps without using."""
    found = ask(address_space=4 * GIB)
    assert found["space"] == 4 * GIB
    assert isinstance(found["budget"], int)
    assert found["budget"] < 3 * GIB


def test_a_child_sees_its_affinity() -> None:
    """A process that may use one core is told that one."""
    cpu = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
        found = ask()
    finally:
        os.sched_setaffinity(0, before)
    assert found["allowed"] == [cpu]
