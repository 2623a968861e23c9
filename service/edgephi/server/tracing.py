"""
OpenTelemetry traces, for those who collect them: a span for each call, and one for each phase of its answer.

Owns the spans, their attributes and the way to the collector. OpenTelemetry is imported only if an endpoint is given.
Spans hold numbers, names and ids, never text of a prompt or an answer; whatever fails here, calls go on.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import grpc

from edgephi.errors import ConfigError
from edgephi.generation.request import Final
from edgephi.server.calls import CallRecord, Method

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.trace import Span

CLOSE_S = 2.0
"""How long the last spans may take to reach the collector when the server stops."""

_PROVIDER = "edgephi"
_OPERATIONS = {"Chat": "chat", "Complete": "text_completion"}
_MODULES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")
# Of W3C Trace Context.
_CARRIER_KEYS = frozenset({"traceparent", "tracestate"})
# Codes that say that the server failed, not its client. Source: OpenTelemetry semantic conventions, gRPC.
_SERVER_ERRORS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def check_tracing(endpoint: str | None) -> None:
    """
    Check that traces can be sent, without loading what sends them.

    Args:
        endpoint: Where to; None for nowhere.

    Raises:
        ConfigError: If OpenTelemetry is not installed.
    """
    if endpoint is not None and not all(_is_installed(module) for module in _MODULES):
        raise ConfigError(
            f"otlp_endpoint is {endpoint!r} and OpenTelemetry is not installed; run: pip install 'edgephi[otel]', or "
            "leave otlp_endpoint (and OTEL_EXPORTER_OTLP_ENDPOINT) out"
        )


class Tracing:
    """
    Sends spans to one collector, from a thread of its own, until :meth:`close`.

    A client's ``traceparent`` decides whether its call is traced and what the span belongs to; without one all are,
    unless the standard variables, such as OTEL_TRACES_SAMPLER, say otherwise.

    Args:
        endpoint: ``http://host:port``, or ``https`` for TLS; a collector of OTLP over gRPC.
        model: The model's id.
        version: Of this package.
        log: structlog logger.

    Raises:
        ConfigError: If OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, *, model: str, version: str, log: Any) -> None:
        check_tracing(endpoint)
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._model = model
        self._log = log
        self._has_failed = False
        self._exporter = OTLPSpanExporter(endpoint=endpoint)
        # Not made the process's own: two servers in one process do not meet, and nobody else's spans come in.
        self._provider = TracerProvider(resource=_resource(version), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("edgephi", version)
        self._propagator = TraceContextTextMapPropagator()

    def start(self, method: Method, metadata: Iterable[tuple[str, str | bytes]]) -> CallSpan | None:
        """Begin the span of a call; None where that fails."""
        try:
            from opentelemetry.trace import SpanKind

            carrier = {key: value for key, value in metadata if key in _CARRIER_KEYS and isinstance(value, str)}
            operation = _OPERATIONS.get(method.name)
            path = f"{method.service}/{method.name}"
            attributes: dict[str, str] = {"rpc.system.name": "grpc", "rpc.method": path}
            if operation is not None:
                attributes["gen_ai.operation.name"] = operation
                attributes["gen_ai.provider.name"] = _PROVIDER
                attributes["gen_ai.request.model"] = self._model
            span = self._tracer.start_span(
                path if operation is None else f"{operation} {self._model}",
                context=self._propagator.extract(carrier),
                kind=SpanKind.SERVER,
                attributes=attributes,
            )
        except Exception as error:  # noqa: BLE001 - a call is worth more than its trace
            self._failed(error)
            return None
        return CallSpan(span, self._child, self._failed)

    def close(self) -> None:
        """Send what is left, within CLOSE_S, and stop. May wait."""
        # The provider would wait half a minute for a collector that is not there.
        stopping = threading.Thread(target=self._provider.shutdown, name="edgephi-traces-end", daemon=True)
        stopping.start()
        stopping.join(CLOSE_S)
        if stopping.is_alive():
            self._exporter.shutdown()
            stopping.join(CLOSE_S)

    def _child(self, name: str, parent: Context, start_ns: int, end_ns: int) -> None:
        self._tracer.start_span(name, context=parent, start_time=start_ns).end(end_ns)

    def _failed(self, error: Exception) -> None:
        if not self._has_failed:  # once: it would be the same for every call
            self._has_failed = True
            self._log.warning("tracing.failed", exc_info=error)


class CallSpan:
    """The span of one call; made by :meth:`Tracing.start`, ended by its call."""

    def __init__(
        self, span: Span, child: Callable[[str, Context, int, int], None], failed: Callable[[Exception], None]
    ) -> None:
        self._span = span
        self._child = child
        self._failed = failed

    @property
    def trace_id(self) -> str:
        """The trace it belongs to, 32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def end(self, call: CallRecord, code: grpc.StatusCode) -> None:
        """End it with what is known of the call."""
        try:
            self._describe(call, code)
            self._span.end()
        except Exception as error:  # noqa: BLE001 - a call is worth more than its trace
            self._failed(error)

    def _describe(self, call: CallRecord, code: grpc.StatusCode) -> None:
        from opentelemetry.trace import Status, StatusCode

        span = self._span
        span.set_attribute("rpc.response.status_code", code.name)
        span.set_attribute("edgephi.request.id", call.request_id)
        if code is not grpc.StatusCode.OK:
            span.set_attribute("error.type", str(call.facts.get("error", code.name)))
        if code in _SERVER_ERRORS:
            span.set_status(Status(StatusCode.ERROR))
        if call.final is not None and call.final_at_s is not None:
            self._describe_answer(call.final, call.final_at_s)

    def _describe_answer(self, final: Final, final_at_s: float) -> None:
        from opentelemetry.trace import set_span_in_context

        usage, timings, span = final.usage, final.timings, self._span
        span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", usage.output_tokens)
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens)
        span.set_attribute("gen_ai.response.finish_reasons", [final.reason.value])
        if usage.output_tokens:
            span.set_attribute("gen_ai.response.time_to_first_chunk", timings.queue_s + timings.prefill_s)
        parent = set_span_in_context(span)
        end_ns = time.time_ns() - round((time.monotonic() - final_at_s) * 1e9)
        start_ns = end_ns - round((timings.queue_s + timings.prefill_s + timings.decode_s) * 1e9)
        for name, duration_s, was_reached in (
            ("queue", timings.queue_s, True),
            ("prefill", timings.prefill_s, timings.prefill_s > 0 or usage.output_tokens > 0),
            ("decode", timings.decode_s, usage.output_tokens > 1),
        ):
            if was_reached:
                next_ns = start_ns + round(duration_s * 1e9)
                self._child(name, parent, start_ns, next_ns)
                start_ns = next_ns


def _resource(version: str) -> Resource:
    from opentelemetry.sdk.resources import Resource

    resource = Resource.create({"service.version": version})
    # OTEL_SERVICE_NAME, where it is set, is what the operator wants.
    is_named = not str(resource.attributes["service.name"]).startswith("unknown_service")
    return resource if is_named else resource.merge(Resource({"service.name": "edgephi"}))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False
