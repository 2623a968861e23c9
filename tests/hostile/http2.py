"""
HTTP/2 by hand, over a plain socket: what no well-behaved client library would send.

Owns bytes and frames only; what is sent and what is expected of the server is the tests' business.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CHAT = "/edgephi.v1.GenerationService/Chat"
COUNT = "/edgephi.v1.GenerationService/CountTokens"
HEALTH = "/grpc.health.v1.Health/Check"
REFUSED_STREAM = 7
ENHANCE_YOUR_CALM = 11
_HEADER_BYTES = 9
_FRAME_BYTES = 16_384

Headers = Sequence[tuple[str, str]]


class RawConnection:
    """
    One connection; used as a context manager.

    Args:
        port: Of a server on loopback.
        settings: What to announce; None sends neither preface nor settings.
        timeout_s: Longest wait for anything.
    """

    def __init__(self, port: int, settings: dict[int, int] | None = None, *, timeout_s: float = 5.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timeout_s = timeout_s
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._received = b""
        self.is_closed = False
        if settings is not None:
            self.send(PREFACE + SettingsFrame(0, settings=settings).serialize())

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send bytes as they are; return whether the server still took them."""
        try:
            self.socket.sendall(data)
        except OSError:
            self.is_closed = True
        return not self.is_closed

    def send_frames(self, *frames: Frame) -> bool:
        """Send frames in one piece."""
        return self.send(b"".join(frame.serialize() for frame in frames))

    def block(self, headers: Headers) -> bytes:
        """Compress headers."""
        return self._encoder.encode(headers)

    def open_stream(
        self, stream_id: int, path: str = COUNT, extra: Headers = (), *, data: bytes | None = None
    ) -> list[Frame]:
        """Return the frames of a call; without data its client goes on talking."""
        start = HeadersFrame(stream_id, self.block(request_headers(path, extra)), flags=["END_HEADERS"])
        if data is None:
            return [start]
        parts = [data[at : at + _FRAME_BYTES] for at in range(0, len(data), _FRAME_BYTES)] or [b""]
        frames: list[Frame] = [DataFrame(stream_id, part) for part in parts]
        frames[-1].flags.add("END_STREAM")
        return [start, *frames]

    def call(self, path: str = COUNT, data: bytes = b"", extra: Headers = ()) -> dict[str, str]:
        """Make a call and return its trailers; of one that was reset or cut, ``:reset`` or ``:closed``."""
        self.send_frames(*self.open_stream(1, path, extra, data=data))
        return self.end_of(1)

    def exchange_settings(self) -> None:
        """Acknowledge the server's settings: limits that they announce hold from then on."""
        for frame in self.frames():
            if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                return

    def end_of(self, stream_id: int) -> dict[str, str]:
        """Read until a stream ends."""
        headers: dict[str, str] = {}
        for frame in self.frames():
            if frame.stream_id == stream_id and isinstance(frame, HeadersFrame):
                headers.update(self.decoded(frame))
                if "END_STREAM" in frame.flags:
                    return headers
            if frame.stream_id == stream_id and isinstance(frame, RstStreamFrame):
                return {**headers, ":reset": str(frame.error_code)}
            if isinstance(frame, GoAwayFrame) and frame.error_code:
                return {**headers, ":closed": str(frame.error_code)}
        return {**headers, ":closed": ""}

    def decoded(self, frame: HeadersFrame) -> dict[str, str]:
        """Return the headers of a frame that has all of them; each once, in the order they came."""
        return {_text(name): _text(value) for name, value in self._decoder.decode(frame.data)}

    def frames(self, timeout_s: float | None = None) -> Iterator[Frame]:
        """Yield frames until the connection closes or none comes in time; pings and settings are answered."""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        while True:
            frame = self._next_frame()
            if frame is not None:
                self._answer(frame)
                yield frame
            elif not self._receive(deadline):
                return

    def wait_closed(self, timeout_s: float) -> bool:
        """Read until the server closes the connection; return whether it did in time."""
        for _ in self.frames(timeout_s):
            pass
        return self.is_closed

    def _receive(self, deadline: float) -> bool:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        self.socket.settimeout(remaining)
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        finally:
            self.socket.settimeout(self._timeout_s)
        self._received += data
        self.is_closed = not data
        return bool(data)

    def _next_frame(self) -> Frame | None:
        if len(self._received) < _HEADER_BYTES:
            return None
        frame, size = Frame.parse_frame_header(memoryview(self._received[:_HEADER_BYTES]))
        end = _HEADER_BYTES + size
        if len(self._received) < end:
            return None
        frame.parse_body(memoryview(self._received[_HEADER_BYTES:end]))
        self._received = self._received[end:]
        return frame

    def _answer(self, frame: Frame) -> None:
        if isinstance(frame, (PingFrame, SettingsFrame)) and "ACK" not in frame.flags:
            kind: Any = type(frame)
            body = {"opaque_data": frame.opaque_data} if isinstance(frame, PingFrame) else {}
            self.send_frames(kind(0, flags=["ACK"], **body))


def request_headers(path: str = COUNT, extra: Headers = ()) -> list[tuple[str, str]]:
    """Return the headers of a gRPC call; a name in *extra* that is there already is replaced."""
    base = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    replaced = {name for name, _ in extra}
    ours = [(name, value) for name, value in base.items() if name not in replaced]
    pseudo = [item for item in extra if item[0].startswith(":")]
    return pseudo + ours + [item for item in extra if not item[0].startswith(":")]


def message(payload: bytes, *, is_compressed: bool = False, length: int | None = None) -> bytes:
    """Return a gRPC message: a flag, the length (or a wrong one) and the bytes."""
    return struct.pack(">BI", is_compressed, len(payload) if length is None else length) + payload


def frame_bytes(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Return a frame that no library would build."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id & 0xFFFFFFFF) + payload


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
