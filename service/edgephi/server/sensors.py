"""
One reading of the machine's sensors for all who want one, at most once a second.

Owns the age of a reading. What is read is edgephi.profile.machine.probe's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgephi.profile.machine.probe import LiveFacts

MIN_INTERVAL_S = 1.0
WAIT_S = 2.0
"""How long the metrics page waits for a sensor that does not answer; it then goes without."""


@dataclass(frozen=True, slots=True)
class _Reading:
    live: LiveFacts
    at_s: float


class Sensors:
    """
    The sensors of one machine. Lives as long as its server; every method is called from threads that may wait.

    Args:
        probe_live: Reads them; may take a moment.
        min_interval_s: A reading is used for so long.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        probe_live: Callable[[], LiveFacts],
        *,
        min_interval_s: float = MIN_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe_live = probe_live
        self._min_interval_s = min_interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._last: _Reading | None = None

    def read(self) -> LiveFacts:
        """Return a reading of the last second, or take one; waits as long as a sensor does."""
        with self._lock:
            return self._fresh()

    def read_soon(self, timeout_s: float = WAIT_S) -> LiveFacts | None:
        """Return the same, or None if another reading is under way and is not finished in time."""
        if not self._lock.acquire(timeout=timeout_s):
            return None
        try:
            return self._fresh()
        finally:
            self._lock.release()

    def _fresh(self) -> LiveFacts:
        last = self._last
        if last is None or self._clock() - last.at_s >= self._min_interval_s:
            last = self._last = _Reading(self._probe_live(), self._clock())
        return last.live
