"""
grpc.health.v1: what is served, told to probes and to clients that balance their load.

Owns the status of each name. The servicer that comes with gRPC says SERVING before anything is set, and one watcher
that takes no messages would keep its server from setting anything; here setting never waits for a reader.
"""

# ruff: noqa: N802, ARG002 - names and arguments of the handlers are the contract's
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthServicer

from edgephi.server.calls import Context

_Response = health_pb2.HealthCheckResponse


class Health(HealthServicer):  # type: ignore[misc]  # the base has no stubs
    """The health service. Lives as long as its server; used on its event loop only."""

    def __init__(self) -> None:
        self._is_serving: dict[str, bool] = {}
        self._changed = asyncio.Event()

    def set(self, name: str, *, is_serving: bool) -> None:
        """Say whether a name is served, to those who ask from now on and to those who watch."""
        self._is_serving[name] = is_serving
        # A new event for the next change: each watcher waits for the one that follows what it has sent.
        self._changed, changed = asyncio.Event(), self._changed
        changed.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Answer with the status of a name; the protocol wants NOT_FOUND for one that is not known."""
        if request.service not in self._is_serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service; List tells the names")
        return self._response(request.service)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Send the status of a name, then each change of it; a name that is not known may become known."""
        sent: health_pb2.HealthCheckResponse | None = None
        while True:
            changed = self._changed
            response = self._response(request.service)
            if response != sent:
                sent = response
                yield response
            else:
                await changed.wait()

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        """Answer with the status of every name."""
        return health_pb2.HealthListResponse(statuses={name: self._response(name) for name in self._is_serving})

    def _response(self, name: str) -> health_pb2.HealthCheckResponse:
        is_serving = self._is_serving.get(name)
        if is_serving is None:
            return _Response(status=_Response.SERVICE_UNKNOWN)
        return _Response(status=_Response.SERVING if is_serving else _Response.NOT_SERVING)
