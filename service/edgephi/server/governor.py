"""
Holds a server to its plan's promise while it runs: measures every second, decides, applies, tells.

Owns the interval and what is remembered of past changes. Decisions are edgephi.profile.governor's, limits are the
engine's. Runs on the server's event loop; sensors are read in a thread, because one may be slow to answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from edgephi.engine.limits import EngineLimits
from edgephi.engine.stats import EngineStats
from edgephi.profile.governor import Change, FloorMissed, Governor, Level, Sample
from edgephi.profile.ladders import ServingLimits
from edgephi.profile.machine.probe import LiveFacts, probe_live

INTERVAL_S = 1.0
NUM_EVENTS = 32


class GovernedEngine(Protocol):
    """What is watched and limited; ``edgephi.engine.loop.EngineLoop`` is one."""

    def stats(self) -> EngineStats:
        """Gauges and counters; quick, any thread."""
        ...

    @property
    def max_limits(self) -> EngineLimits:
        """The most that can be set."""
        ...

    def set_limits(self, limits: EngineLimits) -> None:
        """Change how much is taken on, before the next step."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorState:
    """
    What the governor does at one moment.

    Attributes:
        level: Steps below the plan.
        limits: What is allowed at present.
        floor_tokens_per_s: What is held, or None.
        stream_tokens_per_s: Speed of one answer, the mean of all over the last interval; None where none decoded.
        is_floor_missed: Whether nothing is left to take away and answers are still too slow.
        events: Last changes and missed floors, oldest first.
    """

    level: Level
    limits: ServingLimits
    floor_tokens_per_s: float | None
    stream_tokens_per_s: float | None
    is_floor_missed: bool
    events: tuple[Change | FloorMissed, ...]

    def leveled_events(self) -> list[tuple[Change | FloorMissed, Level]]:
        """Return each event with the level in force after it."""
        found: list[tuple[Change | FloorMissed, Level]] = []
        level = self.level
        for event in reversed(self.events):
            found.append((event, level))
            if isinstance(event, Change):
                level = event.level_from
        return found[::-1]


class GovernorTask:
    """
    A governor at work. Lives as long as its server, which runs :meth:`run` and cancels it.

    Args:
        governor: Decides.
        engine: Is watched and limited.
        cpus: Cores that compute; empty for all.
        probe_live: Reads the sensors; may take a moment.
        clock: Seconds that never go back.
        interval_s: Time between two samples.
        log: structlog logger; the program's by default.
    """

    def __init__(
        self,
        governor: Governor,
        engine: GovernedEngine,
        *,
        cpus: Collection[int] = (),
        probe_live: Callable[[], LiveFacts] = probe_live,
        clock: Callable[[], float] = time.monotonic,
        interval_s: float = INTERVAL_S,
        log: Any = None,
    ) -> None:
        self._governor = governor
        self._engine = engine
        self._cpus = frozenset(cpus)
        self._probe_live = probe_live
        self._clock = clock
        self._interval_s = interval_s
        self._log = structlog.get_logger("edgephi.governor") if log is None else log
        self._last_stats = engine.stats()
        self._stream_tokens_per_s: float | None = None
        self._events: deque[Change | FloorMissed] = deque(maxlen=NUM_EVENTS)

    @property
    def now(self) -> float:
        """The clock that events are stamped with, in seconds."""
        return self._clock()

    @property
    def state(self) -> GovernorState:
        """What it does now; quick, any thread."""
        governor = self._governor
        return GovernorState(
            level=governor.level,
            limits=governor.limits,
            floor_tokens_per_s=governor.policy.floor_tokens_per_s,
            stream_tokens_per_s=self._stream_tokens_per_s,
            is_floor_missed=governor.is_floor_missed,
            events=tuple(self._events.copy()),
        )

    async def run(self) -> None:
        """Take a sample every interval until cancelled; a failure is logged and the next sample taken."""
        while True:
            try:
                await self.tick()
            except Exception:  # noqa: BLE001 - whatever fails here, answers go on under the last limits
                self._log.exception("governor.failed")
            await asyncio.sleep(self._interval_s)

    async def tick(self) -> None:
        """Take one sample and do what follows from it."""
        live = await asyncio.to_thread(self._probe_live)
        before, stats = self._last_stats, self._engine.stats()
        self._last_stats = stats
        sample = make_sample(self._clock(), before, stats, live, self._cpus)
        self._stream_tokens_per_s = sample.stream_tokens_per_s
        outcome = self._governor.observe(sample)
        if isinstance(outcome, Change):
            self._apply(outcome)
        elif outcome is not None:
            self._events.append(outcome)
            self._log.warning("governor.floor_missed", reason=outcome.reason)

    def _apply(self, change: Change) -> None:
        limits, most = change.limits, self._engine.max_limits
        self._engine.set_limits(
            EngineLimits(
                max_running=min(limits.max_running, most.max_running),
                prefill_chunk_tokens=min(limits.prefill_chunk_tokens, most.prefill_chunk_tokens),
                mixed_chunk_tokens=min(limits.mixed_chunk_tokens, most.mixed_chunk_tokens),
                max_request_tokens=min(limits.max_request_tokens, most.max_request_tokens),
                keeps_cached_pages=limits.keeps_cached_pages,
                reason=limits.reason,
            )
        )
        self._events.append(change)
        is_lower = change.level_to.speed > change.level_from.speed or change.level_to.memory > change.level_from.memory
        (self._log.warning if is_lower else self._log.info)(
            "governor.changed",
            reason=change.reason,
            speed_level=change.level_to.speed,
            memory_level=change.level_to.memory,
            max_running=limits.max_running,
            prefill_chunk_tokens=limits.prefill_chunk_tokens,
            mixed_chunk_tokens=limits.mixed_chunk_tokens,
            max_request_tokens=limits.max_request_tokens,
            keeps_cached_pages=limits.keeps_cached_pages,
        )


