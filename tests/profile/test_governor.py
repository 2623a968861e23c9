"""The governor over made-up samples: when it steps, how far, and that it neither hurries nor oscillates."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from edgephi.errors import ConfigError
from edgephi.profile.governor import Change, FloorMissed, Governor, GovernorPolicy, Level, Sample, policy_for
from edgephi.profile.ladders import memory_ladder, plan_limits, speed_ladder
from edgephi.profile.plan import Plan, PlanMemory

MIB = 1 << 20
FLOOR = 12.0
LOWEST = Level(5, 0)

Outcome = Change | FloorMissed
Condition = Callable[[float], float]


def _plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "context_tokens": 4096,
        "max_running": 4,
        "prefill_chunk_tokens": 64,
        "mixed_chunk_tokens": 16,
        "default_max_tokens": 512,
        "page_tokens": 16,
        "num_pages": 256,
        "floor_tokens_per_s": FLOOR,
        "memory": PlanMemory(kv_bytes=256 * 16 * 200_704),
    }
    return Plan(**{**values, **changes})


class Machine:
    """A machine of a given speed and demand under a governor, sampled once a second."""

    def __init__(self, plan: Plan | None = None, policy: GovernorPolicy | None = None) -> None:
        self.governor = Governor(plan or _plan(), policy)
        self.now = 0.0
        self.outcomes: list[Outcome] = []

    @property
    def changes(self) -> list[Change]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Change)]

    @property
    def misses(self) -> list[FloorMissed]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, FloorMissed)]

    def observe(self, **values: Any) -> Outcome | None:
        """Take one sample a second after the last."""
        self.now += 1.0
        outcome = self.governor.observe(Sample(at_s=self.now, **values))
        if outcome is not None:
            self.outcomes.append(outcome)
        return outcome

    def run(self, seconds: int, alone: float, *, demand: int = 4, cost: float = 0.25, **values: Any) -> None:
        """
        Run under constant conditions.

        Args:
            seconds: How long.
            alone: Tokens a second of a request that has the machine to itself.
            demand: Requests that want to run; so many do as the limits allow.
            cost: What each further one adds to a step, as a part of the first.
            values: Other fields of the samples.
        """
        for _ in range(seconds):
            running = min(demand, self.governor.limits.max_running)
            speed = alone / (1 + cost * (running - 1)) if running else None
            self.observe(
                stream_tokens_per_s=speed, num_running=running, num_waiting=demand - running, **values
            )  # fmt: skip

    def lower(self) -> None:
        """Bring it to the lowest level by a machine too slow for anything."""
        self.run(400, 1.0)
        assert self.governor.level == LOWEST
        self.outcomes.clear()


def test_a_fast_machine_is_left_alone() -> None:
    """While answers are above the floor nothing changes, though some samples are missing."""
    machine = Machine()
    machine.run(300, 40.0)
    machine.run(300, 40.0, demand=0)
    assert machine.outcomes == []
    assert machine.governor.limits == plan_limits(_plan())


def test_one_bad_sample_changes_nothing() -> None:
    """Now and then a sample far below the floor is no reason, several in a row are."""
    machine = Machine()
    for _ in range(30):
        machine.run(4, 40.0)
        machine.run(1, 0.5)
    assert machine.outcomes == []
    machine.run(10, 10.0)
    assert [change.level_to for change in machine.changes] == [Level(1, 0)]


def test_it_steps_down_to_the_level_that_holds() -> None:
    """A machine that can serve two at the floor ends with two, one change every 30 s, each with its numbers."""
    machine = Machine()
    machine.run(300, 15.0)
    assert [change.level_to.speed for change in machine.changes[:4]] == [1, 2, 3, 4]
    gaps = [b.at_s - a.at_s for a, b in zip(machine.changes, machine.changes[1:], strict=False)]
    assert min(gaps) >= 30
    assert machine.governor.limits.max_running == 2
    assert machine.changes[0].reason == "answers are too slow: 8.6 tok/s each of 4, floor 12"
    assert machine.misses == []


def test_smaller_chunks_are_skipped_where_no_prompt_is_computed() -> None:
    """Without prefill beside the answers only fewer requests can help, so that is the first step."""
    machine = Machine()
    machine.run(10, 15.0, prefilled_tokens=0)
    assert machine.changes[0].limits.max_running == 3
    assert machine.changes[0].limits.mixed_chunk_tokens == 4


def test_a_single_slow_answer_keeps_others_from_coming() -> None:
    """If one answer alone is below the floor, the next step is to one request, not to one fewer than allowed."""
    machine = Machine()
    machine.run(10, 8.0, demand=1)
    assert machine.changes[0].limits.max_running == 1


def test_a_floor_that_cannot_be_held_is_told_once() -> None:
    """At the lowest level it says by how much the floor is missed, once, and again only after it was held."""
    machine = Machine()
    machine.run(900, 4.1)
    assert machine.governor.level == LOWEST
    assert [miss.reason for miss in machine.misses] == ["floor cannot be held: 4.1 of 12 tok/s"]
    is_missed = [machine.governor.is_floor_missed]
    machine.run(60, 12.5)
    is_missed.append(machine.governor.is_floor_missed)
    assert is_missed == [True, False]
    machine.run(60, 5.0)
    assert [miss.tokens_per_s for miss in machine.misses] == [4.1, 5.0]


def test_a_plan_for_one_request_only_tells() -> None:
    """With one request at a time there is nothing to take away: no change, one message."""
    machine = Machine(_plan(max_running=1))
    machine.run(300, 4.1)
    assert machine.changes == []
    assert len(machine.misses) == 1


def test_answers_from_before_are_waited_for() -> None:
    """While more run than allowed, slow ones are no reason for another step: it would change nothing for them."""
    machine = Machine()
    for _ in range(200):
        machine.observe(stream_tokens_per_s=8.0, num_running=4, prefilled_tokens=0)
    assert [change.limits.max_running for change in machine.changes] == [3]


def test_it_returns_to_the_plan_when_all_is_well() -> None:
    """From the lowest level a fast machine comes back level by level, each after half a minute of good samples."""
    machine = Machine()
    machine.lower()
    machine.run(330, 40.0)
    assert [change.level_to.speed for change in machine.changes] == [4, 3, 2, 1, 0]
    assert machine.governor.limits == plan_limits(_plan())
    assert machine.changes[0].reason == "answers are fast enough: 40.0 tok/s each of 1, floor 12"


def test_it_does_not_rise_to_what_it_expects_to_fail() -> None:
    """Two answers at 12.5 tok/s are above the floor, but three would be below, so it stays at two."""
    machine = Machine()
    machine.run(200, 15.625)
    assert machine.governor.limits.max_running == 2
    machine.outcomes.clear()
    machine.run(3600, 15.625)
    assert machine.outcomes == []


def test_a_failed_rise_is_tried_ever_more_rarely() -> None:
    """Where one more request costs more than expected, the waits between attempts double up to eight minutes."""
    machine = Machine(policy=GovernorPolicy(floor_tokens_per_s=FLOOR, batch_cost=0.0))
    machine.run(7200, 15.0, cost=0.5)
    rises = [change.at_s for change in machine.changes if change.level_to < change.level_from]
    waits = [b - a for a, b in itertools.pairwise(rises)]
    assert waits == sorted(waits)
    assert waits[0] < 130
    assert 480 <= waits[-1] <= 560
    assert len(rises) < 20


def test_idle_time_is_no_evidence_until_it_is_long() -> None:
    """Idle seconds neither step down nor count as good ones; after two minutes of them one level up is tried."""
    machine = Machine()
    machine.lower()
    machine.run(110, 40.0, demand=0)
    assert machine.outcomes == []
    machine.run(20, 40.0, demand=0)
    assert [change.level_to for change in machine.changes] == [Level(4, 0)]
    assert machine.changes[0].reason == "idle for 120 s: a trial"
    machine.run(600, 40.0, demand=0)
    assert machine.governor.level == Level(0, 0)


def test_a_forward_that_takes_long_is_not_idle() -> None:
    """Seconds without a token while a request runs are no evidence; the slow tokens that come are."""
    machine = Machine()
    machine.lower()
    for _ in range(300):
        machine.observe(num_running=1)
    assert machine.outcomes == []
    machine = Machine()
    for second in range(60):
        machine.observe(stream_tokens_per_s=0.2 if second % 5 == 4 else None, num_running=4)
    assert machine.changes


@pytest.mark.parametrize(
    "hint",
    [{"temperature_c": 81.0, "trip_c": 85.0}, {"is_throttled": True}, {"frequency_ratio": 0.5}],
)
def test_heat_and_low_clocks_shorten_the_wait(hint: dict[str, Any]) -> None:
    """With a hint that the cores are held back, half the bad samples are enough, and the reason says so."""
    hinted, plain = Machine(), Machine()
    hinted.run(4, 10.0, **hint)
    plain.run(4, 10.0)
    assert plain.changes == []
    assert len(hinted.changes) == 1
    assert "cores are held back" in hinted.changes[0].reason


@pytest.mark.parametrize("hint", [{"temperature_c": 81.0, "trip_c": 85.0}, {"is_throttled": True}])
def test_heat_forbids_stepping_up(hint: dict[str, Any]) -> None:
    """As long as it is hot no level is taken back, busy or idle; then it is."""
    machine = Machine()
    machine.lower()
    machine.run(300, 40.0, **hint)
    machine.run(300, 40.0, demand=0, **hint)
    assert machine.outcomes == []
    machine.run(40, 40.0)
    assert machine.changes


def test_a_low_clock_alone_only_delays_stepping_up() -> None:
    """A fast machine with a low clock still steps up, in twice the time: what was measured comes first."""
    machine = Machine()
    machine.lower()
    machine.run(45, 40.0, frequency_ratio=0.3)
    assert machine.changes == []
    machine.run(20, 40.0, frequency_ratio=0.3)
    assert len(machine.changes) == 1


def test_hints_alone_change_nothing() -> None:
    """Hot, throttled and with a low clock, answers above the floor stay as planned."""
    machine = Machine()
    machine.run(300, 40.0, temperature_c=84.0, trip_c=85.0, is_throttled=True, frequency_ratio=0.4)
    assert machine.outcomes == []


def test_memory_steps_down_and_up() -> None:
    """Too little memory drops idle prefixes, then shortens requests; memory enough brings all back, in time."""
    machine = Machine()
    machine.run(200, 40.0, memory_available_bytes=100 * MIB)
    assert machine.governor.level == Level(0, 4)
    limits = machine.governor.limits
    assert (limits.keeps_cached_pages, limits.max_request_tokens, limits.max_running) == (False, 512, 4)
    assert machine.changes[0].limits.max_request_tokens == 4096
    assert machine.changes[0].reason == "memory is short: 100 MiB available"
    machine.outcomes.clear()
    machine.run(100, 40.0, memory_available_bytes=150 * MIB)
    assert machine.outcomes == [], "above the reserve, but not by enough"
    machine.run(400, 40.0, memory_available_bytes=2000 * MIB)
    assert [change.level_to.memory for change in machine.changes] == [3, 2, 1, 0]


def test_mapped_weights_are_not_available() -> None:
    """The system counts mapped weights as memory to be had; of 2148 MiB, 2 GiB of them leave 100: too little."""
    machine = Machine(_plan(memory=PlanMemory(weights_bytes=2048 * MIB)))
    machine.run(10, 40.0, memory_available_bytes=2148 * MIB)
    assert machine.changes[0].reason == "memory is short: 100 MiB available"
    machine.run(60, 40.0, memory_available_bytes=2000 * MIB)
    assert machine.changes[-1].reason == "memory is short: 0 MiB available"
    machine.run(400, 40.0, memory_available_bytes=3000 * MIB)
    assert machine.governor.level == Level(0, 0)


def test_memory_for_a_longer_request_must_be_there_first() -> None:
    """From 2048 tokens to 4096 are 392 MiB of keys and values; with less above the reserve it stays at 2048."""
    machine = Machine()
    machine.run(400, 40.0, memory_available_bytes=50 * MIB)
    machine.run(900, 40.0, memory_available_bytes=500 * MIB)
    assert machine.governor.limits.max_request_tokens == 2048
    machine.run(200, 40.0, memory_available_bytes=600 * MIB)
    assert machine.governor.level == Level(0, 0)


@pytest.mark.parametrize(
    ("values", "is_bad"),
    [
        ({"memory_pressure_avg10": 15.0}, True),
        ({"memory_pressure_avg10": 5.0}, False),
        ({"memory_high_events": 1}, True),
        ({"oom_kill_events": 1}, True),
        ({"memory_max_events": 1}, False),
        ({"memory_max_events": 1, "memory_pressure_avg10": 5.0}, True),
    ],
)
def test_what_counts_as_short_memory(values: dict[str, Any], is_bad: bool) -> None:
    """Stalls and events of the control group step down; reaching its limit without stalls does not."""
    machine = Machine()
    for second in range(10):
        counted = {name: value * second if name.endswith("events") else value for name, value in values.items()}
        machine.observe(**counted)
    assert (machine.governor.level.memory > 0) == is_bad


def test_a_moment_of_short_memory_is_no_reason_unless_it_is_dire() -> None:
    """One sample below the reserve changes nothing; one below half of it does at once."""
    machine = Machine()
    machine.observe(memory_available_bytes=120 * MIB)
    machine.observe(memory_available_bytes=2000 * MIB)
    assert machine.outcomes == []
    machine.observe(memory_available_bytes=60 * MIB)
    assert machine.governor.level == Level(0, 1)


def test_speed_and_memory_may_step_in_one_change() -> None:
    """When both are short, one change has both steps and both reasons, and the limits are the smaller ones."""
    machine = Machine()
    machine.run(10, 8.0, demand=1, memory_available_bytes=100 * MIB)
    machine.run(30, 8.0, demand=1, memory_available_bytes=100 * MIB)
    limits = machine.governor.limits
    assert (limits.max_running, limits.keeps_cached_pages) == (1, False)
    machine = Machine(policy=GovernorPolicy(floor_tokens_per_s=FLOOR, speed=policy_for(_plan()).memory))
    machine.run(10, 8.0, demand=1, memory_available_bytes=100 * MIB)
    (change,) = machine.changes
    assert change.level_to == Level(5, 1)
    assert "memory is short" in change.reason
    assert "too slow" in change.reason


def test_without_a_floor_only_memory_is_governed() -> None:
    """A plan that promises no speed has no steps by speed."""
    machine = Machine(_plan(floor_tokens_per_s=None))
    machine.run(600, 0.1)
    assert machine.outcomes == []
    machine.run(10, 0.1, memory_available_bytes=1)
    assert machine.governor.level.memory == 1


def test_the_reserve_is_what_the_plan_leaves_free() -> None:
    """A plan that keeps little memory free must not be punished for it."""
    assert policy_for(_plan()).memory_reserve_bytes == 128 * MIB
    assert policy_for(_plan(memory=PlanMemory(reserve_bytes=100 * MIB))).memory_reserve_bytes == 50 * MIB


@pytest.mark.parametrize(
    "changes", [{"floor_tokens_per_s": 0.0}, {"headroom": 0.9}, {"min_interval_s": -1.0}, {"batch_cost": -0.1}]
)
def test_a_policy_out_of_bounds_is_refused(changes: dict[str, float]) -> None:
    """A policy that could not work is refused by the name of the value."""
    with pytest.raises(ConfigError, match=next(iter(changes))):
        GovernorPolicy(**changes)  # type: ignore[arg-type]  # only floats are given


def _optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


SAMPLES = st.fixed_dictionaries(
    {
        "stream_tokens_per_s": _optional(st.floats(0, 50)),
        "num_running": st.integers(0, 4),
        "num_waiting": st.integers(0, 3),
        "prefilled_tokens": _optional(st.integers(0, 64)),
        "temperature_c": _optional(st.floats(20, 100)),
        "trip_c": _optional(st.just(85.0)),
        "frequency_ratio": _optional(st.floats(0, 1)),
        "is_throttled": _optional(st.booleans()),
        "memory_available_bytes": _optional(st.integers(0, 4096 * MIB)),
        "memory_pressure_avg10": _optional(st.floats(0, 100)),
        "memory_high_events": _optional(st.integers(0, 3)),
        "memory_max_events": _optional(st.integers(0, 3)),
        "oom_kill_events": _optional(st.integers(0, 3)),
    }
)
# (how many seconds, what they are like)
WEATHER = st.lists(st.tuples(st.integers(1, 80), SAMPLES), min_size=1, max_size=12)
_SETTINGS = settings(deadline=None, max_examples=60)


@_SETTINGS
@given(weather=WEATHER, plan=st.sampled_from([_plan(), _plan(max_running=1), _plan(context_tokens=700)]))
def test_whatever_comes_changes_are_rare_and_within_the_plan(
    weather: list[tuple[int, dict[str, Any]]], plan: Plan
) -> None:
    """Over any samples: 30 s between changes, no limit above the plan, and the same changes for the same samples."""
    first, second = Machine(plan), Machine(plan)
    level = Level()
    for seconds, values in weather:
        for _ in range(seconds):
            assert first.observe(**values) == second.observe(**values)
            assert 0 <= first.governor.level.speed < len(speed_ladder(plan))
            assert 0 <= first.governor.level.memory < len(memory_ladder(plan))
            assert first.governor.limits.combined_with(plan_limits(plan)) == first.governor.limits
    for change in first.changes:
        assert change.level_from == level != change.level_to
        level = change.level_to
    times = [change.at_s for change in first.changes]
    assert all(b - a >= 30 for a, b in itertools.pairwise(times))
    misses = [miss.at_s for miss in first.misses]
    assert all(b - a >= 30 for a, b in itertools.pairwise(misses))


@_SETTINGS
@given(weather=WEATHER, demand=st.integers(1, 6))
def test_after_whatever_came_good_conditions_lead_back_to_the_plan(
    weather: list[tuple[int, dict[str, Any]]], demand: int
) -> None:
    """Constant good conditions end at level 0 within the longest wait for each level, and stay there."""
    machine = Machine()
    for seconds, values in weather:
        for _ in range(seconds):
            machine.observe(**values)
    good: dict[str, Any] = {"memory_available_bytes": 8192 * MIB, "memory_pressure_avg10": 0.0, "prefilled_tokens": 0}
    machine.run(2500, 40.0, demand=demand, **good)
    assert machine.governor.level == Level(0, 0)
    machine.outcomes.clear()
    machine.run(1000, 40.0, demand=demand, **good)
    assert machine.outcomes == []


@_SETTINGS
@given(weather=WEATHER, demand=st.integers(2, 6))
def test_after_whatever_came_bad_conditions_lead_to_the_bottom(
    weather: list[tuple[int, dict[str, Any]]], demand: int
) -> None:
    """Constant bad conditions end at the lowest level of both ladders, and stay there with one message at most."""
    machine = Machine()
    for seconds, values in weather:
        for _ in range(seconds):
            machine.observe(**values)
    bad: dict[str, Any] = {"memory_available_bytes": 10 * MIB, "memory_pressure_avg10": 50.0}
    machine.run(500, 2.0, demand=demand, **bad)
    assert machine.governor.level == Level(5, 4)
    machine.outcomes.clear()
    machine.run(1000, 2.0, demand=demand, **bad)
    assert machine.changes == []
    assert len(machine.misses) <= 1


@_SETTINGS
@given(
    alone=st.floats(1.0, 60.0),
    cost=st.floats(0.0, 1.0),
    expected_cost=st.floats(0.0, 1.0),
    demand=st.integers(1, 6),
    noise=st.lists(st.floats(0.8, 1.25), min_size=7, max_size=7),
)
def test_constant_conditions_do_not_make_it_oscillate(
    alone: float, cost: float, expected_cost: float, demand: int, noise: list[float]
) -> None:
    """Whatever the speed, however wrong its idea of a batch and with noise, after an hour changes are rare."""
    machine = Machine(policy=GovernorPolicy(floor_tokens_per_s=FLOOR, batch_cost=expected_cost))
    for second in range(7200):
        if second == 3600:
            machine.outcomes.clear()
        machine.run(1, alone * noise[second % 7], demand=demand, cost=cost)
    assert len(machine.changes) <= 2 * 3600 / 480 + 2
