"""
The choice among models, numbers of streams and contexts; and where none will do, what is missing.

Pure: the same problem has the same plan. More memory or a lower floor only adds choices, so neither makes a plan worse.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgephi.profile.model_facts import ModelFacts
from edgephi.profile.plan import BindingLimit, Plan, PlanMemory
from edgephi.profile.planning.estimates import StepTimesFor
from edgephi.profile.planning.plan_device import PlanDevice
from edgephi.profile.planning.plan_option import Option
from edgephi.profile.planning.plan_request import SPEED_CONTEXT, PlanRequest, Prefer

# Best answers first; what is not listed comes after (docs/decisions/0010).
_QUALITY = ("q4f16_1", "q4f32_1", "q3f16_g32")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is planned: a model in the quantizations at hand, a device, durations of steps, and what is wanted."""

    models: tuple[ModelFacts, ...]
    device: PlanDevice
    times: StepTimesFor
    request: PlanRequest


def solve(problem: Problem) -> Plan:
    """Return the plan of a problem without remedies."""
    assert problem.models, "there is no model to plan for"
    options = _options(problem)
    request = problem.request
    found: list[tuple[tuple[float, ...], Option, int, int]] = []
    for rank, option in enumerate(options):
        for batch in option.batches:
            context = option.most_context(batch)
            if context is None:
                continue
            if request.prefer is Prefer.SPEED:
                context = min(context, max(SPEED_CONTEXT, option.least_context))
                speed = option.each_tokens_per_s(batch, context)
                key: tuple[float, ...] = (context, speed, -rank) if request.context_tokens is None else (speed, -rank)
            elif request.prefer is Prefer.BATCH:
                key = (-rank, batch, context)
            else:
                key = (-rank, context, batch)
            found.append((key, option, batch, context))
    if found:
        _, option, batch, context = max(found, key=lambda entry: entry[0])
        return option.plan(batch, context, option.next_limit(batch, context), missing=None)
    return _infeasible(options)


def _options(problem: Problem) -> list[Option]:
    """Return the models, best answers first."""
    models = sorted(problem.models, key=_quality_rank)
    return [Option(model, problem.device, problem.times, problem.request) for model in models]


def _quality_rank(model: ModelFacts) -> int:
    return _QUALITY.index(model.quantization) if model.quantization in _QUALITY else len(_QUALITY)


def _infeasible(options: list[Option]) -> Plan:
    """Return the best of what cannot be feasible: the least plan, saying what is missing."""
    first = options[0]
    impossible = first.impossible()
    if impossible is not None:
        batch = min(first.least_batch, first.model.max_batch_tokens)
        return first.plan(batch, first.least_context, BindingLimit.MODEL, missing=impossible)
    fitting = [option for option in options if option.fits(option.least_batch, option.least_context)]
    if fitting:
        best = max(fitting, key=lambda option: option.each_tokens_per_s(option.least_batch, option.least_context))
        return best.plan(best.least_batch, best.least_context, BindingLimit.SPEED, missing=_missing_speed(best))
    smallest = min(options, key=lambda option: _least_memory(option).total_bytes)
    missing = _missing_memory(smallest)
    return smallest.plan(smallest.least_batch, smallest.least_context, BindingLimit.MEMORY, missing=missing)


def _least_memory(option: Option) -> PlanMemory:
    return option.memory(option.least_batch, option.least_context, option.least_chunk)


def _missing_speed(option: Option) -> str:
    batch, context, floor = option.least_batch, option.least_context, option.request.floor_tokens_per_s
    streams = "one stream gets" if batch == 1 else f"each of {batch} streams gets"
    speed = option.each_tokens_per_s(batch, context)
    text = f"{streams} {speed:.1f} tok/s with {context} tokens of context; the floor is {floor:g}"
    bandwidth = option.times.bandwidth_bytes_per_s
    if bandwidth is None:
        return text
    seen = option.times.seen_tokens(context)
    kv_bytes = batch * seen * option.model.kv_bytes_per_token[option.kv_dtype]
    needed = floor * (option.model.step_weight_bytes + kv_bytes)
    if needed <= bandwidth:
        return text + ", and its cores, not its memory, set the limit"
    # What one step reads, as often as the floor asks for it: without it no software keeps the floor.
    return text + f", for which {needed / 1e9:.1f} GB/s would have to be read where {bandwidth / 1e9:.1f} are reached"


def _missing_memory(option: Option) -> str:
    memory = _least_memory(option)
    budget = option.device.memory_budget_bytes
    weights = memory.weights_bytes or 0
    streams = "" if option.least_batch == 1 else f" for each of {option.least_batch} streams"
    # As many digits as tell the need from the budget; four tell whole 0.1 MB.
    digits = next((n for n in (2, 3) if round(memory.total_bytes / 1e9, n) != round(budget / 1e9, n)), 4)
    return (
        f"{memory.total_bytes / 1e9:.{digits}f} GB are needed with {option.least_context} tokens of context{streams} "
        f"(weights {weights / 1e9:.2f}, all else {(memory.total_bytes - weights) / 1e9:.2f}); "
        f"the budget is {budget / 1e9:.{digits}f} GB"
    )
