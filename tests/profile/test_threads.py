"""Which cores are chosen on boards, phones and in containers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgephi.profile.machine.cores import CORE_NAMES, CoreCluster
from edgephi.profile.machine.threads import THREADED_BYTES, ThreadPlan, choose_threads

PHI3_BYTES = 2_150_043_904


def cluster(
    cpus: range, core: str | None = None, *, mhz: int | None = None, capacity: int | None = None, smt: bool = False
) -> CoreCluster:
    """Return cores of one kind; with ``smt`` CPU n shares a core with the n-th of the second half."""
    half = len(cpus) // 2
    groups = tuple(zip(cpus[:half], cpus[half:], strict=True)) if smt else ()
    return CoreCluster(tuple(cpus), mhz, core, None, capacity, groups)


PI5 = (cluster(range(4), "Cortex-A76", mhz=2400),)
TWO_CORES = (cluster(range(2)),)
# Capacities as the device trees of these chips give them.
RK3588 = (
    cluster(range(4, 6), "Cortex-A76", mhz=2400, capacity=1024),
    cluster(range(6, 8), "Cortex-A76", mhz=2352, capacity=1004),
    cluster(range(4), "Cortex-A55", mhz=1800, capacity=530),
)
PHONE = (
    cluster(range(7, 8), "Cortex-X1", mhz=2995, capacity=1024),
    cluster(range(4, 7), "Cortex-A78", mhz=2419, capacity=756),
    cluster(range(4), "Cortex-A55", mhz=1804, capacity=250),
)
PHONE_WITHOUT_CAPACITIES = tuple(cluster(range(*c), n, mhz=m) for c, n, m in (
    ((7, 8), "Cortex-X1", 2995), ((4, 7), "Cortex-A78", 2419), ((0, 4), "Cortex-A55", 2300),
))  # fmt: skip
EIGHT_CORES_SMT = (cluster(range(16), mhz=5000, smt=True),)


@pytest.mark.parametrize(
    ("clusters", "allowed", "quota", "count", "cpus"),
    [
        pytest.param(TWO_CORES, range(2), None, 2, None, id="two-cores-both"),
        pytest.param(PI5[:1], range(3), None, 3, None, id="three-allowed-all"),
        pytest.param(PI5, range(4), None, 3, None, id="pi5-one-left-to-the-front"),
        pytest.param(RK3588, range(8), None, 4, (4, 5, 6, 7), id="rk3588-big-cores"),
        pytest.param(PHONE, range(8), None, 4, (4, 5, 6, 7), id="prime-and-big"),
        pytest.param(PHONE_WITHOUT_CAPACITIES, range(8), None, 4, (4, 5, 6, 7), id="little-known-by-design"),
        pytest.param(PHONE, range(5), None, 1, (4,), id="one-big-core-allowed"),
        pytest.param(PHONE, range(4), None, 3, None, id="only-little-ones-allowed"),
        pytest.param(PHONE, (0, 1, 7), None, 1, (7,), id="little-ones-never-beside-others"),
        pytest.param(EIGHT_CORES_SMT, range(16), None, 8, None, id="one-thread-a-core"),
        pytest.param(EIGHT_CORES_SMT, range(8), None, 7, None, id="no-second-threads-allowed"),
        pytest.param((), (2, 5), None, 2, None, id="nothing-known"),
        pytest.param(PI5, range(4), 2.9, 2, None, id="whole-cores-of-a-quota"),
        pytest.param(PI5, range(4), 0.5, 1, None, id="quota-below-one"),
        pytest.param(PI5, range(4), 4.0, 3, None, id="quota-of-all-cores"),
        pytest.param(EIGHT_CORES_SMT, range(16), 4.0, 3, None, id="a-quota-has-no-second-threads"),
        pytest.param(RK3588, range(8), 3.0, 3, (4, 5, 6, 7), id="quota-on-big-cores"),
        pytest.param(RK3588, range(8), 64.0, 4, (4, 5, 6, 7), id="quota-beyond-the-machine"),
    ],
)
def test_cores_that_are_fastest_together_are_chosen(
    clusters: tuple[CoreCluster, ...],
    allowed: tuple[int, ...],
    quota: float | None,
    count: int,
    cpus: tuple[int, ...] | None,
) -> None:
    """Equal parts end with the slowest core: little ones are left out, as is what a quota or an affinity denies."""
    plan = choose_threads(clusters, allowed=allowed, quota=quota, weights_bytes=PHI3_BYTES)
    assert (plan.count, plan.cpus) == (count, cpus)


def test_slow_cores_are_used_only_where_the_whole_gets_faster() -> None:
    """A lone fast core is joined by one or six at 70 % of its speed, never by cores at half of it."""
    fast = cluster(range(1), capacity=1024)
    for others, capacity, count in ((6, 717, 7), (1, 717, 2), (6, 512, 1)):
        slow = cluster(range(1, 1 + others), capacity=capacity)
        plan = choose_threads((fast, slow), allowed=range(1 + others), quota=None, weights_bytes=PHI3_BYTES)
        # Seven equal parts on all seven cores: one core's time is the front's.
        assert plan.count == (count - 1 if count >= 4 else count)
    two = cluster(range(2), capacity=1024)
    slow = cluster(range(2, 3), capacity=640)
    assert choose_threads((two, slow), allowed=range(3), quota=None, weights_bytes=PHI3_BYTES).cpus == (0, 1)


def test_equal_capacities_do_not_hide_different_frequencies() -> None:
    """Firmware without capacities makes the kernel report 1024 for all; then frequencies tell cores apart."""
    clusters = (cluster(range(2), mhz=3000, capacity=1024), cluster(range(2, 6), mhz=1500, capacity=1024))
    assert choose_threads(clusters, allowed=range(6), quota=None, weights_bytes=PHI3_BYTES).cpus == (0, 1)


def test_a_small_model_computes_on_one_fast_core() -> None:
    """Below 64 MiB one thread computes, still not on a little core; at 64 MiB all that are chosen do."""
    small = choose_threads(RK3588, allowed=range(8), quota=None, weights_bytes=THREADED_BYTES - 1)
    assert (small.count, small.cpus) == (1, (4, 5, 6, 7))
    assert choose_threads(RK3588, allowed=range(8), quota=None, weights_bytes=THREADED_BYTES).count == 4


def test_what_was_asked_for_is_taken() -> None:
    """A number given by the user wins over model size, quota and front; more than the fast cores go anywhere."""
    asked = choose_threads(RK3588, allowed=range(8), quota=1.0, weights_bytes=1, requested=4)
    assert (asked.count, asked.cpus) == (4, (4, 5, 6, 7))
    more = choose_threads(RK3588, allowed=range(8), quota=None, weights_bytes=1, requested=6)
    assert (more.count, more.cpus) == (6, None)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (choose_threads(PI5, allowed=range(4), quota=None, weights_bytes=PHI3_BYTES), "less one for the network front"),
        (choose_threads(PHONE, allowed=range(8), quota=None, weights_bytes=PHI3_BYTES), "all of 4 fast cores of 8"),
        (choose_threads(PI5, allowed=range(4), quota=2.5, weights_bytes=PHI3_BYTES), "whole cores in the quota of 2.5"),
        (choose_threads(PI5, allowed=range(4), quota=None, weights_bytes=5), "below 64 MiB"),
        (choose_threads(PI5, allowed=range(4), quota=None, weights_bytes=5, requested=2), "as asked"),
    ],
)
def test_the_reason_is_given(plan: ThreadPlan, said: str) -> None:
    """Each rule that decided is named."""
    assert said in plan.reason


_CLUSTERS = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.sampled_from([None, *CORE_NAMES.values()]),
        st.none() | st.integers(100, 5000),
        st.none() | st.integers(1, 1024),
    ),
    max_size=4,
)


@given(
    kinds=_CLUSTERS,
    allowed=st.sets(st.integers(0, 30), min_size=1),
    quota=st.none() | st.floats(0.01, 100),
    weights_bytes=st.integers(0, 1 << 33),
    data=st.data(),
)
def test_a_plan_is_always_possible(
    kinds: list[tuple[int, str | None, int | None, int | None]],
    allowed: set[int],
    quota: float | None,
    weights_bytes: int,
    data: st.DataObject,
) -> None:
    """Whatever the machine, a plan has a thread, no more than it may, and only CPUs that are allowed."""
    clusters, first = [], 0
    for count, core, mhz, capacity in kinds:
        clusters.append(cluster(range(first, first + count), core, mhz=mhz, capacity=capacity))
        first += count
    requested = data.draw(st.none() | st.integers(1, len(allowed)))
    plan = choose_threads(
        clusters, allowed=sorted(allowed), quota=quota, weights_bytes=weights_bytes, requested=requested
    )
    assert 1 <= plan.count <= len(allowed)
    if requested is not None:
        assert plan.count == requested
    elif quota is not None:
        assert plan.count <= max(1, quota)
    if plan.cpus is not None:
        assert set(plan.cpus) <= allowed
        assert plan.count <= len(plan.cpus)
