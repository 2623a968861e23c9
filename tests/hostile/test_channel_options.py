"""Each of gRPC's options does what it is there for, and without it the opposite happens."""

from __future__ import annotations

import contextlib
import functools
import gzip
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # missing in the stubs
from hyperframe.frame import GoAwayFrame, HeadersFrame, PingFrame
from tests.hostile.attacks import small_chat
from tests.hostile.http2 import CHAT, COUNT, RawConnection, message
from tests.hostile.options import with_changes

from edgephi.server import app
from edgephi.server.channel_options import MAX_CONNECTIONS, SMALL_MAX_CONNECTIONS, channel_options, max_connections
from edgephi.server.settings import ServerSettings
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

CODE = "grpc-status"
RESOURCE_EXHAUSTED, UNIMPLEMENTED = "8", "12"


def _count(prompt: str = "go") -> bytes:
    return pb2.CountTokensRequest(prompt=prompt).SerializeToString()


def _long_message(port: int) -> bool:
    """A message of 300 KiB is refused by its length."""
    with RawConnection(port, {}) as connection:
        return connection.call(COUNT, message(_count(), length=300 << 10)).get(CODE) == RESOURCE_EXHAUSTED


def _gzip(port: int) -> bool:
    """A compressed message is refused whatever is in it."""
    with RawConnection(port, {}) as connection:
        data = message(gzip.compress(_count()), is_compressed=True)
        return connection.call(COUNT, data, [("grpc-encoding", "gzip")]).get(CODE) == UNIMPLEMENTED


def _streams(port: int) -> bool:
    """A second call beside a running one is refused."""
    with RawConnection(port, {}) as connection:
        frames = [*connection.open_stream(1, CHAT), *connection.open_stream(3, COUNT, data=message(_count()))]
        connection.send_frames(*frames)
        return ":reset" in connection.end_of(3)


def _many_calls(port: int) -> bool:
    """Of 300 calls at once on the connection of a client that keeps to the limit, all are answered."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        count = GenerationServiceStub(channel).CountTokens
        calls = [count.future(pb2.CountTokensRequest(prompt="go"), timeout=30) for _ in range(300)]
        return all(call.exception() is None for call in calls)


def _connections(port: int) -> bool:
    """A second connection is closed."""
    with RawConnection(port, {}) as first, RawConnection(port, {}, timeout_s=2) as second:
        assert first.call(COUNT, message(_count()))[CODE] == "0"
        return second.call(COUNT, message(_count())).get(CODE) != "0"


def _idle(port: int) -> bool:
    """A connection without calls is closed, though its client is there and answers."""
    with RawConnection(port, {}) as connection:
        return any(isinstance(frame, GoAwayFrame) for frame in connection.frames(2.5))


def _age(port: int) -> bool:
    """A connection in use is told to go, and a call that runs on it is finished."""
    with RawConnection(port, {}) as connection:
        started = time.monotonic()
        told, number = False, 1
        while not told and time.monotonic() - started < 3:
            connection.send_frames(*connection.open_stream(number, CHAT, data=small_chat(8)))
            for frame in connection.frames(2):
                told |= isinstance(frame, GoAwayFrame)
                if isinstance(frame, HeadersFrame) and "END_STREAM" in frame.flags:
                    assert connection.decoded(frame)[CODE] == "0"
                    break
                if isinstance(frame, HeadersFrame):
                    connection.decoded(frame)
            number += 2
        return told


def _age_grace(port: int) -> bool:
    """On a connection that was told to go, a call that does not end is cut."""
    with RawConnection(port, {}) as connection:
        connection.send_frames(*connection.open_stream(1, CHAT))
        return connection.wait_closed(4.0)


def _pings(port: int) -> bool:
    """A client that pings all the time is sent away."""
    with RawConnection(port, {}) as connection:
        for _ in range(8):
            connection.send_frames(PingFrame(0, opaque_data=b"01234567"))
            time.sleep(0.02)
        return any(isinstance(frame, GoAwayFrame) for frame in connection.frames(0.5))


def _slow_pings(port: int) -> bool:
    """A client that pings at the keepalive of our own client library is not sent away."""
    with RawConnection(port, {}) as connection:
        for _ in range(5):
            connection.send_frames(PingFrame(0, opaque_data=b"01234567"))
            time.sleep(0.25)
        return not any(isinstance(frame, GoAwayFrame) for frame in connection.frames(0.5))


def _metadata(port: int) -> bool:
    """A call with 18 KB of metadata is refused, once its client has acknowledged the server's settings."""
    with RawConnection(port, {}) as connection:
        connection.exchange_settings()
        sent = [(f"x-{index}", f"{index:02}" * 300) for index in range(30)]
        return connection.call(COUNT, message(_count()), sent).get(CODE) == RESOURCE_EXHAUSTED


def _handshake(port: int) -> bool:
    """A connection on which nothing is said is closed."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        return _is_cut(connection)


def _settings_ignored(port: int) -> bool:
    """A client that does not acknowledge the server's settings is cut."""
    with RawConnection(port, {}) as connection:
        return _is_cut(connection.socket)


def _keepalive(port: int) -> bool:
    """A client that answers nothing is given up, call or no call."""
    with RawConnection(port, {}) as connection:
        return _is_cut(connection.socket)


def _is_cut(connection: socket.socket) -> bool:
    """Answer nothing, and wait for the server to close."""
    connection.settimeout(3.5)
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    return True


