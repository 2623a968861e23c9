"""SIGTERM at random moments, through whole processes."""

from __future__ import annotations

import dataclasses
import random
import signal
from pathlib import Path

import pytest
from tests.lifecycle.sigterm import DRAINING, WHOLE, Plan, random_plan, run, run_all, table

# A busy machine may be late with everything; the command `python -m tests.lifecycle.sigterm` allows nothing.
SLACK_S = 20.0


async def test_ten_signals_at_random_moments(tiny: Path) -> None:
    """Whatever a server is doing, it refuses, ends every answer with a status, and exits with 0 and no process left."""
    rng = random.Random(5)
    plans = [dataclasses.replace(random_plan(rng), is_loading=index < 2) for index in range(10)]
    outcomes = await run_all(plans, tiny, at_once=4)
    assert [outcome.broken(slack_s=SLACK_S) for outcome in outcomes] == [[]] * len(plans)
    assert all(outcome.num_below > 0 for outcome in outcomes if not outcome.plan.is_loading), (
        "there is an engine to end"
    )
    ends = [end for outcome in outcomes for end in outcome.answers]
    assert set(ends) == {WHOLE, DRAINING}, "the moments must be such that both happen"


async def test_an_engine_that_hangs_does_not_keep_a_server(tiny: Path) -> None:
    """With an engine that is stopped in its tracks the server still ends every call within the grace, and itself."""
    plan = Plan(is_loading=False, num_streams=3, wait_s=0.3, grace_s=0.3, is_stuck=True)
    outcome = await run(plan, tiny)
    assert outcome.broken(slack_s=SLACK_S) == []
    assert outcome.num_below > 0


async def test_a_process_that_is_killed_breaks_the_promises(tiny: Path) -> None:
    """The negative control: without any drain the same eyes see the exit status and answers that nobody ended."""
    plan = Plan(is_loading=False, num_streams=3, wait_s=0.3, grace_s=1.0, number=signal.SIGKILL)
    broken = (await run(plan, tiny)).broken(slack_s=SLACK_S)
    assert "exit status -9" in broken
    assert sum(promise.startswith("an answer ended with") for promise in broken) == 3


@pytest.mark.slow
async def test_two_hundred_signals_at_random_moments(tiny: Path) -> None:
    """The same for 200 servers, one after the other, of which none may be late."""
    rng = random.Random(1)
    outcomes = await run_all([random_plan(rng) for _ in range(200)], tiny)
    print(table(outcomes))
    assert [outcome for outcome in outcomes if outcome.broken()] == []
