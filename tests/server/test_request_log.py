"""The line ``request.finished``: one for each request, with what an operator asks of it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import grpc
import pytest

from edgephi.errors import Overloaded
from edgephi.v1 import generation_pb2 as types
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1 import sampling_pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

CALL = {"event", "log_level", "request_id", "client", "method", "code", "duration_ms"}
ANSWER = {"reason", "prompt_tokens", "cached_tokens", "output_tokens", "queue_ms", "ttft_ms", "decode_tokens_per_s"}


def chat(**fields: Any) -> pb2.ChatRequest:
    """Return a request of one message."""
    return pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="Go")], **fields)


async def end_of(running: Any, request: pb2.ChatRequest, *metadata: tuple[str, str]) -> Mapping[str, Any]:
    """Send a request and return its line."""
    before = len(running.finished("Chat"))
    async with grpc.aio.insecure_channel(running.target, [("grpc.enable_retries", 0)]) as channel:
        call = GenerationServiceStub(channel).Chat(request, metadata=metadata)
        with contextlib.suppress(grpc.aio.AioRpcError):
            _ = [response async for response in call]
    lines = await running.wait_finished("Chat", before + 1)
    assert len(lines) == before + 1
    line: Mapping[str, Any] = lines[-1]
    return line


async def test_an_answer_has_ids_tokens_and_times(serve: Any) -> None:
    """The line of an answer has exactly the documented keys, with the client's own id and address."""
    async with serve(step_delay_s=0.001) as running:
        line = await end_of(running, chat(), ("x-request-id", "robot-7"))
    assert line.keys() == CALL | ANSWER
    assert (line["request_id"], line["code"], line["reason"]) == ("robot-7", "OK", "stop")
    assert "127.0.0.1" in line["client"]
    assert line["prompt_tokens"] > 0 < line["output_tokens"]
    assert line["ttft_ms"] >= line["queue_ms"] >= 0 < line["decode_tokens_per_s"]


async def test_a_refusal_says_why_and_nothing_of_an_answer(serve: Any) -> None:
    """A refused request has its reason in the words of its ErrorInfo, and no tokens or times."""
    async with serve() as running:
        invalid = await end_of(running, chat(sampling=sampling_pb2.SamplingParams(temperature=9)))
        running.generator.faults = [Overloaded("full", retry_after_ms=1, limit="queue_tokens")]
        full = await end_of(running, chat())
    assert invalid.keys() == full.keys() == CALL | {"error"}
    assert (invalid["code"], invalid["error"]) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert (full["code"], full["error"]) == ("RESOURCE_EXHAUSTED", "QUEUE_TOKENS_FULL")


@pytest.mark.parametrize("sent", ["a b", "x" * 65, 'a"b', "../a", ""])
async def test_an_id_that_is_none_is_replaced(serve: Any, sent: str) -> None:
    """An x-request-id with anything but letters, digits, dots, dashes and underscores is not taken."""
    async with serve() as running:
        line = await end_of(running, chat(), ("x-request-id", sent))
    assert line["request_id"] != sent
    assert line["request_id"].isalnum()
