"""Floods at full speed: the good client beside them is served, and nothing of them stays."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hyperframe.frame import RstStreamFrame
from tests.hostile.attacks import ATTACKS, small_chat
from tests.hostile.http2 import CHAT, ENHANCE_YOUR_CALM, RawConnection
from tests.hostile.measure import Victim, good_client, run_attack

MAX_GROWTH_BYTES = 32 << 20
NUM_STREAMS = 300


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    """A server that has answered before."""
    made = Victim()
    try:
        with good_client(made.port) as good:
            while len(good.answers_s) < 3 and not good.failures:
                time.sleep(0.01)
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_flood_neither_fails_nor_outlives_a_good_client(victim: Victim, name: str) -> None:
    """Every call of the good client is answered, memory stays bounded, and no task, thread or descriptor is left."""
    outcome = run_attack(victim, name, 0.5)
    assert outcome.count > 0, "the attack did nothing"
    assert outcome.good.failures == []
    assert outcome.grown_bytes < MAX_GROWTH_BYTES
    left = {kind: outcome.after[kind] - outcome.before[kind] for kind in ("tasks", "threads", "fds")}
    assert all(value <= 0 for value in left.values()), left


@pytest.mark.parametrize(
    ("without", "most_started"), [((), 16), (("grpc.max_concurrent_streams",), None)], ids=["ours", "control"]
)
def test_a_burst_of_calls_starts_no_more_than_one_connection_may(
    without: tuple[str, ...], most_started: int | None
) -> None:
    """Of 300 calls in one piece 16 start and the rest are refused; without the limit all of them start."""
    victim = Victim(without)
    try:
        with RawConnection(victim.port, {}) as connection:
            frames = [
                frame
                for stream_id in range(1, 2 * NUM_STREAMS, 2)
                for frame in connection.open_stream(stream_id, CHAT, data=small_chat())
            ]
            connection.send_frames(*frames)
            ended = 0
            for frame in connection.frames():
                ended += "END_STREAM" in frame.flags or getattr(frame, "error_code", None) == ENHANCE_YOUR_CALM
                if ended == NUM_STREAMS:
                    break
            assert ended == NUM_STREAMS
        assert victim.state()["started"] == (NUM_STREAMS if most_started is None else most_started)
        with good_client(victim.port) as good:
            while not good.answers_s and not good.failures:
                time.sleep(0.01)
        assert good.failures == []
    finally:
        victim.close()


@pytest.mark.parametrize("is_limited", [True, False], ids=["ours", "control"])
def test_rapid_reset_costs_no_memory(is_limited: bool) -> None:
    """Calls that are reset as they come take no memory; without the limit of calls they take tens of megabytes."""
    victim = Victim(() if is_limited else ("grpc.max_concurrent_streams",))
    try:
        with good_client(victim.port):
            pass
        before = victim.state()
        with RawConnection(victim.port, {}) as connection:
            for first in range(1, 40_000, 2_000):
                frames = []
                for stream_id in range(first, first + 2_000, 2):
                    frames += [
                        *connection.open_stream(stream_id, CHAT, data=small_chat()),
                        RstStreamFrame(stream_id, error_code=8),
                    ]
                connection.send_frames(*frames)
        grown = victim.settled(before)["peak_bytes"] - before["rss_bytes"]
        assert (grown < 8 << 20) is is_limited, grown
    finally:
        victim.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_minute_of_a_flood(victim: Victim, name: str) -> None:
    """Goal row 12: 60 s at full speed, every call of the good client answered, at most 16 MiB more memory."""
    outcome = run_attack(victim, name, 60.0)
    assert outcome.good.failures == []
    assert outcome.grown_bytes < 16 << 20
