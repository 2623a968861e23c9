"""
What front and engine process say to each other: one MessagePack object a frame.

Owns every message and their strict decoding. What the engine process is to load (``Start.options``) and what it says
of it (``Loaded.facts``) are the composition's; here they are opaque bytes. No message ends the process: it ends when
its end of the channel says that the front is gone.
"""

from __future__ import annotations

import enum

import msgspec

from edgephi import errors
from edgephi.engine.limits import EngineLimits
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    Finished,
    FinishReason,
    PrefillProgress,
    RequestId,
    Timings,
    TokenLogprobs,
    TokenSampled,
    Usage,
)
from edgephi.engine.stats import EngineStats
from edgephi.errors import EdgephiError, EngineFailed

PROTOCOL = 1
"""Rises with every change of a message; both sides are of one installation, so another one is a broken one."""

MAX_REFUSAL_CHARACTERS = 200
"""Of why a frame is no message, which is logged and may quote the frame."""


class ProtocolError(Exception):
    """The other process sent what is no message of this protocol; it cannot be trusted any further."""


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages; the name of the class is its tag."""


# From the front.


class Start(_Message, frozen=True):
    """The first message: what to load. ``heartbeat_s`` is the longest time between two messages, in seconds."""

    protocol: int
    parent_pid: int
    heartbeat_s: float
    options: bytes


class Submit(_Message, frozen=True):
    """Run a request; the front has checked it by the engine's own rules."""

    request: EngineRequest


class Cancel(_Message, frozen=True):
    """End a request; unknown ids are ignored, for its end may be on its way."""

    request_id: RequestId
    reason: FinishReason


class SetLimits(_Message, frozen=True):
    """Take on less or more from now on."""

    limits: EngineLimits


# From the engine process.


class Loading(_Message, frozen=True):
    """
    The engine process lives and loads.

    Attributes:
        label: What is being compiled; None for a mere sign of life.
        done: Units done.
        total: Units in all.
    """

    label: str | None = None
    done: int = 0
    total: int = 0


class EngineFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the front must know to refuse a request as the engine itself would."""

    vocab_size: int
    context_tokens: int
    max_waiting: int
    max_limits: EngineLimits


class Loaded(_Message, frozen=True):
    """Requests are taken from now on."""

    protocol: int
    engine: EngineFacts
    stats: EngineStats
    facts: bytes


class Failed(_Message, frozen=True):
    """
    The engine process is about to end by itself.

    Attributes:
        kind: Name of a class of edgephi.errors.
        message: For people.
    """

    kind: str
    message: str


class Log(_Message, frozen=True):
    """A line for the front's log; ``level`` is one of :mod:`logging`."""

    level: int
    logger: str
    text: str


class Report(_Message, frozen=True):
    """
    Everything that happened in a step, or without events a sign of life.

    Attributes:
        events: In the order they happened.
        stats: As of the end of the step.
        last_step_at: Seconds of CLOCK_MONOTONIC when a step last ended or work last arrived at an idle engine.
        retry_after_ms: When a place is likely to be free.
    """

    events: tuple[WireEvent, ...]
    stats: EngineStats
    last_step_at: float
    retry_after_ms: int


class _Event(enum.IntEnum):
    """Tags of events: short, because most messages hold one event of a few bytes."""

    PROGRESS = 0
    TOKEN = 1
    END = 2


class WireProgress(msgspec.Struct, frozen=True, array_like=True, tag=int(_Event.PROGRESS)):
    """``PrefillProgress``."""

    request_id: RequestId
    done_tokens: int
    total_tokens: int


class WireToken(msgspec.Struct, frozen=True, array_like=True, tag=int(_Event.TOKEN)):
    """``TokenSampled``."""

    request_id: RequestId
    token_id: int
    logprobs: TokenLogprobs | None = None


class WireEnd(msgspec.Struct, frozen=True, array_like=True, tag=int(_Event.END)):
    """``Finished``."""

    request_id: RequestId
    reason: FinishReason
    usage: Usage
    timings: Timings
    error: str | None = None


WireEvent = WireProgress | WireToken | WireEnd
ToEngine = Start | Submit | Cancel | SetLimits
ToFront = Loading | Loaded | Failed | Log | Report

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_to_front: msgspec.msgpack.Decoder[ToFront] = msgspec.msgpack.Decoder(ToFront)


def encode(message: ToEngine | ToFront) -> bytes:
    """Return a message as the bytes of one frame."""
    return _encoder.encode(message)


def decode_to_engine(frame: bytes) -> ToEngine:
    """
    Read a message of the front.

    Raises:
        ProtocolError: If it is none.
    """
    try:
        return _to_engine.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(_refusal(frame, "engine", error)) from error


def decode_to_front(frame: bytes) -> ToFront:
    """
    Read a message of the engine process.

    Raises:
        ProtocolError: If it is none.
    """
    try:
        return _to_front.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(_refusal(frame, "front", error)) from error


def _refusal(frame: bytes, reader: str, error: Exception) -> str:
    # msgspec quotes what it refuses, however long that is.
    why = str(error)[:MAX_REFUSAL_CHARACTERS]
    return f"a frame of {len(frame)} bytes is no message for the {reader}: {why}"


def event_to_wire(event: EngineEvent) -> WireEvent:
    """Return an event as it is sent."""
    if isinstance(event, TokenSampled):
        return WireToken(event.request_id, event.token_id, event.logprobs)
    if isinstance(event, PrefillProgress):
        return WireProgress(event.request_id, event.done_tokens, event.total_tokens)
    return WireEnd(event.request_id, event.reason, event.usage, event.timings, event.error)


def event_from_wire(event: WireEvent) -> EngineEvent:
    """Return an event as the engine told it."""
    if isinstance(event, WireToken):
        return TokenSampled(request_id=event.request_id, token_id=event.token_id, logprobs=event.logprobs)
    if isinstance(event, WireProgress):
        return PrefillProgress(
            request_id=event.request_id, done_tokens=event.done_tokens, total_tokens=event.total_tokens
        )
    return Finished(
        request_id=event.request_id, reason=event.reason, usage=event.usage, timings=event.timings, error=event.error
    )


def failure_of(error: BaseException) -> Failed:
    """Describe why loading failed; of an error that is not ours only the class, since its text may hold anything."""
    if isinstance(error, EdgephiError):
        return Failed(kind=type(error).__name__, message=str(error))
    return Failed(
        kind=EngineFailed.__name__,
        message=f"loading the engine ended with an internal error ({type(error).__name__}); the log says more",
    )


def error_of(failure: Failed) -> EdgephiError:
    """Return the error that an engine process ended with, of the same class and with the same message."""
    kind = getattr(errors, failure.kind, None)
    # Errors that are made of more than a message are about requests, which no process ends with.
    if isinstance(kind, type) and issubclass(kind, EdgephiError) and kind.__init__ is Exception.__init__:
        return kind(failure.message)
    return EngineFailed(failure.message)
