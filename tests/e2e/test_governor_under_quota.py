"""The governor over a real engine in a real control group whose CPU quota is cut and restored."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tests.bench.control_group import NoControlGroup
from tests.bench.governor import Scenario, show

from edgephi.artifact.synth import synthesize

MIN_INTERVAL_S = 1.5


@pytest.mark.slow
@pytest.mark.tvm
def test_limits_follow_a_cpu_quota_and_no_answer_suffers(tmp_path: Path) -> None:
    """With a fifth of the CPU it steps down, with all of it back to the plan; every answer ends whole and the same."""
    scenario = Scenario(
        model=str(synthesize("phi3-small", tmp_path / "phi3-small")),
        streams=3,
        floor_share=0.5,
        quota=20.0,
        phases_s=(4.0, 15.0, 120.0),
        min_interval_s=MIN_INTERVAL_S,
        down_s=1.0,
        up_s=2.0,
        sample_s=0.25,
    )
    try:
        story = show(scenario)
    except NoControlGroup as reason:
        pytest.skip(str(reason))
    full, restored = ([m for m in story.moments if m.quota == 100.0], story.moments[-1])
    assert full[0].speed_level == 0
    assert max(moment.speed_level for moment in story.moments if moment.quota == 20.0) > 0
    assert (restored.speed_level, restored.max_running, restored.mixed_chunk_tokens) == (0, 3, 16)
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(story.changes)]
    assert min(gaps) > MIN_INTERVAL_S - 0.5, "the time line is taken a moment after the change"
    assert story.ends.keys() <= {"length", "refused"}
    assert story.ends["length"] > 10
    assert story.num_compared > 0
    assert story.num_different == 0
