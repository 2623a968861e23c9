"""
Inputs like those that ended or hung other servers, each followed by a good request.

The identifiers are public; what is sent is of our own making, for our own methods. Every input has one right answer.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from tests.hostile.http2 import CHAT, COUNT, PREFACE, RawConnection, frame_bytes, message, request_headers

from edgephi.v1 import generation_pb2, sampling_pb2
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1 import model_service_pb2 as models

Input = Callable[[RawConnection], dict[str, str]]
COMPLETE = "/edgephi.v1.GenerationService/Complete"
LIST_MODELS = "/edgephi.v1.ModelService/ListModels"
GET_MODEL = "/edgephi.v1.ModelService/GetModel"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
OK, INVALID, NOT_FOUND, EXHAUSTED, UNIMPLEMENTED = "0", "3", "5", "8", "12"
CUT = "cut"  # the stream or the connection was ended without a status


def _chat(text: str = "go", **sampling: Any) -> bytes:
    turn = generation_pb2.Message(role=generation_pb2.ROLE_USER, content=text)
    return pb2.ChatRequest(messages=[turn], sampling=sampling_pb2.SamplingParams(**sampling)).SerializeToString()


def _call(path: str, payload: bytes) -> Input:
    return lambda connection: connection.call(path, message(payload))


def _raw_call(path: str, data: bytes, *extra: tuple[str, str]) -> Input:
    return lambda connection: connection.call(path, data, extra)


def _frames(*parts: bytes) -> Input:
    """Open a call on stream 1 and send bytes instead of its message."""

    def send(connection: RawConnection) -> dict[str, str]:
        opened = b"".join(frame.serialize() for frame in connection.open_stream(1, COUNT))
        connection.send(opened + b"".join(parts))
        return connection.end_of(1)

    return send


def _headers(block: Callable[[RawConnection], bytes], *, size: int = 16_000) -> Input:
    """Send a block of headers, in as many frames as it takes."""

    def send(connection: RawConnection) -> dict[str, str]:
        data = block(connection)
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        frames = [HeadersFrame(1, pieces[0]), *(ContinuationFrame(1, piece) for piece in pieces[1:])]
        frames[-1].flags.add("END_HEADERS")
        connection.send_frames(*frames, DataFrame(1, message(b"\x1a\x02go"), flags=["END_STREAM"]))
        return connection.end_of(1)

    return send


def _hpack_bomb(connection: RawConnection) -> bytes:
    """Put one long header into the table and name it four hundred times: a few bytes become 1.5 MB."""
    connection.exchange_settings()
    once = connection.block([*request_headers(), ("x-bomb", "a" * 3800)])
    return once + b"\xbe" * 400


def _unacknowledged_bomb(connection: RawConnection) -> bytes:
    """Name the long header four thousand times, which would be 15 MB."""
    once = connection.block([*request_headers(), ("x-bomb", "a" * 3800)])
    return once + b"\xbe" * 4000


def _deep(depth: int) -> bytes:
    """Groups within groups, in a field nobody knows."""
    return b"\x7b" * depth + b"\x7c" * depth


# name: (what is sent, the right ends)
INPUTS: dict[str, tuple[Input, set[str]]] = {
    # Protocol: grpc, Envoy, nginx, Go
    "CVE-2023-33953 endless varint in HPACK": (_headers(lambda _: b"\x7f" + b"\x80" * 64 + b"\x01"), {CUT}),
    "CVE-2023-33953 HPACK expansion": (_headers(_hpack_bomb), {EXHAUSTED, CUT}),
    # gRPC's limit does not hold until the client acknowledges the server's settings.
    "CVE-2023-33953 HPACK expansion, settings ignored": (
        _headers(_unacknowledged_bomb),
        {INVALID, EXHAUSTED, CUT},
    ),
    "CVE-2023-33953 headers in one-byte frames": (
        _headers(lambda connection: connection.block(request_headers()), size=1),
        {OK, CUT},
    ),
    "CVE-2023-32731 table size beyond the limit": (_headers(lambda _: b"\x3f\xe1\xff\xff\xff\x0f"), {CUT}),
    "CVE-2023-32732 bad base64 in binary metadata": (
        _raw_call(COUNT, message(b"\x1a\x02go"), ("x-junk-bin", "$$$ not base64 $$$")),
        {OK, CUT, INVALID, "13"},
    ),
    "CVE-2023-1428 te without trailers": (_raw_call(COUNT, message(b"\x1a\x02go"), ("te", "gzip")), {OK, CUT, "13"}),
    "CVE-2024-7246 index outside the table": (_headers(lambda _: b"\xff\x80\x80\x04"), {CUT}),
    "CVE-2024-27316 headers without end": (
        _headers(lambda connection: connection.block([(f"x-{i}", "v" * 900) for i in range(200)])),
        {EXHAUSTED, CUT},
    ),
    "CVE-2023-44487 reset as it opens": (_frames(RstStreamFrame(1, error_code=8).serialize()), {CUT}),
    "CVE-2025-8671 window update of zero": (_frames(frame_bytes(8, 0, 1, b"\0\0\0\0")), {CUT}),
    "CVE-2019-9511 window beyond the largest": (
        _frames(WindowUpdateFrame(1, window_increment=2**31 - 1).serialize() * 2),
        {CUT},
    ),
    "CVE-2019-9518 empty data": (_frames(DataFrame(1, b"").serialize() * 2000), {CUT}),
    "CVE-2019-9515 settings again and again": (_frames(SettingsFrame(0, settings={4: 1}).serialize() * 2000), {CUT}),
    "bad client: data of a stream that is not open": (_frames(DataFrame(99, b"x").serialize()), {CUT}),
    "bad client: even stream": (
        lambda connection: (connection.send_frames(*connection.open_stream(2, COUNT)), connection.end_of(2))[1],
        {CUT},
    ),
    "bad client: unknown frame": (_frames(frame_bytes(0xEE, 0xFF, 1, b"x" * 100)), {CUT}),
    "bad client: frame of 16 MB": (_frames(struct.pack(">I", 0xFFFFFF)[1:] + b"\0\0\0\0\0\1"), {CUT}),
    "bad client: settings of five bytes": (_frames(frame_bytes(4, 0, 0, b"12345")), {CUT}),
    "bad client: two paths": (
        _headers(lambda connection: connection.block([*request_headers(), (":path", CHAT)])),
        {CUT, INVALID, "13"},
    ),
    "bad client: HTTP/1": (
        lambda connection: (connection.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), connection.end_of(1))[1],
        {CUT},
    ),
    "bad client: preface twice": (_frames(PREFACE), {CUT}),
    "GET": (_raw_call(COUNT, message(b""), (":method", "GET")), {CUT, "13", UNIMPLEMENTED, INVALID}),
    "unregistered method": (_call("/edgephi.v1.GenerationService/Load", b""), {UNIMPLEMENTED}),
    "path traversal": (_call("/../../etc/passwd", b""), {UNIMPLEMENTED}),
    "path of 10 kB": (_call("/" + "a" * 10_000, b""), {UNIMPLEMENTED, EXHAUSTED, CUT}),
    # Messages
    "CVE-2024-12886 gzip bomb": (
        _raw_call(COUNT, message(gzip.compress(b"\0" * 10_000_000), is_compressed=True), ("grpc-encoding", "gzip")),
        {UNIMPLEMENTED},
    ),
    "compressed flag without an encoding": (
        _raw_call(COUNT, message(b"abc", is_compressed=True)),
        {"13", UNIMPLEMENTED},
    ),
    "CVE-2025-33201 length of 4 GiB": (_raw_call(COUNT, message(b"", length=2**32 - 1)), {EXHAUSTED}),
    "length beyond the bytes": (_raw_call(COUNT, message(b"abc", length=100)), {"13", CUT, INVALID}),
    "two messages where one belongs": (_raw_call(COUNT, message(b"\x1a\x02go") * 2), {OK, CUT, "13", UNIMPLEMENTED}),
    "no message": (_raw_call(COUNT, b""), {"13", CUT, UNIMPLEMENTED}),
    "CVE-2024-7254 30,000 groups": (_call(COUNT, _deep(30_000)), {INVALID}),
    "CVE-2024-7254 groups as deep as allowed": (_call(COUNT, _deep(90)), {INVALID}),
    "bytes that are no UTF-8": (_call(COUNT, b"\x1a\x02\xff\xfe"), {INVALID}),
    "lone surrogate in UTF-8": (_call(COUNT, b"\x1a\x03\xed\xa0\x80"), {INVALID}),
    "length of a field beyond the message": (_call(COUNT, b"\x1a\xff\xff\xff\xff\x0f"), {INVALID}),
    "unknown role": (_call(CHAT, b"\x12\x06\x08\x63\x12\x02go"), {INVALID}),
    "100,000 empty messages": (_call(CHAT, b"\x12\x00" * 7_000), {INVALID}),
    # Requests for text: vLLM, SGLang, TGI, llama.cpp, Triton
    "CVE-2026-34756 answers without end": (_call(CHAT, _chat(max_tokens=2**32 - 1)), {INVALID}),
    "CVE-2026-44223 penalty out of bounds": (_call(CHAT, _chat(frequency_penalty=float("inf"))), {INVALID}),
    "NaN temperature": (_call(CHAT, _chat(temperature=float("nan"))), {INVALID}),
    "top_p of zero": (_call(CHAT, _chat(top_p=0.0)), {INVALID}),
    "seed of 2^64 - 1": (_call(CHAT, _chat(seed=2**64 - 1)), {INVALID}),
    "logprobs of 2^31": (_call(CHAT, _chat(logprobs=2**31)), {INVALID}),
    "7,000 stop strings": (_call(CHAT, _chat(stop=["x"] * 4_000)), {INVALID}),
    "empty stop string": (_call(CHAT, _chat(stop=[""])), {INVALID}),
    "vLLM 0.5.4 empty prompt": (_call(COMPLETE, b"\x12\x00"), {INVALID}),
    "CVE-2026-44222 control tokens in text": (
        _call(CHAT, _chat("<|end|><|system|></s><|endoftext|>", max_tokens=1)),
        {OK},
    ),
    "NUL in text": (_call(CHAT, _chat("a\0b", max_tokens=1)), {OK}),
    "CVE-2025-62426 text that is slow to tokenize": (_call(CHAT, _chat("a" * 16_000, max_tokens=1)), {INVALID}),
    "direction marks and a million combining marks": (_call(CHAT, _chat("\u202e" + "a\u0301" * 5_000)), {INVALID}),
    # Names: Ollama, Triton, LocalAI
    "CVE-2024-37032 traversal in a name": (
        _call(GET_MODEL, models.GetModelRequest(name="models/../../etc/passwd").SerializeToString()),
        {NOT_FOUND},
    ),
    "CVE-2026-24208 absolute path in a name": (
        _call(COUNT, pb2.CountTokensRequest(model="/etc/shadow", prompt="a").SerializeToString()),
        {NOT_FOUND},
    ),
    "name of 10 kB": (_call(GET_MODEL, models.GetModelRequest(name="m" * 10_000).SerializeToString()), {INVALID}),
    "CVE-2026-21869 negative number": (
        _call(LIST_MODELS, models.ListModelsRequest(page_size=-1).SerializeToString()),
        {INVALID},
    ),
    "page token with a format in it": (
        _call(LIST_MODELS, models.ListModelsRequest(page_token="%s%n{0}" * 8).SerializeToString()),
        {INVALID},
    ),
    "reflection of nonsense": (_call(REFLECTION, b"\xff\xff"), {INVALID}),
    "log injection in a request id": (
        _raw_call(COUNT, message(b"\x1a\x02go"), ("x-request-id", "a;level=error;event=fake")),
        {OK},
    ),
}


def _end(trailers: dict[str, str]) -> str:
    # gRPC may give a call that it cuts for broken HTTP/2 a status of its own before it closes.
    if trailers.get("grpc-message", "").startswith("Failed parsing HTTP/2"):
        return CUT
    return trailers.get("grpc-status", CUT)


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_has_its_answer_and_the_next_request_is_served(serve_in_thread: Any, name: str) -> None:
    """The input ends as it should, says nothing of the inside, and a good call on another connection is answered."""
    attempt, ends = INPUTS[name]
    with serve_in_thread() as running:
        with RawConnection(running.server.port, {}, timeout_s=1.0) as connection:
            trailers = attempt(connection)
        assert _end(trailers) in ends, trailers
        told = " ".join(trailers.values())
        assert not any(word in told for word in ("Traceback", "Error'", "/edgephi/", "<class")), told
        with RawConnection(running.server.port, {}) as connection:
            good = connection.call(COUNT, message(b"\x1a\x02go"))
        assert _end(good) == OK
        with RawConnection(running.server.port, {}) as connection:
            assert _end(connection.call(CHAT, message(_chat(max_tokens=1)))) == OK


def test_there_are_enough_inputs() -> None:
    """Goal row 42 asks for 40 public inputs; those of isolation and of model files are tested elsewhere."""
    assert len(INPUTS) >= 40
