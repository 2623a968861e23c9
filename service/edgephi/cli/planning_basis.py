"""
What planning needs to know of a device: this machine, or a board of the catalogue.

Owns which figures stand for a machine, in this order: its own calibration, the board it was recognised as, a generic
board with as many cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgephi.cli.planned_model import PlannedModel
from edgephi.errors import ConfigError
from edgephi.profile.plan import KvDtype, PlanKind
from edgephi.profile.planning.planner import PlanDevice

if TYPE_CHECKING:
    from edgephi.profile.boards.board import Board
    from edgephi.profile.boards.catalogue import Catalogue
    from edgephi.profile.calibration import Calibration
    from edgephi.profile.machine.probe import DeviceFacts
    from edgephi.profile.model_facts import ModelFacts
    from edgephi.profile.planning.estimates import StepTimesFor, TimesRangeFor

THIS_MACHINE = "auto"
"""Name of the device that the command runs on."""

# The board whose figures stand for a machine that was not recognised, by the best level it runs.
_GENERIC_BOARDS = {
    "armv8.6-i8mm": "generic-armv8.2-dotprod",
    "armv8.2-dotprod": "generic-armv8.2-dotprod",
    "armv8.0": "generic-armv8.0",
    "avx512-vnni": "generic-avx512-vnni",
    "avx-vnni": "generic-x86-64-v3",
    "x86-64-v3": "generic-x86-64-v3",
    "x86-64-v2": "generic-x86-64-v3",
}
_GENERIC = "generic-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """
    What a plan rests on.

    Attributes:
        device: What is planned for.
        times: Durations of its steps.
        bounds: The slowest and the fastest they may be; None where they were measured.
        source: Where they come from, for people.
        budget_reason: What sets the memory budget, for people.
        board: The board whose figures were used, or None.
        calibration: The measurement that was used, or None.
    """

    device: PlanDevice
    times: StepTimesFor
    bounds: TimesRangeFor | None
    source: str
    budget_reason: str
    board: Board | None = None
    calibration: Calibration | None = None


def find_basis(
    name: str,
    model: PlannedModel,
    *,
    device_files: Sequence[Path] = (),
    memory_bytes: int | None = None,
    threads: int | None = None,
    kv_dtype: KvDtype = KvDtype.INT8,
) -> Basis:
    """
    Find what is known of a device.

    Args:
        name: A board's, or ``auto`` for this machine.
        model: What it is to run; it decides how many threads are worth it and which calibration holds.
        device_files: Files with more boards.
        memory_bytes: Most memory the server may use, or None.
        threads: Threads that compute, or None to choose.
        kv_dtype: Of keys and values, for choosing among calibrations.

    Raises:
        ConfigError: If no board has that name, or it has fewer cores or less memory than was asked for.
    """
    from edgephi.cli.devices import open_catalogue

    catalogue = open_catalogue(device_files)
    if name == THIS_MACHINE:
        return _this_machine(model, catalogue, memory_bytes=memory_bytes, threads=threads, kv_dtype=kv_dtype)
    return _known_board(catalogue.get(name), model.facts, catalogue, memory_bytes=memory_bytes, threads=threads)


def _known_board(
    board: Board, model: ModelFacts, catalogue: Catalogue, *, memory_bytes: int | None, threads: int | None
) -> Basis:
    from edgephi.profile.boards.board import Evidence
    from edgephi.profile.planning.estimates import range_from_board, times_from_board
    from edgephi.profile.planning.plan_device import device_from_board

    device = device_from_board(board, model.weights_bytes, family=catalogue.boards)
    if threads is not None:
        num_cores = sum(cluster.count for cluster in board.clusters)
        _check_threads(threads, num_cores, board.name)
        device = dataclasses.replace(device, num_threads=threads)
    memory, reserve = board.memory_bytes, board.os_reserve_bytes
    assumed = "an assumed " if reserve.evidence is Evidence.ASSUMED else ""
    reason = f"{_gib(memory.value)}, less {assumed}{_gib(reserve.value)} for the system"
    if memory_bytes is not None:
        if memory_bytes > memory.value and not board.family.startswith(_GENERIC):
            raise ConfigError(
                f"memory is {_gib(memory_bytes)}, but {board.name} has {_gib(memory.value)} in all; "
                "allow less, or name a larger board (`edgephi devices` lists them)"
            )
        device = dataclasses.replace(device, memory_budget_bytes=memory_bytes)
        reason = f"{_gib(memory_bytes)}, as asked"
    return Basis(
        device=device,
        times=times_from_board(board, device.num_threads),
        bounds=range_from_board(board, device.num_threads),
        source=_board_source(board),
        budget_reason=reason,
        board=board,
    )


def _this_machine(
    model: PlannedModel, catalogue: Catalogue, *, memory_bytes: int | None, threads: int | None, kv_dtype: KvDtype
) -> Basis:
    from edgephi.profile.machine.memory_limits import memory_budget
    from edgephi.profile.machine.probe import probe
    from edgephi.profile.machine.threads import choose_threads
    from edgephi.profile.planning.estimates import range_from_board, times_from_board, times_from_calibration
    from edgephi.profile.planning.plan_device import device_from_board

    facts = probe()
    budget = memory_budget(facts, declared_bytes=memory_bytes)
    if budget.bytes is None:
        raise ConfigError(f"{budget.reason} with --memory, such as --memory 4GiB")
    clusters, limits = facts.cpu.clusters, facts.limits
    cpus = tuple(cpu for cluster in clusters for cpu in cluster.cpus)
    allowed = limits.allowed_cpus or cpus or (0,)
    if threads is not None:
        _check_threads(threads, len(allowed), "this process")
    chosen = choose_threads(
        clusters,
        allowed=allowed,
        quota=limits.cpu_cores,
        weights_bytes=model.facts.weights_bytes,
        requested=threads,
    )
    found = catalogue.match(facts)
    device = PlanDevice(
        name=found.name if found is not None else _machine_name(facts),
        memory_budget_bytes=budget.bytes,
        num_threads=chosen.count,
        cpus=chosen.cpus or (),
        idle_memory_budget_bytes=_idle_budget(facts),
    )
    if found is not None:
        known = device_from_board(found, model.facts.weights_bytes, family=catalogue.boards)
        device = dataclasses.replace(device, larger=known.larger, notes=known.notes)
    calibration = _find_calibration(model, facts, chosen.count, kv_dtype)
    if calibration is not None:
        return Basis(
            device=dataclasses.replace(device, kind=PlanKind.CALIBRATED),
            times=times_from_calibration(calibration),
            bounds=None,
            source=_calibration_source(calibration),
            budget_reason=budget.reason,
            board=found,
            calibration=calibration,
        )
    board = found if found is not None else _generic_board(catalogue, facts, len(allowed))
    return Basis(
        device=device,
        times=times_from_board(board, chosen.count),
        bounds=range_from_board(board, chosen.count),
        source=_board_source(board),
        budget_reason=budget.reason,
        board=board,
    )


def _check_threads(threads: int, num_cores: int, whose: str) -> None:
    if not 1 <= threads <= num_cores:
        raise ConfigError(f"threads is {threads}; {whose} has {num_cores} cores: ask for 1 to {num_cores}, or auto")


def _find_calibration(model: PlannedModel, facts: DeviceFacts, threads: int, kv_dtype: KvDtype) -> Calibration | None:
    """
    Return the best calibration of this machine: of this very build, else of a model with the same shapes.

    Times of a model of other shapes do not scale: a small one may fit a cache.
    """
    from edgephi.profile.calibration import device_key, read_calibrations
    from edgephi.runtime.calibrate import build_key_of, calibration_dir

    build = None if model.bundle is None else build_key_of(model.bundle, threads)

    def is_alike(known: Calibration) -> bool:
        return (
            known.times.threads == threads
            and known.kv_bytes_per_token == model.facts.kv_bytes_per_token[known.kv_dtype]
            and known.step_weight_bytes in (model.facts.step_weight_bytes, *_step_bytes(model.alternatives))
        )

    def preference(known: Calibration) -> tuple[bool, bool, bool, bool]:
        return (
            known.build_key == build,
            not known.conditions.is_noisy,
            known.step_weight_bytes == model.facts.step_weight_bytes,
            known.kv_dtype is kv_dtype,
        )

    # Newest first, and max takes the first of equals.
    alike = [known for known in read_calibrations(calibration_dir(), device_key(facts)) if is_alike(known)]
    return max(alike, key=preference, default=None)


def _step_bytes(models: Sequence[ModelFacts]) -> list[int]:
    return [model.step_weight_bytes for model in models]


def _generic_board(catalogue: Catalogue, facts: DeviceFacts, num_cores: int) -> Board:
    """Return the generic board of this CPU's kind with as many cores as may be used."""
    level = facts.cpu.isa_level
    if level not in _GENERIC_BOARDS:
        raise ConfigError(
            f"this CPU ({facts.cpu.model or facts.cpu.arch}) runs no level edgephi compiles for; "
            "plan for another device with --device NAME (`edgephi devices` lists them)"
        )
    board = catalogue.get(_GENERIC_BOARDS[level])
    return dataclasses.replace(board, clusters=(dataclasses.replace(board.clusters[0], count=num_cores),))


