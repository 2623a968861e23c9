"""The planner: what it chooses, what it calls impossible, and that more never gives less."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.profile.planning_cases import device, phi3, stream_times

from edgephi.errors import ConfigError
from edgephi.profile.plan import BindingLimit, KvDtype, Plan
from edgephi.profile.planning.planner import MAX_BATCH, MIN_CONTEXT, PlanRequest, Prefer, make_plan

Q4, Q3 = phi3("q4f16_1"), phi3("q3f16_g32")
_RANK = {"q4f16_1": 1, "q3f16_g32": 0}


def size(plan: Plan, prefer: Prefer) -> tuple[float, ...]:
    """Return how good a plan is, in the order its preference states."""
    assert plan.predicted is not None
    assert plan.predicted.each_full_tokens_per_s is not None
    if not plan.feasible:
        return (0.0,)
    rank = _RANK[plan.quantization or ""]
    if prefer is Prefer.SPEED:
        return 1.0, plan.context_tokens, plan.predicted.each_full_tokens_per_s
    if prefer is Prefer.BATCH:
        return 1.0, rank, plan.max_running, plan.context_tokens
    return 1.0, rank, plan.context_tokens, plan.max_running


_PREFER = st.sampled_from(Prefer)
_REQUESTS = st.builds(
    PlanRequest,
    floor_tokens_per_s=st.floats(0, 60),
    context_tokens=st.none() | st.integers(1, 5000),
    batch=st.none() | st.integers(1, 12),
    kv_dtype=st.none() | st.sampled_from(KvDtype),
    prefer=_PREFER,
    prefill_chunk_tokens=st.none() | st.integers(1, 300),
    max_draft_tokens=st.integers(0, 8),
)
_MODELS = st.sampled_from([[Q4], [Q3], [Q4, Q3], [phi3(context_tokens=500)]])
_BUDGETS = st.floats(0.1, 14)
_GBPS = st.floats(5, 200)


@given(models=_MODELS, budget=_BUDGETS, more=st.floats(0, 6), gbps=_GBPS, request_=_REQUESTS)
def test_more_memory_never_shrinks_the_plan(
    models: list[object], budget: float, more: float, gbps: float, request_: PlanRequest
) -> None:
    """With a larger budget the plan is at least as good in the order that was preferred."""
    times = stream_times(gbps)
    small = make_plan(models, device(budget), times, request_)  # type: ignore[arg-type] # sampled from lists of facts
    large = make_plan(models, device(budget + more), times, request_)  # type: ignore[arg-type] # as above
    assert size(large, request_.prefer) >= size(small, request_.prefer)


@given(models=_MODELS, budget=_BUDGETS, gbps=_GBPS, request_=_REQUESTS, share=st.floats(0, 1))
def test_a_lower_floor_never_shrinks_the_plan(
    models: list[object], budget: float, gbps: float, request_: PlanRequest, share: float
) -> None:
    """With a lower floor the plan is at least as good in the order that was preferred."""
    times, board = stream_times(gbps), device(budget)
    lower = dataclasses.replace(request_, floor_tokens_per_s=request_.floor_tokens_per_s * share)
    high = make_plan(models, board, times, request_)  # type: ignore[arg-type] # sampled from lists of facts
    low = make_plan(models, board, times, lower)  # type: ignore[arg-type] # as above
    assert size(low, request_.prefer) >= size(high, request_.prefer)


@given(models=_MODELS, budget=_BUDGETS, gbps=_GBPS, request_=_REQUESTS)
def test_a_feasible_plan_keeps_every_bound(
    models: list[object], budget: float, gbps: float, request_: PlanRequest
) -> None:
    """Budget, floor, the model's limits and what was asked are kept; else the plan says what is missing."""
    plan = make_plan(models, device(budget), stream_times(gbps), request_)  # type: ignore[arg-type] # as above
    assert plan.predicted is not None
    assert plan.predicted.each_full_tokens_per_s is not None
    assert (plan.missing is None) == plan.feasible
    assert plan.meets_floor == (plan.predicted.each_full_tokens_per_s >= request_.floor_tokens_per_s)
    assert 1 <= plan.mixed_chunk_tokens <= plan.prefill_chunk_tokens <= 256
    assert plan.num_pages * plan.page_tokens >= plan.context_tokens * plan.max_running
    if not plan.feasible:
        return
    assert plan.memory.total_bytes <= (plan.memory.budget_bytes or 0)
    assert plan.meets_floor
    longest = phi3(context_tokens=500).context_tokens if models[0] not in (Q4, Q3) else 4096
    assert plan.context_tokens <= longest
    assert request_.context_tokens in (None, plan.context_tokens)
    assert request_.batch in (None, plan.max_running)
    assert request_.prefill_chunk_tokens in (None, plan.prefill_chunk_tokens)
    assert plan.kv_dtype is (request_.kv_dtype or KvDtype.INT8)
    if request_.context_tokens is None:
        assert plan.context_tokens >= min(MIN_CONTEXT, longest)


