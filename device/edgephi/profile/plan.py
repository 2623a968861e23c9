"""
The plan a server follows on a device: how much it takes on at once and what it expects to reach.

Owns the shape of a plan and its JSON. edgephi.profile.planning.planner makes one; where it was not asked, a plan is the
operator's flags and the defaults, and everything that would be a prediction is None.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

PROMPT_TOKENS = 512
"""Length of the prompt that a predicted prefill speed and time to the first token are for."""


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
    OPERATOR = "operator"  # the request fixed it; ``request`` in JSON


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

    @property
    def peak_bytes(self) -> int:
        """What is expected in RAM at most: all known items but the reserve."""
        items = (self.weights_bytes, self.kv_bytes, self.workspace_bytes, self.process_bytes)
        return sum(item for item in items if item is not None)

    @property
    def total_bytes(self) -> int:
        """All known items with the reserve: what must not exceed the budget."""
        return self.peak_bytes + (self.reserve_bytes or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRange:
    """Bounds of a speed in tokens a second: what is expected at worst, and what cannot be exceeded."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedSpeed:
    """
    Expected speed of one request that runs alone, and of each where as many as planned run; None where not predicted.

    Attributes:
        decode_empty_tokens_per_s: Decoding with an empty context, alone.
        decode_full_tokens_per_s: Decoding with the whole context filled, alone.
        prefill_tokens_per_s: Computing a prompt of ``PROMPT_TOKENS`` tokens, or of the whole context if that is less.
        bandwidth_gbps: Effective memory bandwidth it rests on, 10^9 bytes per second.
        time_to_first_token_s: Of that prompt, alone.
        each_empty_tokens_per_s: Each of ``Plan.max_running`` requests, decoding with empty contexts.
        each_full_tokens_per_s: Each of them, all with the whole context filled. This is what a floor is held against.
        each_mixed_tokens_per_s: Each of the others while a prompt is computed beside them behind a full context, with
            chunks of ``Plan.mixed_chunk_tokens``; None where one request runs at a time.
        decode_empty_range: Bounds of ``decode_empty_tokens_per_s``, where the prediction is of a known board.
        decode_full_range: Bounds of ``decode_full_tokens_per_s``.
    """

    decode_empty_tokens_per_s: float | None = None
    decode_full_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    bandwidth_gbps: float | None = None
    time_to_first_token_s: float | None = None
    each_empty_tokens_per_s: float | None = None
    each_full_tokens_per_s: float | None = None
    each_mixed_tokens_per_s: float | None = None
    decode_empty_range: SpeedRange | None = None
    decode_full_range: SpeedRange | None = None


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
        feasible: Whether it keeps the floor within the budget as asked; None where nothing was planned. Where it does
            not, the numbers are those of the best that could be done.
        missing: What is missing for a feasible plan, with value and limit; None where it is feasible.
        device: Name of the device it is for, or None.
        model: Name of the model, or None.
        quantization: Format of the weights, or None.
        notes: What a person should know besides: published speeds, what is estimated, what gets slower when.
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
    feasible: bool | None = None
    missing: str | None = None
    device: str | None = None
    model: str | None = None
    quantization: str | None = None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """
        Return the plan as JSON: first the keys other programs rely on, then what was added to them.

        ``predicted_tokens_per_s`` is what each of ``batch`` requests gets; ``margin`` is the memory kept free.
        """
        predicted, memory = self.predicted or PredictedSpeed(), self.memory
        return {
            "feasible": self.feasible,
            "device": self.device,
            "model": self.model,
            "context_tokens": self.context_tokens,
            "batch": self.max_running,
            "prefill_chunk_tokens": self.prefill_chunk_tokens,
            "kv_dtype": None if self.kv_dtype is None else self.kv_dtype.value,
            "threads": self.num_threads,
            "predicted_tokens_per_s": {
                "empty": predicted.each_empty_tokens_per_s,
                "full": predicted.each_full_tokens_per_s,
            },
            "memory_bytes": {
                "weights": memory.weights_bytes,
                "kv": memory.kv_bytes,
                "workspace": memory.workspace_bytes,
                "runtime": memory.process_bytes,
                "margin": memory.reserve_bytes,
                "total": memory.total_bytes,
                "budget": memory.budget_bytes,
            },
            "binding_limit": None if self.binding_limit is None else _LIMIT_NAMES[self.binding_limit],
            "remedies": [{"change": remedy.change, "effect": remedy.effect} for remedy in self.remedies],
            "quantization": self.quantization,
            "kind": self.kind.value,
            "floor_tokens_per_s": self.floor_tokens_per_s,
            "meets_floor": self.meets_floor,
            "missing": self.missing,
            "mixed_chunk_tokens": self.mixed_chunk_tokens,
            "cpus": list(self.cpus),
            "alone_tokens_per_s": {
                "empty": predicted.decode_empty_tokens_per_s,
                "full": predicted.decode_full_tokens_per_s,
                "empty_range": _range_json(predicted.decode_empty_range),
                "full_range": _range_json(predicted.decode_full_range),
            },
            "prefill_tokens_per_s": predicted.prefill_tokens_per_s,
            "time_to_first_token_s": predicted.time_to_first_token_s,
            "mixed_tokens_per_s": predicted.each_mixed_tokens_per_s,
            "bandwidth_gbps": predicted.bandwidth_gbps,
            "notes": list(self.notes),
        }


def _range_json(speeds: SpeedRange | None) -> list[float] | None:
    return None if speeds is None else [speeds.low, speeds.high]


_LIMIT_NAMES = {
    BindingLimit.MEMORY: "memory",
    BindingLimit.SPEED: "speed",
    BindingLimit.MODEL: "model",
    BindingLimit.OPERATOR: "request",
}
