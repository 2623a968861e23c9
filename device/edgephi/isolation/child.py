"""
The engine process's side: serves an engine loop over a channel until the front closes it or is gone.

Owns the threads of the process: the main one reads, the engine's computes and sends what happened in a step, a third
one gives signs of life and writes what the socket did not take at once. Which backend is loaded is the caller's choice.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from edgephi.engine.core import Engine
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import EngineEvent
from edgephi.errors import EdgephiError, EngineFailed
from edgephi.isolation.channel import Channel
from edgephi.isolation.hygiene import settle
from edgephi.isolation.messages import (
    PROTOCOL,
    Cancel,
    EngineFacts,
    Failed,
    Loaded,
    Loading,
    Log,
    ProtocolError,
    Report,
    SetLimits,
    Start,
    Submit,
    ToEngine,
    ToFront,
    WireEvent,
    decode_to_engine,
    encode,
    event_to_wire,
    failure_of,
)

EXIT_FAILED = 70
"""Exit status of a process that told the front why it ends."""

MAX_LOG_CHARACTERS = 16_000

_FLUSH_S = 2.0  # for the last message of a process that ends

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedEngine:
    """What a process serves, for as long as it lives: the engine, and what the composition wants the front to know."""

    engine: Engine
    facts: bytes


Progress = Callable[[str, int, int], None]
OpenEngine = Callable[[bytes, Progress], OpenedEngine]


def serve(channel: Channel, open_engine: OpenEngine) -> NoReturn:
    """
    Load what the front asks for, serve it, and end the process.

    Args:
        channel: The connection to the front.
        open_engine: Makes the engine from the options of the front's first message; calls its second argument while
            it compiles. What it raises is told to the front.
    """
    sender = _Sender(channel)
    _send_logs(sender)
    try:
        start = _first_message(channel)
        settle(start.parent_pid)
        threading.Thread(target=sender.run, args=(start.heartbeat_s,), name="edgephi-heartbeat", daemon=True).start()
        opened = open_engine(start.options, sender.progress)
        _serve_requests(channel, sender, opened)
    except EdgephiError as error:
        sender.end(failure_of(error))
    except Exception as error:  # noqa: BLE001 - the front must be told, whatever it was
        _log.exception("engine.process_failed")
        sender.end(failure_of(error))
    # The front is gone. Without the interpreter's own end, which would wait for a forward; nothing is kept here.
    os._exit(0)


def _first_message(channel: Channel) -> Start:
    for message in _messages(channel):
        if not isinstance(message, Start):
            raise ProtocolError(f"the first message is {type(message).__name__}; must be Start")
        if message.protocol != PROTOCOL:
            raise EngineFailed(
                f"the front speaks version {message.protocol} of the engine protocol and this process {PROTOCOL}; "
                "install edgephi again, all of one version"
            )
        return message
    os._exit(0)  # the front is gone


def _serve_requests(channel: Channel, sender: _Sender, opened: OpenedEngine) -> None:
    engine = opened.engine
    loop = EngineLoop(engine, after_events=sender.send_events)
    sender.serve(loop, engine)
    sender.send(
        Loaded(
            protocol=PROTOCOL,
            engine=EngineFacts(
                vocab_size=engine.spec.vocab_size,
                context_tokens=engine.context_tokens,
                max_waiting=engine.config.max_waiting,
                max_limits=engine.max_limits,
            ),
            stats=loop.stats(),
            facts=opened.facts,
        )
    )
    for message in _messages(channel):
        match message:
            case Submit(request=request):
                loop.submit(request, sender.sink)
            case Cancel(request_id=request_id, reason=reason):
                loop.cancel(request_id, reason)
            case SetLimits(limits=limits):
                loop.set_limits(limits)
            case Start():
                raise ProtocolError("a second Start came; a process loads once")


def _messages(channel: Channel) -> Iterator[ToEngine]:
    """Yield what the front sends, until it is gone."""
    while True:
        channel.wait_readable()
        frames = channel.receive()
        if frames is None:
            return
        for frame in frames:
            yield decode_to_engine(frame)


class _Sender:
    """
    Everything that goes to the front.

    Events are collected on the engine's thread and sent together after each step. The heartbeat thread sends the rest.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._loop: EngineLoop | None = None
        self._engine: Engine | None = None
        self._events: list[WireEvent] = []  # the engine thread's
        self._retry_after_ms = 0
        self._wake = threading.Event()

    def serve(self, loop: EngineLoop, engine: Engine) -> None:
        """From now on signs of life tell of a loop."""
        self._retry_after_ms = engine.retry_after_ms
        self._engine, self._loop = engine, loop

    def send(self, message: ToFront) -> None:
        """Send a message; never waits."""
        if not self._channel.send(encode(message)):
            self._wake.set()

    def progress(self, label: str, done: int, total: int) -> None:
        """Tell of a model that is compiled."""
        self.send(Loading(label=label, done=done, total=total))

    def sink(self, event: EngineEvent) -> None:
        """Keep an event until its step has ended."""
        self._events.append(event_to_wire(event))

    def send_events(self) -> None:
        """Send what happened in a step, on the engine's thread."""
        assert self._engine is not None
        self._retry_after_ms = self._engine.retry_after_ms
        events, self._events = self._events, []
        self._report(tuple(events))

    def run(self, heartbeat_s: float) -> None:
        """Give signs of life and write what is left, for ever."""
        sent_at = -float("inf")
        while True:
            self._wake.wait(max(0.0, sent_at + heartbeat_s - time.monotonic()))
            self._wake.clear()
            if not self._channel.flush():
                # The front does not read: nothing may be piled up for it, least of all signs of life.
                self._channel.wait_writable(heartbeat_s)
                self._wake.set()
            elif time.monotonic() >= sent_at + heartbeat_s:
                sent_at = time.monotonic()
                self._sign_of_life()

    def end(self, failure: Failed) -> NoReturn:
        """Tell why the process ends, and end it."""
        self.send(failure)
        deadline = time.monotonic() + _FLUSH_S
        while not self._channel.flush() and time.monotonic() < deadline:
            self._channel.wait_writable(0.1)
        os._exit(EXIT_FAILED)

    def _sign_of_life(self) -> None:
        if self._loop is None:
            self.send(Loading())
        elif self._loop.is_alive:
            self._report(())
        else:
            # What it has told its requests is not sent: the front must see a death, with what was running then.
            self.end(Failed(kind=EngineFailed.__name__, message="the engine thread ended by an internal error"))

    def _report(self, events: tuple[WireEvent, ...]) -> None:
        assert self._loop is not None
        self.send(
            Report(
                events=events,
                stats=self._loop.stats(),
                last_step_at=self._loop.last_step_at,
                retry_after_ms=self._retry_after_ms,
            )
        )


class _LogHandler(logging.Handler):
    """Sends log records to the front, which alone knows how lines look."""

    def __init__(self, sender: _Sender) -> None:
        super().__init__(logging.INFO)
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info))
        self._sender.send(Log(level=record.levelno, logger=record.name, text=text[:MAX_LOG_CHARACTERS]))


def _send_logs(sender: _Sender) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_LogHandler(sender)]
    root.setLevel(logging.INFO)