@given(budget=st.floats(2.6, 10), gbps=st.floats(26, 200), batch=st.none() | st.integers(1, 8))
def test_nothing_larger_would_do(budget: float, gbps: float, batch: int | None) -> None:
    """One page of context more breaks the limit that the plan names as binding."""
    board, times = device(budget), stream_times(gbps)
    plan = make_plan([Q4], board, times, PlanRequest(batch=batch))
    if not plan.feasible or plan.context_tokens == Q4.context_tokens:
        return
    larger = make_plan([Q4], board, times, PlanRequest(batch=batch, context_tokens=plan.context_tokens + 16))
    assert not larger.feasible
    assert larger.binding_limit is plan.binding_limit


@pytest.mark.parametrize(
    ("prefer", "context", "batch"),
    [
        (Prefer.CONTEXT, range(4096, 4097), 2),
        (Prefer.BATCH, range(1024, 1280), 8),
        (Prefer.SPEED, range(2048, 2049), 1),
    ],
)
def test_the_preference_decides(prefer: Prefer, context: range, batch: int) -> None:
    """Of what 4.4 GB and 300 GB/s allow, the longest context, the most streams, or one fast stream is chosen."""
    plan = make_plan([Q4], device(4.4), stream_times(300, products_per_s=4e12), PlanRequest(prefer=prefer))
    assert plan.context_tokens in context
    assert plan.max_running == batch


def test_four_bits_are_kept_while_they_meet_the_floor() -> None:
    """Three bits, which round more, are chosen only where four would miss floor or budget, or speed is preferred."""
    request = PlanRequest()
    assert make_plan([Q3, Q4], device(8), stream_times(40), request).quantization == "q4f16_1"
    assert make_plan([Q3, Q4], device(8), stream_times(25), request).quantization == "q3f16_g32"
    assert make_plan([Q3, Q4], device(2.5), stream_times(40), request).quantization == "q3f16_g32"
    fast = make_plan([Q3, Q4], device(8), stream_times(40), PlanRequest(prefer=Prefer.SPEED))
    assert fast.quantization == "q3f16_g32"


@pytest.mark.parametrize(
    ("budget", "gbps", "request_", "limit"),
    [
        (3.0, 200, PlanRequest(), BindingLimit.MEMORY),
        (9.0, 30, PlanRequest(), BindingLimit.SPEED),
        (14.0, 900, PlanRequest(), BindingLimit.MODEL),
        (14.0, 900, PlanRequest(context_tokens=512, batch=1), BindingLimit.OPERATOR),
        (14.0, 900, PlanRequest(batch=1), BindingLimit.OPERATOR),
        (14.0, 30, PlanRequest(context_tokens=1024), BindingLimit.SPEED),
        (14.0, 900, PlanRequest(prefer=Prefer.SPEED), BindingLimit.OPERATOR),
    ],
)
def test_what_stops_the_next_larger_plan_is_named(
    budget: float, gbps: float, request_: PlanRequest, limit: BindingLimit
) -> None:
    """Memory, speed, the model or the request itself."""
    plan = make_plan([Q4], device(budget), stream_times(gbps, products_per_s=4e12), request_)
    assert plan.feasible
    assert plan.binding_limit is limit


def test_too_slow_is_said_with_the_best_speed() -> None:
    """Where the floor cannot be kept, the smallest plan at the best speed comes with what bandwidth it would take."""
    plan = make_plan([Q4, Q3], device(8), stream_times(9), PlanRequest())
    assert not plan.feasible
    assert plan.meets_floor is False
    assert plan.binding_limit is BindingLimit.SPEED
    assert (plan.context_tokens, plan.max_running, plan.quantization) == (MIN_CONTEXT, 1, "q3f16_g32")
    assert plan.missing is not None
    assert "4.9 tok/s" in plan.missing
    assert "22.2 GB/s" in plan.missing


def test_too_large_is_said_with_the_numbers() -> None:
    """Where not even the least context fits, what is needed stands beside the budget."""
    plan = make_plan([Q4], device(2.2), stream_times(60), PlanRequest())
    assert not plan.feasible
    assert plan.binding_limit is BindingLimit.MEMORY
    assert plan.missing is not None
    assert f"{plan.memory.total_bytes / 1e9:.2f} GB are needed with 1024 tokens" in plan.missing
    assert "2.20 GB" in plan.missing


