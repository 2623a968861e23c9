"""Every row of the status table, through a real server and on its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # publishes no stubs
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from edgephi import errors
from edgephi.errors import EdgephiError, FieldViolation
from edgephi.generation.request import PrefillProgress
from edgephi.server.generation import GenerationHandler
from edgephi.server.status import INTERNAL_TEXT, STATUS_TABLE, answer_of, row_of
from edgephi.v1 import generation_pb2 as types
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1 import sampling_pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

Code = grpc.StatusCode
SECRET = "/etc/edgephi/secret.key"
REQUEST = pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="Go")])
# (error, code, reason, retry delay in ms, whether its own message is sent)
ROWS: list[tuple[BaseException, grpc.StatusCode, str, int | None, bool]] = [
    (errors.InvalidRequest(FieldViolation("top_p", "is 2")), Code.INVALID_ARGUMENT, "INVALID_REQUEST", None, True),
    (
        errors.PromptTooLong(prompt_tokens=9, max_tokens=8, context_tokens=16),
        Code.INVALID_ARGUMENT,
        "PROMPT_TOO_LONG",
        None,
        True,
    ),
    (errors.Overloaded("7 live, 7 allowed", retry_after_ms=321), Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", 321, True),
    *(
        (errors.Overloaded("no room", retry_after_ms=321, limit=limit), Code.RESOURCE_EXHAUSTED, reason, 321, True)
        for limit, reason in (
            ("queue_tokens", "QUEUE_TOKENS_FULL"),
            ("queue_seconds", "QUEUE_TOO_LONG"),
            ("client_requests", "CLIENT_QUEUE_FULL"),
            ("request_tokens", "REQUEST_TOO_LARGE_NOW"),
            ("tokenizing_bytes", "TOKENIZING_FULL"),
            ("another", "OVERLOADED"),
        )
    ),
    (errors.ReaderTooSlow("read faster"), Code.RESOURCE_EXHAUSTED, "READER_TOO_SLOW", None, True),
    (
        errors.DeadlineTooShort(estimated_s=7.25, remaining_s=2.0),
        Code.DEADLINE_EXCEEDED,
        "DEADLINE_TOO_SHORT",
        None,
        True,
    ),
    (errors.RequestQuarantined("again"), Code.FAILED_PRECONDITION, "REQUEST_QUARANTINED", None, True),
    (errors.Unauthenticated("no token"), Code.UNAUTHENTICATED, "UNAUTHENTICATED", None, True),
    (errors.PermissionDenied("no scope"), Code.PERMISSION_DENIED, "PERMISSION_DENIED", None, True),
    (errors.NotReady("loading"), Code.UNAVAILABLE, "NOT_READY", 1000, True),
    (errors.Draining("shutting down"), Code.UNAVAILABLE, "DRAINING", 100, True),
    (errors.EngineFailed(SECRET), Code.UNAVAILABLE, "ENGINE_FAILED", 2000, False),
    (errors.ModelNotFound("no model x"), Code.NOT_FOUND, "MODEL_NOT_FOUND", None, True),
    (errors.ModelInvalid(SECRET), Code.FAILED_PRECONDITION, "MODEL_INVALID", None, False),
    (errors.IntegrityError(SECRET), Code.FAILED_PRECONDITION, "MODEL_DAMAGED", None, False),
    (errors.UnsupportedModel(SECRET), Code.FAILED_PRECONDITION, "MODEL_UNSUPPORTED", None, False),
    (errors.BundleInvalid(SECRET), Code.FAILED_PRECONDITION, "BUNDLE_INVALID", None, False),
    (errors.CpuUnsupported(SECRET), Code.FAILED_PRECONDITION, "CPU_UNSUPPORTED", None, False),
    (errors.CompileFailed(SECRET), Code.FAILED_PRECONDITION, "COMPILE_FAILED", None, False),
    (errors.InsufficientMemory("3 of 2 GB"), Code.RESOURCE_EXHAUSTED, "INSUFFICIENT_MEMORY", 5000, True),
    (errors.ConfigError(SECRET), Code.FAILED_PRECONDITION, "CONFIG_INVALID", None, False),
    (EdgephiError(SECRET), Code.INTERNAL, "INTERNAL", None, False),
    (ValueError(SECRET), Code.INTERNAL, "INTERNAL", None, False),
]


def all_errors(kind: type[EdgephiError] = EdgephiError) -> set[type[EdgephiError]]:
    """Return every class of the error tree."""
    own = {kind} if kind.__module__ == "edgephi.errors" else set()
    return own.union(*(all_errors(child) for child in kind.__subclasses__()))


async def ended(call: Any) -> None:
    """Wait for the end of a call of either kind."""
    if isinstance(call, grpc.aio.UnaryUnaryCall):
        await call
        return
    async for _ in call:
        pass


async def status_of(call: Any) -> Any:
    """Return the google.rpc.Status of an ended call."""
    return await rpc_status.aio.from_call(call)  # type: ignore[attr-defined]  # missing in the stubs


def details_of(status: Any) -> dict[str, Any]:
    """Return the details of a status by the name of their type."""
    found: dict[str, Any] = {}
    for packed in status.details:
        name = packed.type_url.rsplit(".", 1)[1]
        assert name not in found, "each kind of detail may be there once"
        found[name] = getattr(error_details_pb2, name)()
        assert packed.Unpack(found[name])
    return found


def test_every_error_has_a_row_and_every_row_a_test() -> None:
    """No class of the error tree is missing in the table or in this test."""
    assert set(STATUS_TABLE) == all_errors()
    assert {type(row[0]) for row in ROWS} - {ValueError} == all_errors()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row[0]).__name__)
async def test_an_error_reaches_the_client_as_its_row_says(serve: Any, row: Any) -> None:
    """Code, message, ErrorInfo, RetryInfo, pushback and request id arrive, and nothing of a hidden message does."""
    error, code, reason, retry_ms, is_public = row
    async with serve() as running, grpc.aio.insecure_channel(running.target, [("grpc.enable_retries", 0)]) as channel:
        running.generator.faults = [error]
        request = pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="Go")])
        call = GenerationServiceStub(channel).Chat(request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [response async for response in call]
        trailers = dict(await call.trailing_metadata() or ())
        status = await status_of(call)
        assert await call.initial_metadata() in (None, grpc.aio.Metadata())
        assert caught.value.code() is code
        details = details_of(status)
        info = details["ErrorInfo"]
        assert (info.reason, info.domain) == (reason, "edgephi")
        assert details["RequestInfo"].request_id == trailers["x-request-id"]
        assert SECRET not in repr(status) + str(caught.value.details()) + repr(trailers)
        if retry_ms is None:
            assert "RetryInfo" not in details
            assert "grpc-retry-pushback-ms" not in trailers
        else:
            assert details["RetryInfo"].retry_delay.ToMilliseconds() == retry_ms
            assert trailers["grpc-retry-pushback-ms"] == str(retry_ms)
        assert is_public is (row_of(error).text is None)
        is_logged = any(line["event"] == "request.failed" and line["exc_info"] is error for line in running.log)
        assert is_logged is not is_public
        assert [line["code"] for line in await running.wait_finished("Chat", 1)] == [code.name]


async def refused_by(serve: Any, error: Exception) -> dict[str, Any]:
    """Return the details of a refusal."""
    async with serve() as running, grpc.aio.insecure_channel(running.target, [("grpc.enable_retries", 0)]) as channel:
        running.generator.faults = [error]
        call = GenerationServiceStub(channel).Chat(REQUEST)
        with pytest.raises(grpc.aio.AioRpcError):
            _ = [response async for response in call]
        return details_of(await status_of(call))


async def test_a_refusal_for_lack_of_room_names_the_quota(serve: Any) -> None:
    """Value and limit arrive as QuotaFailure and as metadata; a client is named only where the limit is its own."""
    whole = errors.Overloaded("32 wait, 32 may", retry_after_ms=100, limit="queue_requests", value=32, most=32)
    details = await refused_by(serve, whole)
    assert [(v.subject, v.description) for v in details["QuotaFailure"].violations] == [("", "32 wait, 32 may")]
    assert dict(details["ErrorInfo"].metadata) == {"limit": "queue_requests", "value": "32", "max": "32"}
    own = errors.Overloaded("9 wait, 8 may", retry_after_ms=100, limit="client_requests", value=9, most=8)
    details = await refused_by(serve, own)
    assert [v.subject for v in details["QuotaFailure"].violations] == ["client:127.0.0.1"]


async def test_a_deadline_that_is_too_short_is_told_the_estimate(serve: Any) -> None:
    """The client learns when its first token would have come."""
    details = await refused_by(serve, errors.DeadlineTooShort(estimated_s=7.25, remaining_s=2.0))
    assert dict(details["ErrorInfo"].metadata) == {"estimatedSeconds": "7.2", "remainingSeconds": "2.0"}


RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "60s",  # nobody waits for it: the delay that a refusal tells counts
                "maxBackoff": "60s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
            },
        }
    ]
}


async def test_grpcs_own_retries_repeat_what_was_refused(serve: Any) -> None:
    """A refusal comes without initial metadata, so a stock client asks again after the delay it was told."""
    options = [("grpc.service_config", json.dumps(RETRIES))]
    async with serve() as running, grpc.aio.insecure_channel(running.target, options) as channel:
        num_before = running.generator.num_started
        running.generator.faults = [errors.Overloaded("full", retry_after_ms=10)] * 2
        responses = [response async for response in GenerationServiceStub(channel).Chat(REQUEST, timeout=20)]
        assert responses[-1].WhichOneof("event") == "final"
        assert running.generator.num_started == num_before + 3


async def test_grpcs_own_retries_repeat_nothing_once_headers_were_sent(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: a refusal after the first message would be final."""
    num_asked = 0

    async def refuse_late(_handler: GenerationHandler, _request: Any) -> AsyncIterator[PrefillProgress]:
        nonlocal num_asked
        num_asked += 1
        yield PrefillProgress(done_tokens=0, total_tokens=1)
        raise errors.Overloaded("full", retry_after_ms=10)

    options = [("grpc.service_config", json.dumps(RETRIES))]
    async with serve() as running, grpc.aio.insecure_channel(running.target, options) as channel:
        monkeypatch.setattr(GenerationHandler, "_events", refuse_late)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [response async for response in GenerationServiceStub(channel).Chat(REQUEST, timeout=20)]
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED
        assert num_asked == 1


