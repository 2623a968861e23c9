"""Cases of streams: what comes in which order, how they end early, and a reader that is slow."""

from __future__ import annotations

import threading
import time
from unittest import mock

from tests.conformance.rig import (
    CHAT,
    COMPLETE,
    COUNT,
    GO,
    MODEL,
    REFLECTION,
    WATCH_STATE,
    Rig,
    reason_of,
    wait_for,
)
from tests.conformance.stacks import Seen, decoded
from tests.server.conftest import ANSWER, Running

from edgephi.server import generation
from edgephi.server.app import SERVICES
from edgephi.server.stream_buffer import MAX_BUFFER_BYTES, StreamBuffer

# Words that do not repeat, so that guessing finds nothing.
LONG_ANSWER = " ".join(str(number * 7919 % 1000) for number in range(100))
# For both stacks: a window that is smaller than the answer, and stays so.
SMALL_WINDOW = {
    "grpc.http2.bdp_probe": 0,
    "grpc.http2.lookahead_bytes": 16_384,
    "grpc-node.flow_control_window": 16_384,
}
# So many alternatives make a message of one token as long as it gets.
VERBOSE = {"logprobs": 20}
# More than fit a window and half of what may wait; the rest fits a window and all of what may wait.
NUM_TOKENS = 230


def server_streaming(rig: Rig) -> None:
    """A stream brings progress, the answer in pieces, and one final message with what was counted."""
    chat = rig.call(CHAT, GO)
    # What continues a raw prompt begins with the space that its first token has.
    for seen, text in ((chat, ANSWER), (rig.call(COMPLETE, {"prompt": "Go"}), f" {ANSWER}")):
        assert (seen.code, seen.details) == ("OK", "")
        kinds = [next(iter(message)) for message in seen.messages]
        deltas = [message["delta"] for message in seen.messages if "delta" in message]
        assert kinds == ["prefill_progress"] + ["delta"] * len(deltas) + ["final"]
        assert "".join(delta.get("text", "") for delta in deltas) == text
        final = seen.messages[-1]["final"]
        assert (final["finish_reason"], final["model"]) == ("FINISH_REASON_STOP", MODEL)
        assert final["usage"]["output_tokens"] > len(deltas) > 3


def empty_stream(rig: Rig) -> None:
    """A stream both ways on which nothing is asked ends well without a message."""
    (seen,) = rig.calls({"method": REFLECTION, "requests": []})
    assert (seen.code, seen.messages) == ("OK", [])


def ping_pong(rig: Rig) -> None:
    """On a stream both ways each question gets one answer, in order."""
    names = [*SERVICES, "no.such.Symbol", *SERVICES]
    requests = [{"file_containing_symbol": name} for name in names]
    (seen,) = rig.calls({"method": REFLECTION, "requests": requests})
    assert seen.code == "OK"
    assert [message["original_request"]["file_containing_symbol"] for message in seen.messages] == names
    assert ["error_response" in message for message in seen.messages] == [False] * 3 + [True] + [False] * 3


def timeout_on_sleeping_server(rig: Rig) -> None:
    """A deadline that passes ends the call at that time, and the work with it."""
    for method in (CHAT, WATCH_STATE):
        seen = rig.call(method, GO if method == CHAT else {}, timeout_s=0.3)
        assert seen.code == "DEADLINE_EXCEEDED"
        assert 0.25 < seen.elapsed_s < 3
    assert rig.is_idle_within(2)


def cancel_after_begin(rig: Rig) -> None:
    """A call that is cancelled when it has begun, or at once, has no message and leaves no work."""
    generator, go_on = rig.running.generator, rig.running.backend.hold_after(0)
    num_started = generator.num_started

    def let_it_begin() -> None:
        assert wait_for(lambda: generator.num_started > num_started, 5)

    try:
        begun = rig.call(CHAT, GO, pause_after=0, cancel_after=0, while_paused=let_it_begin)
    finally:
        go_on.set()
    (chat, both_ways) = rig.calls(
        {"method": CHAT, "requests": [dict(GO)], "cancel_after": 0},
        {"method": REFLECTION, "requests": [{"list_services": "*"}], "cancel_after": 0},
    )
    for seen in (begun, chat, both_ways):
        assert (seen.code, seen.messages) == ("CANCELLED", [])
    assert rig.is_idle_within(2)
    assert rig.call(COUNT, {"prompt": "go"}).code == "OK"