def test_what_is_missing_is_seen_in_the_numbers() -> None:
    """A budget that is 2 MB too small is told apart from what is needed by a third digit."""
    needed = make_plan([Q4], device(2.2), stream_times(60), PlanRequest(context_tokens=1024)).memory.total_bytes
    plan = make_plan([Q4], device((needed - 2_000_000) / 1e9), stream_times(60), PlanRequest(context_tokens=1024))
    assert plan.missing is not None
    told = [float(number) for number in re.findall(r"([0-9.]+) GB", plan.missing)]
    assert told == pytest.approx([needed / 1e9, (needed - 2_000_000) / 1e9], abs=1e-3)
    assert told[0] > told[1]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (PlanRequest(context_tokens=8192), "context of 8192"),
        (PlanRequest(batch=300), "batch of 300"),
        (PlanRequest(prefill_chunk_tokens=512), "prefill chunk of 512"),
    ],
)
def test_what_the_model_cannot_do_is_named(request_: PlanRequest, said: str) -> None:
    """A number beyond the model's own limit is not possible on any device."""
    plan = make_plan([Q4], device(14), stream_times(900), request_)
    assert not plan.feasible
    assert plan.binding_limit is BindingLimit.MODEL
    assert said in (plan.missing or "")


@pytest.mark.parametrize(
    "values",
    [
        {"floor_tokens_per_s": -1.0},
        {"floor_tokens_per_s": float("nan")},
        {"context_tokens": 0},
        {"batch": 0},
        {"prefill_chunk_tokens": 0},
    ],
)
def test_a_request_out_of_bounds_is_refused(values: dict[str, float]) -> None:
    """The name, the value and the limit are given."""
    (name,) = values
    with pytest.raises(ConfigError, match=name):
        PlanRequest(**values)  # type: ignore[arg-type] # that is what is refused


def test_a_prompt_beside_streams_keeps_their_floor() -> None:
    """The mixed chunk is the largest that leaves running streams at the floor; where none does, that is said."""
    times = stream_times(60)
    plan = make_plan([Q4], device(8), times, PlanRequest(batch=2, context_tokens=1024))
    steps = times(Q4, KvDtype.INT8)

    def speed(chunk: int) -> float:
        seconds = steps.mixed_step_s(batch=1, chunk_tokens=chunk, context_tokens=1024, kv_bytes_per_token=200_704)
        return 1 / seconds

    assert speed(plan.mixed_chunk_tokens) >= 12 > speed(plan.mixed_chunk_tokens + 1)
    tight = make_plan([Q4], device(8), stream_times(60, products_per_s=1e10), PlanRequest(batch=1, context_tokens=1024))
    assert tight.notes == ()
    slow = make_plan([Q4], device(8), stream_times(60), PlanRequest(batch=MAX_BATCH, context_tokens=1024))
    assert any("below the floor" in note for note in slow.notes)


def test_a_step_of_prefill_does_not_keep_others_waiting() -> None:
    """The prefill chunk is the largest of 16 to 256 whose step takes half a second at most, and fits."""
    request = PlanRequest(context_tokens=512)
    fast = make_plan([Q4], device(8), stream_times(60, products_per_s=4e12), request)
    slow = make_plan([Q4], device(8), stream_times(60, products_per_s=1.3e11), request)
    assert (fast.prefill_chunk_tokens, slow.prefill_chunk_tokens) == (256, 16)


def test_the_json_begins_with_the_keys_that_programs_rely_on() -> None:
    """Names and order of the documented keys, numbers of the plan, and nothing that JSON cannot hold."""
    plan = make_plan([Q4], device(3.0), stream_times(60), PlanRequest(), alternatives=[Q3])
    found = json.loads(json.dumps(plan.as_json()))
    assert list(found)[:12] == [
        "feasible", "device", "model", "context_tokens", "batch", "prefill_chunk_tokens", "kv_dtype", "threads",
        "predicted_tokens_per_s", "memory_bytes", "binding_limit", "remedies",
    ]  # fmt: skip
    assert list(found["predicted_tokens_per_s"]) == ["empty", "full"]
    memory = found["memory_bytes"]
    assert list(memory) == ["weights", "kv", "workspace", "runtime", "margin", "total", "budget"]
    assert sum(memory[name] for name in list(memory)[:5]) == memory["total"] <= memory["budget"]
    assert found["feasible"] is True
    assert found["binding_limit"] == "memory"
    assert found["remedies"]
    assert all(list(remedy) == ["change", "effect"] for remedy in found["remedies"])
