"""
What a client raises when a call does not end well.

    ClientError (an EdgephiError)
    ├── RequestRefused        a field is out of bounds; nothing was started. Do not retry
    ├── AccessRefused         the server does not know the caller, or lets it do less. Do not retry
    ├── ModelUnknown          the server has no such model. Do not retry
    ├── ServerBusy            no room now. Retry after retry_after_s
    ├── ServerUnavailable     not reachable, loading or shutting down. Retry
    ├── StreamCut             an answer stopped without its end; what was received is a fragment. Retry if that helps
    ├── DeadlinePassed        the caller's own time limit passed. Retry with a longer one
    ├── CallCancelled         the call was cancelled, but not through its stream
    └── ServerFailed          the server could not do it, for a reason in its log. Do not retry

Owns the mapping from gRPC status to these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # publishes no stubs

from edgephi.client.handshake import handshake_hint
from edgephi.errors import EdgephiError, FieldViolation

DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"


class ClientError(EdgephiError):
    """
    A call ended badly.

    Attributes:
        code: gRPC status code, such as ``INVALID_ARGUMENT``.
        reason: The server's reason, such as ``PROMPT_TOO_LONG``; None where it did not answer itself.
        retry_after_s: When the server suggests to try again, in seconds, or None.
        request_id: Finds the call in the server's log, or None.
        metadata: Numbers that belong to the reason, such as ``contextTokens``.
        hint: What to do about a connection that TLS refused, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        reason: str | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
        metadata: Mapping[str, str] = MappingProxyType({}),
        hint: str | None = None,
    ) -> None:
        self.code = code
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        self.metadata = dict(metadata)
        self.hint = hint
        super().__init__(message if hint is None else f"{message}; {hint}")


class RequestRefused(ClientError):
    """
    A field of the request is out of bounds; nothing was started.

    Attributes:
        violations: Each field that is, by its path in the contract, and why.
    """

    violations: tuple[FieldViolation, ...] = ()


class AccessRefused(ClientError):
    """The server asks for a token that it knows, or the caller's scope is not enough."""


class ModelUnknown(ClientError):
    """The server has no model of that name."""


class ServerBusy(ClientError):
    """The server has no room for the request now."""


class ServerUnavailable(ClientError):
    """The server is not reachable, still loading, or shutting down."""


class StreamCut(ClientError):
    """An answer stopped without its final message; the text received so far is a fragment."""


class DeadlinePassed(ClientError):
    """The time limit that was given for the call passed."""


class CallCancelled(ClientError):
    """The call was cancelled, but not through its stream's ``cancel``."""


class ServerFailed(ClientError):
    """The server could not do it; its log says why."""


_CLASSES: Mapping[grpc.StatusCode, type[ClientError]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: RequestRefused,
        grpc.StatusCode.UNAUTHENTICATED: AccessRefused,
        grpc.StatusCode.PERMISSION_DENIED: AccessRefused,
        grpc.StatusCode.NOT_FOUND: ModelUnknown,
        grpc.StatusCode.RESOURCE_EXHAUSTED: ServerBusy,
        grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlinePassed,
        grpc.StatusCode.CANCELLED: CallCancelled,
    }
)


class EndedCall(Protocol):
    """What a gRPC error tells; those of both APIs do."""

    def code(self) -> Any:
        """Status code."""
        ...

    def details(self) -> Any:
        """Message."""
        ...

    def trailing_metadata(self) -> Any:
        """Trailers."""
        ...


def error_of(call: EndedCall, *, has_received: bool = False) -> ClientError:
    """
    Make the error that a failed call stands for.

    Args:
        call: The ``grpc.RpcError`` that was raised.
        has_received: Whether part of an answer had come before; a lost connection has then cut it.
    """
    code: grpc.StatusCode = call.code()
    trailers = tuple(call.trailing_metadata() or ())
    info, retry_after_s, violations = _details(trailers)
    kind = _CLASSES.get(code, ServerFailed)
    if kind is ServerUnavailable and has_received:
        kind = StreamCut
    request_id = next((value for key, value in trailers if key == REQUEST_ID_KEY), None)
    details = call.details() or code.name
    error = kind(
        details,
        code=code.name,
        reason=info.reason or None,
        retry_after_s=retry_after_s,
        request_id=request_id,
        metadata=info.metadata,
        hint=handshake_hint(details) if code is grpc.StatusCode.UNAVAILABLE and not info.reason else None,
    )
    if isinstance(error, RequestRefused):
        error.violations = violations
    return error


def cut() -> StreamCut:
    """Make the error for an answer whose stream ended well but without its final message."""
    return StreamCut("the answer's stream ended without its final message; its text is a fragment", code="OK")


def _details(
    trailers: Iterable[tuple[str, Any]],
) -> tuple[Any, float | None, tuple[FieldViolation, ...]]:
    """Return ErrorInfo, retry delay in seconds and violations; what is absent or unreadable is empty."""
    info = error_details_pb2.ErrorInfo()
    retry_after_s: float | None = None
    violations: tuple[FieldViolation, ...] = ()
    for key, value in trailers:
        if key != DETAILS_KEY:
            continue
        status = status_pb2.Status()
        try:
            status.ParseFromString(value)
            for packed in status.details:
                retry, bad = error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
                if packed.Unpack(info):
                    continue
                if packed.Unpack(retry):
                    retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
                elif packed.Unpack(bad):
                    violations = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
        except DecodeError:
            break  # another program's trailer of the same name; the code and the message stand
    return info, retry_after_s, violations
