"""Durations from a calibration of another format, and from the catalogue's boards."""

from __future__ import annotations

import dataclasses

import pytest
from tests.profile.planning_cases import phi3

from edgephi.profile.boards.catalogue import load_catalogue
from edgephi.profile.machine.cores import CORE_NAMES
from edgephi.profile.machine.isa import ISA_LEVELS
from edgephi.profile.plan import BindingLimit, KvDtype, Plan
from edgephi.profile.planning.estimates import range_from_board, times_from_board
from edgephi.profile.planning.kernel_rates import KERNEL_RATES, LEVEL_RATES
from edgephi.profile.planning.planner import PlanRequest, device_from_board, make_plan

Q4, Q3 = phi3("q4f16_1"), phi3("q3f16_g32")
BOARDS = load_catalogue().boards


def plan_of(name: str, **request: int) -> Plan:
    """Plan Phi-3-mini in 4 bits for a board that runs nothing else."""
    board = load_catalogue().get(name)
    device = device_from_board(board, Q4.weights_bytes, family=BOARDS)
    return make_plan(
        [Q4],
        device,
        times_from_board(board, device.num_threads),
        PlanRequest(**request),  # type: ignore[arg-type] # numbers by name
        bounds=range_from_board(board, device.num_threads),
        alternatives=[Q3],
    )


def empty_range(plan: Plan) -> tuple[float, float]:
    """Return the bounds of one stream with an empty context."""
    assert plan.predicted is not None
    assert plan.predicted.decode_empty_range is not None
    return plan.predicted.decode_empty_range.low, plan.predicted.decode_empty_range.high


def test_the_iphone_14_brackets_the_report() -> None:
    """Phi-3's report has more than 12 tokens/s with about 1.8 GB: within the range, and between 3 bits and 4."""
    plan = plan_of("iphone-14-a16")
    low, high = empty_range(plan)
    assert low < 12 < high
    assert 24 < high < 25
    assert Q3.weights_bytes < 1.8e9 < Q4.weights_bytes
    assert any("12 tok/s" in note and "Phi-3 report" in note for note in plan.notes)
    # With 3 bits the estimate itself keeps 12 tokens/s beyond the least context.
    assert any("q3f16_g32" in remedy.change and "feasible" in remedy.effect for remedy in plan.remedies)


@pytest.mark.parametrize("name", ["raspberry-pi-5-4gb", "raspberry-pi-5-8gb", "raspberry-pi-5-16gb"])
def test_a_raspberry_pi_5_is_too_slow_and_told_so(name: str) -> None:
    """Infeasible at 12, with a ceiling of 8.2 on paper, an estimate and the published 3.6 to 5 beside it."""
    plan = plan_of(name)
    assert plan.feasible is False
    assert plan.binding_limit is BindingLimit.SPEED
    low, high = empty_range(plan)
    assert 8.0 < high < 8.3
    assert low < 3.58 < 4.88 < high
    assert any("3.58 tok/s" in note for note in plan.notes)
    assert any("4.88 tok/s" in note for note in plan.notes)
    floor = next(remedy for remedy in plan.remedies if "floor of" in remedy.change)
    assert "feasible" in floor.effect
    assert any("guessed tokens" in remedy.change and "JSON" in remedy.change for remedy in plan.remedies)


def test_a_jetson_orin_nano_super_keeps_the_floor() -> None:
    """Feasible at 12 tokens/s with the model's whole context."""
    plan = plan_of("jetson-orin-nano-super")
    assert plan.feasible
    assert plan.context_tokens == 4096


def test_a_board_with_too_little_memory_is_sent_to_a_larger_one() -> None:
    """On 2 GB the weights do not fit; the 4 GB board of the same family is named."""
    plan = plan_of("raspberry-pi-5-2gb")
    assert plan.feasible is False
    assert plan.binding_limit is BindingLimit.MEMORY
    assert plan.remedies[0].change == "raspberry-pi-5-4gb"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_the_estimate_of_every_board_lies_within_its_range(board: object) -> None:
    """Slow end, estimate and ceiling are in order, for one stream and for several, empty and full."""
    board = load_catalogue().get(board.name)  # type: ignore[attr-defined] # parametrized with boards
    both = range_from_board(board, 2)(Q4, KvDtype.INT8)
    estimate = times_from_board(board, 2)(Q4, KvDtype.INT8)
    for batch, context in ((1, 0), (1, 4096), (4, 1024)):
        speeds = [
            times.decode_tokens_per_s(batch=batch, context_tokens=context, kv_bytes_per_token=200_704)
            for times in (both.slow, estimate, both.fast)
        ]
        assert speeds == sorted(speeds)


def test_more_threads_compute_no_slower() -> None:
    """Threads on the same kind of cores add up, until memory limits."""
    board = load_catalogue().get("raspberry-pi-5-8gb")
    times = [times_from_board(board, threads)(Q4, KvDtype.INT8) for threads in (1, 2, 3, 4)]
    assert [t.rows_s(64) for t in times] == sorted((t.rows_s(64) for t in times), reverse=True)
    assert times[3].rows_s(64) == pytest.approx(times[0].rows_s(64) / 4, rel=0.01)


def test_every_core_and_level_has_a_rate() -> None:
    """No design that the probe can name and no level is without an entry."""
    assert set(CORE_NAMES.values()) <= set(KERNEL_RATES)
    assert set(ISA_LEVELS) == set(LEVEL_RATES)
    for rate in (*KERNEL_RATES.values(), *LEVEL_RATES.values()):
        assert rate.weights_per_cycle > 0
        assert rate.products_per_cycle > 0
        assert rate.source


def test_reading_fewer_bytes_is_not_slower() -> None:
    """Three bits decode faster than four on every board, and never slower than the ceiling allows."""
    for board in BOARDS:
        four, three = (times_from_board(board, 2)(model, KvDtype.INT8) for model in (Q4, Q3))
        assert three.rows_s(1) <= four.rows_s(1)


def test_a_window_bounds_what_a_row_reads() -> None:
    """Behind 2047 tokens a step of Phi-3-mini-4k takes no longer."""
    times = times_from_board(BOARDS[0], 1)(Q4, KvDtype.INT8)
    assert times.window_tokens == 2047
    unbounded = times_from_board(BOARDS[0], 1)(dataclasses.replace(Q4, window_tokens=None), KvDtype.INT8)
    at = {"batch": 1, "kv_bytes_per_token": 200_704}
    assert times.decode_step_s(context_tokens=4096, **at) == times.decode_step_s(context_tokens=2047, **at)
    assert unbounded.decode_step_s(context_tokens=4096, **at) > times.decode_step_s(context_tokens=4096, **at)
