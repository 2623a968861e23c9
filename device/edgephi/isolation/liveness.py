"""
Whether an engine process still does its work, and how often it may die.

Owns the two rules. Pure: time is passed in, or comes from a clock that a test can set.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessSettings:
    """
    How long an engine process may be silent, and how often it may die.

    Attributes:
        is_watching: Whether one that hangs is killed at all; off only to show in a test what the watch is good for.
        heartbeat_s: Longest time between two messages that it promises.
        max_silence_s: Longest time that none may come before it is killed. A stopped process has so long, so the
            sum with one second must stay below 10 s.
        max_loading_silence_s: The same while it loads, when libraries are read from slow storage in one go.
        min_step_s: Least time that a step may always take.
        step_factor: How many times the slowest step seen a step may take.
        max_deaths: Deaths within ``deaths_within_s`` after which it is not started again.
        deaths_within_s: See there.
    """

    is_watching: bool = True
    heartbeat_s: float = 1.0
    max_silence_s: float = 8.0
    max_loading_silence_s: float = 60.0
    min_step_s: float = 10.0
    step_factor: float = 5.0
    max_deaths: int = 5
    deaths_within_s: float = 600.0

    @property
    def tick_s(self) -> float:
        """How often to look."""
        return min(0.5, self.max_silence_s / 4, self.min_step_s / 4)


class Liveness:
    """
    Judges one engine process, from its start to its end. One thread uses it.

    Silence is counted in looks, not between two moments: when this process itself was stopped for a while, the engine
    must have its chance to be heard again before it is judged.
    """

    def __init__(self, settings: LivenessSettings) -> None:
        self._settings = settings
        self._silence_s = 0.0
        self._slowest_step_s = 0.0
        self._last_step_at: float | None = None

    def heard(self) -> None:
        """Note a message."""
        self._silence_s = 0.0

    def stepped(self, last_step_at: float, *, work_since: float) -> None:
        """
        Note when a step ended.

        Args:
            last_step_at: When, in seconds.
            work_since: When the engine last went from idle to having work.
        """
        if self._last_step_at is not None and last_step_at > self._last_step_at:
            duration_s = last_step_at - max(self._last_step_at, work_since)
            self._slowest_step_s = max(self._slowest_step_s, duration_s)
        self._last_step_at = last_step_at

    def looked(self, waited_s: float) -> None:
        """Note that nothing came in so many seconds of waiting."""
        self._silence_s += min(waited_s, 2 * self._settings.tick_s)

    def verdict(self, now: float, *, is_loading: bool, work_since: float | None) -> str | None:
        """
        Return why the process must be killed, None while it is well.

        Args:
            now: Seconds, of the same clock as the steps.
            is_loading: Whether the model is not loaded yet.
            work_since: When the engine last went from idle to having work; None while it has none.
        """
        settings = self._settings
        if not settings.is_watching:
            return None
        max_silence_s = settings.max_loading_silence_s if is_loading else settings.max_silence_s
        if self._silence_s >= max_silence_s:
            return f"it was silent for {self._silence_s:.1f} s; at most {max_silence_s:g} s are allowed"
        if work_since is None:
            return None
        max_step_s = max(settings.min_step_s, settings.step_factor * self._slowest_step_s)
        step_s = now - max(work_since, self._last_step_at or work_since)
        # Only while it is being heard: a stopped process is the other rule's, with its own words.
        if step_s >= max_step_s:
            return f"a step has not ended for {step_s:.1f} s; at most {max_step_s:.1f} s are allowed"
        return None


class Deaths:
    """
    Counts deaths within a window of time. One thread uses it.

    Args:
        settings: How many are too many.
        clock: Seconds that never go back.
    """

    def __init__(self, settings: LivenessSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._at: deque[float] = deque(maxlen=settings.max_deaths + 1)

    def add(self) -> float | None:
        """Note a death; return how long to wait before the next start in seconds, None when it is not worth one."""
        now = self._clock()
        self._at.append(now)
        num_recent = sum(at > now - self._settings.deaths_within_s for at in self._at)
        # The first start is at once; then up to 2 s, so that what makes it die may pass.
        return None if num_recent > self._settings.max_deaths else min(0.5 * (num_recent - 1), 2.0)