async def test_all_violations_arrive_at_once_with_the_contracts_paths(serve: Any) -> None:
    """Each field out of bounds is named by its path in the .proto, in one refusal, before any work."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        num_started = running.generator.num_started
        request = pb2.ChatRequest(
            messages=[
                types.Message(role=types.ROLE_UNSPECIFIED, content="a"),
                types.Message(role=types.ROLE_SYSTEM, content="b"),
                types.Message(role=types.ROLE_USER, content=" "),
            ],
            sampling=sampling_pb2.SamplingParams(
                temperature=-1,
                top_p=0,
                top_k=0,
                min_p=2,
                repetition_penalty=0,
                presence_penalty=3,
                frequency_penalty=float("nan"),
                seed=2**63,
                max_tokens=0,
                stop=["ok", ""],
                logprobs=21,
            ),
        )
        call = GenerationServiceStub(channel).Chat(request)
        with pytest.raises(grpc.aio.AioRpcError):
            _ = [response async for response in call]
        bad = details_of(await status_of(call))["BadRequest"]
        fields = {violation.field for violation in bad.field_violations}
        sampling = "temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty seed logprobs"
        assert fields == {
            "messages[0].role",
            "messages[1].role",
            "messages[2].content",
            "sampling.max_tokens",
            "sampling.stop[1]",
            *(f"sampling.{name}" for name in sampling.split()),
        }
        assert running.generator.num_started == num_started


@pytest.mark.parametrize(
    ("request_", "field", "reason"),
    [
        (pb2.ChatRequest(), "messages", "INVALID_REQUEST"),
        (
            pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="x" * 196_609)]),
            "messages[0].content",
            "INVALID_REQUEST",
        ),
        (
            pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="x")] * 1025),
            "messages",
            "INVALID_REQUEST",
        ),
        (
            pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="robot " * 600)]),
            "messages",
            "PROMPT_TOO_LONG",
        ),
        (
            pb2.ChatRequest(
                messages=[types.Message(role=types.ROLE_USER, content="x")],
                sampling=sampling_pb2.SamplingParams(max_tokens=10_000),
            ),
            "sampling.max_tokens",
            "PROMPT_TOO_LONG",
        ),
        (pb2.CompleteRequest(), "prompt", "INVALID_REQUEST"),
        (pb2.CompleteRequest(prompt="robot " * 600), "prompt", "PROMPT_TOO_LONG"),
        (pb2.CountTokensRequest(), "input", "INVALID_REQUEST"),
        (pb2.CountTokensRequest(chat=types.Messages()), "chat.messages", "INVALID_REQUEST"),
        (pb2.CountTokensRequest(prompt=""), "prompt", "INVALID_REQUEST"),
    ],
)
async def test_a_bad_input_is_refused_by_name(serve: Any, request_: Any, field: str, reason: str) -> None:
    """Empty, oversized and too long inputs are refused with the field they are in."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = GenerationServiceStub(channel)
        method = type(request_).__name__.removesuffix("Request")
        call = getattr(stub, method)(request_)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ended(call)
        assert caught.value.code() is Code.INVALID_ARGUMENT
        details = details_of(await status_of(call))
        assert [violation.field for violation in details["BadRequest"].field_violations] == [field]
        assert details["ErrorInfo"].reason == reason
        assert running.is_idle()


