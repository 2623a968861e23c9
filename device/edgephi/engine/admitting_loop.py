"""
A queue in front of any engine loop: who may wait, who is next, and the end of those who never start.

Owns the thread "edgephi-admission" and every request until the loop behind it has taken it. The rules are
edgephi.engine.admission's. At most ``max_running + 1`` requests are handed over, so that the order is decided here;
the engine admits each only when the pages for its prompt and all its ``max_tokens`` are free.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import threading
import time
import types
import warnings
from collections.abc import Callable
from typing import Protocol, Self

from edgephi.engine.admission import AdmissionConfig, AdmissionQueue, Waiting
from edgephi.engine.health import EngineHealth, EngineState
from edgephi.engine.limits import EngineLimits
from edgephi.engine.request import EngineEvent, EngineRequest, Finished, FinishReason, RequestId
from edgephi.engine.service_times import ServiceRates, ServiceTimes
from edgephi.engine.sinks import Sink, after_cancel, call_sink, id_taken, untold_end
from edgephi.engine.stats import EngineStats
from edgephi.errors import EdgephiError, EngineFailed, NotReady, Overloaded

_log = logging.getLogger(__name__)

_RETRY_S = 0.05  # until a hand-over is tried again that the engine had no room for


class InnerLoop(Protocol):
    """What is needed of the loop behind; ``edgephi.engine.loop.EngineLoop`` is one and says what each method does."""

    def validate(self, request: EngineRequest) -> None:
        """Raise what a submit would raise however long it waited."""
        ...

    def submit(self, request: EngineRequest, sink: Sink) -> None:
        """Take a request or refuse it; quick."""
        ...

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request; nothing but its Finished follows."""
        ...

    @property
    def max_limits(self) -> EngineLimits:
        """The most that can be set."""
        ...

    @property
    def limits(self) -> EngineLimits:
        """Those in force."""
        ...

    def set_limits(self, limits: EngineLimits) -> None:
        """Change them for what is submitted from now on."""
        ...

    def stats(self) -> EngineStats:
        """Gauges and counters; quick."""
        ...

    @property
    def last_step_at(self) -> float:
        """When a step last ended, or work last came to an idle engine."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether it can go on."""
        ...

    def health(self) -> EngineHealth:
        """How it is; quick."""
        ...

    def close(self, timeout_s: float = 10.0) -> None:
        """End every request and stop."""
        ...


