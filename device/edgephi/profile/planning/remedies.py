"""
What an operator could change about a plan, and what each change brings: the plan made again with that one change.

Owns the list of changes, the order in which they are offered and their words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from edgephi.profile.model_facts import ModelFacts
from edgephi.profile.plan import BindingLimit, KvDtype, Plan, Remedy
from edgephi.profile.planning.solver import Problem, solve
from edgephi.profile.speed import StepTimes

_ANY_MEMORY = 1 << 60
_LEAST_GAIN = 1.03  # in speed, to be worth saying


@dataclass(frozen=True, slots=True)
class MeasuredSpeculation:
    """
    How far guessed tokens went on one task.

    Attributes:
        task: For people.
        tokens_per_pass: Tokens for each pass over the weights.
        right_share: Part of the guesses that were right.
    """

    task: str
    tokens_per_pass: float
    right_share: float

    @property
    def rows_per_pass(self) -> float:
        """Rows of a pass: the next token and the guesses."""
        return 1 + (self.tokens_per_pass - 1) / self.right_share


# Source: `make speculation`, docs/log.md, "tokens per pass over the weights"; edgephi-pocket's own JSON answers, and
# answers that were given. At most 8 guesses.
SPECULATION = (
    MeasuredSpeculation("JSON commands one after another", 2.07, 0.20),
    MeasuredSpeculation("configuration repeated with one change", 6.76, 0.82),
)


def find_remedies(problem: Problem, plan: Plan, alternatives: tuple[ModelFacts, ...]) -> tuple[Remedy, ...]:
    """
    Return the changes that would help, the most helpful first.

    First what makes a plan feasible, then what gives more tokens of context and more streams, then speed alone.

    Args:
        problem: What was planned.
        plan: The plan of it.
        alternatives: The model in quantizations that are not at hand.
    """
    ranked: list[tuple[tuple[float, ...], Remedy]] = []
    for change, changed in _changes(problem, plan, alternatives):
        new = solve(changed)
        effect = _effect(plan, new)
        if effect is not None:
            remedy = Remedy(change=change, effect=effect, decode_tokens_per_s=_speed(new))
            ranked.append((_gain(plan, new), remedy))
    ranked.sort(key=lambda entry: entry[0], reverse=True)
    return (*(remedy for _, remedy in ranked), *_speculation(problem, plan))


def _changes(problem: Problem, plan: Plan, alternatives: tuple[ModelFacts, ...]) -> Iterator[tuple[str, Problem]]:
    """Yield each change in words, and the problem with it."""
    request, device = problem.request, problem.device
    if plan.kv_dtype not in (None, KvDtype.INT8):
        yield "int8 keys and values", replace(problem, request=replace(request, kv_dtype=KvDtype.INT8))
    if not plan.feasible and request.context_tokens is not None:
        changed = replace(problem, request=replace(request, context_tokens=None))
        yield f"a context of {solve(changed).context_tokens} tokens", changed
    if not plan.feasible and request.batch is not None:
        changed = replace(problem, request=replace(request, batch=None))
        yield f"{solve(changed).max_running} at once instead of {request.batch}", changed
    for model in (*problem.models, *alternatives):
        if model.quantization != plan.quantization:
            yield f"quantization {model.quantization}", replace(problem, models=(model,))
    floor = _reachable_floor(problem, plan)
    if floor is not None:
        change = f"a floor of {floor:g} tok/s instead of {request.floor_tokens_per_s:g}"
        yield change, replace(problem, request=replace(request, floor_tokens_per_s=floor))
    yield from _memory_changes(problem, plan)
    idle = device.idle_memory_budget_bytes
    if idle is not None and idle > device.memory_budget_bytes:
        freed = (idle - device.memory_budget_bytes) / 1e9
        yield f"stop other programs, which hold {freed:.2f} GB", _with_budget(problem, idle)


def _memory_changes(problem: Problem, plan: Plan) -> Iterator[tuple[str, Problem]]:
    """Yield the smallest larger device that helps, or else the budget with which memory no longer limits."""
    for larger in problem.device.larger:
        changed = _with_budget(problem, larger.memory_budget_bytes)
        if _effect(plan, solve(changed)) is not None:
            yield larger.name, changed
            return
    needed = solve(_with_budget(problem, _ANY_MEMORY)).memory.total_bytes
    budget = problem.device.memory_budget_bytes
    if needed > budget:
        enough = math.ceil(needed / 1e7) / 100  # rounded up, so that whoever takes the word for it gets the effect
        yield f"a memory budget of {enough:.2f} GB instead of {budget / 1e9:.2f}", _with_budget(problem, needed)


def _with_budget(problem: Problem, budget_bytes: int) -> Problem:
    return replace(problem, device=replace(problem.device, memory_budget_bytes=budget_bytes))


def _reachable_floor(problem: Problem, plan: Plan) -> float | None:
    """Return the highest lower floor, in tenths, that makes a plan feasible, or gives the model's whole context."""
    if plan.binding_limit is not BindingLimit.SPEED:
        return None
    target = plan
    if plan.feasible:
        # What the same streams could have without a floor; and if that is all there is already, one stream more.
        target = _without_floor(problem, plan.max_running)
        if target.context_tokens <= plan.context_tokens and problem.request.batch is None:
            target = _without_floor(problem, plan.max_running + 1)
        if not target.feasible:
            return None
    each = None if target.predicted is None else target.predicted.each_full_tokens_per_s
    floor = 0.0 if each is None else math.floor(each * 10) / 10
    return floor if 0 < floor < problem.request.floor_tokens_per_s else None


