"""
One thread that steps the engine and hands each event to the request's sink.

Owns the thread "edgephi-engine" and the only door other threads may use. The engine itself is touched by that
thread alone; everything shared is under one condition variable, and no sink is ever called while it is held.
Knows no text and no asyncio: a sink that wants to reach an event loop calls ``call_soon_threadsafe`` itself.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Self

from edgephi.engine.core import Engine
from edgephi.engine.health import EngineHealth, EngineState
from edgephi.engine.limits import EngineLimits
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    Finished,
    FinishReason,
    RequestId,
    TokenSampled,
)
from edgephi.engine.sinks import Sink, after_cancel, call_sink, id_taken, untold_end
from edgephi.engine.stats import EngineStats
from edgephi.errors import EngineFailed, NotReady

_log = logging.getLogger(__name__)


class EngineLoop:
    """
    A running engine, safe to use from any thread.

    Lives from construction, which starts the thread, to :meth:`close`, which the creator calls before it closes
    the backend. Every accepted request's sink receives exactly one Finished, as its last event. Sinks are called
    on the engine thread, in order; they must return quickly, for all streams wait meanwhile.

    Dropping a loop that was not closed warns ResourceWarning and stops the thread.

    Args:
        engine: Computes; the loop's from now on.
        after_events: Called on the engine thread whenever all events of a step, or of a round of cancels, have gone to
            their sinks, so that who sends them elsewhere can send them together; not when the thread has failed.
    """

    def __init__(self, engine: Engine, *, after_events: Callable[[], None] | None = None) -> None:
        # The thread holds the worker, not this object, so that a forgotten loop can still be collected and warn.
        self._worker = _Worker(engine, after_events)
        self._thread = threading.Thread(target=self._worker.run, name="edgephi-engine", daemon=True)
        self._thread.start()

    def validate(self, request: EngineRequest) -> None:
        """
        Check a request against every limit that does not change. Any thread.

        Raises:
            InvalidRequest: If a field is out of bounds.
            PromptTooLong: If prompt and max_tokens can never fit.
        """
        self._worker.validate(request)

    def submit(self, request: EngineRequest, sink: Sink) -> None:
        """
        Accept a request, or refuse it at once in the caller's thread.

        Args:
            request: What to generate.
            sink: Receives its events on the engine thread. If it raises, the request is cancelled.

        Raises:
            InvalidRequest: If a field is out of bounds or the id belongs to a live request.
            PromptTooLong: If prompt and max_tokens can never fit.
            Overloaded: If the queue is full, or it needs more tokens than a request may have at present.
            NotReady: After :meth:`close`.
            EngineFailed: If the engine thread ended by an internal error.
        """
        self._worker.submit(request, sink)

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """
        End a request before its next token; unknown ids are ignored, and of several calls the first counts.

        May be called from any thread and from inside a sink. Once it returns, the sink receives nothing more of
        this request than one Finished with this reason (ERROR if the backend failed first), and its pages are
        free before the next forward. A sink call already in progress on the engine thread is not interrupted.
        """
        self._worker.cancel(request_id, reason)

    @property
    def max_limits(self) -> EngineLimits:
        """What the engine was configured for: the most that :meth:`set_limits` takes."""
        return self._worker.max_limits

    @property
    def limits(self) -> EngineLimits:
        """By which a request submitted now is judged."""
        return self._worker.limits

    def set_limits(self, limits: EngineLimits) -> None:
        """
        Change how much the engine takes on, before its next step; see :meth:`Engine.set_limits`. Any thread.

        A request that is submitted after this returns is judged by the new limits.

        Raises:
            ConfigError: If a limit is below 1 or above ``max_limits``; the old ones then stay.
        """
        self._worker.set_limits(limits)

    def stats(self) -> EngineStats:
        """Counters as of the last completed step; never waits for a forward."""
        return self._worker.stats()

    @property
    def last_step_at(self) -> float:
        """
        Engine clock in seconds when a step last ended, or when work last arrived at an idle engine.

        While ``stats()`` shows running or waiting requests, a value that stays old means a stuck forward.
        """
        return self._worker.last_step_at

    @property
    def is_alive(self) -> bool:
        """Whether the engine thread runs; false after close and after an internal error."""
        return self._thread.is_alive()

    def health(self) -> EngineHealth:
        """Whether the engine can take requests; quick, any thread."""
        if self.is_alive:
            return EngineHealth(state=EngineState.RUNNING)
        return EngineHealth(state=EngineState.FAILED, deaths_total=int(self._worker.has_failed))

    def close(self, timeout_s: float = 10.0) -> None:
        """
        End every live request with CANCELLED and join the thread. Calling it again does nothing.

        From inside a sink it only asks the thread to stop.

        Args:
            timeout_s: Longest wait in seconds; one forward may have to finish first.

        Raises:
            EngineFailed: If the thread still runs after ``timeout_s``: its forward is stuck.
        """
        self._worker.request_stop()
        if threading.current_thread() is self._thread:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise EngineFailed(
                f"engine thread did not stop within {timeout_s:g} s; a forward is stuck, end the process"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        worker: _Worker | None = getattr(self, "_worker", None)  # the constructor may have raised
        if worker is not None and not worker.is_stopping:
            worker.request_stop()
            warnings.warn("EngineLoop was dropped without close()", ResourceWarning, source=self, stacklevel=1)


@dataclasses.dataclass(slots=True, eq=False)
class _Live:
    """An accepted request that has not been told its end."""

    request: EngineRequest
    sink: Sink
    num_output: int = 0
    cancel_reason: FinishReason | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Arrival:
    """A request that was accepted and has not reached the engine; the time is the engine clock's, in seconds."""

    request: EngineRequest
    submitted_at: float


