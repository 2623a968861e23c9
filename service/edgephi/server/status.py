"""
The one table from our errors to gRPC status, and how a status is written.

Owns codes, reasons, retry delays and which messages may leave the machine. Knows no handler and no connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import grpc
from google.protobuf import any_pb2, message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # publishes no stubs

from edgephi.errors import (
    BundleInvalid,
    CompileFailed,
    ConfigError,
    CpuUnsupported,
    DeadlineTooShort,
    Draining,
    EdgephiError,
    EngineFailed,
    FieldViolation,
    InsufficientMemory,
    IntegrityError,
    InvalidRequest,
    ModelInvalid,
    ModelNotFound,
    NotReady,
    Overloaded,
    PermissionDenied,
    PromptTooLong,
    ReaderTooSlow,
    RequestQuarantined,
    Unauthenticated,
    UnsupportedModel,
)

DOMAIN = "edgephi"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
REQUEST_ID_KEY = "x-request-id"
CLIENT_LIMIT = "client_requests"
INTERNAL_TEXT = "internal error; report the request id to whoever runs this server"

# A status travels in HTTP/2 trailers, and a stock client refuses more than 8 KiB of them.
MAX_MESSAGE_BYTES = 512
MAX_VIOLATIONS_BYTES = 2560
MAX_VIOLATION_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class StatusRow:
    """
    How one class of error is answered.

    Attributes:
        code: gRPC status code.
        reason: ErrorInfo.reason.
        retry_after_ms: When to try again, in milliseconds; None where that cannot help.
        text: Fixed message, because the error's own may hold paths; None sends the error's own.
    """

    code: grpc.StatusCode
    reason: str
    retry_after_ms: int | None = None
    text: str | None = None


# Reasons of Overloaded by the limit that was met; any other has its row's.
OVERLOADED_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "queue_requests": "QUEUE_FULL",
        "queue_tokens": "QUEUE_TOKENS_FULL",
        "queue_seconds": "QUEUE_TOO_LONG",
        CLIENT_LIMIT: "CLIENT_QUEUE_FULL",
        "request_tokens": "REQUEST_TOO_LARGE_NOW",
        "tokenizing_bytes": "TOKENIZING_FULL",
    }
)

_Code = grpc.StatusCode
_BAD_MODEL = "the model on this server cannot be used; its log says why"
_BAD_BUILD = "the compiled model on this server cannot be used; its log says why"

STATUS_TABLE: Mapping[type[EdgephiError], StatusRow] = MappingProxyType(
    {
        InvalidRequest: StatusRow(_Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        PromptTooLong: StatusRow(_Code.INVALID_ARGUMENT, "PROMPT_TOO_LONG"),
        # The delay is the error's own, and so is the reason (OVERLOADED_REASONS).
        Overloaded: StatusRow(_Code.RESOURCE_EXHAUSTED, "OVERLOADED", 1_000),
        ReaderTooSlow: StatusRow(_Code.RESOURCE_EXHAUSTED, "READER_TOO_SLOW"),
        DeadlineTooShort: StatusRow(_Code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT"),
        RequestQuarantined: StatusRow(_Code.FAILED_PRECONDITION, "REQUEST_QUARANTINED"),
        Unauthenticated: StatusRow(_Code.UNAUTHENTICATED, "UNAUTHENTICATED"),
        PermissionDenied: StatusRow(_Code.PERMISSION_DENIED, "PERMISSION_DENIED"),
        NotReady: StatusRow(_Code.UNAVAILABLE, "NOT_READY", 1_000),
        # Soon, because another server may answer: this one will not.
        Draining: StatusRow(_Code.UNAVAILABLE, "DRAINING", 100),
        EngineFailed: StatusRow(
            _Code.UNAVAILABLE, "ENGINE_FAILED", 2_000, "the engine failed while computing; its log says why"
        ),
        ModelNotFound: StatusRow(_Code.NOT_FOUND, "MODEL_NOT_FOUND"),
        ModelInvalid: StatusRow(_Code.FAILED_PRECONDITION, "MODEL_INVALID", None, _BAD_MODEL),
        IntegrityError: StatusRow(_Code.FAILED_PRECONDITION, "MODEL_DAMAGED", None, _BAD_MODEL),
        UnsupportedModel: StatusRow(_Code.FAILED_PRECONDITION, "MODEL_UNSUPPORTED", None, _BAD_MODEL),
        BundleInvalid: StatusRow(_Code.FAILED_PRECONDITION, "BUNDLE_INVALID", None, _BAD_BUILD),
        CpuUnsupported: StatusRow(_Code.FAILED_PRECONDITION, "CPU_UNSUPPORTED", None, _BAD_BUILD),
        CompileFailed: StatusRow(_Code.FAILED_PRECONDITION, "COMPILE_FAILED", None, _BAD_BUILD),
        InsufficientMemory: StatusRow(_Code.RESOURCE_EXHAUSTED, "INSUFFICIENT_MEMORY", 5_000),
        ConfigError: StatusRow(
            _Code.FAILED_PRECONDITION, "CONFIG_INVALID", None, "this server is not set up rightly; its log says why"
        ),
        EdgephiError: StatusRow(_Code.INTERNAL, "INTERNAL", None, INTERNAL_TEXT),
    }
)


@dataclass(frozen=True, slots=True)
class StatusAnswer:
    """What ends a call: the code, a message for people, and the trailing metadata with all details."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def row_of(error: BaseException) -> StatusRow:
    """Return the row of the nearest class of the error; an error that is not ours has that of a bug."""
    for kind in type(error).__mro__:
        row = STATUS_TABLE.get(kind)
        if row is not None:
            return row
    return STATUS_TABLE[EdgephiError]


