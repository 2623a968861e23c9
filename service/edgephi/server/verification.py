"""
Holds a plan's predictions against what is measured while the server runs, and says so where they are wrong.

Owns when to look and when to warn. The comparison is edgephi.profile.verification's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from edgephi.engine.stats import EngineStats
from edgephi.profile.machine.probe import LiveFacts
from edgephi.profile.verification import Finding, Reading, Verifier, is_miss

INTERVAL_S = 1.0


class VerificationTask:
    """
    A verifier at work. Lives as long as its server, which runs :meth:`run` and cancels it.

    Args:
        verifier: Compares.
        stats: The engine's counters; quick.
        probe_live: Reads memory; may take a moment.
        page_tokens: Tokens a page.
        interval_s: Time between two readings.
        log: structlog logger; the program's by default.
    """

    def __init__(
        self,
        verifier: Verifier,
        stats: Callable[[], EngineStats],
        probe_live: Callable[[], LiveFacts],
        *,
        page_tokens: int,
        interval_s: float = INTERVAL_S,
        log: Any = None,
    ) -> None:
        self._verifier = verifier
        self._stats = stats
        self._probe_live = probe_live
        self._page_tokens = page_tokens
        self._interval_s = interval_s
        self._log = structlog.get_logger("edgephi.server") if log is None else log
        self._told: dict[str, bool] = {"memory": False, "speed": False}

    @property
    def finding(self) -> Finding:
        """The comparison as of the last reading."""
        return self._verifier.finding

    async def run(self) -> None:
        """Take a reading every interval until cancelled."""
        while True:
            try:
                self.tick(await asyncio.to_thread(self._probe_live))
            except Exception:  # noqa: BLE001 - answers go on whatever fails here
                self._log.exception("plan.verification_failed")
            await asyncio.sleep(self._interval_s)

    def tick(self, live: LiveFacts) -> None:
        """Compare, and warn once of each miss; again only after it was none."""
        stats = self._stats()
        finding = self._verifier.observe(
            Reading(
                context_tokens=stats.context_tokens,
                cached_pages=stats.pages_cached,
                num_pages=stats.pages_total,
                page_tokens=self._page_tokens,
                prefilled_tokens=stats.tokens_prefilled_total,
                drafted_tokens=stats.drafted_tokens_total,
                decode_tokens=stats.decode_tokens_total,
                decode_stream_s=stats.decode_stream_s_total,
                decode_s=stats.decode_s_total,
                peak_resident_bytes=live.peak_resident_bytes,
            )
        )
        self._tell(
            "memory",
            finding.memory_ratio,
            predicted_bytes=finding.predicted_peak_bytes,
            measured_bytes=finding.measured_peak_bytes,
        )
        self._tell(
            "speed",
            finding.speed_ratio,
            predicted_tokens_per_s=finding.predicted_stream_tokens_per_s,
            measured_tokens_per_s=finding.measured_stream_tokens_per_s,
        )

    def _tell(self, what: str, ratio: float | None, **numbers: float | None) -> None:
        if ratio is None:
            return
        has_missed = is_miss(ratio)
        if has_missed and not self._told[what]:
            rounded = {name: None if value is None else round(value, 2) for name, value in numbers.items()}
            self._log.warning("plan.prediction_missed", what=what, measured_to_predicted=round(ratio, 2), **rounded)
        self._told[what] = has_missed