class _Worker:
    """What the engine thread and its callers share. Ends when :meth:`run` returns."""

    def __init__(self, engine: Engine, after_events: Callable[[], None] | None) -> None:
        self._engine = engine
        self._after_events = after_events
        self._clock = engine.clock
        self._max_waiting = engine.config.max_waiting
        self.max_limits = engine.max_limits
        self._changed = threading.Condition()
        # Below: only under _changed.
        self._live: dict[RequestId, _Live] = {}
        # In the order they came: the engine then judges a request by the limits it was accepted under.
        self._inbox: list[_Arrival | EngineLimits] = []
        self._limits = engine.max_limits
        self._cancels: list[RequestId] = []
        self._stopping = False
        self._failed = False
        self._stats = engine.stats()
        self._retry_after_ms = engine.retry_after_ms
        self._last_step_at = self._clock()

    @property
    def is_stopping(self) -> bool:
        with self._changed:
            return self._stopping

    @property
    def has_failed(self) -> bool:
        with self._changed:
            return self._failed

    @property
    def limits(self) -> EngineLimits:
        with self._changed:
            return self._limits

    @property
    def last_step_at(self) -> float:
        with self._changed:
            return self._last_step_at

    def stats(self) -> EngineStats:
        with self._changed:
            num_arrived = sum(isinstance(item, _Arrival) for item in self._inbox)
            return dataclasses.replace(self._stats, waiting=self._stats.waiting + num_arrived, limits=self._limits)

    def validate(self, request: EngineRequest) -> None:
        self._engine.validate(request)  # pure: reads only the request and the engine's fixed limits

    def submit(self, request: EngineRequest, sink: Sink) -> None:
        self.validate(request)
        with self._changed:
            if self._failed:
                raise EngineFailed("the engine thread ended by an internal error; restart the engine")
            if self._stopping:
                raise NotReady("the engine is closed; submit to a new one")
            if request.request_id in self._live:
                raise id_taken(request.request_id)
            self._limits.check_room(
                request,
                num_live=len(self._live),
                max_waiting=self._max_waiting,
                retry_after_ms=self._retry_after_ms,
            )
            now = self._clock()
            if not self._live:
                self._last_step_at = now  # a watchdog must not count the idle time before this request
            self._live[request.request_id] = _Live(request, sink)
            self._inbox.append(_Arrival(request, now))
            self._changed.notify()

    def set_limits(self, limits: EngineLimits) -> None:
        limits.check_within(self.max_limits)
        with self._changed:
            self._limits = limits
            self._inbox.append(limits)
            self._changed.notify()

    def cancel(self, request_id: RequestId, reason: FinishReason) -> None:
        with self._changed:
            live = self._live.get(request_id)
            if live is None or live.cancel_reason is not None:
                return
            live.cancel_reason = reason
            self._cancels.append(request_id)
            self._changed.notify()

    def request_stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def run(self) -> None:
        """Body of the thread: until asked to stop, take what came in, then step."""
        try:
            while self._take():
                if self._engine.has_work:
                    events = self._engine.step()
                    self._publish()
                    self._deliver_all(events)
        except Exception:  # noqa: BLE001 - ours, for the engine handles the backend's; nobody may be left waiting
            _log.exception("engine.thread_failed")
            with self._changed:
                self._failed = True
                self._stopping = True
            self._end_all(FinishReason.ERROR, "internal error in the engine thread")

    def _take(self) -> bool:
        """Wait for work, bring submissions and cancels into the engine; false when the loop is to end."""
        with self._changed:
            while not (self._stopping or self._inbox or self._cancels or self._engine.has_work):
                self._changed.wait()
            inbox, self._inbox = self._inbox, []
            cancels, self._cancels = self._cancels, []
            stopping = self._stopping
            if stopping:
                cancels = list(self._live)
            reasons = {i: self._live[i].cancel_reason for i in cancels if i in self._live}
        for item in inbox:
            if isinstance(item, EngineLimits):
                self._engine.set_limits(item)
            else:
                self._engine.submit(item.request, submitted_at=item.submitted_at)
        ended = [self._engine.cancel(i, reason or FinishReason.CANCELLED) for i, reason in reasons.items()]
        if inbox or cancels:
            self._publish()
        self._deliver_all([event for event in ended if event is not None])
        return not stopping

    def _publish(self) -> None:
        stats, retry_after_ms = self._engine.stats(), self._engine.retry_after_ms
        with self._changed:
            self._stats = stats
            self._retry_after_ms = retry_after_ms
            self._last_step_at = self._clock()

    def _deliver_all(self, events: Sequence[EngineEvent]) -> None:
        for event in events:
            self._deliver(event)
        if events and self._after_events is not None:
            self._after_events()

    def _deliver(self, event: EngineEvent) -> None:
        """Call the sink, unless the request was cancelled meanwhile and this is not its end."""
        with self._changed:
            live = self._live[event.request_id]
            if isinstance(event, Finished):
                del self._live[event.request_id]
            told = after_cancel(event, live.cancel_reason)
        if isinstance(told, TokenSampled):
            live.num_output += 1
        if told is not None and not call_sink(live.sink, told, _log, "engine.sink_failed"):
            self.cancel(told.request_id, FinishReason.CANCELLED)

    def _end_all(self, reason: FinishReason, error: str) -> None:
        """Tell every live request its end without the engine, whose state is unknown."""
        with self._changed:
            lives = list(self._live.values())
        for live in lives:
            self._deliver(untold_end(live.request, reason, num_output=live.num_output, error=error))