Changes = dict[str, int | None]
LARGE = 1 << 20

# What is tried, settings that make it quick, a change of an option for the same reason, and the change that takes the
# protection away; None leaves an option at gRPC's default.
CASES: dict[str, tuple[Callable[[int], bool], dict[str, Any], Changes, Changes]] = {
    "message": (_long_message, {}, {}, {"grpc.max_receive_message_length": None}),
    "compression": (_gzip, {}, {}, {"grpc.compression_enabled_algorithms_bitset": None}),
    "streams": (_streams, {"max_streams": 1}, {}, {"grpc.max_concurrent_streams": None}),
    "ended calls": (_many_calls, {}, {}, {"grpc.http2.max_deallocating_streams": None}),
    "connections": (_connections, {"max_connections": 1}, {}, {"grpc.max_allowed_incoming_connections": None}),
    "idle": (_idle, {"connection_idle_s": 1}, {}, {"grpc.max_connection_idle_ms": None}),
    "age": (_age, {"connection_age_s": 1}, {}, {"grpc.max_connection_age_ms": None}),
    "age grace": (
        _age_grace,
        {"connection_age_s": 1, "max_duration_s": 1},
        {},
        {"grpc.max_connection_age_grace_ms": None},
    ),
    "ping strikes": (_pings, {}, {}, {"grpc.http2.max_ping_strikes": 0}),
    "ping interval": (
        _slow_pings,
        {},
        {"grpc.http2.min_ping_interval_without_data_ms": 100},
        {"grpc.http2.min_ping_interval_without_data_ms": None},
    ),
    "metadata": (
        _metadata,
        {},
        {},
        {"grpc.max_metadata_size": LARGE, "grpc.absolute_max_metadata_size": LARGE},
    ),
    "settings": (_settings_ignored, {"handshake_timeout_s": 1}, {}, {"grpc.http2.settings_timeout": None}),
    "handshake": (
        _handshake,
        {"handshake_timeout_s": 1},
        {"grpc.http2.settings_timeout": None},
        {"grpc.server_handshake_timeout_ms": None},
    ),
    "keepalive": (
        _keepalive,
        {"keepalive_s": 1, "keepalive_timeout_s": 1},
        {},
        {"grpc.keepalive_time_ms": None},
    ),
    "ping timeout": (
        _keepalive,
        {"keepalive_s": 1, "keepalive_timeout_s": 1},
        {},
        {"grpc.http2.ping_timeout_ms": None},
    ),
    "keepalive without calls": (
        _keepalive,
        {"keepalive_s": 1, "keepalive_timeout_s": 1},
        {},
        {"grpc.keepalive_permit_without_calls": 0},
    ),
}
# What no test here can tell apart: reuse of a port (tests/server/test_server.py), how long a lost peer is waited for
# (tests/server/test_cleanup.py), and how many requests are read before others have their turn, which is a matter of
# shares of time.
ELSEWHERE = {"grpc.so_reuseport", "grpc.keepalive_timeout_ms", "grpc.http2.max_requests_per_read"}


@contextlib.contextmanager
def changed(monkeypatch: pytest.MonkeyPatch, changes: Changes) -> Iterator[None]:
    """Give servers that are made in the block other options."""
    with monkeypatch.context() as patch:
        patch.setattr(app, "channel_options", with_changes(changes))
        yield


@pytest.mark.parametrize("has_protection", [True, False], ids=["ours", "control"])
@pytest.mark.parametrize("name", CASES)
def test_an_option_does_what_it_is_for(
    serve_in_thread: Any, monkeypatch: pytest.MonkeyPatch, name: str, has_protection: bool
) -> None:
    """What is tried meets the protection, and does not where the option is taken away."""
    attempt, settings, change, control = CASES[name]
    with (
        changed(monkeypatch, change if has_protection else {**change, **control}),
        serve_in_thread(step_delay_s=0.01, **settings) as running,
    ):
        assert attempt(running.server.port) is has_protection


def test_no_option_is_without_a_test() -> None:
    """Each option of the server is in a control above, or is named as tested elsewhere."""
    names = {name for name, _ in channel_options(ServerSettings(), memory_bytes=None)}
    assert {name for *_, control in CASES.values() for name in control} | ELSEWHERE == names


@functools.cache
def _library() -> bytes:
    return Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("name", [*dict(channel_options(ServerSettings(), memory_bytes=None)), "grpc.no_such_option"])
def test_the_library_knows_the_option(name: str) -> None:
    """GRPC ignores names that it does not know, so each must be in the library; one that nobody made up is not."""
    assert (name.encode() in _library()) is (name != "grpc.no_such_option")


@pytest.mark.parametrize(
    ("memory_bytes", "most"),
    [
        (None, MAX_CONNECTIONS),
        (1 << 30, SMALL_MAX_CONNECTIONS),
        ((2 << 30) - 1, SMALL_MAX_CONNECTIONS),
        (2 << 30, MAX_CONNECTIONS),
    ],
)
def test_a_small_machine_takes_fewer_connections(memory_bytes: int | None, most: int) -> None:
    """Below 2 GiB there are 16 connections, else 64, and always as many as the operator says."""
    assert max_connections(ServerSettings(), memory_bytes) == most
    assert max_connections(ServerSettings(max_connections=5), memory_bytes) == 5
    options = dict(channel_options(ServerSettings(), memory_bytes=memory_bytes))
    assert options["grpc.max_allowed_incoming_connections"] == most
