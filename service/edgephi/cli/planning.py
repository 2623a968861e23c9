"""
The composition of a plan: from a model's name and a device's name to the planner's arguments, and its plan.

Owns the bounds of what may be asked. Knows no command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgephi.cli.planned_model import PHI3_MINI, PlannedModel, find_model_facts
from edgephi.cli.planning_basis import THIS_MACHINE, Basis, find_basis
from edgephi.errors import ConfigError
from edgephi.profile.model_facts import ModelFacts
from edgephi.profile.plan import KvDtype, Plan
from edgephi.profile.planning.memory import MAX_DRAFT_TOKENS
from edgephi.profile.planning.planner import PlanRequest, Prefer, make_plan

MAX_FLOOR_TOKENS_PER_S = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningOptions:
    """
    What to plan.

    Attributes:
        model: Name of an installed model, a model's folder, ``pocket``, or a name of ``artifact.synth.PRESETS``.
        device: A board's name, or ``auto`` for this machine.
        device_files: Files with more boards.
        memory_bytes: Most memory the server may use; None for all that the device leaves.
        floor_tokens_per_s: Least speed of each request, above 0.
        context_tokens: Context of each request, or None for as much as there is.
        batch: Requests at once, or None to choose.
        prefer: What to have most of.
        kv_dtype: Element type of keys and values, or None to choose.
        quantization: Format of the weights, or None for what the model has.
        threads: Threads that compute, or None to choose.
        prefill_chunk_tokens: Most prompt tokens in a step of their own, or None to choose.
        max_draft_tokens: Guessed tokens a request may have in a step; they need memory.
    """

    model: str = PHI3_MINI
    device: str = THIS_MACHINE
    device_files: tuple[Path, ...] = ()
    memory_bytes: int | None = None
    floor_tokens_per_s: float = 12.0
    context_tokens: int | None = None
    batch: int | None = None
    prefer: Prefer = Prefer.CONTEXT
    kv_dtype: KvDtype | None = None
    quantization: str | None = None
    threads: int | None = None
    prefill_chunk_tokens: int | None = None
    max_draft_tokens: int = MAX_DRAFT_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan with what it was made from."""

    options: PlanningOptions
    model: PlannedModel
    basis: Basis
    plan: Plan = field(repr=False)

    @property
    def is_this_machine(self) -> bool:
        """Whether it is for the machine that made it."""
        return self.options.device == THIS_MACHINE


def plan_for(options: PlanningOptions) -> Planned:
    """
    Plan.

    Raises:
        ConfigError: If an option is out of bounds, or no board has that name; with the limit and what to do.
        ModelNotFound: If there is no such model.
        ModelInvalid: If its files cannot be used.
    """
    floor = options.floor_tokens_per_s
    if not 0 < floor <= MAX_FLOOR_TOKENS_PER_S:
        raise ConfigError(
            f"the floor is {floor:g} tok/s; must be above 0 and at most {MAX_FLOOR_TOKENS_PER_S:g}; "
            "12 suits reading along, 1 asks for next to nothing"
        )
    kv_dtype = options.kv_dtype or KvDtype.INT8
    model = find_model_facts(options.model, options.quantization, kv_dtype)
    _check_request(options, model.facts)
    basis = find_basis(
        options.device,
        model,
        device_files=options.device_files,
        memory_bytes=options.memory_bytes,
        threads=options.threads,
        kv_dtype=kv_dtype,
    )
    request = PlanRequest(
        floor_tokens_per_s=floor,
        context_tokens=options.context_tokens,
        batch=options.batch,
        kv_dtype=options.kv_dtype,
        prefer=options.prefer,
        prefill_chunk_tokens=options.prefill_chunk_tokens,
        max_draft_tokens=options.max_draft_tokens,
    )
    plan = make_plan(
        [model.facts], basis.device, basis.times, request, bounds=basis.bounds, alternatives=model.alternatives
    )
    return Planned(options=options, model=model, basis=basis, plan=plan)


def _check_request(options: PlanningOptions, model: ModelFacts) -> None:
    """Refuse what no device could give, before a device is looked at."""
    for name, value, limit, advice in (
        ("context", options.context_tokens, model.context_tokens, "ask for less, or leave it out for the most"),
        ("batch", options.batch, model.max_batch_tokens, "a step takes no more rows; more requests wait in the queue"),
        ("prefill_chunk", options.prefill_chunk_tokens, model.max_batch_tokens, "a step takes no more rows"),
    ):
        if value is not None and not 1 <= value <= limit:
            raise ConfigError(f"{name} is {value}; {model.name} has 1 to {limit}: {advice}")
