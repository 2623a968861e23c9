"""Servers in real control groups with a limit of memory: what is planned fits, what cannot be is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tests.bench.control_group import NoControlGroup
from tests.bench.governor import Scenario, show
from tests.bench.memory import compiled, predict
from tests.bench.memory_load import Case, measure, refuse

from edgephi.artifact.synth import synthesize
from edgephi.profile.verification import is_miss

pytestmark = pytest.mark.tvm

CASE = Case.parse("512x4:int8:64")


def test_a_server_lives_within_what_its_plan_asks_for() -> None:
    """
    In a group limited to the plan's total, full streams end as they should, nothing is killed or reclaimed, and the
    peak is within the 10 % beyond which a server would warn.
    """
    facts, folder = compiled("pocket", CASE)
    predicted = predict(facts, CASE)
    try:
        measured = measure("pocket", folder, CASE, predicted.total_bytes)
    except NoControlGroup as reason:
        pytest.skip(str(reason))
    assert measured.group is not None
    assert (measured.group.num_oom_kills, measured.num_late_faults) == (0, 0)
    assert measured.num_answers > CASE.batch
    assert not is_miss(measured.peak / predicted.peak_bytes), (
        f"{measured.peak} bytes measured, {predicted.peak_bytes} predicted: measure the constants of "
        "edgephi.profile.planning.memory again with `python -m tests.bench.memory --model pocket`"
    )


def test_a_server_refuses_a_group_that_is_too_small() -> None:
    """With 1 % less than the plan's total it ends by itself with both numbers, before it loads the model."""
    facts, folder = compiled("pocket", CASE)
    needed = predict(facts, CASE).total_bytes
    try:
        refused = refuse("pocket", folder, CASE, int(needed * 0.99))
    except NoControlGroup as reason:
        pytest.skip(str(reason))
    assert refused.status == 1
    assert refused.text.startswith(f"error: {needed / 1e9:.2f}")
    assert "the budget is" in refused.text


@pytest.mark.slow
def test_limits_follow_a_neighbour_that_takes_memory(tmp_path: Path) -> None:
    """While another process in the group holds all but 32 MiB, idle prefixes go and requests get shorter; then back."""
    scenario = Scenario(
        model=str(synthesize("phi3-small", tmp_path / "phi3-small")),
        streams=3,
        quota=100.0,
        is_about_memory=True,
        phases_s=(3.0, 8.0, 60.0),
        min_interval_s=1.5,
        down_s=1.0,
        up_s=2.0,
        sample_s=0.25,
    )
    try:
        story = show(scenario)
    except NoControlGroup as reason:
        pytest.skip(str(reason))
    calm, restored = ([m for m in story.moments if not m.is_short], story.moments[-1])
    assert calm[0].memory_level == 0
    lowest = max(story.moments, key=lambda moment: moment.memory_level)
    assert lowest.memory_level == 2
    assert lowest.max_request_tokens == 512
    assert (restored.memory_level, restored.max_request_tokens) == (0, 1024)
    assert "memory is short" in str(story.changes[0].change)
    assert "memory suffices again" in str(story.changes[-1].change)
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(story.changes)]
    assert min(gaps) > scenario.min_interval_s - 0.5, "the time line is taken a moment after the change"
    assert story.ends.keys() == {"length"}
    assert story.num_compared > 0
    assert story.num_different == 0
