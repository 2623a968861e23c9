"""
Requests that end the engine process: suspects after one death, refused for a while after a second one.

Owns who is a suspect and who is refused. Pure: processes and sockets are the caller's. The rule is

    was running at a death         ─► suspect, and runs alone from then on, so that no neighbour is blamed with it
    suspect, and running at a death ─► quarantined: refused for ten minutes, then a suspect no more
    suspect, and finished           ─► cleared
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NewType

import msgspec

from edgephi.engine.request import EngineRequest
from edgephi.errors import RequestQuarantined

Fingerprint = NewType("Fingerprint", bytes)

HOLD_S = 600.0
MAX_ENTRIES = 1024
MAX_DEATHS = 2
"""Deaths of the engine that one request may have been beside, before it is refused."""


def fingerprint(request: EngineRequest) -> Fingerprint:
    """Return what makes two requests the same computation; nothing of the prompt can be read from it."""
    same = (request.prompt, request.max_tokens, request.sampling)
    return Fingerprint(hashlib.blake2b(msgspec.msgpack.encode(same), digest_size=16).digest())


class Quarantine:
    """
    What is known of requests that were running when the engine died. One thread at a time uses it.

    Args:
        hold_s: How long an entry counts after its last death, in seconds.
        max_entries: Most entries; the oldest are forgotten first.
        max_deaths: Deaths until a request is refused.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        *,
        hold_s: float = HOLD_S,
        max_entries: int = MAX_ENTRIES,
        max_deaths: int = MAX_DEATHS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hold_s = hold_s
        self._max_entries = max_entries
        self._max_deaths = max_deaths
        self._clock = clock
        # By the time of the last death, oldest first: (deaths, time of the last one).
        self._entries: OrderedDict[Fingerprint, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def admit(self, request: EngineRequest) -> bool:
        """
        Return whether a request is a suspect, which must run alone.

        Raises:
            RequestQuarantined: If it was running at too many deaths.
        """
        self._forget()
        if not self._entries:  # nearly always: then nothing is hashed
            return False
        num_deaths, last_at = self._entries.get(fingerprint(request), (0, 0.0))
        if num_deaths >= self._max_deaths:
            remaining_s = self._hold_s - (self._clock() - last_at)
            raise RequestQuarantined(
                f"this very request has ended the engine {num_deaths} times; it is refused for {remaining_s:.0f} s more"
            )
        return num_deaths > 0

    def died(self, running: Iterable[EngineRequest]) -> None:
        """Remember what was running when the engine died."""
        self._forget()
        now = self._clock()
        for key in {fingerprint(request) for request in running}:
            num_deaths, _ = self._entries.pop(key, (0, 0.0))
            self._entries[key] = (num_deaths + 1, now)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def finished(self, request: EngineRequest) -> None:
        """Clear a request that the engine has survived."""
        if self._entries:
            self._entries.pop(fingerprint(request), None)

    def _forget(self) -> None:
        oldest_at = self._clock() - self._hold_s
        while self._entries:
            key, (_, last_at) = next(iter(self._entries.items()))
            if last_at > oldest_at:
                return
            del self._entries[key]
