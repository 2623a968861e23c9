"""
Ends every call that failed with the status its error has in the table, and lets nothing else through.

Owns what is logged of a failure. The table is ``edgephi.server.status``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from edgephi.server.calls import Context, Method, ScopeInterceptor, current_call
from edgephi.server.metrics import Metrics
from edgephi.server.status import answer_of, reason_of, row_of

STATUS_TIMEOUT_S = 1.0


class ErrorInterceptor(ScopeInterceptor):
    """
    Maps what a handler raises to a status. Lives as long as its server.

    Args:
        log: structlog logger for failures that are ours.
        metrics: Where errors are counted.
    """

    def __init__(self, log: Any, metrics: Metrics) -> None:
        super().__init__(is_innermost=False)
        self._log = log
        self._metrics = metrics

    @contextlib.asynccontextmanager
    async def scope(self, method: Method, context: Context) -> AsyncIterator[None]:
        """Answer whatever the call raises with the status of its row in the table."""
        try:
            yield
        except grpc.aio.AbortError:
            raise  # a status was sent already
        except Exception as error:
            if context.cancelled() or context.done():
                # A write to a client that vanished fails with an error of gRPC's own; nobody is left to answer.
                raise asyncio.CancelledError from error
            self._report(method, error)
            self._metrics.call_failed(error)
            call = current_call()
            answer = answer_of(error, request_id=call.request_id, client_id=call.client_id)
            # To a client that reads nothing the status stays on its way until the connection ends; the call need not.
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STATUS_TIMEOUT_S):
                        await context.abort(answer.code, answer.message, answer.trailers)
            except grpc.aio.InternalError as failure:
                # The client left, or its deadline passed, while it was being refused. It is not an error of ours.
                raise asyncio.CancelledError from failure

    def _report(self, method: Method, error: Exception) -> None:
        row = row_of(error)
        current_call().facts["error"] = reason_of(error)
        if row.text is not None:  # the client is not told, so the log must be
            fields = {"request_id": current_call().request_id, "method": method.name, "reason": row.reason}
            self._log.error("request.failed", exc_info=error, **fields)
