from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgephi.isolation.channel import Channel, FrameReader
from edgephi.isolation.messages import ProtocolError


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Both ends of a connection."""
    one, other = (Channel(end, max_frame_bytes=1 << 20) for end in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def framed(payload: bytes) -> bytes:
    """Return a payload as it is on the wire."""
    return len(payload).to_bytes(4) + payload


@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(1, 30), min_size=1))
def test_frames_come_out_whole_however_they_arrive(payloads: list[bytes], sizes: list[int]) -> None:
    """Frames are the same, in order, whatever the sizes of the pieces they are read in."""
    stream = b"".join(framed(payload) for payload in payloads)
    reader = FrameReader()
    found: list[bytes] = []
    index = 0
    while stream:
        size = sizes[index % len(sizes)]
        found += reader.feed(stream[:size])
        stream = stream[size:]
        index += 1
    assert found == payloads


def test_a_huge_frame_is_refused_when_it_is_announced() -> None:
    """A length above the limit is refused before its bytes are waited for."""
    with pytest.raises(ProtocolError, match="4294967295 bytes is announced"):
        FrameReader(1000).feed(b"\xff\xff\xff\xff")
    assert FrameReader(1000).feed(framed(b"x" * 1000)) == [b"x" * 1000]


def test_what_would_be_refused_is_not_sent(ends: tuple[Channel, Channel]) -> None:
    """A message above the limit raises where it is sent, and the connection stays usable."""
    one, other = ends
    with pytest.raises(ProtocolError, match="1048577 bytes"):
        one.send(b"x" * ((1 << 20) + 1))
    assert one.send(b"y")
    assert other.wait_readable(5)
    assert other.receive() == [b"y"]


def test_a_send_never_waits(ends: tuple[Channel, Channel]) -> None:
    """Ten megabytes to one who does not read are kept; they arrive whole once it reads and the rest is flushed."""
    one, other = ends
    frames = [bytes([index]) * (1 << 20) for index in range(10)]
    assert [one.send(frame) for frame in frames][-1] is False
    assert one.has_unsent
    found: list[bytes] = []
    while len(found) < len(frames):
        one.flush()
        found += other.receive() or []
    assert found == frames
    assert one.flush()


def test_the_end_of_the_other_side_is_told(ends: tuple[Channel, Channel]) -> None:
    """What was sent before the end still arrives, then the receiver is told; sending to nobody raises nothing."""
    one, other = ends
    one.send(b"last")
    one.close()
    assert other.receive() == [b"last"]
    assert other.receive() is None
    assert other.send(b"x" * (1 << 20))
    assert not other.has_unsent


def test_a_closed_channel_refuses_nothing(ends: tuple[Channel, Channel]) -> None:
    """A send after close is lost silently, as one to a process that has just died is."""
    one, _ = ends
    one.close()
    assert one.send(b"x")
    assert one.receive() is None
