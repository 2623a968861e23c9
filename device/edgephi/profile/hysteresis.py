"""
Where something stands between level 0 and its last one, and when there is evidence enough to move.

Owns the waiting: down after a short time of bad evidence, up after a longer one of good, and after an attempt that
failed twice as long as before. Knows neither speed nor memory, and no clock: moments are given, in seconds.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

_GOOD_SHARE = 0.8  # of the samples, to step up


class Verdict(enum.Enum):
    """What one sample says of the present level."""

    BAD = "bad"  # a lower one is needed
    NEUTRAL = "neutral"  # it is right
    GOOD = "good"  # a higher one would do


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """
    How much evidence a move takes.

    Attributes:
        down_s: Time that samples must cover, most of them bad, to step down.
        up_s: Time that samples must cover, four of five good, to step up.
        min_samples: Least number of samples in either, at least 1.
        relapse_s: A step down this soon after a step up means that the latter failed.
        max_doublings: How often the wait before the next step up doubles at most, once for each failure in a row.
    """

    down_s: float
    up_s: float
    min_samples: int = 3
    relapse_s: float = 120.0
    max_doublings: int = 4


class Position:
    """A level with its evidence. One thread uses it."""

    def __init__(self, patience: Patience) -> None:
        self.level = 0
        self._patience = patience
        self._samples: deque[tuple[float, Verdict]] = deque()
        self._raised_at: float | None = None
        self._num_failures = 0
        self._no_rise_before = float("-inf")

    def note(self, at_s: float, verdict: Verdict) -> None:
        """Take what a sample says; later ones come later."""
        self._samples.append((at_s, verdict))
        oldest = at_s - 4 * max(self._patience.up_s, self._patience.down_s)
        while self._samples[0][0] < oldest:
            self._samples.popleft()

    def should_fall(self, *, haste: float = 1.0) -> bool:
        """
        Whether the evidence is for a lower level.

        Args:
            haste: By how much the wait is shortened; infinite to let one bad sample do.
        """
        if not self._ends_with(Verdict.BAD):
            return False
        least = 1 if haste == float("inf") else self._patience.min_samples
        recent = self._recent(self._patience.down_s / haste, least)
        return 2 * recent.count(Verdict.BAD) > len(recent)

    def should_rise(self, *, reluctance: float = 1.0) -> bool:
        """
        Whether the evidence is for a higher level, and the last failed attempt long enough ago.

        Args:
            reluctance: By how much the wait is lengthened.
        """
        if not self._ends_with(Verdict.GOOD) or self._samples[-1][0] < self._no_rise_before:
            return False
        recent = self._recent(self._patience.up_s * reluctance, self._patience.min_samples)
        return bool(recent) and recent.count(Verdict.GOOD) >= _GOOD_SHARE * len(recent)

    def has_settled(self) -> bool:
        """Whether the level has proved right or better for as long as a step up takes."""
        recent = self._recent(self._patience.up_s, self._patience.min_samples)
        return bool(recent) and recent.count(Verdict.BAD) <= (1 - _GOOD_SHARE) * len(recent)

    def may_probe(self, at_s: float) -> bool:
        """Whether a higher level may be tried without evidence."""
        return self.level > 0 and at_s >= self._no_rise_before

    def move(self, at_s: float, level: int) -> None:
        """Take another level; evidence starts anew."""
        assert level != self.level
        if level < self.level:
            self._raised_at = at_s
        else:
            if self._raised_at is not None:
                has_failed = at_s - self._raised_at <= self._patience.relapse_s
                self._num_failures = min(self._num_failures + 1, self._patience.max_doublings) if has_failed else 0
            self._raised_at = None
            self._no_rise_before = at_s + self._patience.up_s * 2**self._num_failures
        self.level = level
        self.forget()

    def forget(self) -> None:
        """Let the evidence start anew."""
        self._samples.clear()

    def _ends_with(self, verdict: Verdict) -> bool:
        return bool(self._samples) and self._samples[-1][1] is verdict

    def _recent(self, span_s: float, least: int) -> list[Verdict]:
        """Return the fewest verdicts, newest first, that are that many and cover that time; empty if there are none."""
        found: list[Verdict] = []
        for at_s, verdict in reversed(self._samples):
            found.append(verdict)
            if len(found) >= least and self._samples[-1][0] - at_s >= span_s:
                return found
        return []
