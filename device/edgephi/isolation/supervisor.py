"""
Starts the engine process, hears it, watches it, and starts it again when it has died.

Owns the link's thread and the processes. Requests and their ends are the ledger's, when a process hangs is
edgephi.isolation.liveness's rule.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence

from edgephi.errors import EdgephiError, EngineFailed
from edgephi.isolation.ledger import Ledger
from edgephi.isolation.liveness import Deaths, Liveness, LivenessSettings
from edgephi.isolation.messages import (
    PROTOCOL,
    Failed,
    Loaded,
    Loading,
    Log,
    ProtocolError,
    Report,
    Start,
    ToEngine,
    ToFront,
    decode_to_front,
    encode,
    error_of,
)
from edgephi.isolation.process import EngineProcess
from edgephi.isolation.quarantine import Quarantine

Progress = Callable[[str, int, int], None]

_REAP_S = 1.0  # a process of gigabytes takes a moment to go; callers are told their end before a longer one
_GONE_S = 10.0

_log = logging.getLogger(__name__)


class Supervisor:
    """
    The engine processes of one loop, one after another. :meth:`run` is the body of the link's thread.

    Args:
        command: Program and arguments; the number of the channel's descriptor is appended.
        options: What to load, opaque here.
        settings: How long a process may be silent, and how often it may die.
        quarantine: Requests that ended the engine.

    Attributes:
        ledger: The requests.
        pid: Process id of the engine at present; None while there is none.
    """

    def __init__(
        self, command: Sequence[str], options: bytes, settings: LivenessSettings, quarantine: Quarantine
    ) -> None:
        self._command = command
        self._options = options
        self._settings = settings
        self._deaths = Deaths(settings)
        self._waker = _Waker()
        self.ledger = Ledger(quarantine, self._waker.wake)
        self.pid: int | None = None
        self._first_load: queue.SimpleQueue[Loading | Loaded | EdgephiError] = queue.SimpleQueue()
        self._stop_asked = threading.Event()

    def wait_loaded(self, progress: Progress | None) -> bytes:
        """Wait until the first process has loaded; see :meth:`RemoteLoop.wait_loaded`."""
        while True:
            said = self._first_load.get()
            if isinstance(said, Loaded):
                return said.facts
            if isinstance(said, EdgephiError):
                raise said
            if progress is not None and said.label is not None:
                progress(said.label, said.done, said.total)

    def request_stop(self) -> None:
        """Make :meth:`run` end the process and return."""
        self._stop_asked.set()
        self._waker.wake()

    def run(self) -> None:
        """Keep a process running until asked to stop, or until it has died too often."""
        try:
            while not self._stop_asked.is_set():
                delay_s = self._run_one()
                if delay_s is None:
                    break
                self._stop_asked.wait(delay_s)
        except Exception:  # noqa: BLE001 - ours; nobody may be left waiting
            _log.exception("engine.link_failed")
            self._first_load.put(EngineFailed("the thread that watches the engine process failed; the log says why"))
            self.ledger.died("internal error in the thread that watches it", is_final=True)
        finally:
            if self._stop_asked.is_set():
                self._first_load.put(EngineFailed("the engine was closed while it was being loaded"))
                self.ledger.closed()
            self._waker.close()

    def _run_one(self) -> float | None:
        """Run one process to its end; return the seconds to wait before the next one, None where there is none."""
        try:
            process = EngineProcess(self._command)
        except EngineFailed as error:
            return self._died(str(error), None)
        self.pid = process.pid
        try:
            life = _Life(process, self.ledger, self._settings, self._first_load, self._waker)
            life.start(self._options)
            reason: str | None = None
            while reason is None and not self._stop_asked.is_set():
                reason = life.hear()
            process.signal(signal.SIGKILL)
            if reason is None:
                self.ledger.closed()
                return None
            how = process.wait(_REAP_S)
            return self._died(f"{how}: {reason}" if reason else how, life.failure)
        finally:
            process.signal(signal.SIGKILL)
            process.wait(_GONE_S)  # its memory must be free before the next one loads
            self.pid = None

    def _died(self, reason: str, failure: Failed | None) -> float | None:
        """Tell everyone of a death; return how long to wait before the next start, None where there is none."""
        error = None if failure is None else error_of(failure)
        delay_s = self._deaths.add()
        if self.ledger.health().starts_total == 0:
            delay_s = None  # what could not be loaded once is for a person
            advice = "; if that was SIGKILL, memory may have been short"
            self._first_load.put(error or EngineFailed(f"the engine process {reason} while loading the model{advice}"))
        self.ledger.died(reason if error is None else f"{reason}: {error}", is_final=delay_s is None)
        return delay_s


class _Waker:
    """Ends a poll from any thread. Lives as long as the link's thread, which closes it."""

    def __init__(self) -> None:
        # Sockets, for a closed one refuses a late caller where the number of a closed pipe may be another file's.
        self.readable, self._writable = socket.socketpair()
        self.readable.setblocking(False)
        self._writable.setblocking(False)

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # it is full, so the thread wakes anyway, or closed
            self._writable.send(b"!")

    def drain(self) -> None:
        with contextlib.suppress(OSError):
            self.readable.recv(4096)

    def close(self) -> None:
        self.readable.close()
        self._writable.close()