def _idle_budget(facts: DeviceFacts) -> int | None:
    """Return what a server could use if no other program ran: all RAM but the reserve, within hard limits."""
    from edgephi.profile.machine.memory_limits import default_reserve_bytes

    total = facts.memory.total_bytes
    if total is None:
        return None
    hard = [limit for limit in (facts.limits.memory_bytes, facts.limits.address_space_bytes) if limit is not None]
    return max(0, min([total - default_reserve_bytes(total), *hard]))


def _machine_name(facts: DeviceFacts) -> str:
    return facts.board or facts.cpu.model or facts.cpu.arch


def _board_source(board: Board) -> str:
    read = board.effective_gbps
    return (
        f"estimated from the catalogue: {board.name} reads {read.value:g} GB/s ({read.evidence.value}) of "
        f"{board.bandwidth_gbps.value:g} on paper"
    )


def _calibration_source(calibration: Calibration) -> str:
    day, _, time = calibration.measured_at.partition("T")
    noise = "" if not calibration.conditions.is_noisy else "; noisy: " + ", ".join(calibration.conditions.noise)
    return (
        f"measured on this machine with {calibration.model} ({calibration.quantization}) on {day} at {time[:5]} UTC"
        f"{noise}"
    )


def _gib(count: float) -> str:
    return f"{count / (1 << 30):.2f} GiB"
