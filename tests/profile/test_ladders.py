"""The levels below a plan."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from edgephi.profile.ladders import ServingLimits, memory_ladder, plan_limits, speed_ladder
from edgephi.profile.plan import Plan

PLANS = st.builds(
    Plan,
    context_tokens=st.integers(1, 8192),
    max_running=st.integers(1, 8),
    prefill_chunk_tokens=st.integers(1, 512),
    mixed_chunk_tokens=st.integers(1, 512),
    default_max_tokens=st.just(64),
    page_tokens=st.just(16),
    num_pages=st.just(256),
)


def _plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "context_tokens": 4096,
        "max_running": 4,
        "prefill_chunk_tokens": 64,
        "mixed_chunk_tokens": 16,
        "default_max_tokens": 512,
        "page_tokens": 16,
        "num_pages": 256,
    }
    return Plan(**{**values, **changes})


def _sizes(limits: ServingLimits) -> tuple[int, int, int, int, bool]:
    return (
        limits.max_running,
        limits.prefill_chunk_tokens,
        limits.mixed_chunk_tokens,
        limits.max_request_tokens,
        limits.keeps_cached_pages,
    )


def test_speed_takes_chunks_before_requests() -> None:
    """First the chunks become smaller, then requests fewer, one by one down to one."""
    levels = [_sizes(level)[:3] for level in speed_ladder(_plan())]
    assert levels == [(4, 64, 16), (4, 32, 8), (4, 16, 4), (3, 16, 4), (2, 16, 4), (1, 16, 4)]


def test_one_request_at_a_time_has_nothing_to_give() -> None:
    """With one request no chunk delays a running answer, so there is no level below the plan."""
    assert len(speed_ladder(_plan(max_running=1))) == 1


def test_memory_takes_idle_prefixes_before_long_requests() -> None:
    """First nothing idle is kept, then the longest request is halved down to 512 tokens."""
    levels = [(level.keeps_cached_pages, level.max_request_tokens) for level in memory_ladder(_plan())]
    assert levels == [(True, 4096), (False, 4096), (False, 2048), (False, 1024), (False, 512)]
    assert [level.max_request_tokens for level in memory_ladder(_plan(context_tokens=300))] == [300, 300]


@given(plan=PLANS)
def test_every_level_is_within_the_plan_and_below_the_one_above(plan: Plan) -> None:
    """No limit rises from a level to the next, none is below 1, and each level differs from the one above."""
    for ladder in (speed_ladder(plan), memory_ladder(plan)):
        assert ladder[0] == plan_limits(plan)
        assert ladder[0].reason is None
        for above, below in itertools.pairwise(ladder):
            assert all(low <= high for low, high in zip(_sizes(below), _sizes(above), strict=True))
            assert _sizes(below) != _sizes(above)
            assert min(_sizes(below)[:4]) >= 1
            assert below.reason


@given(plan=PLANS, data=st.data())
def test_two_levels_combine_to_the_smaller_limits(plan: Plan, data: st.DataObject) -> None:
    """Each limit of a combination is the smaller one, and both reasons are told."""
    speed, memory = data.draw(st.sampled_from(speed_ladder(plan))), data.draw(st.sampled_from(memory_ladder(plan)))
    both = speed.combined_with(memory)
    assert _sizes(both) == tuple(min(pair) for pair in zip(_sizes(speed), _sizes(memory), strict=True))
    assert both.reason == (" and ".join(reason for reason in (speed.reason, memory.reason) if reason) or None)
