"""
The plan a server follows on a device: how much it takes on at once and what it expects to reach.

Owns the shape of a plan. edgephi.profile.planner makes one; where it was not asked, a plan is the operator's flags and
the defaults, and everything that would be a prediction is None.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class PlanKind(enum.Enum):
    """Where the numbers of a plan come from."""

    STATIC = "static"  # flags and defaults
    CATALOGUE = "catalogue"  # predicted from known boards
    CALIBRATED = "calibrated"  # predicted from a measurement on this machine


class KvDtype(enum.Enum):
    """Element type of the stored keys and values."""

    INT8 = "int8"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class BindingLimit(enum.Enum):
    """What keeps a plan from a longer context or a larger batch."""

    MEMORY = "memory"
    SPEED = "speed"
    MODEL = "model"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMemory:
    """
    Where a plan's memory goes, in bytes; None where nothing is known. Budgets bound the sum of all items.

    Attributes:
        weights_bytes: Packed weights.
        kv_bytes: Pages of stored keys and values.
        workspace_bytes: Scratch space of one step: activations, logits and what the allocator keeps of them.
        process_bytes: The server itself: interpreter, libraries, the compiled library, connections.
        reserve_bytes: Kept free on purpose, for what is not predicted.
        budget_bytes: What all of these together may reach.
    """

    weights_bytes: int | None = None
    kv_bytes: int | None = None
    workspace_bytes: int | None = None
    process_bytes: int | None = None
    reserve_bytes: int | None = None
    budget_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedSpeed:
    """
    Expected speed of one request that runs alone; None where nothing was predicted.

    Attributes:
        decode_empty_tokens_per_s: Decoding with an empty context.
        decode_full_tokens_per_s: Decoding with the whole context filled.
        prefill_tokens_per_s: Computing the prompt.
        bandwidth_gbps: Effective memory bandwidth it rests on, 10^9 bytes per second.
    """

    decode_empty_tokens_per_s: float | None = None
    decode_full_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    bandwidth_gbps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """
    One change that would improve a plan.

    Attributes:
        change: What to change, for people, such as ``int8 keys and values``.
        effect: What it brings, for people, such as ``context 1296 -> 2608 tokens``.
        decode_tokens_per_s: Speed with an empty context it would bring, or None where that was not predicted.
    """

    change: str
    effect: str
    decode_tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    How much a server takes on at once.

    Attributes:
        context_tokens: Most tokens of prompt and answer together in one request.
        max_running: Most requests that run at once.
        prefill_chunk_tokens: Most prompt tokens computed in one step.
        mixed_chunk_tokens: Most prompt tokens in a step that other requests decode in.
        default_max_tokens: Longest answer of a request that names no limit.
        page_tokens: Tokens per page of keys and values.
        num_pages: Pages in the pool.
        kind: Where the numbers come from.
        kv_dtype: Element type of keys and values; None where the engine stores none.
        num_threads: Threads that compute; None leaves it to the engine.
        cpus: Cores they are bound to; empty binds none.
        floor_tokens_per_s: Least speed one request is promised, or None.
        predicted: What is expected, or None.
        meets_floor: Whether the expected speed reaches the floor; None without a floor or a prediction.
        memory: Where memory goes.
        binding_limit: What keeps the plan from being larger; None where nothing was planned.
        remedies: What an operator could change, most useful first.
    """

    context_tokens: int
    max_running: int
    prefill_chunk_tokens: int
    mixed_chunk_tokens: int
    default_max_tokens: int
    page_tokens: int
    num_pages: int
    kind: PlanKind = PlanKind.STATIC
    kv_dtype: KvDtype | None = None
    num_threads: int | None = None
    cpus: tuple[int, ...] = ()
    floor_tokens_per_s: float | None = None
    predicted: PredictedSpeed | None = None
    meets_floor: bool | None = None
    memory: PlanMemory = field(default_factory=PlanMemory)
    binding_limit: BindingLimit | None = None
    remedies: tuple[Remedy, ...] = ()
