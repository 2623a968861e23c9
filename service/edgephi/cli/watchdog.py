"""
The sign of life that a service manager waits for, given only while this process really does its work.

Owns what counts as alive: the event loop runs on time, and the engine makes progress, has nothing to do, or is being
loaded. Knows no manager beyond the notifier.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from edgephi.cli.sd_notify import Notifier
from edgephi.engine.health import EngineHealth, EngineState
from edgephi.engine.stats import EngineStats

MAX_LAG_S = 1.0
MAX_STALL_S = 15.0
"""Longer than an engine's own supervisor takes to end one that hangs, and than any step of a slow board."""

_MAX_TICK_S = 0.25


class WatchedEngine(Protocol):
    """What is watched; ``edgephi.engine.loop.EngineLoop`` is one."""

    @property
    def last_step_at(self) -> float:
        """When a step last ended."""
        ...

    def stats(self) -> EngineStats:
        """Gauges and counters; quick."""
        ...

    def health(self) -> EngineHealth:
        """How the engine is; quick."""
        ...


class Watchdog:
    """
    Tells ``WATCHDOG=1`` at half of the manager's interval, or later, or never again.

    Args:
        notifier: Whom to tell; without a watchdog interval :meth:`run` ends at once.
        engine: The engine that must make progress.
        max_stall_s: How long an engine with work may complete no step.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        notifier: Notifier,
        engine: WatchedEngine,
        *,
        max_stall_s: float = MAX_STALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._notifier = notifier
        self._engine = engine
        self._max_stall_s = max_stall_s
        self._clock = clock
        self._step_at: float | None = None  # by the engine's clock, which may be another
        self._progress_at = clock()

    async def run(self) -> None:
        """Tell signs of life until cancelled."""
        if self._notifier.watchdog_s is None:
            return
        interval_s = self._notifier.watchdog_s / 2
        tick_s = min(_MAX_TICK_S, interval_s / 4)
        told_at = -float("inf")
        while True:
            slept_at = self._clock()
            await asyncio.sleep(tick_s)
            now = self._clock()
            is_on_time = now - slept_at - tick_s < MAX_LAG_S
            if self.makes_progress() and is_on_time and now - told_at >= interval_s - tick_s:
                self._notifier.tell(WATCHDOG=1)
                told_at = now

    def makes_progress(self) -> bool:
        """Return whether the engine completed a step lately, had nothing to do, or is being loaded."""
        now, step_at = self._clock(), self._engine.last_step_at
        state = self._engine.health().state
        stats = self._engine.stats()
        is_idle = stats.running == 0 and stats.waiting == 0
        if is_idle or state is EngineState.STARTING or step_at != self._step_at:
            self._step_at, self._progress_at = step_at, now
        return state is not EngineState.FAILED and now - self._progress_at < self._max_stall_s
