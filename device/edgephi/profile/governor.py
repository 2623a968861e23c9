"""
Decides at run time how much a server takes on, so that every answer keeps its speed and memory suffices.

Measured speed comes first; heat and clocks only say how long to wait. Owns the decisions. Has no clock, reads no
sensor and changes nothing: samples in, changes out, the same for the same samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgephi.errors import ConfigError
from edgephi.profile.hysteresis import Patience, Position, Verdict
from edgephi.profile.ladders import ServingLimits, memory_ladder, speed_ladder
from edgephi.profile.plan import Plan

MIB = 1 << 20
_SPEED_PATIENCE = Patience(down_s=5.0, up_s=30.0)
_MEMORY_PATIENCE = Patience(down_s=3.0, up_s=60.0)
_MEMORY_RESERVE_BYTES = 128 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """
    What was measured over the time since the last sample, or is true now; None where nothing tells.

    Attributes:
        at_s: When; any clock that never goes back.
        stream_tokens_per_s: Tokens a second of one answer, the mean of all; None when none was drawn.
        num_running: Requests being computed, or that were during that time.
        num_waiting: Requests that wait.
        prefilled_tokens: Prompt tokens computed.
        temperature_c: Of the zone that is closest to its limit.
        trip_c: Where cores begin to be slowed down for that zone.
        frequency_ratio: Clock of the computing cores as a part of their highest.
        is_throttled: Whether heat or voltage holds the cores back.
        memory_available_bytes: What can be had without swapping, by machine and control groups, mapped files included.
        memory_pressure_avg10: Percent of the last ten seconds in which some task waited for memory.
        memory_high_events: Counter: times a control group was slowed down for its size.
        memory_max_events: Counter: times a control group was at its limit. Reading a large file does it too.
        oom_kill_events: Counter: processes killed for lack of memory.
    """

    at_s: float
    stream_tokens_per_s: float | None = None
    num_running: int = 0
    num_waiting: int = 0
    prefilled_tokens: int | None = None
    temperature_c: float | None = None
    trip_c: float | None = None
    frequency_ratio: float | None = None
    is_throttled: bool | None = None
    memory_available_bytes: int | None = None
    memory_pressure_avg10: float | None = None
    memory_high_events: int | None = None
    memory_max_events: int | None = None
    oom_kill_events: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorPolicy:
    """
    What is held, and how patiently.

    Attributes:
        floor_tokens_per_s: Least speed of an answer; None holds none.
        min_interval_s: Least time between two changes.
        headroom: A higher level is taken if the speed expected there is this many times the floor.
        batch_cost: What one more request adds to a step, as a part of the step of one alone.
        speed: Evidence for steps by speed.
        memory: Evidence for steps by memory.
        idle_probe_s: After so long without a request one level up is tried.
        hot_margin_c: So close to where cores are slowed down counts as hot.
        low_frequency: A clock below this part of the highest counts as held back.
        hint_factor: When hot or held back, stepping down takes this many times less time. A low clock alone makes
            stepping up take as many times more; heat forbids it.
        memory_reserve_bytes: Available memory below this is too little.
        memory_headroom: Stepping up takes this many times the reserve.
        high_pressure: Percent of time lost to waiting for memory that is too much.
        low_pressure: Percent below which memory is no concern.
    """

    floor_tokens_per_s: float | None = None
    min_interval_s: float = 30.0
    headroom: float = 1.1
    batch_cost: float = 0.25
    speed: Patience = _SPEED_PATIENCE
    memory: Patience = _MEMORY_PATIENCE
    idle_probe_s: float = 120.0
    hot_margin_c: float = 5.0
    low_frequency: float = 0.75
    hint_factor: float = 2.0
    memory_reserve_bytes: int = _MEMORY_RESERVE_BYTES
    memory_headroom: float = 1.25
    high_pressure: float = 10.0
    low_pressure: float = 2.0

    def __post_init__(self) -> None:
        if self.floor_tokens_per_s is not None and not self.floor_tokens_per_s > 0:
            raise ConfigError(f"floor_tokens_per_s is {self.floor_tokens_per_s}; must be above 0")
        for name, value, low in (
            ("min_interval_s", self.min_interval_s, 0.0),
            ("headroom", self.headroom, 1.0),
            ("batch_cost", self.batch_cost, 0.0),
            ("hint_factor", self.hint_factor, 1.0),
            ("memory_headroom", self.memory_headroom, 1.0),
        ):
            if not value >= low:
                raise ConfigError(f"{name} is {value:g}; must be at least {low:g}")


def policy_for(plan: Plan) -> GovernorPolicy:
    """Return the usual policy for a plan: its floor, and a memory reserve that the plan itself leaves free."""
    planned = plan.memory.reserve_bytes
    reserve = _MEMORY_RESERVE_BYTES if planned is None else min(_MEMORY_RESERVE_BYTES, planned // 2)
    return GovernorPolicy(floor_tokens_per_s=plan.floor_tokens_per_s, memory_reserve_bytes=reserve)


@dataclass(frozen=True, slots=True, order=True)
class Level:
    """Steps below the plan; zero is the plan itself."""

    speed: int = 0
    memory: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Other limits are in force from now on; ``reason`` is for people and has the numbers."""

    at_s: float
    level_from: Level
    level_to: Level
    limits: ServingLimits
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorMissed:
    """Nothing is left to take away and answers are still below the floor; told once, until it was held again."""

    at_s: float
    tokens_per_s: float
    reason: str


