"""
From a model, a device and the durations of steps to a plan: what context, how many streams, which types.

Pure: the same arguments give the same plan. Every stream of a feasible plan keeps the floor with its whole context
filled, and all of its memory with a reserve is within the budget (docs/decisions/0012).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgephi.profile.model_facts import ModelFacts
from edgephi.profile.plan import Plan, SpeedRange
from edgephi.profile.planning.estimates import StepTimesFor, TimesRangeFor
from edgephi.profile.planning.plan_device import LargerMemory, PlanDevice, device_from_board
from edgephi.profile.planning.plan_request import MAX_BATCH, MIN_CONTEXT, SPEED_CONTEXT, PlanRequest, Prefer
from edgephi.profile.planning.remedies import find_remedies
from edgephi.profile.planning.solver import Problem, solve

__all__ = [
    "MAX_BATCH",
    "MIN_CONTEXT",
    "SPEED_CONTEXT",
    "LargerMemory",
    "PlanDevice",
    "PlanRequest",
    "Prefer",
    "device_from_board",
    "make_plan",
]


def make_plan(
    models: Sequence[ModelFacts],
    device: PlanDevice,
    times: StepTimesFor,
    request: PlanRequest,
    *,
    bounds: TimesRangeFor | None = None,
    alternatives: Sequence[ModelFacts] = (),
) -> Plan:
    """
    Plan for a device.

    Args:
        models: One model in each quantization that is at hand, at least one.
        device: What it runs on.
        times: Durations of its steps.
        request: What the operator wants.
        bounds: Slowest and fastest durations, where those are estimates; they only inform.
        alternatives: The model in quantizations that are not at hand, for remedies alone.

    Returns:
        The plan, feasible or not, with remedies.
    """
    problem = Problem(tuple(models), device, times, request)
    plan = solve(problem)
    plan = dataclasses.replace(
        plan, remedies=find_remedies(problem, plan, tuple(alternatives)), notes=(*plan.notes, *device.notes)
    )
    return plan if bounds is None else _with_ranges(plan, problem, bounds)


def _with_ranges(plan: Plan, problem: Problem, bounds: TimesRangeFor) -> Plan:
    model = next(model for model in problem.models if model.quantization == plan.quantization)
    assert plan.kv_dtype is not None
    assert plan.predicted is not None
    both = bounds(model, plan.kv_dtype)
    kv_bytes = model.kv_bytes_per_token[plan.kv_dtype]

    def at(context: int) -> SpeedRange:
        slow, fast = (
            times.decode_tokens_per_s(batch=1, context_tokens=context, kv_bytes_per_token=kv_bytes)
            for times in (both.slow, both.fast)
        )
        return SpeedRange(low=slow, high=fast)

    empty, full = at(0), at(plan.context_tokens)
    note = f"one stream with an empty context: {empty.low:.1f} tok/s at worst, {empty.high:.1f} on paper at most"
    predicted = dataclasses.replace(plan.predicted, decode_empty_range=empty, decode_full_range=full)
    return dataclasses.replace(plan, predicted=predicted, notes=(note, *plan.notes))
