"""
Frames between two processes: a length of four bytes, then so many bytes, over one socket of a pair.

Owns framing and buffering. A send never waits: what the kernel does not take at once is kept, and written by
:meth:`Channel.flush`. Knows no messages.
"""

from __future__ import annotations

import select
import socket
import threading

from edgephi.isolation.messages import ProtocolError

MAX_FRAME_BYTES = 16 << 20
"""More than the longest prompt of the largest context takes several times over."""

_HEADER_BYTES = 4
_READ_BYTES = 1 << 16


class FrameReader:
    """
    Cuts a stream of bytes into frames. Lives as long as its channel.

    Args:
        max_frame_bytes: Longest frame.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """
        Take bytes and return the frames that they complete.

        Raises:
            ProtocolError: If a frame is announced as longer than allowed, before any of it is kept.
        """
        self._buffer += data
        frames: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= _HEADER_BYTES:
            length = int.from_bytes(self._buffer[start : start + _HEADER_BYTES])
            if length > self._max_frame_bytes:
                raise ProtocolError(f"a frame of {length} bytes is announced; at most {self._max_frame_bytes} are read")
            end = start + _HEADER_BYTES + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[start + _HEADER_BYTES : end]))
            start = end
        del self._buffer[:start]
        return frames


class Channel:
    """
    One end of a connection. Sending is for any thread, receiving for one.

    Lives until :meth:`close`; whoever made it closes it.

    Args:
        end: A connected stream socket, which the channel owns from now on.
        max_frame_bytes: Longest frame, both ways.
    """

    def __init__(self, end: socket.socket, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        end.setblocking(False)
        self._socket = end
        self._max_frame_bytes = max_frame_bytes
        self._reader = FrameReader(max_frame_bytes)
        self._sending = threading.Lock()
        self._unsent = bytearray()
        self._is_broken = False

    def fileno(self) -> int:
        """Return the descriptor, to poll."""
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether :meth:`flush` has something to do."""
        return bool(self._unsent)

    def send(self, frame: bytes) -> bool:
        """
        Write a frame, or as much of it as the kernel takes; never waits. Frames arrive in the order of the calls.

        Returns:
            Whether nothing is left to :meth:`flush`. Also once the other end is gone, which only the receiver tells.

        Raises:
            ProtocolError: If the frame is longer than the other end would read.
        """
        if len(frame) > self._max_frame_bytes:
            raise ProtocolError(f"a message has {len(frame)} bytes; at most {self._max_frame_bytes} can be sent")
        with self._sending:
            self._unsent += len(frame).to_bytes(_HEADER_BYTES)
            self._unsent += frame
            return self._flush()

    def flush(self) -> bool:
        """Write what is left, as far as the kernel takes it; return whether nothing is left."""
        with self._sending:
            return self._flush()

    def receive(self) -> list[bytes] | None:
        """
        Read what has arrived, without waiting.

        Returns:
            Complete frames, none if nothing is complete yet; None once the other end is gone.

        Raises:
            ProtocolError: If a frame is announced as longer than allowed.
        """
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return self._reader.feed(data) if data else None

    def wait_readable(self, timeout_s: float | None = None) -> bool:
        """Wait until :meth:`receive` has something to return; false after ``timeout_s`` seconds."""
        return _poll(self._socket, select.POLLIN, timeout_s)

    def wait_writable(self, timeout_s: float) -> bool:
        """Wait until :meth:`flush` can write; false after ``timeout_s`` seconds."""
        return _poll(self._socket, select.POLLOUT, timeout_s)

    def close(self) -> None:
        """Close the connection; what is unsent is lost. Calling it again does nothing."""
        self._socket.close()

    def _flush(self) -> bool:
        while self._unsent and not self._is_broken:
            try:
                num_sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return False
            except OSError:
                self._is_broken = True
            else:
                del self._unsent[:num_sent]
        self._unsent.clear()
        return True


def _poll(end: socket.socket, event: int, timeout_s: float | None) -> bool:
    poll = select.poll()
    poll.register(end, event)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1e3))
