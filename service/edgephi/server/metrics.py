"""
Counters of the network side and of the model, for Prometheus.

Owns names, labels and buckets of what is counted as it happens; what is read when the page is asked for stands in
tables (``server_rows``, ``device_rows``). The registry is passed in, so that two servers in one process do not meet.
Names, labels and values of calls are those of go-grpc-prometheus, so that its dashboards and alerts work; answers are
counted with vLLM's meanings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from edgephi.engine.request import FinishReason, Timings, Usage
from edgephi.errors import DeadlineTooShort, Overloaded, RequestQuarantined
from edgephi.profile.machine.probe import LiveFacts
from edgephi.profile.plan import Plan
from edgephi.server.calls import Method
from edgephi.server.device_rows import DEVICE_ROWS
from edgephi.server.metric_table import PREFIX, Family, Reading, Row, TableCollector
from edgephi.server.server_rows import (
    ENGINE_ROWS,
    GOVERNED_ROWS,
    PLAN_ROWS,
    SERVER_ROWS,
    EngineReading,
    GovernedReading,
    ServerReading,
)
from edgephi.server.status import reason_of

# A long prompt takes minutes on a small board; the usual buckets end at ten seconds.
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0)
TOKEN_SECONDS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)

_CALL = ("grpc_service", "grpc_method", "grpc_type")
_MODEL = "model_name"
_KINDS = {
    "unary_unary": "unary",
    "unary_stream": "server_stream",
    "stream_unary": "client_stream",
    "stream_stream": "bidi_stream",
}


class Metrics:
    """
    All counters of one server. Lives as long as its registry.

    Args:
        registry: Where they are registered; one per server.
        model: Value of the label ``model_name``.
    """

    def __init__(self, registry: CollectorRegistry, *, model: str) -> None:
        self.registry = registry
        self._model = model
        self._families: list[Family] = []
        ProcessCollector(registry=registry)  # the standard names of this process, its start among them

        self._started = self._counter("grpc_server_started", "Calls begun.", _CALL)
        self._handled = self._counter("grpc_server_handled", "Calls ended, by status code.", (*_CALL, "grpc_code"))
        self._handling = self._histogram("grpc_server_handling_seconds", "Duration of calls.", _CALL)
        self._received = self._counter("grpc_server_msg_received", "Messages received.", _CALL)
        self._sent = self._counter("grpc_server_msg_sent", "Messages sent.", _CALL)
        self._errors = self._counter(
            f"{PREFIX}call_errors", "Calls ended by an error, by the reason in its ErrorInfo.", ("reason",)
        )
        self._refused = self._counter(
            f"{PREFIX}requests_refused", "Requests refused because a limit was reached, by its name.", ("limit",)
        )

        def seconds(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return self._histogram(f"{PREFIX}{name}_seconds", text, (_MODEL,), buckets).labels(model)

        def tokens(name: str, text: str) -> Counter:
            return self._counter(f"{PREFIX}{name}", text, (_MODEL,)).labels(model)

        self._duration = seconds("request_duration", "From submission to the end of an answer.")
        self._ttft = seconds("time_to_first_token", "From submission to the first token.")
        self._inter_token = seconds("inter_token_latency", "Between two parts of an answer.", TOKEN_SECONDS)
        self._queue = seconds("request_queue_time", "From submission to the first step.")
        self._prefill = seconds("request_prefill_time", "From the first step to the first token.")
        self._decode = seconds("request_decode_time", "From the first token to the last.")
        self._prompt_tokens = tokens("prompt_tokens", "Prompt tokens of ended answers.")
        self._cached_tokens = tokens("cached_prompt_tokens", "Of them, tokens found in the cache.")
        self._generation_tokens = tokens("generation_tokens", "Generated tokens of ended answers.")
        self._finished = self._counter(f"{PREFIX}requests_finished", "Answers ended.", ("finish_reason", _MODEL))
        for reason in FinishReason:
            # From zero, so that the first one of its kind is seen to be one more.
            self._finished.labels(reason.value, model)

    def families(self) -> Iterator[Family]:
        """Yield what is reported where everything is known; the standard metrics of the process left out."""
        yield from self._families
        for rows, labels in (
            (ENGINE_ROWS, (_MODEL,)),
            (PLAN_ROWS, (_MODEL,)),
            (GOVERNED_ROWS, (_MODEL,)),
            (SERVER_ROWS, ()),
            (DEVICE_ROWS, ()),
        ):
            for row in rows:
                yield row.family(labels)

    def watch_engine(self, read: Callable[[], EngineReading]) -> None:
        """Report the engine from ``read``, which must be quick and safe on any thread."""
        self._watch(ENGINE_ROWS, read)

    def watch_plan(self, plan: Plan) -> None:
        """Report the plan in force."""
        self._watch(PLAN_ROWS, lambda: plan)

    def watch_governed(self, read: Callable[[], GovernedReading]) -> None:
        """Report what is taken on at present, and predictions beside measurements."""
        self._watch(GOVERNED_ROWS, read)

    def watch_server(self, read: Callable[[], ServerReading]) -> None:
        """Report the server itself."""
        self.registry.register(TableCollector(SERVER_ROWS, read))

    def watch_device(self, read: Callable[[], LiveFacts | None]) -> None:
        """Report the machine; ``read`` may take a moment, and None reports nothing."""
        self.registry.register(TableCollector(DEVICE_ROWS, read))

    def call_started(self, method: Method) -> None:
        """Count a call that has begun."""
        self._started.labels(*_labels(method)).inc()

    def call_ended(
        self, method: Method, code: grpc.StatusCode, duration_s: float, *, num_received: int, num_sent: int
    ) -> None:
        """Count a call that has ended, with its messages."""
        labels = _labels(method)
        self._handled.labels(*labels, code_name(code)).inc()
        self._handling.labels(*labels).observe(duration_s)
        self._received.labels(*labels).inc(num_received)
        self._sent.labels(*labels).inc(num_sent)

    def call_failed(self, error: BaseException) -> None:
        """Count what a call was ended by, and the limit it had reached."""
        self._errors.labels(reason_of(error)).inc()
        limit = _limit_of(error)
        if limit is not None:
            self._refused.labels(limit).inc()

    def token_interval(self, interval_s: float) -> None:
        """Count the time between two parts of one answer, in seconds."""
        self._inter_token.observe(interval_s)

    def answer_ended(self, reason: str, usage: Usage, timings: Timings) -> None:
        """Count an answer that has ended, for whatever reason."""
        self._finished.labels(reason, self._model).inc()
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        self._generation_tokens.inc(usage.output_tokens)
        self._duration.observe(timings.queue_s + timings.prefill_s + timings.decode_s)
        self._queue.observe(timings.queue_s)
        if usage.output_tokens:
            self._ttft.observe(timings.queue_s + timings.prefill_s)
            self._prefill.observe(timings.prefill_s)
            self._decode.observe(timings.decode_s)

    def _watch(self, rows: tuple[Row[Reading], ...], read: Callable[[], Reading | None]) -> None:
        self.registry.register(TableCollector(rows, read, {_MODEL: self._model}))

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        self._families.append(Family(name=f"{name}_total", kind="counter", text=text, labels=labels))
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...] = SECONDS
    ) -> Histogram:
        self._families.append(Family(name=name, kind="histogram", text=text, labels=labels))
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


def code_name(code: grpc.StatusCode) -> str:
    """Return a status code as Go writes it, such as ``InvalidArgument``."""
    if code is grpc.StatusCode.OK:
        return "OK"
    if code is grpc.StatusCode.CANCELLED:
        return "Canceled"
    return code.name.title().replace("_", "")


def _labels(method: Method) -> tuple[str, str, str]:
    return method.service, method.name, _KINDS[method.kind]


def _limit_of(error: BaseException) -> str | None:
    if isinstance(error, Overloaded):
        return error.limit
    if isinstance(error, DeadlineTooShort):
        return "deadline"
    return "quarantine" if isinstance(error, RequestQuarantined) else None
