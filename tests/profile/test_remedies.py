"""Remedies: each is a plan made again with one change, and what it says is what would happen."""

from __future__ import annotations

import dataclasses
import re

from tests.profile.planning_cases import GB, device, phi3, stream_times

from edgephi.profile.plan import KvDtype, Plan, Remedy
from edgephi.profile.planning.planner import LargerMemory, PlanRequest, make_plan
from edgephi.profile.planning.remedies import SPECULATION

Q4, Q3 = phi3("q4f16_1"), phi3("q3f16_g32")


def remedy(plan: Plan, text: str) -> Remedy:
    """Return the one whose change contains *text*."""
    return next(found for found in plan.remedies if text in found.change)


def test_int8_keys_and_values_double_the_context() -> None:
    """The effect of int8 is the context that the same plan has with it."""
    request = PlanRequest(kv_dtype=KvDtype.FLOAT16)
    plan = make_plan([Q4], device(2.9), stream_times(80), request)
    better = make_plan([Q4], device(2.9), stream_times(80), dataclasses.replace(request, kv_dtype=KvDtype.INT8))
    found = remedy(plan, "int8 keys and values")
    assert found.effect == f"context {plan.context_tokens} -> {better.context_tokens} tokens"
    assert better.context_tokens > 1.9 * plan.context_tokens


def test_what_was_asked_too_much_of_is_given_back() -> None:
    """Where a fixed context or number of streams is not possible, the largest that is stands in the remedy."""
    long = make_plan([Q4], device(2.7), stream_times(80), PlanRequest(context_tokens=4096))
    assert not long.feasible
    most = make_plan([Q4], device(2.7), stream_times(80), PlanRequest()).context_tokens
    assert remedy(long, f"a context of {most} tokens").effect.startswith("feasible")
    many = make_plan([Q4], device(8), stream_times(40), PlanRequest(context_tokens=1024, batch=8))
    assert not many.feasible
    fewer = make_plan([Q4], device(8), stream_times(40), PlanRequest(context_tokens=1024)).max_running
    assert remedy(many, f"{fewer} at once instead of 8").effect.startswith("feasible")


def test_the_highest_reachable_floor_is_named() -> None:
    """The plan is feasible with the floor in the remedy, and not with a tenth more."""
    times, board = stream_times(20), device(8)
    plan = make_plan([Q4], board, times, PlanRequest())
    found = remedy(plan, "a floor of")
    floor = float(re.findall(r"[\d.]+", found.change)[0])
    assert make_plan([Q4], board, times, PlanRequest(floor_tokens_per_s=floor)).feasible
    assert not make_plan([Q4], board, times, PlanRequest(floor_tokens_per_s=floor + 0.1)).feasible


def test_more_memory_is_offered_where_it_is_what_limits() -> None:
    """A larger board where one is known, what other programs hold, else the budget that would be enough."""
    times = stream_times(80)
    board = device(
        2.7, larger=(LargerMemory("board-4gb", 3 * GB), LargerMemory("board-8gb", 7 * GB)),
        idle_memory_budget_bytes=round(2.9 * GB),
    )  # fmt: skip
    plan = make_plan([Q4], board, times, PlanRequest())
    assert "->" in remedy(plan, "board-4gb").effect
    assert remedy(plan, "stop other programs, which hold 0.20 GB").effect.startswith("context ")
    assert not any("board-8gb" in found.change for found in plan.remedies)
    alone = make_plan([Q4], device(2.65), times, PlanRequest(batch=1))
    needed = float(re.findall(r"budget of ([\d.]+)", remedy(alone, "memory budget").change)[0])
    assert make_plan([Q4], device(needed + 0.01), times, PlanRequest(batch=1)).context_tokens == 4096


def test_three_bits_are_offered_where_they_are_not_at_hand() -> None:
    """A quantization that could be made is planned as if it were there."""
    plan = make_plan([Q4], device(8), stream_times(25), PlanRequest(), alternatives=[Q3])
    assert remedy(plan, "quantization q3f16_g32").effect.startswith("feasible")
    assert make_plan([Q3], device(8), stream_times(25), PlanRequest()).feasible


def test_feasible_comes_first() -> None:
    """What makes an impossible plan possible stands before what only makes it better."""
    plan = make_plan([Q4], device(8), stream_times(24), PlanRequest(kv_dtype=KvDtype.FLOAT16), alternatives=[Q3])
    effects = [found.effect.startswith("feasible") for found in plan.remedies if "guessed" not in found.change]
    assert True in effects
    assert effects == sorted(effects, reverse=True)


def test_speculation_is_offered_with_its_task_and_never_slower() -> None:
    """Only measured tasks are named, only where speed limits, and only where the rows of a pass leave a gain."""
    slow = make_plan([Q4], device(8), stream_times(9), PlanRequest())
    found = [each for each in slow.remedies if "guessed tokens" in each.change]
    assert len(found) == len(SPECULATION)
    for each, measured in zip(found, SPECULATION, strict=True):
        assert measured.task in each.change
        assert f"{measured.tokens_per_pass:g} tokens a pass" in each.effect
        before, after = (float(number) for number in re.findall(r"[\d.]+", each.effect)[:2])
        assert after > before
    dear = make_plan([Q4], device(8), stream_times(9, products_per_s=2e10), PlanRequest())
    assert not any("JSON" in each.change for each in dear.remedies)
    off = make_plan([Q4], device(8), stream_times(9), PlanRequest(max_draft_tokens=0))
    assert not any("guessed" in each.change for each in off.remedies)
    fits = make_plan([Q4], device(2.8), stream_times(200), PlanRequest())
    assert not any("guessed" in each.change for each in fits.remedies)


def test_nothing_is_offered_where_nothing_is_missing() -> None:
    """A plan with the model's whole context and the most streams has no remedy of memory or floor."""
    plan = make_plan([Q4], device(20), stream_times(900, products_per_s=1e13), PlanRequest())
    assert (plan.context_tokens, plan.max_running) == (4096, 8)
    assert plan.remedies == ()