class Governor:
    """
    Levels in force, from the samples so far. Lives as long as its plan; one thread uses it.

    Args:
        plan: What is allowed at best.
        policy: What is held; by default :func:`policy_for` the plan.
    """

    def __init__(self, plan: Plan, policy: GovernorPolicy | None = None) -> None:
        self.policy = policy_for(plan) if policy is None else policy
        self._speed_ladder, self._memory_ladder = speed_ladder(plan), memory_ladder(plan)
        self._weights_bytes = plan.memory.weights_bytes or 0
        self._kv_bytes_per_token = (plan.memory.kv_bytes or 0) / max(plan.num_pages * plan.page_tokens, 1)
        self._speed, self._memory = Position(self.policy.speed), Position(self.policy.memory)
        self._changed_at: float | None = None
        self._idle_since: float | None = None
        self._last: Sample | None = None
        self._is_floor_missed = False

    @property
    def level(self) -> Level:
        """Steps below the plan."""
        return Level(self._speed.level, self._memory.level)

    @property
    def limits(self) -> ServingLimits:
        """What is allowed at present."""
        return self._speed_ladder[self._speed.level].combined_with(self._memory_ladder[self._memory.level])

    @property
    def is_floor_missed(self) -> bool:
        """Whether the floor cannot be held and was not since that was told."""
        return self._is_floor_missed

    def observe(self, sample: Sample) -> Change | FloorMissed | None:
        """Take a sample, later than all before, and say what follows from it, if anything."""
        assert self._last is None or sample.at_s >= self._last.at_s, "samples go forward in time"
        sample = self._less_weights(sample)
        self._note_memory(sample)
        self._note_speed(sample)
        self._last = sample
        if self._is_floor_missed and self._speed.has_settled():
            self._is_floor_missed = False
        is_too_soon = self._changed_at is not None and sample.at_s - self._changed_at < self.policy.min_interval_s
        if not is_too_soon:
            moves = self._falls(sample) or self._rises(sample)
            if moves:
                return self._change(sample, moves)
        return self._missed_floor(sample)

    def _less_weights(self, sample: Sample) -> Sample:
        """
        Return a sample whose available memory is what can be had beside the weights.

        They are mapped files, which the system would give up first and counts as available; but every token reads them.
        """
        available = sample.memory_available_bytes
        if available is None:
            return sample
        return replace(sample, memory_available_bytes=max(available - self._weights_bytes, 0))

    def _note_speed(self, sample: Sample) -> None:
        if sample.num_running or sample.num_waiting or sample.prefilled_tokens:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = sample.at_s
        speed, floor = sample.stream_tokens_per_s, self.policy.floor_tokens_per_s
        if speed is None or floor is None:
            return
        if speed < floor:
            # More than allowed may still run from before; a step further down would change nothing for them.
            if sample.num_running <= self.limits.max_running:
                self._speed.note(sample.at_s, Verdict.BAD)
        elif self._speed.level > 0 and self._expected(sample, speed) >= floor * self.policy.headroom:
            self._speed.note(sample.at_s, Verdict.GOOD)
        else:
            self._speed.note(sample.at_s, Verdict.NEUTRAL)

    def _expected(self, sample: Sample, speed: float) -> float:
        """Speed of an answer if as many ran as the next higher level allows."""
        now, more = max(sample.num_running, 1), self._speed_ladder[self._speed.level - 1].max_running
        cost = self.policy.batch_cost
        return speed * (1 + cost * (now - 1)) / (1 + cost * (max(more, now) - 1))

    def _note_memory(self, sample: Sample) -> None:
        policy, available = self.policy, sample.memory_available_bytes
        pressure = sample.memory_pressure_avg10 or 0.0
        events = self._grown(sample, "memory_high_events") or self._grown(sample, "oom_kill_events")
        # At its limit a group also is when it merely reads files; only with stalls does it mean something.
        events = events or (self._grown(sample, "memory_max_events") and pressure >= policy.low_pressure)
        is_short = available is not None and available < policy.memory_reserve_bytes
        if events or is_short or pressure >= policy.high_pressure:
            self._memory.note(sample.at_s, Verdict.BAD)
        elif pressure < policy.low_pressure and (available is None or available >= self._memory_to_rise()):
            self._memory.note(sample.at_s, Verdict.GOOD)
        else:
            self._memory.note(sample.at_s, Verdict.NEUTRAL)

    def _memory_to_rise(self) -> float:
        """Bytes that must be available for the next higher level: one request of the size that it allows is added."""
        ladder, level = self._memory_ladder, self._memory.level
        more_tokens = ladder[max(level - 1, 0)].max_request_tokens - ladder[level].max_request_tokens
        return self.policy.memory_reserve_bytes * self.policy.memory_headroom + more_tokens * self._kv_bytes_per_token

    def _grown(self, sample: Sample, counter: str) -> bool:
        now, before = getattr(sample, counter), None if self._last is None else getattr(self._last, counter)
        return now is not None and before is not None and now > before

    def _is_hot(self, sample: Sample) -> bool:
        temperature, trip = sample.temperature_c, sample.trip_c
        is_near = temperature is not None and trip is not None and temperature >= trip - self.policy.hot_margin_c
        return is_near or sample.is_throttled is True

    def _is_slow_clock(self, sample: Sample) -> bool:
        # Idle cores may well be slow; that says nothing.
        return (
            sample.frequency_ratio is not None
            and sample.num_running > 0
            and sample.frequency_ratio < self.policy.low_frequency
        )

    def _falls(self, sample: Sample) -> dict[Position, tuple[int, str]]:
        """Steps down that the evidence asks for: position, level and reason."""
        moves: dict[Position, tuple[int, str]] = {}
        if self._memory.level + 1 < len(self._memory_ladder) and self._memory.should_fall(haste=self._alarm(sample)):
            moves[self._memory] = (self._memory.level + 1, f"memory is short: {_memory_numbers(sample)}")
        level = self._helpful_level(sample)
        if level is not None and self._is_below_floor(sample):
            moves[self._speed] = (level, f"answers are too slow: {self._speed_numbers(sample)}")
        return moves

    def _rises(self, sample: Sample) -> dict[Position, tuple[int, str]]:
        """Steps up that the evidence allows, one level each."""
        moves: dict[Position, tuple[int, str]] = {}
        if self._memory.level > 0 and self._memory.should_rise():
            moves[self._memory] = (self._memory.level - 1, f"memory suffices again: {_memory_numbers(sample)}")
        if self._speed.level == 0 or self._is_hot(sample):
            return moves
        reluctance = self.policy.hint_factor if self._is_slow_clock(sample) else 1.0
        if sample.stream_tokens_per_s is not None and self._speed.should_rise(reluctance=reluctance):
            moves[self._speed] = (self._speed.level - 1, f"answers are fast enough: {self._speed_numbers(sample)}")
        elif self._idle_s(sample) >= self.policy.idle_probe_s and self._speed.may_probe(sample.at_s):
            moves[self._speed] = (self._speed.level - 1, f"idle for {self._idle_s(sample):.0f} s: a trial")
        return moves

    def _idle_s(self, sample: Sample) -> float:
        return 0.0 if self._idle_since is None else sample.at_s - self._idle_since

    def _alarm(self, sample: Sample) -> float:
        """Infinite when waiting for more evidence of short memory could end in a kill."""
        available, reserve = sample.memory_available_bytes, self.policy.memory_reserve_bytes
        is_dire = available is not None and available < reserve / 2
        return float("inf") if is_dire else 1.0

    def _is_below_floor(self, sample: Sample) -> bool:
        is_hinted = self._is_hot(sample) or self._is_slow_clock(sample)
        return sample.stream_tokens_per_s is not None and self._speed.should_fall(
            haste=self.policy.hint_factor if is_hinted else 1.0
        )

    def _helpful_level(self, sample: Sample) -> int | None:
        """Return the next lower level that would make answers faster, or keep more of them from coming; or None."""
        now = self._speed_ladder[self._speed.level]
        is_prefilling = sample.prefilled_tokens is None or sample.prefilled_tokens > 0
        for level in range(self._speed.level + 1, len(self._speed_ladder)):
            limits = self._speed_ladder[level]
            has_smaller_chunks = limits.mixed_chunk_tokens < now.mixed_chunk_tokens and sample.num_running > 1
            if (has_smaller_chunks and is_prefilling) or limits.max_running < max(sample.num_running, 2):
                return level
        return None

    def _missed_floor(self, sample: Sample) -> FloorMissed | None:
        speed, floor = sample.stream_tokens_per_s, self.policy.floor_tokens_per_s
        if self._is_floor_missed or self._helpful_level(sample) is not None or not self._is_below_floor(sample):
            return None
        assert speed is not None
        assert floor is not None
        self._is_floor_missed = True
        self._speed.forget()
        reason = f"floor cannot be held: {speed:.1f} of {floor:.3g} tok/s"
        return FloorMissed(at_s=sample.at_s, tokens_per_s=speed, reason=reason)

    def _change(self, sample: Sample, moves: dict[Position, tuple[int, str]]) -> Change:
        before = self.level
        for position, (level, _) in moves.items():
            position.move(sample.at_s, level)
        self._changed_at = sample.at_s
        if self._idle_since is not None:
            self._idle_since = sample.at_s
        reason = "; ".join(reason for _, reason in moves.values())
        return Change(at_s=sample.at_s, level_from=before, level_to=self.level, limits=self.limits, reason=reason)

    def _speed_numbers(self, sample: Sample) -> str:
        held_back = ", cores are held back" if self._is_hot(sample) or self._is_slow_clock(sample) else ""
        speed, floor = sample.stream_tokens_per_s, self.policy.floor_tokens_per_s
        return f"{speed:.1f} tok/s each of {sample.num_running}, floor {floor:.3g}{held_back}"


def _memory_numbers(sample: Sample) -> str:
    parts = []
    if sample.memory_available_bytes is not None:
        parts.append(f"{sample.memory_available_bytes / MIB:.0f} MiB available")
    if sample.memory_pressure_avg10 is not None:
        parts.append(f"{sample.memory_pressure_avg10:.1f} % of the time lost to waiting for it")
    return ", ".join(parts) or "a control group was at its limit"
