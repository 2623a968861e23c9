"""Probing whole machines: boards, phones, PCs, containers and broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.profile.trees.boards import BOARDS
from tests.profile.trees.broken import BROKEN, PATHS
from tests.profile.trees.build import Tree, plant
from tests.profile.trees.containers import CONTAINERS

from edgephi.profile.machine.kernelfile import MAX_CPUS, MAX_MEMORY_BYTES
from edgephi.profile.machine.memory_limits import memory_budget
from edgephi.profile.machine.probe import DeviceFacts, LiveFacts, probe, probe_live

TREES = BOARDS + CONTAINERS + BROKEN


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.name)
def test_a_machine_is_seen_as_what_it_is(tmp_path: Path, tree: Tree) -> None:
    """Memory budget, limits, cores, temperatures, power and surroundings of a whole machine are found, or None."""
    expected = tree.expected
    facts = probe(plant(tmp_path / "root", tree.files), arch=tree.arch)
    budget = memory_budget(facts)
    assert (budget.bytes, budget.kind) == (expected.budget, expected.kind)
    assert budget.reason
    assert (facts.limits.memory_bytes, facts.limits.cpu_cores) == (expected.limit, expected.cpu)
    assert len(facts.limits.allowed_cpus) == expected.allowed
    assert tuple((len(c.cpus), c.max_mhz, c.core) for c in facts.cpu.clusters) == expected.clusters
    assert tuple((z.name, z.celsius, z.throttle_celsius) for z in facts.zones) == expected.zones
    assert (facts.power.source, tuple(b.percent for b in facts.power.batteries)) == (expected.power, expected.charge)
    assert (facts.host, facts.board, facts.cpu.isa_level) == (expected.host, expected.board, expected.level)
    live = probe_live(tmp_path / "root")
    assert live.throttle.is_throttled == expected.throttled
    assert live.zones == facts.zones


# Arbitrary bytes, and what a kernel could write if its numbers were anything.
_WORDS = st.sampled_from(
    ("max", "0", "-1", "some avg10=", "full avg10=", " ", "\n", ":", "/", "kB", "0::/", " - cgroup2 c rw", "Battery")
)
_NAMES = st.sampled_from(
    ("1e9", "0-3", "..", "\0", "nr_throttled ", "oom_kill ", "MemAvailable:", "processor:", "CPU part:")
)
CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.lists(_WORDS | _NAMES | st.integers(-(10**25), 10**25).map(str), max_size=30).map(
        lambda words: "".join(words).encode()
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(CONTENTS, min_size=1, max_size=8), mounts=st.booleans())
def test_no_content_makes_a_probe_raise(tmp_path: Path, contents: list[bytes], mounts: bool) -> None:
    """Whatever every file holds, there are facts within bounds and no exception."""
    for number, name in enumerate(PATHS):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[number % len(contents)])
    if mounts:  # so that the groups' files are reached whatever they hold
        (tmp_path / "proc/self/cgroup").write_text("4:memory,cpu:/\n0::/\n")
        (tmp_path / "proc/self/mountinfo").write_text(
            "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 c rw\n31 23 0:27 / /sys/fs/cgroup rw - cgroup c rw,memory,cpu\n"
        )
    facts, live = probe(tmp_path, arch="aarch64", models=tmp_path / "a"), probe_live(tmp_path)
    assert isinstance(facts, DeviceFacts)
    assert isinstance(live, LiveFacts)
    budget = memory_budget(facts)
    assert budget.bytes is None or 0 <= budget.bytes < MAX_MEMORY_BYTES
    assert facts.limits.cpu_cores is None or 0 < facts.limits.cpu_cores <= MAX_CPUS
    assert all(-40 < zone.celsius < 127 for zone in facts.zones)
    assert live.pressure is None or 0 <= live.pressure.full_avg10 <= 100
    assert all(battery.percent is None or 0 <= battery.percent <= 100 for battery in facts.power.batteries)
