"""
What is known of one call while it runs, and how behaviour is put around every kind of call.

Owns the record of a call and the wrapping of method handlers. Does not know what is put around them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from edgephi.errors import FieldViolation, InvalidRequest, ReaderTooSlow
from edgephi.generation.request import Final

# grpc's own type is generic in messages that are not known here.
Context = Any
Scope = Callable[["Method", Context], contextlib.AbstractAsyncContextManager[None]]


class Method(NamedTuple):
    """A method as it was called: the service's full name, the method's, and which sides stream."""

    service: str
    name: str
    kind: str


@dataclass(slots=True)
class CallRecord:
    """
    One call; made when it arrives, dropped when it has been logged. Used by the call's own task only.

    Attributes:
        request_id: The caller's, or one made here.
        client_id: Who calls: the name of a token or a certificate, or an address where nobody is asked; never a token.
        num_received: Messages received so far.
        num_sent: Messages sent so far.
        facts: What its handler adds to the line that is logged at the end; never text of a prompt or an answer.
        final: How its answer ended, or None as long as it has not or where there is none.
        final_at_s: When that arrived, monotonic clock.
    """

    request_id: str
    client_id: str = ""
    num_received: int = 0
    num_sent: int = 0
    facts: dict[str, int | float | str | None] = field(default_factory=dict)
    final: Final | None = None
    final_at_s: float | None = None


# Set anew in each call's task, so no call sees another's.
_current: ContextVar[CallRecord] = ContextVar("edgephi_call")


def current_call() -> CallRecord:
    """Return the record of the call whose task this is."""
    return _current.get()


@contextlib.contextmanager
def record_call(request_id: str) -> Iterator[CallRecord]:
    """Make a record that ``current_call`` returns within the block."""
    call = CallRecord(request_id)
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)


class _Malformed:
    """Stands for a request whose bytes are not the message they should be."""


_MALFORMED = _Malformed()


def wrap_handler(
    handler: Any, path: str, scope: Scope, *, is_innermost: bool, write_timeout_s: float | None = None
) -> Any:
    """
    Put a scope around a method handler, whichever sides stream.

    A stream of responses is written from within the scope, so that the scope and every ``finally`` of the handler
    have run when the call's task ends, whatever ended it.

    Args:
        handler: grpc.RpcMethodHandler of an asyncio server.
        path: ``/package.Service/Method``.
        scope: Called with the method and the call's context; its block holds the whole call.
        is_innermost: Whether no other scope is within this one. That one checks requests and counts responses.
        write_timeout_s: Longest wait for a client to take a response of a stream, in seconds; None for no limit.
    """
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    service, _, name = path.removeprefix("/").partition("/")
    method = Method(service, name, kind)
    behavior = getattr(handler, kind)
    call = functools.partial(_stream_call, write_timeout_s) if handler.response_streaming else _unary_call
    check = _checked_stream if handler.request_streaming else _checked

    async def wrapped(request: Any, context: Context) -> Any:
        async with scope(method, context):
            if is_innermost:
                return await call(behavior, check(request), context)
            return await behavior(request, context)

    make = getattr(grpc, f"{kind}_rpc_method_handler")
    deserialize = handler.request_deserializer
    return make(
        wrapped,
        request_deserializer=_safe(deserialize) if is_innermost else deserialize,
        response_serializer=handler.response_serializer,
    )


class ScopeInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """
    Puts :meth:`scope` around every call of a server.

    Args:
        is_innermost: As in :func:`wrap_handler`.
        write_timeout_s: As there.
    """

    def __init__(self, *, is_innermost: bool, write_timeout_s: float | None = None) -> None:
        self._is_innermost = is_innermost
        self._write_timeout_s = write_timeout_s

    def scope(self, method: Method, context: Context) -> contextlib.AbstractAsyncContextManager[None]:
        """Return the block that holds one call."""
        raise NotImplementedError

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Wrap the handler of a call; None stays None, which gRPC answers with UNIMPLEMENTED."""
        handler = await continuation(details)
        if handler is None:
            return None
        return wrap_handler(
            handler,
            details.method,
            self.scope,
            is_innermost=self._is_innermost,
            write_timeout_s=self._write_timeout_s,
        )


async def _unary_call(behavior: Callable[..., Awaitable[Any]], request: Any, context: Context) -> Any:
    response = await behavior(request, context)
    current_call().num_sent += 1
    return response


async def _stream_call(
    write_timeout_s: float | None, behavior: Callable[..., Any], request: Any, context: Context
) -> None:
    if not inspect.isasyncgenfunction(behavior):
        await behavior(request, context)
        return
    async with contextlib.aclosing(behavior(request, context)) as responses:
        async for response in responses:
            try:
                async with asyncio.timeout(write_timeout_s):
                    await context.write(response)
            except TimeoutError as error:
                raise ReaderTooSlow(
                    f"a response was not taken for {write_timeout_s:g} s; read the stream as it comes"
                ) from error
            current_call().num_sent += 1


def _safe(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Let malformed bytes reach the scope: gRPC would answer them with the name of a Python class."""

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _MALFORMED

    return parse


def _checked(request: Any) -> Any:
    current_call().num_received += 1
    if request is _MALFORMED:
        raise InvalidRequest(FieldViolation("request", "the bytes are not a message of this method; use its .proto"))
    return request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)
