"""
The steps by which a server takes on less than its plan: one ladder for speed, one for memory.

Owns the limits at each level. Level 0 is the plan, and no level has a limit above it. When to step is
edgephi.profile.governor's matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgephi.profile.plan import Plan

_CHUNK_DIVISORS = (2, 4)
_MIN_MIXED_CHUNK = 4
_MIN_PREFILL_CHUNK = 16  # smaller ones read all weights for few rows and help no stream
_MIN_REQUEST_TOKENS = 512  # a command with its answer still fits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingLimits:
    """
    How much a server takes on; the engine's limits (edgephi.engine.limits) in the words of the plan.

    Attributes:
        max_running: Most requests at once.
        prefill_chunk_tokens: Most prompt tokens in a step of their own.
        mixed_chunk_tokens: Most prompt tokens in a step that other requests decode in.
        max_request_tokens: Most tokens of prompt and answer of a new request.
        keeps_cached_pages: Whether prefixes that no request uses are kept.
        reason: Why they are below the plan, for callers; None where they are not.
    """

    max_running: int
    prefill_chunk_tokens: int
    mixed_chunk_tokens: int
    max_request_tokens: int
    keeps_cached_pages: bool = True
    reason: str | None = None

    def combined_with(self, other: ServingLimits) -> ServingLimits:
        """Return the smaller of each limit, for both reasons."""
        reasons = [limits.reason for limits in (self, other) if limits.reason is not None]
        return ServingLimits(
            max_running=min(self.max_running, other.max_running),
            prefill_chunk_tokens=min(self.prefill_chunk_tokens, other.prefill_chunk_tokens),
            mixed_chunk_tokens=min(self.mixed_chunk_tokens, other.mixed_chunk_tokens),
            max_request_tokens=min(self.max_request_tokens, other.max_request_tokens),
            keeps_cached_pages=self.keeps_cached_pages and other.keeps_cached_pages,
            reason=" and ".join(reasons) or None,
        )


def plan_limits(plan: Plan) -> ServingLimits:
    """Return what the plan allows."""
    return ServingLimits(
        max_running=plan.max_running,
        prefill_chunk_tokens=plan.prefill_chunk_tokens,
        mixed_chunk_tokens=min(plan.mixed_chunk_tokens, plan.prefill_chunk_tokens),
        max_request_tokens=plan.context_tokens,
    )


def speed_ladder(plan: Plan) -> tuple[ServingLimits, ...]:
    """
    Return the plan, then smaller chunks, then fewer requests one by one.

    A plan for one request at a time has no other level: nothing that could be taken from it makes its steps shorter.
    """
    levels = [plan_limits(plan)]
    why = "to keep the speed of running answers"
    for divisor in _CHUNK_DIVISORS if plan.max_running > 1 else ():
        top = levels[0]
        smaller = replace(
            top,
            prefill_chunk_tokens=_shrunk(top.prefill_chunk_tokens, divisor, _MIN_PREFILL_CHUNK),
            mixed_chunk_tokens=_shrunk(top.mixed_chunk_tokens, divisor, _MIN_MIXED_CHUNK),
            reason=why,
        )
        if smaller.mixed_chunk_tokens < levels[-1].mixed_chunk_tokens:
            levels.append(smaller)
    for max_running in range(plan.max_running - 1, 0, -1):
        levels.append(replace(levels[-1], max_running=max_running, reason=why))
    return tuple(levels)


def memory_ladder(plan: Plan) -> tuple[ServingLimits, ...]:
    """Return the plan, then the same without idle prefixes, then shorter requests down to 512 tokens."""
    levels = [plan_limits(plan)]
    levels.append(replace(levels[0], keeps_cached_pages=False, reason="because memory is short"))
    while levels[-1].max_request_tokens > _MIN_REQUEST_TOKENS:
        tokens = max(levels[-1].max_request_tokens // 2, _MIN_REQUEST_TOKENS)
        levels.append(replace(levels[-1], max_request_tokens=tokens))
    return tuple(levels)


def _shrunk(value: int, divisor: int, least: int) -> int:
    return min(value, max(value // divisor, least))
