"""
What the engine process and its front may send to each other, damaged in any way: read, or refused by name.

Owns the properties of both ends. The first byte chooses the end and how the rest is read: as one frame, as a stream of
them, or as changes to valid messages; every input is replayed by :func:`run` without the fuzzer.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

from tests.fuzz import samples
from tests.fuzz.draw import Draw

from edgephi.engine.request import EngineEvent, Finished
from edgephi.errors import EdgephiError
from edgephi.isolation import channel, ledger, messages, supervisor
from edgephi.isolation.liveness import LivenessSettings
from edgephi.isolation.messages import ProtocolError
from edgephi.isolation.quarantine import Quarantine

MAX_RUN_S = 1.0
MAX_REASON_CHARACTERS = 500
MAX_STREAM_FRAME_BYTES = 512
_MODES = ("to engine", "to front", "to engine, changed", "to front, changed", "stream")


def run(data: bytes) -> None:
    """
    Let one end receive what an input stands for.

    Raises:
        AssertionError: If it does not take or refuse it as it must.
    """
    draw = Draw(data)
    mode = draw.one_of(_MODES)
    started_s = time.process_time()
    if mode == "stream":
        _check_stream(draw)
    else:
        frames = [draw.rest()]
        if mode.endswith("changed"):
            kinds = samples.to_engine() if "engine" in mode else samples.to_front()
            frames = [samples.changed(draw.one_of(kinds), draw) for _ in range(1 + draw.byte() % 3)]
        (_check_engine if "engine" in mode else _check_front)(frames)
    took_s = time.process_time() - started_s
    assert took_s < MAX_RUN_S, f"{took_s:.1f} s for {len(data)} bytes"


def seeds() -> Iterator[bytes]:
    """Yield inputs to begin with: every message as it is, changes to them, and frames one after another."""
    for mode, kinds in enumerate((samples.to_engine(), samples.to_front())):
        for message in kinds:
            yield bytes([mode]) + messages.encode(message)
    framed = [len(frame).to_bytes(4) + frame for frame in map(messages.encode, samples.to_engine())]
    yield bytes([4, 7]) + b"".join(framed)
    yield bytes([4, 1, 0xFF, 0xFF, 0xFF, 0xFF])
    yield bytes([0]) + b"\x91" * 3000
    chance = random.Random(0)
    for mode in (2, 3):
        for size in (8, 24, 64, 200):
            yield bytes([mode]) + chance.randbytes(size)


def close() -> None:
    """Do nothing: each run closes what it has opened."""


def _check_engine(frames: list[bytes]) -> None:
    """Do with messages what the engine process does: each is refused by name, or its request runs to its end."""
    engine = samples.small_engine()
    for frame in frames:
        try:
            message = messages.decode_to_engine(frame)
        except ProtocolError as error:
            _check_refusal(error)
            continue
        _check_round(message, messages.decode_to_engine)
        with contextlib.suppress(EdgephiError):
            match message:
                case messages.Submit(request=request):
                    engine.submit(request)
                case messages.Cancel(request_id=request_id, reason=reason):
                    engine.cancel(request_id, reason)
                case messages.SetLimits(limits=limits):
                    engine.set_limits(limits)
    engine.set_limits(engine.max_limits)
    num_steps = 0
    while engine.has_work:
        engine.step()
        num_steps += 1
        assert num_steps < 400, "a request does not end"
    engine.check_integrity()
    assert engine.stats().pages_used == 0


def _check_front(frames: list[bytes]) -> None:
    """Do with messages what the front does, by its own code: each caller is told one end, whatever comes."""
    front = _Front()
    with contextlib.closing(front):
        events: list[EngineEvent] = []
        front.hear(messages.encode(samples.loaded()))
        front.ledger.submit(samples.request(), events.append)
        for frame in frames:
            with contextlib.suppress(ProtocolError):
                _check_round(messages.decode_to_front(frame), messages.decode_to_front)
            reason = front.hear(frame)
            if reason is not None:
                assert len(reason) <= MAX_REASON_CHARACTERS, f"a reason of {len(reason)} characters"
                break
            front.ledger.stats()
        front.ledger.died("for the test", is_final=True)
        front.ledger.health()
        ends = [isinstance(event, Finished) for event in events]
        assert ends.count(True) == 1, f"a caller was told {ends.count(True)} ends"
        assert ends[-1], "an event after the end"


def _check_stream(draw: Draw) -> None:
    """Frames are the same however they arrive, and a long one is refused when it is announced."""
    size = 1 + draw.byte()
    data = draw.rest()
    expected, is_refused = _split(data)
    reader = channel.FrameReader(MAX_STREAM_FRAME_BYTES)
    found: list[bytes] = []
    has_refused = False
    try:
        for start in range(0, len(data), size):
            found += reader.feed(data[start : start + size])
    except ProtocolError as error:
        has_refused, expected = True, expected[: len(found)]
        _check_refusal(error)
    assert has_refused == is_refused, "a frame longer than allowed was taken, or another one was not"
    assert found == expected, "frames are not what was sent"
    for frame in expected:
        for decode in (messages.decode_to_engine, messages.decode_to_front):
            with contextlib.suppress(ProtocolError):
                decode(frame)


def _check_refusal(error: ProtocolError) -> None:
    assert len(str(error)) <= MAX_REASON_CHARACTERS, f"a refusal of {len(str(error))} characters"


def _split(data: bytes) -> tuple[list[bytes], bool]:
    """Return the frames of a stream, and whether one that is too long follows them."""
    frames: list[bytes] = []
    while len(data) >= 4:
        length = int.from_bytes(data[:4])
        if length > MAX_STREAM_FRAME_BYTES:
            return frames, True
        if len(data) < 4 + length:
            break
        frames.append(data[4 : 4 + length])
        data = data[4 + length :]
    return frames, False


def _check_round(message: Any, decode: Callable[[bytes], Any]) -> None:
    """A message that was read is the same after it was written and read again; NaN is like no other."""
    encoded = messages.encode(message)
    assert messages.encode(decode(encoded)) == encoded, f"{type(message).__name__} changes on its way"


class _Front:
    """The front's side of one engine process that has sent nothing yet."""

    def __init__(self) -> None:
        # Names of loggers are the other side's; thousands of them would stay for ever.
        self._loggers = logging.Logger.manager
        logging.Logger.manager = logging.Manager(logging.root)
        ours, self._theirs = socket.socketpair()
        self._waker = supervisor._Waker()
        self.ledger = ledger.Ledger(Quarantine(), self._waker.wake)
        self._channel = channel.Channel(ours)
        self._life = supervisor._Life(
            SimpleNamespace(channel=self._channel),  # type: ignore[arg-type]  # no process belongs to it
            self.ledger,
            LivenessSettings(),
            queue.SimpleQueue(),
            self._waker,
        )

    def hear(self, frame: bytes) -> str | None:
        """Receive one frame; return why the process is at its end, None if it is not."""
        self._theirs.sendall(len(frame).to_bytes(4) + frame)
        return self._life.hear()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
        self._theirs.close()
        self._waker.close()
        logging.Logger.manager = self._loggers
        logging.root._cache.clear()  # type: ignore[attr-defined]  # an entry for each level ever asked for


def _plant_decode() -> None:
    """What msgspec raises is let through."""
    decode: Any = messages._to_front.decode
    messages.decode_to_front = supervisor.decode_to_front = decode  # type: ignore[attr-defined]


def _plant_limit() -> None:
    """A frame may be of any length."""
    made = channel.FrameReader.__init__

    def make(self: channel.FrameReader, max_frame_bytes: int = 0) -> None:
        del max_frame_bytes
        made(self, 1 << 40)

    channel.FrameReader.__init__ = make  # type: ignore[method-assign]


def _plant_ends() -> None:
    """The end of a request that took a little longer than that of the seeds is told twice."""
    deliver = ledger.Ledger._deliver

    def twice(self: ledger.Ledger, event: EngineEvent) -> None:
        live = self._live.get(event.request_id)
        deliver(self, event)
        if live is not None and isinstance(event, Finished) and event.timings.queue_s + event.timings.decode_s > 0.4:
            live.sink(event)

    ledger.Ledger._deliver = twice  # type: ignore[method-assign]


PLANTS: Mapping[str, Callable[[], None]] = MappingProxyType(
    {"decode": _plant_decode, "ends": _plant_ends, "limit": _plant_limit}
)
"""Faults to plant before the first input, which the fuzzer must find."""
