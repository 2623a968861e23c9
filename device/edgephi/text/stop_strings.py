"""
Finds stop strings in text that arrives in pieces.

Owns the bounds of stop strings and the text that may yet turn out to be one. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgephi.errors import FieldViolation

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256


def stop_violations(stops: Sequence[str]) -> list[FieldViolation]:
    """Return every bound of ``stop`` that is broken: at most 16 strings of 1 to 256 characters."""
    found: list[FieldViolation] = []
    if len(stops) > MAX_STOP_STRINGS:
        found.append(FieldViolation("stop", f"has {len(stops)} strings; send at most {MAX_STOP_STRINGS}"))
    for index, stop in enumerate(stops):
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            description = f"has {len(stop)} characters; must have 1 to {MAX_STOP_CHARACTERS}"
            found.append(FieldViolation(f"stop[{index}]", description))
    return found


class StopScan(NamedTuple):
    """
    What one more piece of text decided.

    Attributes:
        text: Safe to emit now; never holds any part of the stop string that ends the text.
        matched_stop: The stop string found, or None.
    """

    text: str
    matched_stop: str | None


class StopStringFinder:
    """
    Scans one text; make one per answer, nothing to close.

    The match is the stop string that is *complete* first, so that generation can end at once; of several
    complete at the same character, the longest. What is emitted is the text before it, however the text was
    cut. Held back is only the longest end of the text that a stop string begins with.

        stops: "abcd", "bc"      text: x a b | c d
        push("xab") -> "x"       held "ab"
        push("cd")  -> "a"       "bc" is complete at "c", before "abcd" is at "d"

    Args:
        stops: Within the bounds of ``stop_violations``; none is fine.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert not stop_violations(stops)
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> StopScan:
        """Take the next piece; after a match, return no more text and the same match."""
        if self._matched is not None:
            return StopScan("", self._matched)
        text = self._held + text
        # find() gives each string's first start, hence its first end; held text is shorter than any match.
        ends = [(start + len(stop), -len(stop), stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            end, minus_len, self._matched = min(ends)
            self._held = ""
            return StopScan(text[: end + minus_len], self._matched)
        safe_len = len(text) - self._held_len(text)
        self._held = text[safe_len:]
        return StopScan(text[:safe_len], None)

    def flush(self) -> str:
        """End the text; return what was held back, which has become no stop string."""
        held, self._held = self._held, ""
        return held

    def _held_len(self, text: str) -> int:
        """Length of the longest end of the text that some stop string begins with; no stop string is in it."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
