"""
A plan's speed and memory over all lengths of context.

Owns which contexts are looked at. Draws nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgephi.cli.planning import Planned
from edgephi.profile.planning.estimates import TimesRange
from edgephi.profile.planning.memory import plan_memory
from edgephi.profile.speed import StepTimes

# Parts that the longest context is cut into.
_NUM_PARTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """
    What is expected at one length of context.

    Attributes:
        context_tokens: Tokens in the context of each request.
        tokens_per_s: Speed of each request.
        low_tokens_per_s: What it may be at the worst.
        high_tokens_per_s: And at the best.
        memory_bytes: Memory of a server with that much context for each request.
    """

    context_tokens: int
    tokens_per_s: float
    low_tokens_per_s: float
    high_tokens_per_s: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """
    A plan's speed and memory over all contexts, and where it stands on them.

    Attributes:
        title: Model and device, for people.
        points: By ascending context; the chosen one among them.
        chosen_tokens: Context of the plan.
        floor_tokens_per_s: Speed that is wanted.
        budget_bytes: Memory that may be used.
    """

    title: str
    points: tuple[CurvePoint, ...]
    chosen_tokens: int
    floor_tokens_per_s: float
    budget_bytes: int


def curve_of(planned: Planned) -> Curve:
    """Return the curve of a plan: with its batch, types and chunk, every context from none to the model's longest."""
    plan, model, device = planned.plan, planned.model.facts, planned.basis.device
    assert plan.kv_dtype is not None
    assert plan.floor_tokens_per_s is not None
    kv_dtype, kv_bytes = plan.kv_dtype, model.kv_bytes_per_token[plan.kv_dtype]
    expected = planned.basis.times(model, kv_dtype)
    bounds = planned.basis.bounds
    between = TimesRange(expected, expected) if bounds is None else bounds(model, kv_dtype)

    def speed(times: StepTimes, context: int) -> float:
        return times.decode_tokens_per_s(batch=plan.max_running, context_tokens=context, kv_bytes_per_token=kv_bytes)

    def memory(context: int) -> int:
        return plan_memory(
            model,
            kv_dtype=kv_dtype,
            batch=plan.max_running,
            context_tokens=context,
            chunk_tokens=plan.prefill_chunk_tokens,
            budget_bytes=device.memory_budget_bytes,
        ).total_bytes

    contexts = {model.context_tokens * part // _NUM_PARTS for part in range(_NUM_PARTS + 1)} | {plan.context_tokens}
    return Curve(
        title=f"{model.name} ({model.quantization}) on {device.name}",
        points=tuple(
            CurvePoint(
                context_tokens=context,
                tokens_per_s=speed(expected, context),
                low_tokens_per_s=speed(between.slow, context),
                high_tokens_per_s=speed(between.fast, context),
                memory_bytes=memory(context),
            )
            for context in sorted(contexts)
        ),
        chosen_tokens=plan.context_tokens,
        floor_tokens_per_s=plan.floor_tokens_per_s,
        budget_bytes=device.memory_budget_bytes,
    )
