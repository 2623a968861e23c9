"""
What an operator asks of a plan, and the bounds a plan keeps where nothing was asked (docs/decisions/0012).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from edgephi.errors import ConfigError
from edgephi.profile.plan import KvDtype
from edgephi.profile.planning.memory import MAX_DRAFT_TOKENS

MIN_CONTEXT = 1024
"""Least context of a feasible plan whose request names none; a model with less has all of it."""
SPEED_CONTEXT = 2048
"""Context of a plan that prefers speed, where it can be had."""
MAX_BATCH = 8
"""Most streams a plan chooses by itself."""


class Prefer(enum.Enum):
    """What a plan has most of, once floor and budget are kept."""

    CONTEXT = "context"  # then streams
    BATCH = "batch"  # then context
    SPEED = "speed"  # one stream of SPEED_CONTEXT tokens, in the fastest quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """
    What an operator wants. A number that is given is kept, or the plan is not feasible.

    Attributes:
        floor_tokens_per_s: Least speed of every stream with a full context; 0 for none.
        context_tokens: Context of each stream, or None for as much as there is.
        batch: Streams at once, or None to choose.
        kv_dtype: Element type of keys and values; None for int8.
        prefer: What to have most of.
        prefill_chunk_tokens: Most prompt tokens in a step of their own, or None to choose.
        max_draft_tokens: Guessed tokens a stream may have in a step; they need memory.
        reserve_bytes: Memory kept free within the budget, or None for a share.

    Raises:
        ConfigError: If a number is below its least value.
    """

    floor_tokens_per_s: float = 12.0
    context_tokens: int | None = None
    batch: int | None = None
    kv_dtype: KvDtype | None = None
    prefer: Prefer = Prefer.CONTEXT
    prefill_chunk_tokens: int | None = None
    max_draft_tokens: int = MAX_DRAFT_TOKENS
    reserve_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, value, low in (
            ("floor_tokens_per_s", self.floor_tokens_per_s, 0),
            ("context_tokens", self.context_tokens, 1),
            ("batch", self.batch, 1),
            ("prefill_chunk_tokens", self.prefill_chunk_tokens, 1),
            ("max_draft_tokens", self.max_draft_tokens, 0),
            ("reserve_bytes", self.reserve_bytes, 0),
        ):
            if value is not None and not value >= low:  # not a number is refused too
                raise ConfigError(f"{name} is {value}; must be at least {low}")