def _without_floor(problem: Problem, batch: int) -> Plan:
    return solve(replace(problem, request=replace(problem.request, floor_tokens_per_s=0.0, batch=batch)))


def _effect(old: Plan, new: Plan) -> str | None:
    """Return what a change brings in words, or None where that is nothing."""
    if old.feasible and not new.feasible:
        return None
    if new.feasible and not old.feasible:
        streams = "" if new.max_running == 1 else f" for each of {new.max_running}"
        return f"feasible: {new.context_tokens} tokens of context and {_each(new):.1f} tok/s{streams}"
    if _fits(new) and not _fits(old):
        return f"fits: {new.context_tokens} tokens of context, at {_each(new):.1f} tok/s below the floor"
    parts = []
    if (new.context_tokens, new.max_running) != (old.context_tokens, old.max_running):
        if new.context_tokens * new.max_running <= old.context_tokens * old.max_running:
            return None
        if new.context_tokens != old.context_tokens:
            parts.append(f"context {old.context_tokens} -> {new.context_tokens} tokens")
        if new.max_running != old.max_running:
            parts.append(f"at once {old.max_running} -> {new.max_running}")
    elif _fits(old) and _each(new) >= _LEAST_GAIN * _each(old):
        below = "" if new.feasible else ", still below the floor"
        parts.append(f"{_each(old):.1f} -> {_each(new):.1f} tok/s with a full context{below}")
    return ", ".join(parts) or None


def _gain(old: Plan, new: Plan) -> tuple[float, ...]:
    tokens = new.context_tokens * new.max_running / (old.context_tokens * old.max_running)
    return float(bool(new.feasible and not old.feasible)), float(_fits(new)), tokens, _each(new) / _each(old)


def _fits(plan: Plan) -> bool:
    return plan.memory.total_bytes <= (plan.memory.budget_bytes or 0)


def _each(plan: Plan) -> float:
    assert plan.predicted is not None
    assert plan.predicted.each_full_tokens_per_s is not None
    return plan.predicted.each_full_tokens_per_s


def _speed(plan: Plan) -> float | None:
    return None if plan.predicted is None else plan.predicted.decode_empty_tokens_per_s


def _speculation(problem: Problem, plan: Plan) -> Iterator[Remedy]:
    """Yield what guessed tokens bring on the tasks they were measured on, where speed is what limits."""
    if plan.binding_limit is not BindingLimit.SPEED or plan.max_running != 1 or not problem.request.max_draft_tokens:
        return
    model = next(model for model in problem.models if model.quantization == plan.quantization)
    assert plan.kv_dtype is not None
    times = problem.times(model, plan.kv_dtype)
    plain = _each(plan)
    for measured in SPECULATION:
        faster = plain * measured.tokens_per_pass * _pass_ratio(times, measured.rows_per_pass)
        if faster >= _LEAST_GAIN * plain:
            yield Remedy(
                change=f"guessed tokens (--draft-tokens), for {measured.task}",
                effect=f"{plain:.1f} -> about {faster:.1f} tok/s; measured {measured.tokens_per_pass:g} tokens a pass, "
                f"predicted the time of a pass with {measured.rows_per_pass:.1f} rows",
            )


def _pass_ratio(times: StepTimes, rows: float) -> float:
    """Return the time of one row as a part of that of *rows*, which need not be whole."""
    low, high = times.rows_s(math.floor(rows)), times.rows_s(math.ceil(rows))
    return times.rows_s(1) / (low + (high - low) * (rows - math.floor(rows)))
