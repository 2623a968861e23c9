"""
The front's side: an engine loop whose engine is a process of its own, which is started again when it dies.

Owns the requests that the engine process has been given and their ends. A thread starts the process, hears it, watches
it and calls the sinks (edgephi.isolation.supervisor); everything that callers share with it is here, under one lock.
"""

from __future__ import annotations

import dataclasses
import threading
import types
from collections.abc import Sequence
from typing import Self

from edgephi.engine.health import EngineHealth
from edgephi.engine.limits import EngineLimits
from edgephi.engine.request import EngineRequest, FinishReason, RequestId
from edgephi.engine.sinks import Sink
from edgephi.engine.stats import EngineStats
from edgephi.errors import EngineFailed
from edgephi.isolation.liveness import LivenessSettings
from edgephi.isolation.quarantine import Quarantine
from edgephi.isolation.supervisor import Progress, Supervisor


class RemoteLoop:
    """
    An engine in a process of its own, with the interface of ``edgephi.engine.loop.EngineLoop``. Safe from any thread.

    Lives from construction, which starts the process, to :meth:`close`, which the creator calls. Nothing but ``close``
    and ``health`` may be used before :meth:`wait_loaded` has returned. Every accepted request's sink receives exactly
    one Finished, as its last event, also when the process dies. Sinks are called on one thread, in order; they must
    return quickly, for all streams wait meanwhile.

    A stop string costs up to one more step than in one process, for the engine goes on until the cancel arrives.

    Args:
        command: Program and arguments of the engine process; the number of a descriptor is appended.
        options: What it is to load, opaque here.
        liveness: How long it may be silent, and how often it may die.
        quarantine: Requests that ended it.
    """

    def __init__(
        self,
        command: Sequence[str],
        options: bytes,
        *,
        liveness: LivenessSettings | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        if quarantine is None:  # an empty one is false
            quarantine = Quarantine()
        self._supervisor = Supervisor(command, options, liveness or LivenessSettings(), quarantine)
        self._ledger = self._supervisor.ledger
        self._thread = threading.Thread(target=self._supervisor.run, name="edgephi-engine-link", daemon=True)
        self._thread.start()

    def wait_loaded(self, progress: Progress | None = None) -> bytes:
        """
        Wait until the engine takes requests for the first time.

        Args:
            progress: Called while it compiles, on the calling thread.

        Returns:
            What the engine process says of what it loaded, opaque here.

        Raises:
            EdgephiError: What the engine process raised while loading, of the same class and with the same message.
            EngineFailed: If it died while loading.
        """
        return self._supervisor.wait_loaded(progress)

    @property
    def pid(self) -> int | None:
        """Process id of the engine at present; None while there is none."""
        return self._supervisor.pid

    def validate(self, request: EngineRequest) -> None:
        """
        Check a request against every limit that does not change, and against what has ended the engine before.

        Raises:
            InvalidRequest: If a field is out of bounds.
            PromptTooLong: If prompt and max_tokens can never fit.
            RequestQuarantined: If this very request has ended the engine more than once.
        """
        self._ledger.validate(request)

    def submit(self, request: EngineRequest, sink: Sink) -> None:
        """
        Accept a request, or refuse it at once in the caller's thread.

        Args:
            request: What to generate.
            sink: Receives its events on the link's thread. If it raises, the request is cancelled.

        Raises:
            InvalidRequest: If a field is out of bounds or the id belongs to a live request.
            PromptTooLong: If prompt and max_tokens can never fit.
            RequestQuarantined: If this very request has ended the engine more than once.
            Overloaded: If the queue is full, or it needs more tokens than a request may have at present.
            NotReady: While the engine is being started again, and after :meth:`close`.
            EngineFailed: If the engine died too often and is not started any more.
        """
        self._ledger.submit(request, sink)

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """
        End a request before its next token; unknown ids are ignored, and of several calls the first counts.

        May be called from any thread and from inside a sink. Once it returns, the sink receives nothing more of
        this request than one Finished with this reason (ERROR if the engine failed first).
        """
        self._ledger.cancel(request_id, reason)

    @property
    def max_limits(self) -> EngineLimits:
        """What the engine was configured for: the most that :meth:`set_limits` takes."""
        return self._ledger.facts.max_limits

    @property
    def limits(self) -> EngineLimits:
        """By which a request submitted now is judged."""
        return self._ledger.limits

    def set_limits(self, limits: EngineLimits) -> None:
        """
        Change how much the engine takes on, before its next step; also that of a process started later. Any thread.

        Raises:
            ConfigError: If a limit is below 1 or above ``max_limits``; the old ones then stay.
        """
        self._ledger.set_limits(limits)

    def stats(self) -> EngineStats:
        """Counters as of the last completed step; they go on over a death of the process."""
        return self._ledger.stats()

    @property
    def last_step_at(self) -> float:
        """
        Seconds of CLOCK_MONOTONIC when a step last ended, or when work last arrived at an idle engine.

        While ``stats()`` shows running or waiting requests, a value that stays old means a stuck forward, which the
        link's thread ends.
        """
        return self._ledger.last_step_at

    @property
    def is_alive(self) -> bool:
        """Whether the engine runs or will run again; false after close and once it has died too often."""
        return self._thread.is_alive()

    def health(self) -> EngineHealth:
        """How the engine is; quick, any thread."""
        return dataclasses.replace(self._ledger.health(), process_id=self.pid)

    def close(self, timeout_s: float = 10.0) -> None:
        """
        End every live request with CANCELLED and the engine process. Calling it again does nothing.

        From inside a sink it only asks the thread to stop.

        The process is killed at once: it keeps nothing, and a forward may take long.

        Args:
            timeout_s: How long the system may take to end it, in seconds.

        Raises:
            EngineFailed: If it has not ended by then.
        """
        self._supervisor.request_stop()
        if threading.current_thread() is self._thread:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise EngineFailed(f"the engine process {self.pid} did not end although it was killed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()
