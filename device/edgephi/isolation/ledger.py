"""
The requests that an engine process has been given, and what its front knows of it.

Owns everything that callers and the link's thread share, under one lock; no sink is ever called while it is held.
Knows no process: messages go to a function that the supervisor sets for each one.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgephi.engine.health import EngineHealth, EngineState
from edgephi.engine.limits import EngineLimits
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    Finished,
    FinishReason,
    RequestId,
    TokenSampled,
    check_request,
)
from edgephi.engine.sinks import Sink, after_cancel, call_sink, id_taken, untold_end
from edgephi.engine.stats import EngineStats
from edgephi.errors import EngineFailed, NotReady, RequestQuarantined
from edgephi.isolation.messages import (
    Cancel,
    EngineFacts,
    Loaded,
    Report,
    SetLimits,
    Submit,
    ToEngine,
    event_from_wire,
)
from edgephi.isolation.quarantine import Quarantine

_log = logging.getLogger(__name__)

Send = Callable[[ToEngine], None]

_TOTALS = tuple(field.name for field in dataclasses.fields(EngineStats) if field.name.endswith("_total"))
_GAUGES = ("running", "waiting", "pages_used", "pages_cached", "context_tokens")


@dataclass(slots=True, eq=False)
class _Live:
    """An accepted request that has not been told its end."""

    request: EngineRequest
    sink: Sink
    is_suspect: bool
    is_sent: bool = False
    num_output: int = 0
    cancel_reason: FinishReason | None = None


class Ledger:
    """
    What is shared. The link's thread alone calls what is below :meth:`health`.

    Args:
        quarantine: Requests that ended the engine; used under this object's lock only.
        wake: Makes the link's thread call :meth:`end_unsent` soon; never waits.
    """

    def __init__(self, quarantine: Quarantine, wake: Callable[[], None]) -> None:
        self._quarantine = quarantine
        self._wake = wake
        self._lock = threading.Lock()
        # Below: only under _lock.
        self._state = EngineState.STARTING
        self._is_closing = False
        self._facts: EngineFacts | None = None
        self._limits: EngineLimits | None = None
        self._live: dict[RequestId, _Live] = {}  # in the order they came
        self._send: Send | None = None  # None while no process takes requests
        self._stats: EngineStats | None = None
        self._totals_before: dict[str, float] = dict.fromkeys(_TOTALS, 0)  # of processes that have died
        self._retry_after_ms = 0
        self._last_step_at = time.monotonic()
        self._work_since = 0.0
        self._num_starts = 0
        self._num_deaths = 0
        self._num_quarantined = 0
        self._last_death: str | None = None

    @property
    def facts(self) -> EngineFacts:
        """The engine's fixed limits; known once it was loaded."""
        assert self._facts is not None, "wait_loaded() was not called"
        return self._facts

    @property
    def limits(self) -> EngineLimits:
        """Limits in force."""
        with self._lock:
            assert self._limits is not None, "wait_loaded() was not called"
            return self._limits

    @property
    def last_step_at(self) -> float:
        """When a step last ended, or work last arrived at an idle engine."""
        with self._lock:
            return max(self._last_step_at, self._work_since)

    def validate(self, request: EngineRequest) -> None:
        """Raise what :meth:`RemoteLoop.validate` does."""
        check_request(request, vocab_size=self.facts.vocab_size, context_tokens=self.facts.context_tokens)
        with self._lock:
            self._admit(request)

    def submit(self, request: EngineRequest, sink: Sink) -> None:
        """Accept a request or raise what :meth:`RemoteLoop.submit` does."""
        facts = self.facts
        check_request(request, vocab_size=facts.vocab_size, context_tokens=facts.context_tokens)
        with self._lock:
            if self._is_closing:
                raise NotReady("the engine is closed; submit to a new one")
            if self._state is EngineState.FAILED:
                raise EngineFailed("the engine died too often and is not started any more; restart the server")
            if self._state is EngineState.STARTING:
                raise NotReady("the engine is being started again; retry in a moment")
            if request.request_id in self._live:
                raise id_taken(request.request_id)
            is_suspect = self._admit(request)
            assert self._limits is not None
            self._limits.check_room(
                request,
                num_live=len(self._live),
                max_waiting=facts.max_waiting,
                retry_after_ms=self._retry_after_ms,
            )
            self._live[request.request_id] = _Live(request, sink, is_suspect)
            self._send_next()

    def cancel(self, request_id: RequestId, reason: FinishReason) -> None:
        """End a request; the first call counts."""
        with self._lock:
            live = self._live.get(request_id)
            if live is None or live.cancel_reason is not None:
                return
            live.cancel_reason = reason
            if not live.is_sent:
                self._wake()
            elif self._send is not None:
                self._send(Cancel(request_id=request_id, reason=reason))

    def set_limits(self, limits: EngineLimits) -> None:
        """Change the limits in force."""
        limits.check_within(self.facts.max_limits)
        with self._lock:
            self._limits = limits
            if self._send is not None:
                self._send(SetLimits(limits=limits))

    def stats(self) -> EngineStats:
        """Return the engine's counters, those of processes that have died included."""
        with self._lock:
            assert self._stats is not None, "wait_loaded() was not called"
            assert self._limits is not None
            stats = self._stats
            totals: dict[str, Any] = {
                name: before + getattr(stats, name) for name, before in self._totals_before.items()
            }
            # Those on their way to the engine wait as well.
            waiting = max(stats.waiting, len(self._live) - stats.running)
            return dataclasses.replace(stats, waiting=waiting, limits=self._limits, **totals)

    def health(self) -> EngineHealth:
        """How the engine is."""
        with self._lock:
            return EngineHealth(
                state=self._state,
                starts_total=self._num_starts,
                deaths_total=self._num_deaths,
                quarantined_total=self._num_quarantined,
                last_death=self._last_death,
            )

    @property
    def work_since(self) -> float | None:
        """When the engine last went from idle to having work; None while it has none."""
        with self._lock:
            return self._work_since if any(live.is_sent for live in self._live.values()) else None

    @property
    def last_work_since(self) -> float:
        """When the engine last went from idle to having work, if only to be idle again by now."""
        with self._lock:
            return self._work_since

    def loaded(self, message: Loaded, send: Send) -> None:
        """Take requests from now on, for a process that has loaded."""
        with self._lock:
            self._facts = message.engine
            if self._limits is None:
                self._limits = message.engine.max_limits
            elif self._limits != message.engine.max_limits:
                send(SetLimits(limits=self._limits))
            self._stats = message.stats
            self._send = send
            self._state = EngineState.RUNNING
            self._num_starts += 1

    def report(self, report: Report) -> None:
        """Note what happened in a step, and tell the requests it happened to."""
        with self._lock:
            self._stats = report.stats
            self._retry_after_ms = report.retry_after_ms
            self._last_step_at = report.last_step_at
        for event in report.events:
            self._deliver(event_from_wire(event))

    def end_unsent(self) -> None:
        """Tell their end to requests that were cancelled before the engine was given them."""
        with self._lock:
            if all(live.is_sent for live in self._live.values()):
                return
            ended = [live for live in self._live.values() if live.cancel_reason is not None and not live.is_sent]
        for live in ended:
            self._deliver(untold_end(live.request, live.cancel_reason or FinishReason.CANCELLED))

    def died(self, reason: str, *, is_final: bool) -> None:
        """
        End everything that is live, for the engine process is gone.

        Args:
            reason: Why, for the log.
            is_final: Whether no other will be started.
        """
        with self._lock:
            self._send = None
            self._state = EngineState.FAILED if is_final else EngineState.STARTING
            self._num_deaths += 1
            self._last_death = reason
            self._quarantine.died(live.request for live in self._live.values() if live.is_sent)
            self._forget_stats()
        self._end_all(FinishReason.ERROR, f"the engine process {reason}")

    def closed(self) -> None:
        """Refuse everything from now on and end what is live."""
        with self._lock:
            self._is_closing = True
            self._send = None
        self._end_all(FinishReason.CANCELLED, None)

    def _admit(self, request: EngineRequest) -> bool:
        try:
            return self._quarantine.admit(request)
        except RequestQuarantined:
            self._num_quarantined += 1
            raise

    def _send_next(self) -> None:
        """Give the engine what may run now, in order: a suspect only when nothing else runs, nothing beside it."""
        if self._send is None:
            return
        num_sent = sum(live.is_sent for live in self._live.values())
        for live in self._live.values():
            if live.is_sent:
                if live.is_suspect:
                    return
                continue
            if live.cancel_reason is not None:
                continue
            if live.is_suspect and num_sent > 0:
                return
            if num_sent == 0:
                self._work_since = time.monotonic()  # a watchdog must not count the idle time before this request
            live.is_sent = True
            num_sent += 1
            self._send(Submit(request=live.request))
            if live.is_suspect:
                return

    def _forget_stats(self) -> None:
        """Add a dead process's counters to those before it; its gauges are zero."""
        if self._stats is None:
            return
        for name in _TOTALS:
            self._totals_before[name] += getattr(self._stats, name)
        zeros: dict[str, Any] = dict.fromkeys((*_TOTALS, *_GAUGES), 0)
        self._stats = dataclasses.replace(self._stats, **zeros)

    def _end_all(self, reason: FinishReason, error: str | None) -> None:
        with self._lock:
            lives = list(self._live.values())
        for live in lives:
            self._deliver(untold_end(live.request, reason, num_output=live.num_output, error=error))

    def _deliver(self, event: EngineEvent) -> None:
        """Call the sink, unless the request was cancelled meanwhile and this is not its end."""
        with self._lock:
            live = self._live.get(event.request_id)
            if live is None:
                return
            if isinstance(event, Finished):
                del self._live[event.request_id]
            told = after_cancel(event, live.cancel_reason)
            if isinstance(told, Finished):
                if live.is_suspect and told.reason in (FinishReason.STOP, FinishReason.LENGTH):
                    self._quarantine.finished(live.request)
                self._send_next()
        if isinstance(told, TokenSampled):
            live.num_output += 1
        if told is not None and not call_sink(live.sink, told, _log, "engine.sink_failed"):
            self.cancel(told.request_id, FinishReason.CANCELLED)