def cancel_after_first_response(rig: Rig) -> None:
    """A stream that is cancelled after its first message ends there, and its pages are free."""
    seen = rig.call(CHAT, GO, cancel_after=1)
    assert seen.code == "CANCELLED"
    assert len(seen.messages) >= 1
    assert all("final" not in message for message in seen.messages)
    assert rig.is_idle_within(2)
    assert rig.running.engine.stats().tokens_generated_total < 200


def slow_reader(rig: Rig) -> None:
    """A reader that is behind gets every token once and in order, in fewer and longer messages."""
    buffers, flow = _Buffers(), _Flow(rig.running)

    def let_it_wait() -> None:
        # What was sent fills the windows of HTTP/2, and what was computed since waits on the server.
        while buffers.num_bytes < MAX_BUFFER_BYTES // 2 and flow.num_computed < NUM_TOKENS:
            flow.compute(8)
        threading.Thread(target=go_on_when_empty).start()

    def go_on_when_empty() -> None:
        wait_for(lambda: buffers.num_bytes == 0, 20)
        flow.go_on()

    flow.compute(40)
    request = {**GO, "sampling": {**VERBOSE, "max_tokens": NUM_TOKENS}}
    with mock.patch.object(generation, "StreamBuffer", buffers.make):
        seen = rig.call(CHAT, request, pause_after=2, options=SMALL_WINDOW, while_paused=let_it_wait)
    assert (seen.code, seen.details) == ("OK", "")
    assert seen.messages[-1]["final"]["usage"]["output_tokens"] == NUM_TOKENS
    tokens = _tokens(seen)
    assert len(tokens) == NUM_TOKENS
    assert b"".join(map(decoded, tokens)).decode().lstrip() == _text(seen)
    assert LONG_ANSWER.startswith(_text(seen))
    assert len(seen.messages) < NUM_TOKENS, "nothing waited"


def absent_reader(rig: Rig) -> None:
    """A reader that takes nothing for too long loses its answer: it is told so, and the server has dropped it."""

    def let_it_overflow() -> None:
        assert rig.is_idle_within(20)

    request = {**GO, "sampling": VERBOSE}
    seen = rig.call(CHAT, request, pause_after=2, options=SMALL_WINDOW, while_paused=let_it_overflow)
    assert (seen.code, reason_of(seen)) == ("RESOURCE_EXHAUSTED", "READER_TOO_SLOW")
    assert LONG_ANSWER.startswith(_text(seen))
    assert all("final" not in message for message in seen.messages)


class _Flow:
    """Lets a server compute by and by, however busy the machine is."""

    def __init__(self, running: Running) -> None:
        self._engine, self._backend = running.engine, running.backend
        self._held = threading.Event()
        self.num_computed = 0

    def compute(self, num_steps: int) -> None:
        """Let it take so many steps, then hold it; return when it has, if there is work."""
        first = self._engine.stats().steps_total
        before, self._held = self._held, self._backend.hold_after(num_steps)
        before.set()
        if self.num_computed:
            wait_for(lambda: self._engine.stats().steps_total >= first + num_steps, 5)
            time.sleep(0.02)  # for what was computed to arrive at the buffer
        self.num_computed += num_steps

    def go_on(self) -> None:
        """Let it compute freely again."""
        self._held.set()


class _Buffers:
    """Watches what waits for the readers of a server."""

    def __init__(self) -> None:
        self._made: list[StreamBuffer] = []

    def make(self) -> StreamBuffer:
        """Stand for the constructor of a buffer."""
        self._made.append(StreamBuffer())
        return self._made[-1]

    @property
    def num_bytes(self) -> int:
        """Bytes that wait in all of them."""
        return sum(buffer.num_bytes for buffer in self._made)


def _text(seen: Seen) -> str:
    return "".join(message["delta"].get("text", "") for message in seen.messages if "delta" in message)


def _tokens(seen: Seen) -> list[str]:
    deltas = [message["delta"] for message in seen.messages if "delta" in message]
    return [token["token"] for delta in deltas for token in delta.get("logprobs", [])]
