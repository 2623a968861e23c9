"""A real OTLP collector over gRPC that keeps what it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """
    Listens on a free port of loopback from construction to :meth:`close`.

    Attributes:
        requests: What was sent, in order.
        port: Where it listens.
    """

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server  # has no types
        add(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def endpoint(self) -> str:
        """What a server is told."""
        return f"http://127.0.0.1:{self.port}"

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any) -> Any:  # noqa: N802
        """Keep what was sent."""
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> list[trace_pb2.Span]:
        """Return every span that has arrived."""
        return list(self._spans())

    def close(self) -> None:
        """Stop listening."""
        self._server.stop(None).wait()

    def _spans(self) -> Iterator[trace_pb2.Span]:
        for request in self.requests:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    yield from scope.spans


def attributes_of(span: trace_pb2.Span) -> dict[str, Any]:
    """Return a span's attributes as Python values."""
    found: dict[str, Any] = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind or "string_value")
        found[attribute.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found