async def test_another_model_is_not_found(serve: Any) -> None:
    """A model that is not served is NOT_FOUND; its full name and its last part alone are both understood."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = GenerationServiceStub(channel)
        for name in ("tiny-phi3", "models/tiny-phi3"):
            assert (await stub.CountTokens(pb2.CountTokensRequest(prompt="a", model=name))).tokens
        for name in ("other", "models/", "models/models/tiny-phi3", "x" * 160):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.CountTokens(pb2.CountTokensRequest(prompt="a", model=name))
            assert caught.value.code() is Code.NOT_FOUND


async def test_bytes_that_are_no_message_are_refused(serve: Any) -> None:
    """Malformed protobuf is INVALID_ARGUMENT with a fixed text, for unary and streaming methods."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        service = "/edgephi.v1.GenerationService/"
        unary = channel.unary_unary(service + "CountTokens", None, None)
        stream = channel.unary_stream(service + "Chat", None, None)
        for call in (unary(b"\xff"), stream(b"\xff")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ended(call)
            assert caught.value.code() is Code.INVALID_ARGUMENT
            assert "DecodeError" not in str(caught.value.details())


async def test_a_message_over_the_limit_is_refused(serve: Any) -> None:
    """A request longer than max_message_bytes never reaches a handler."""
    async with (
        serve(max_message_bytes=2048) as running,
        grpc.aio.insecure_channel(running.target, [("grpc.enable_retries", 0)]) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await GenerationServiceStub(channel).CountTokens(pb2.CountTokensRequest(prompt="x" * 4096))
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED


async def test_a_full_queue_refuses_with_a_delay(serve: Any) -> None:
    """A request beyond max_running and max_waiting is refused at once, and running ones are not disturbed."""
    async with (
        serve(step_delay_s=0.02, max_running=1, max_waiting=0) as running,
        grpc.aio.insecure_channel(running.target, [("grpc.enable_retries", 0)]) as channel,
    ):
        stub = GenerationServiceStub(channel)
        request = pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="Go")])
        first = aiter(stub.Chat(request))
        await anext(first)
        refused = stub.Chat(request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [response async for response in refused]
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED
        assert details_of(await status_of(refused))["RetryInfo"].retry_delay.ToMilliseconds() >= 100
        rest = [response async for response in first]
        assert rest[-1].WhichOneof("event") == "final"


async def test_a_failing_backend_is_unavailable_and_the_next_request_is_answered(serve: Any) -> None:
    """When a step fails, the stream ends with ENGINE_FAILED and no detail, and the server goes on."""
    async with serve(step_delay_s=0.02) as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = GenerationServiceStub(channel)
        request = pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="Go")])
        call = stub.Chat(request)
        events = aiter(call)
        await anext(events)
        running.fail_next_forward(RuntimeError(SECRET))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [response async for response in events]
        assert caught.value.code() is Code.UNAVAILABLE
        assert SECRET not in str(caught.value.details())
        failed = next(line for line in running.log if line["event"] == "request.failed")
        assert SECRET in str(failed["exc_info"])
        assert [r async for r in stub.Chat(request)][-1].WhichOneof("event") == "final"


@given(
    fields=st.lists(st.tuples(st.text(max_size=2000), st.text(max_size=2000)), min_size=1, max_size=300),
)
def test_a_status_always_fits_the_trailers_of_a_stock_client(fields: list[tuple[str, str]]) -> None:
    """However many and however long the violations, the trailers stay below 8 KiB as they are sent."""
    error = errors.InvalidRequest(*(FieldViolation(field, text) for field, text in fields))
    answer = answer_of(error, request_id="r" * 64)
    sent = 3 * len(answer.message.encode())  # percent-encoded at worst
    for key, value in answer.trailers:
        sent += len(key) + 4 * (len(value) + 2) // 3 + 32
    assert sent < 8192
    assert answer.code is Code.INVALID_ARGUMENT


def test_an_unknown_error_says_nothing_of_itself() -> None:
    """The answer to a bug is a fixed text."""
    assert answer_of(KeyError(SECRET), request_id="r").message == INTERNAL_TEXT