class AdmittingLoop:
    """
    An engine loop with a bounded, fair queue; itself has the interface of one, and is safe to use from any thread.

    Lives from construction, which starts its thread, to :meth:`close`, which closes the loop behind it as well. Every
    accepted request's sink receives exactly one Finished, as its last event, and after a cancel nothing else. Sinks
    are called on the engine's thread, or on this one's for requests that end without having started.

    When the engine's process has ended, those that wait end with ERROR at once instead of waiting for a new one: it
    may take minutes to load, and a caller that knows can ask elsewhere.

    Args:
        inner: The loop behind. It is closed with this one.
        config: How much may wait.
        start: Speeds to estimate by until requests have ended, such as a plan's; None for none.
        clock: Seconds that never go back; the one of the loop behind.
    """

    def __init__(
        self,
        inner: InnerLoop,
        config: AdmissionConfig | None = None,
        *,
        start: ServiceRates | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # The thread holds the worker, not this object, so that a forgotten loop can still be collected and warn.
        self._inner = inner
        self._worker = _Worker(inner, config or AdmissionConfig(), ServiceTimes(start), clock)
        self._thread = threading.Thread(target=self._worker.run, name="edgephi-admission", daemon=True)
        self._thread.start()

    def validate(self, request: EngineRequest) -> None:
        """Check a request against every limit that does not change, as the loop behind does."""
        self._inner.validate(request)

    def require_place(self, client_id: str) -> None:
        """
        Refuse a client whose next request would be refused, whatever it is: before its prompt costs anything.

        Raises:
            Overloaded: If a bound of the queue is met.
        """
        self._worker.require_place(client_id)

    def submit(self, request: EngineRequest, sink: Sink) -> None:
        """
        Accept a request, or refuse it at once in the caller's thread.

        Args:
            request: What to generate.
            sink: Receives its events. If it raises, the request is cancelled.

        Raises:
            InvalidRequest: If a field is out of bounds or the id belongs to a live request.
            PromptTooLong: If prompt and max_tokens can never fit.
            Overloaded: If a bound of the queue is met, or it needs more tokens than a request may have at present.
            DeadlineTooShort: If its deadline is before its first token is expected.
            NotReady: While the engine is loading, and after :meth:`close`.
            EngineFailed: If the engine cannot go on.
        """
        self._worker.submit(request, sink)

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request before its next token; one that waits leaves the queue at once. Unknown ids are ignored."""
        self._worker.cancel(request_id, reason)

    @property
    def max_limits(self) -> EngineLimits:
        """The most that :meth:`set_limits` takes."""
        return self._inner.max_limits

    @property
    def limits(self) -> EngineLimits:
        """By which a request submitted now is judged."""
        return self._inner.limits

    def set_limits(self, limits: EngineLimits) -> None:
        """
        Change how much the engine takes on, before its next step. Those that wait stay accepted.

        Raises:
            ConfigError: If a limit is below 1 or above ``max_limits``; the old ones then stay.
        """
        self._inner.set_limits(limits)
        self._worker.limits_changed(limits)

    def stats(self) -> EngineStats:
        """The engine's counters; ``waiting`` has those that wait here as well."""
        return self._worker.stats()

    @property
    def last_step_at(self) -> float:
        """When a step last ended, or when work last arrived at an idle engine; see ``EngineLoop``."""
        return max(self._inner.last_step_at, self._worker.busy_since)

    @property
    def is_alive(self) -> bool:
        """Whether both threads run."""
        return self._thread.is_alive() and self._inner.is_alive

    def health(self) -> EngineHealth:
        """Whether the engine can take requests; quick, any thread."""
        health = self._inner.health()
        if health.state is EngineState.RUNNING and not self._thread.is_alive():
            return dataclasses.replace(health, state=EngineState.FAILED)
        return health

    def close(self, timeout_s: float = 10.0) -> None:
        """
        End every live request with CANCELLED, stop the thread and close the loop behind. May be repeated.

        Raises:
            EngineFailed: If one of both still runs after ``timeout_s``.
        """
        self._worker.request_stop()
        started_at = time.monotonic()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        self._inner.close(max(0.0, timeout_s - (time.monotonic() - started_at)))

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
            warnings.warn("AdmittingLoop was dropped without close()", ResourceWarning, source=self, stacklevel=1)


@dataclasses.dataclass(slots=True, eq=False)
class _Live:
    """An accepted request that has not been told its end."""

    request: EngineRequest
    sink: Sink
    since: float
    waited_s: float = 0.0
    is_handed: bool = False  # the loop behind knows it
    cancel_reason: FinishReason | None = None


class _Worker:
    """What the thread, the engine's thread and callers share. Ends when :meth:`run` returns."""

    def __init__(
        self, inner: InnerLoop, config: AdmissionConfig, times: ServiceTimes, clock: Callable[[], float]
    ) -> None:
        self._inner = inner
        self._clock = clock
        # No call to the loop behind and to no sink is made while it is held.
        self._changed = threading.Condition()
        self._queue = AdmissionQueue(config, times, max_running=inner.limits.max_running)
        self._live: dict[RequestId, _Live] = {}
        self._ended: list[tuple[_Live, Finished]] = []  # to be told on the thread
        self._retry_at = -math.inf
        self._busy_since = clock()
        self._stopping = False

    @property
    def is_stopping(self) -> bool:
        with self._changed:
            return self._stopping

    @property
    def busy_since(self) -> float:
        with self._changed:
            return self._busy_since

    def stats(self) -> EngineStats:
        stats = self._inner.stats()
        with self._changed:
            return dataclasses.replace(stats, waiting=max(0, len(self._live) - stats.running))

    def require_place(self, client_id: str) -> None:
        with self._changed:
            self._queue.require_place(client_id)

    def submit(self, request: EngineRequest, sink: Sink) -> None:
        self._inner.validate(request)
        state = self._inner.health().state
        if state is EngineState.STARTING:
            raise NotReady("the engine is loading the model; retry in a moment")
        if state is EngineState.FAILED:
            raise EngineFailed("the engine has failed and takes no requests; restart it")
        limits = self._inner.limits
        with self._changed:
            if self._stopping:
                raise NotReady("the engine is closed; submit to a new one")
            if request.request_id in self._live:
                raise id_taken(request.request_id)
            limits.check_size(request)
            now = self._clock()
            self._queue.add(request, now)
            if not self._live:
                self._busy_since = now  # a watchdog must not count the idle time before this request
            self._live[request.request_id] = _Live(request, sink, now)
            self._changed.notify()

    def cancel(self, request_id: RequestId, reason: FinishReason) -> None:
        with self._changed:
            live = self._live.get(request_id)
            if live is None or live.cancel_reason is not None:
                return
            live.cancel_reason = reason
            if self._queue.remove(request_id, live.request.client_id) is not None:
                self._end(live, reason)
                return
            if not live.is_handed:
                return  # on its way: the thread cancels it when it has arrived
        self._inner.cancel(request_id, reason)

    def limits_changed(self, limits: EngineLimits) -> None:
        with self._changed:
            self._queue.max_running = limits.max_running
            self._changed.notify()

    def request_stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def run(self) -> None:
        """Body of the thread: until asked to stop, hand over whose turn it is, and tell ends."""
        try:
            while not self.is_stopping:
                self._hand_over(self._next())
        except Exception:  # noqa: BLE001 - a bug of ours; nobody may be left waiting
            _log.exception("admission.thread_failed")
            self.request_stop()
            self._end_waiting(FinishReason.ERROR, "internal error in the admission thread")
        else:
            self._end_waiting(FinishReason.CANCELLED, None)
        self._tell_ended()

    def _next(self) -> Waiting | None:
        """Wait until a request may be handed over, or something has ended or changed."""
        with self._changed:
            while not (self._stopping or self._ended):
                now = self._clock()
                for waiting in self._queue.pop_late(now):
                    self._end(self._live[waiting.request.request_id], FinishReason.DEADLINE)
                if self._ended:
                    break
                may_try = now >= self._retry_at
                waiting_next = self._queue.pop(now) if may_try else None
                if waiting_next is not None:
                    return waiting_next
                wake_at = min(self._queue.next_late_at, math.inf if may_try else self._retry_at)
                self._changed.wait(None if wake_at == math.inf else max(0.0, wake_at - now))
        self._tell_ended()
        return None

    def _hand_over(self, waiting: Waiting | None) -> None:
        if waiting is None:
            return
        request, now = waiting.request, self._clock()
        with self._changed:
            live = self._live[request.request_id]
            live.waited_s = now - waiting.since
        if request.deadline_s is not None:
            request = dataclasses.replace(request, deadline_s=request.deadline_s - live.waited_s)
        try:
            self._inner.submit(request, functools.partial(self._deliver, live))
        except Overloaded as error:
            self._not_taken(live, error)
            return
        except EdgephiError as error:
            self._refused(live, error)
            if isinstance(error, NotReady | EngineFailed):
                self._end_waiting(FinishReason.ERROR, str(error))
            return
        except Exception:
            self._refused(live, EngineFailed("internal error of the engine's loop"))
            raise
        with self._changed:
            live.is_handed = True
            reason = live.cancel_reason
        if reason is not None:
            self._inner.cancel(request.request_id, reason)

    def _not_taken(self, live: _Live, error: Overloaded) -> None:
        """The engine has no room: limits have changed since the request was accepted."""
        if error.limit == "request_tokens":
            # It might wait for minutes, and its caller can ask for less.
            self._refused(live, error)
            return
        with self._changed:
            self._retry_at = self._clock() + _RETRY_S
            self._queue.put_back(live.request.request_id)
            if live.cancel_reason is not None:
                self._queue.remove(live.request.request_id, live.request.client_id)
                self._end(live, live.cancel_reason)

    def _refused(self, live: _Live, error: EdgephiError) -> None:
        with self._changed:
            end = self._end(live, live.cancel_reason or FinishReason.ERROR, str(error))
            self._queue.finished(end)

    def _end_waiting(self, reason: FinishReason, error: str | None) -> None:
        with self._changed:
            for waiting in self._queue.pop_all():
                self._end(self._live[waiting.request.request_id], reason, error)

    def _end(self, live: _Live, reason: FinishReason, error: str | None = None) -> Finished:
        """Let a request end that never started; the lock is held, and the thread tells its sink."""
        why = error if reason is FinishReason.ERROR else None
        end = untold_end(live.request, reason, queue_s=self._clock() - live.since, error=why)
        del self._live[live.request.request_id]
        self._ended.append((live, end))
        self._changed.notify()
        return end

    def _tell_ended(self) -> None:
        with self._changed:
            ended, self._ended = self._ended, []
        for live, end in ended:
            call_sink(live.sink, end, _log, "admission.sink_failed")

    def _deliver(self, live: _Live, event: EngineEvent) -> None:
        """Pass on an event of the loop behind, on its thread, unless the request was cancelled meanwhile."""
        with self._changed:
            if isinstance(event, Finished):
                del self._live[event.request_id]
                self._queue.finished(event)
                self._changed.notify()
                timings = dataclasses.replace(event.timings, queue_s=event.timings.queue_s + live.waited_s)
                event = dataclasses.replace(event, timings=timings)
            told = after_cancel(event, live.cancel_reason)
        if told is not None:
            live.sink(told)  # the loop behind cancels the request if it raises
