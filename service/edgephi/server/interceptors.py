"""
What is seen of every call: its id, one line in the log at its end, and its counters; and the length of its metadata.

Owns the request id and the line ``request.finished``. Knows no message: no text of a prompt or an answer is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc

from edgephi.errors import FieldViolation, InvalidRequest
from edgephi.server.calls import CallRecord, Context, Method, ScopeInterceptor, record_call
from edgephi.server.channel_options import MAX_METADATA_BYTES
from edgephi.server.metrics import Metrics
from edgephi.server.status import REQUEST_ID_KEY
from edgephi.server.tracing import CallSpan, Tracing

OWN_PACKAGE = "edgephi."
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENTRY_BYTES = 32  # RFC 9113, section 6.5.2: what each field counts besides its letters
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class CallInterceptor(ScopeInterceptor):
    """
    The outermost interceptor. Lives as long as its server.

    Args:
        log: structlog logger.
        metrics: Where calls are counted.
        tracing: Where their spans go, or None.
    """

    def __init__(self, log: Any, metrics: Metrics, tracing: Tracing | None = None) -> None:
        super().__init__(is_innermost=False)
        self._log = log
        self._metrics = metrics
        self._tracing = tracing

    @contextlib.asynccontextmanager
    async def scope(self, method: Method, context: Context) -> AsyncIterator[None]:
        """Give the call its id, count it, and log its end."""
        started = time.monotonic()
        code = grpc.StatusCode.OK
        with record_call(_request_id(context)) as call:
            # Trailing, never initial: a refusal must stay Trailers-Only, or clients may not retry it.
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            self._metrics.call_started(method)
            span = self._start_span(method, context)
            try:
                yield
            except asyncio.CancelledError:
                code = _cancel_code(context)
                raise
            except BaseException:
                code = _sent_code(context)
                raise
            finally:
                self._end(method, call, code, time.monotonic() - started, span)

    def _start_span(self, method: Method, context: Context) -> CallSpan | None:
        # Probes come every few seconds and tell nothing; they have neither spans nor lines at info.
        if self._tracing is None or not method.service.startswith(OWN_PACKAGE):
            return None
        return self._tracing.start(method, context.invocation_metadata() or ())

    def _end(
        self, method: Method, call: CallRecord, code: grpc.StatusCode, duration_s: float, span: CallSpan | None
    ) -> None:
        counts = {"num_received": call.num_received, "num_sent": call.num_sent}
        self._metrics.call_ended(method, code, duration_s, **counts)
        ids = {"request_id": call.request_id}
        if span is not None:
            ids["trace_id"] = span.trace_id
            span.end(call, code)
        if call.client_id:
            ids["client"] = call.client_id
        write = self._log.info if method.service.startswith(OWN_PACKAGE) else self._log.debug
        write(
            "request.finished",
            **{**ids, "method": method.name, "code": code.name, "duration_ms": round(duration_s * 1000, 1)},
            **{name: fact for name, fact in call.facts.items() if name not in ids},
        )


class MetadataInterceptor(ScopeInterceptor):
    """
    Refuses calls with more metadata than gRPC was told to take, inside of where errors are mapped.

    gRPC holds that limit only against clients that acknowledge the server's HTTP/2 settings.
    """

    def __init__(self) -> None:
        super().__init__(is_innermost=False)

    @contextlib.asynccontextmanager
    async def scope(self, method: Method, context: Context) -> AsyncIterator[None]:  # noqa: ARG002 - all methods alike
        """Count the metadata before the call does anything."""
        metadata = context.invocation_metadata() or ()
        size = sum(len(key) + len(value) + _ENTRY_BYTES for key, value in metadata)
        if size > MAX_METADATA_BYTES:
            raise InvalidRequest(FieldViolation("metadata", f"is {size} bytes; send at most {MAX_METADATA_BYTES}"))
        yield


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex


def _cancel_code(context: Context) -> grpc.StatusCode:
    remaining_s = context.time_remaining()
    is_late = remaining_s is not None and remaining_s <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED


def _sent_code(context: Context) -> grpc.StatusCode:
    code = context.code()
    return code if isinstance(code, grpc.StatusCode) else _CODES.get(code, grpc.StatusCode.UNKNOWN)