class _Life:
    """One process, from its first message to the reason of its end."""

    def __init__(
        self,
        process: EngineProcess,
        ledger: Ledger,
        settings: LivenessSettings,
        first_load: queue.SimpleQueue[Loading | Loaded | EdgephiError],
        waker: _Waker,
    ) -> None:
        self.failure: Failed | None = None
        self._process = process
        self._channel = process.channel
        self._ledger = ledger
        self._settings = settings
        self._first_load = first_load
        self._waker = waker
        self._liveness = Liveness(settings)
        self._is_loaded = False

    def start(self, options: bytes) -> None:
        """Say what is to be loaded."""
        heartbeat_s = self._settings.heartbeat_s
        self._send(Start(protocol=PROTOCOL, parent_pid=os.getpid(), heartbeat_s=heartbeat_s, options=options))

    def hear(self) -> str | None:
        """Wait a little, act on what came; return why the process is at its end, empty if it ended by itself."""
        waited_from = time.monotonic()
        has_come = self._wait()
        self._channel.flush()
        self._ledger.end_unsent()
        now = time.monotonic()
        if has_come:
            self._liveness.heard()
            try:
                frames = self._channel.receive()
                if frames is None:
                    return ""
                for frame in frames:
                    self._take(decode_to_front(frame))
            except ProtocolError as error:
                return str(error)
        else:
            self._liveness.looked(now - waited_from)
        work_since = self._ledger.work_since
        return self._liveness.verdict(now, is_loading=not self._is_loaded, work_since=work_since)

    def _wait(self) -> bool:
        """Wait until the process says something, there is room to write, or somebody wakes us; return the first."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._channel.has_unsent else 0))
        poll.register(self._waker.readable, select.POLLIN)
        ready = dict(poll.poll(self._settings.tick_s * 1e3))
        if self._waker.readable.fileno() in ready:
            self._waker.drain()
        return bool(ready.get(self._channel.fileno(), 0) & ~select.POLLOUT)

    def _take(self, message: ToFront) -> None:
        match message:
            case Report() if self._is_loaded:
                self._ledger.report(message)
                self._liveness.stepped(message.last_step_at, work_since=self._ledger.last_work_since)
            case Log(level=level, logger=logger, text=text):
                logging.getLogger(logger).log(level, "%s", text)
            case Loading():
                if not self._is_loaded:
                    self._first_load.put(message)
            case Loaded() if not self._is_loaded:
                if message.protocol != PROTOCOL:
                    raise ProtocolError(f"it speaks version {message.protocol} of the protocol, the front {PROTOCOL}")
                self._is_loaded = True
                self._ledger.loaded(message, self._send)
                self._first_load.put(message)
            case Failed():
                self.failure = message
            case _:
                raise ProtocolError(f"{type(message).__name__} came out of turn")

    def _send(self, message: ToEngine) -> None:
        if not self._channel.send(encode(message)):
            self._waker.wake()