def reason_of(error: BaseException) -> str:
    """Return the ErrorInfo.reason of an error."""
    reason = row_of(error).reason
    return OVERLOADED_REASONS.get(error.limit, reason) if isinstance(error, Overloaded) else reason


def answer_of(error: BaseException, *, request_id: str, client_id: str = "") -> StatusAnswer:
    """
    Write the status that tells a client of an error.

    Args:
        error: Ours, or any other, of which nothing is revealed.
        request_id: Named in the details and the trailers.
        client_id: Who is told, named where a limit is theirs alone.

    Returns:
        A status within the size of trailers that any client accepts: long texts and long lists are cut.
    """
    row = row_of(error)
    text = _clip(_message_of(error) if row.text is None else row.text, MAX_MESSAGE_BYTES)
    retry_after_ms = error.retry_after_ms if isinstance(error, Overloaded) else row.retry_after_ms
    info = error_details_pb2.ErrorInfo(reason=reason_of(error), domain=DOMAIN, metadata=_metadata_of(error))
    details: list[message.Message] = [info, error_details_pb2.RequestInfo(request_id=request_id)]
    if isinstance(error, InvalidRequest):
        details.append(_bad_request(error.violations))
    if isinstance(error, Overloaded):
        violation = error_details_pb2.QuotaFailure.Violation(description=text)
        if error.limit == CLIENT_LIMIT:
            violation.subject = f"client:{client_id}"
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    if retry_after_ms is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(retry_after_ms)
        details.append(retry)
    status = status_pb2.Status(code=row.code.value[0], message=text, details=[_pack(detail) for detail in details])
    trailers: list[tuple[str, str | bytes]] = [
        (DETAILS_KEY, status.SerializeToString()),
        (REQUEST_ID_KEY, request_id),
    ]
    if retry_after_ms is not None:
        # gRPC's own retries obey this one and not RetryInfo, which is for the application.
        trailers.append((PUSHBACK_KEY, str(retry_after_ms)))
    return StatusAnswer(row.code, text, tuple(trailers))


def _message_of(error: BaseException) -> str:
    if not isinstance(error, InvalidRequest):
        return str(error)
    first, *others = error.violations
    more = f" (and {len(others)} more)" if others else ""
    return f"{_clip(first.field, MAX_VIOLATION_CHARACTERS)}: {_clip(first.description, MAX_VIOLATION_CHARACTERS)}{more}"


def _metadata_of(error: BaseException) -> dict[str, str]:
    if isinstance(error, PromptTooLong):
        return {
            "promptTokens": str(error.prompt_tokens),
            "maxTokens": str(error.max_tokens),
            "contextTokens": str(error.context_tokens),
        }
    if isinstance(error, InvalidRequest):
        return {"numViolations": str(len(error.violations))}
    if isinstance(error, Overloaded):
        numbers = {"value": error.value, "max": error.most}
        return {
            "limit": error.limit,
            **{key: f"{number:.1f}".removesuffix(".0") for key, number in numbers.items() if number is not None},
        }
    if isinstance(error, DeadlineTooShort):
        return {"estimatedSeconds": f"{error.estimated_s:.1f}", "remainingSeconds": f"{error.remaining_s:.1f}"}
    return {}


def _bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    found = error_details_pb2.BadRequest()
    for violation in violations:
        entry = found.field_violations.add()
        entry.field = _clip(violation.field, MAX_VIOLATION_CHARACTERS)
        entry.description = _clip(violation.description, MAX_VIOLATION_CHARACTERS)
        if found.ByteSize() > MAX_VIOLATIONS_BYTES:
            del found.field_violations[-1]
            break
    return found


def _clip(text: str, max_bytes: int) -> str:
    data = text.encode("utf-8", errors="replace")
    return text if len(data) <= max_bytes else data[: max_bytes - 3].decode("utf-8", errors="ignore") + "..."


def _pack(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