def make_sample(
    at_s: float, before: EngineStats, stats: EngineStats, live: LiveFacts, cpus: Collection[int] = ()
) -> Sample:
    """
    Put together what happened between two readings of an engine and how the machine is doing.

    Args:
        at_s: When the second one was taken.
        before: Earlier reading.
        stats: Later reading.
        live: The machine.
        cpus: Cores that compute; empty for all.
    """
    stream_s = stats.decode_stream_s_total - before.decode_stream_s_total
    decode_s = stats.decode_s_total - before.decode_s_total
    num_tokens = stats.decode_tokens_total - before.decode_tokens_total
    # Short answers may all have ended by now, so what runs at this moment is not enough to go by.
    num_running = max(stats.running, round(stream_s / decode_s) if decode_s > 0 else 0)
    # The zone that has the least way to go until it slows cores down.
    zones = [(zone.throttle_celsius - zone.celsius, zone) for zone in live.zones if zone.throttle_celsius is not None]
    hottest = min(zones, key=lambda item: item[0])[1] if zones else None
    # The fastest, because those that wait for work may be slow.
    ratios = [
        policy.mhz / policy.max_mhz
        for policy in live.frequencies
        if policy.mhz is not None and policy.max_mhz and (not cpus or not frozenset(cpus).isdisjoint(policy.cpus))
    ]
    held_back = [live.throttle.is_throttled, live.throttle.is_under_voltage]
    available = [size for size in (live.available_bytes, live.cgroup.memory_left_bytes) if size is not None]
    return Sample(
        at_s=at_s,
        stream_tokens_per_s=num_tokens / stream_s if stream_s > 0 else None,
        num_running=num_running,
        num_waiting=stats.waiting,
        prefilled_tokens=stats.tokens_prefilled_total - before.tokens_prefilled_total,
        temperature_c=None if hottest is None else hottest.celsius,
        trip_c=None if hottest is None else hottest.throttle_celsius,
        frequency_ratio=max(ratios, default=None),
        is_throttled=None if held_back == [None, None] else any(held_back),
        memory_available_bytes=min(available, default=None),
        memory_pressure_avg10=None if live.pressure is None else live.pressure.some_avg10,
        memory_high_events=live.cgroup.high_events,
        memory_max_events=live.cgroup.max_events,
        oom_kill_events=live.cgroup.oom_kill_events,
    )
