"""
From what ``edgephi serve`` was asked for to a plan that may be served, or a refusal before anything is loaded.

Owns which plans are served: feasible ones; infeasible ones only where the operator accepts the speed that is left, or
where the speed is an estimate whose bounds do not rule the floor out.
"""

from __future__ import annotations

import dataclasses

from edgephi.cli.compose import ServingPlan
from edgephi.cli.planning import Planned, PlanningOptions, plan_for
from edgephi.errors import ConfigError, InsufficientMemory
from edgephi.profile.plan import Plan
from edgephi.profile.verification import ExpectedSpeed

_NUM_REMEDIES = 3


def plan_to_serve(options: PlanningOptions, *, accept_slower: bool) -> ServingPlan:
    """
    Plan, and refuse what could not be kept.

    Args:
        options: What to plan; for this machine.
        accept_slower: Whether a speed below the floor is accepted. The plan then promises what can be reached.

    Raises:
        InsufficientMemory: If memory does not suffice; with the numbers and what would help.
        ConfigError: If speed does not suffice; with the same.
        EdgephiError: As :func:`edgephi.cli.planning.plan_for` does.
    """
    planned = plan_for(options)
    plan = planned.plan
    if plan.feasible:
        return _serving(planned)
    predicted = plan.predicted
    reachable = None if predicted is None else predicted.each_full_tokens_per_s
    if plan.meets_floor is not False or predicted is None or reachable is None:
        raise InsufficientMemory(_refusal(plan, "allow more with --memory, or ask for less with --context"))
    bounds = predicted.decode_full_range
    may_reach = bounds is not None and bounds.high >= options.floor_tokens_per_s
    if not accept_slower and not may_reach:
        raise ConfigError(
            _refusal(plan, f"serve at about {reachable:.1f} tok/s with --accept-slower, or set a lower --floor")
        )
    slower = plan_for(dataclasses.replace(options, floor_tokens_per_s=reachable * 0.98))
    if not slower.plan.feasible:
        raise InsufficientMemory(_refusal(slower.plan, "allow more with --memory, or ask for less with --context"))
    why = "accepted by the operator" if accept_slower else "an estimate; `edgephi calibrate` measures"
    note = f"about {reachable:.1f} tok/s instead of the {options.floor_tokens_per_s:g} asked for: {why}"
    return _serving(
        dataclasses.replace(slower, plan=dataclasses.replace(slower.plan, notes=(note, *slower.plan.notes)))
    )


def _serving(planned: Planned) -> ServingPlan:
    plan, facts = planned.plan, planned.model.facts
    assert plan.kv_dtype is not None, "a feasible plan has one"
    return ServingPlan(
        plan=plan,
        expected=ExpectedSpeed(
            times=planned.basis.times(facts, plan.kv_dtype),
            kv_bytes_per_token=facts.kv_bytes_per_token[plan.kv_dtype],
        ),
        source=planned.basis.source,
    )


def _refusal(plan: Plan, advice: str) -> str:
    remedies = "".join(f"\n  {remedy.change}: {remedy.effect}" for remedy in plan.remedies[:_NUM_REMEDIES])
    helps = f"\nWhat would help:{remedies}" if remedies else ""
    return f"{plan.missing}; {advice}. `edgephi plan` shows the whole plan{helps}"
