"""
What planning needs to know of a device, and how a board of the catalogue becomes one.

Owns no measurement: whoever probes a machine fills this in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgephi.profile.boards.board import Board
from edgephi.profile.machine.cores import CoreCluster
from edgephi.profile.machine.threads import choose_threads
from edgephi.profile.plan import PlanKind


@dataclass(frozen=True, slots=True)
class LargerMemory:
    """The same device with more memory: its name and the budget a server would have on it, in bytes."""

    name: str
    memory_budget_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDevice:
    """
    A device to plan for.

    Attributes:
        name: For people.
        memory_budget_bytes: What the server may use.
        num_threads: Threads that compute.
        cpus: CPUs they are bound to; empty binds none.
        kind: Where durations of steps come from.
        idle_memory_budget_bytes: What the server could use if no other program ran; None where not known.
        larger: The same device with more memory, smallest first.
        notes: What others published of it, for people; carried into the plan.
    """

    name: str
    memory_budget_bytes: int
    num_threads: int
    cpus: tuple[int, ...] = ()
    kind: PlanKind = PlanKind.CATALOGUE
    idle_memory_budget_bytes: int | None = None
    larger: tuple[LargerMemory, ...] = ()
    notes: tuple[str, ...] = ()


def device_from_board(board: Board, weights_bytes: int, *, family: Iterable[Board] = ()) -> PlanDevice:
    """
    Return a board that runs nothing else as a device to plan for.

    Args:
        board: The board.
        weights_bytes: Size of the model, by which threads are chosen.
        family: Other boards, of which those of its family with more memory are suggested where memory is short.
    """
    clusters, first = [], 0
    for cluster in board.clusters:
        cpus = tuple(range(first, first + cluster.count))
        clusters.append(CoreCluster(cpus, round(cluster.max_mhz.value), cluster.core, None))
        first += cluster.count
    threads = choose_threads(clusters, allowed=range(first), quota=None, weights_bytes=weights_bytes)
    larger = [other for other in family if other.family == board.family and _budget(other) > _budget(board)]
    return PlanDevice(
        name=board.name,
        memory_budget_bytes=_budget(board),
        num_threads=threads.count,
        kind=PlanKind.CATALOGUE,
        larger=tuple(LargerMemory(other.name, _budget(other)) for other in sorted(larger, key=_budget)),
        notes=tuple(
            f"published for this device: {speed.decode_tokens_per_s:g} tok/s, {speed.model}, {speed.runtime} "
            f"({speed.source})"
            for speed in board.published
        ),
    )


def _budget(board: Board) -> int:
    return round(board.memory_bytes.value - board.os_reserve_bytes.value)
