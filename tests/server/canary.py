"""
A session with a whole server in which every text is marked, and the search for the mark in all that it gives out.

The server is the command itself with its two processes, debug log, metrics and traces. What its client sent is looked
for where it does not belong: both processes' output, the metrics page, the spans and the details of errors.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from tests.server.collector import Collector

from edgephi.cli.compose import FAKE_ANSWER
from edgephi.cli.processes import descendants
from edgephi.text.tokenizer import Tokenizer
from edgephi.v1 import generation_pb2 as types
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1 import sampling_pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

# In pieces, so that a beginning that something has cut off is found as well. No digest or id has these letters.
MARK = "zqxvjk"
TEXT = " ".join([MARK] * 8)
ANSWER_MARK = "every answer is this one"
assert ANSWER_MARK in FAKE_ANSWER

TIMEOUT_S = 60
_RUN = "from edgephi.cli.main import main; main()"


def leaks(found: dict[str, bytes], tokenizer: Tokenizer) -> set[str]:
    """Return where the marked text is: as it is, in hexadecimal, in base64 or as token ids, or the answer's text."""
    patterns = [MARK.encode(), MARK.encode().hex().encode(), ANSWER_MARK.encode()]
    for offset in range(3):
        # Without the characters that depend on what stands before and after.
        patterns.append(base64.b64encode(b"\0" * offset + TEXT.encode())[4:20])
    ids = [str(token) for token in tokenizer.encode(TEXT)]
    patterns += [separator.join(ids[4:10]).encode() for separator in (",", ", ", " ")]
    return {place for place, data in found.items() if any(pattern in data for pattern in patterns)}


def run_session(model: Path, *, prelude: str = "", is_whole: bool = True) -> dict[str, bytes]:
    """
    Serve, send every kind of request with the marked text, stop, and return what was given out, by place.

    Args:
        model: A model of random weights; the fake engine answers.
        prelude: Python that the server runs first.
        is_whole: Whether to do more than one chat.
    """
    collector = Collector()
    with contextlib.closing(collector), tempfile.TemporaryFile() as output:
        command = [sys.executable, "-c", f"{prelude}\n{_RUN}", "serve", "--engine", "fake", "--model", str(model)]
        options = ["--port", "0", "--metrics-port", "0", "--log-level", "debug", "--log-format", "json", "--json"]
        environment = {"PYTHONASYNCIODEBUG": "1", "GRPC_VERBOSITY": "DEBUG", "PYTHONWARNINGS": "error"}
        server = subprocess.Popen(
            [*command, *options, "--otlp-endpoint", collector.endpoint, "--kv-tokens", "2048"],
            stdout=subprocess.PIPE,
            stderr=output,
            env={**os.environ, **environment},
        )
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            output.seek(0)
            assert line, output.read().decode()
            ready: dict[str, Any] = json.loads(line)
            details: list[bytes] = []
            with grpc.insecure_channel(ready["address"], [("grpc.enable_retries", 0)]) as channel:
                _chat(channel, details)
                if is_whole:
                    _talk(channel, details)
                    _kill_engine(server.pid, channel, details)
            page = urllib.request.urlopen(f"http://127.0.0.1:{ready['metrics_port']}/metrics", timeout=10).read()
            server.send_signal(signal.SIGTERM)
            rest, _ = server.communicate(timeout=TIMEOUT_S)
            assert server.returncode == 0
        finally:
            server.kill()
            server.communicate()
        output.seek(0)
        spans = b"".join(request.SerializeToString() for request in collector.requests)
        return {
            "output": output.read() + line + rest,
            "metrics": page,
            "traces": spans,
            "error details": b"\n".join(details),
        }


def _chat(channel: grpc.Channel, details: list[bytes], **options: Any) -> None:
    content = options.pop("content", TEXT)
    role = options.pop("role", types.ROLE_USER)
    request = pb2.ChatRequest(messages=[types.Message(role=role, content=content)], **options)
    with _refusals(details):
        _ = list(GenerationServiceStub(channel).Chat(request, timeout=TIMEOUT_S))


def _talk(channel: grpc.Channel, details: list[bytes]) -> None:
    """Send the text in every way that a client may, and in some that it may not."""
    stub = GenerationServiceStub(channel)
    sampling = sampling_pb2.SamplingParams
    _chat(channel, details, sampling=sampling(stop=[TEXT[:200]]))
    _chat(channel, details, sampling=sampling(stop=[TEXT * 10], temperature=9))
    _chat(channel, details, role=types.ROLE_UNSPECIFIED)
    _chat(channel, details, role=types.ROLE_ASSISTANT)
    _chat(channel, details, content=TEXT * 2000)
    _chat(channel, details, content="")
    with _refusals(details):
        _ = list(stub.Complete(pb2.CompleteRequest(prompt=TEXT)))
    with _refusals(details):
        stub.CountTokens(pb2.CountTokensRequest(prompt=TEXT))
    for method, data in (("Chat", b"\x0a\xff" + TEXT.encode()), ("NoSuchMethod", TEXT.encode())):
        with _refusals(details):
            _ = list(channel.unary_stream(f"/edgephi.v1.GenerationService/{method}", None, None)(data))
    with _refusals(details):  # a text that is not UTF-8
        message = types.Message(role=types.ROLE_USER, content="?" + TEXT)
        data = pb2.ChatRequest(messages=[message]).SerializeToString().replace(b"?", b"\xff")
        _ = list(channel.unary_stream("/edgephi.v1.GenerationService/Chat", None, None)(data))
    request = pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content=TEXT)])
    cancelled: Any = stub.Chat(request)
    next(iter(cancelled))
    cancelled.cancel()
    with _refusals(details):
        _ = list(stub.Chat(request, timeout=0.2))


def _kill_engine(front: int, channel: grpc.Channel, details: list[bytes]) -> None:
    """End the engine while it answers, twice, and ask the same again: it is refused by then."""
    num_before = len(details)
    for _ in range(2):
        request = pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content=TEXT)])
        with _refusals(details):
            answer = _begin(channel, request)
            (engine,) = descendants(front)
            os.kill(engine, signal.SIGKILL)
            _ = list(answer)
    assert len(details) == num_before + 2, "the engine's death was not told"
    _chat(channel, details)


def _begin(channel: grpc.Channel, request: pb2.ChatRequest) -> Any:
    """Return an answer that has begun; the engine may still be starting."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        answer: Any = GenerationServiceStub(channel).Chat(request)
        try:
            while next(answer).WhichOneof("event") != "delta":
                pass
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return answer


@contextlib.contextmanager
def _refusals(details: list[bytes]) -> Iterator[None]:
    """Keep all that a refusal says."""
    try:
        yield
    except grpc.RpcError as failed:
        error: Any = failed  # a call as well, which the types do not tell
        said = [error.details() or "", *(value for _, value in error.trailing_metadata() or ())]
        said += [value for _, value in error.initial_metadata() or ()]
        details.append(b"\n".join(part.encode() if isinstance(part, str) else part for part in said))
