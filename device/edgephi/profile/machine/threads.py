"""
How many threads compute, and on which CPUs.

Owns the choice, which is pure (docs/decisions/0009). edgephi.runtime.threads carries it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgephi.profile.machine.cores import CoreCluster

# A model below this computes on one thread: its parallel regions take microseconds, less than handing them out.
THREADED_BYTES = 64 << 20
# Cores slower than this part of the fastest are never used beside them.
MIN_RELATIVE_SPEED = 0.6
# From this many on, one core is left to the network front; of fewer, it would be too large a part.
MIN_CORES_TO_LEAVE_ONE = 4


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """
    How many threads compute and where.

    Attributes:
        count: Threads, the engine's own included.
        cpus: CPUs they may run on, ascending; None for any that the process may use.
        reason: Why, for people.
    """

    count: int
    cpus: tuple[int, ...] | None
    reason: str


def choose_threads(
    clusters: Sequence[CoreCluster],
    *,
    allowed: Sequence[int],
    quota: float | None,
    weights_bytes: int,
    requested: int | None = None,
) -> ThreadPlan:
    """
    Choose threads and CPUs for a model (docs/decisions/0009).

    A parallel loop is cut into equal parts, so its slowest thread decides: slow cores are left out where that makes
    the whole faster, small ("little") designs always.

    Args:
        clusters: The machine's cores; none where nothing is known of them.
        allowed: CPUs the process may run on, at least one.
        quota: CPU limit of the control group, in cores, or None.
        weights_bytes: Size of the packed weights.
        requested: What the user asked for, 1 to ``len(allowed)``, or None to choose.
    """
    usable = _restrict(clusters, frozenset(allowed)) or [CoreCluster(tuple(sorted(allowed)), None, None, None)]
    fast = _fast_clusters(usable)
    every_cpu = sorted(cpu for cluster in usable for cpu in cluster.cpus)
    fast_cpus = tuple(sorted(cpu for cluster in fast for cpu in cluster.cpus))
    cpus = None if len(fast_cpus) == len(every_cpu) else fast_cpus
    num_cores = sum(_num_cores(cluster) for cluster in fast)
    among = f"{num_cores} core{'' if num_cores == 1 else 's'}"
    if cpus is not None:
        among = f"{num_cores} fast core{'' if num_cores == 1 else 's'} of {len(every_cpu)}"

    if requested is not None:
        if requested > len(fast_cpus):
            return ThreadPlan(requested, None, f"as asked, more than the {among}: the slower ones decide")
        return ThreadPlan(requested, cpus, f"as asked, on {among}")
    if weights_bytes < THREADED_BYTES:
        return ThreadPlan(1, cpus, f"a model below {THREADED_BYTES >> 20} MiB computes fastest on one, of {among}")
    limit = float(len(every_cpu)) if quota is None else quota
    count = max(1, min(num_cores, int(limit)))
    # A thread that has used up a quota sleeps for the rest of its period, and all others wait for it: whole cores only.
    reason = f"all of {among}" if count == num_cores else f"whole cores in the quota of {limit:g}, on {among}"
    # Slower cores, or the second threads of cores, serve the front as well; within a quota they do not help.
    if count >= MIN_CORES_TO_LEAVE_ONE and min(limit, len(every_cpu)) < count + 1:
        return ThreadPlan(count - 1, cpus, f"{reason}, less one for the network front")
    return ThreadPlan(count, cpus, reason)


def _restrict(clusters: Sequence[CoreCluster], allowed: frozenset[int]) -> list[CoreCluster]:
    """Return what is allowed of each cluster, without those of which nothing is."""
    found: list[CoreCluster] = []
    for cluster in clusters:
        cpus = tuple(cpu for cpu in cluster.cpus if cpu in allowed)
        smt = tuple(tuple(cpu for cpu in group if cpu in allowed) for group in cluster.smt)
        if cpus:
            found.append(replace(cluster, cpus=cpus, smt=tuple(group for group in smt if len(group) > 1)))
    return found


def _fast_clusters(usable: list[CoreCluster]) -> list[CoreCluster]:
    """Return the clusters that are fastest together: the most cores times the speed of the slowest."""
    big = [cluster for cluster in usable if not cluster.is_in_order] or usable
    speeds = _speeds(big)
    order = sorted(range(len(big)), key=lambda index: -speeds[index])
    candidates = [index for index in order if speeds[index] >= MIN_RELATIVE_SPEED * speeds[order[0]]]

    def together(length: int) -> float:
        chosen = candidates[:length]
        return sum(_num_cores(big[index]) for index in chosen) * speeds[chosen[-1]]

    best = max(range(1, len(candidates) + 1), key=together)
    return [big[index] for index in candidates[:best]]


def _speeds(clusters: list[CoreCluster]) -> list[float]:
    """Return the speed of a core of each cluster, all in the same unit."""
    # Where firmware gives no capacities the kernel may report the same for all; frequencies tell more then.
    capacities = {cluster.capacity for cluster in clusters}
    if None not in capacities and len(capacities) > 1:
        return [float(cluster.capacity or 0) for cluster in clusters]
    if all(cluster.max_mhz is not None for cluster in clusters):
        return [float(cluster.max_mhz or 0) for cluster in clusters]
    return [1.0] * len(clusters)


def _num_cores(cluster: CoreCluster) -> int:
    return len(cluster.cpus) - sum(len(group) - 1 for group in cluster.smt)
