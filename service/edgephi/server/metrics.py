"""
Counters of the network side and of the model, for Prometheus.

Owns names, labels and buckets. The registry is passed in, so that two servers in one process do not meet. Engine
gauges are read when the page is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from wsgiref.simple_server import WSGIServer

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgephi.engine.core import EngineStats
from edgephi.engine.request import Timings, Usage
from edgephi.errors import ConfigError
from edgephi.profile.plan import Plan, PredictedSpeed
from edgephi.server.calls import Method
from edgephi.server.governor import GovernorTask
from edgephi.server.verification import VerificationTask

# A long prompt takes minutes on a small board; the usual buckets end at ten seconds.
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0)
TOKEN_SECONDS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)


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
        call = ("grpc_service", "grpc_method", "grpc_type")
        self._started = Counter("edgephi_grpc_server_started", "Calls begun.", call, registry=registry)
        self._handled = Counter(
            "edgephi_grpc_server_handled", "Calls ended, by status code.", (*call, "grpc_code"), registry=registry
        )
        self._handling = Histogram(
            "edgephi_grpc_server_handling_seconds", "Duration of calls.", call, buckets=SECONDS, registry=registry
        )
        self._sent = Counter("edgephi_grpc_server_msg_sent", "Messages sent.", call, registry=registry)

        def seconds(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            family = Histogram(f"edgephi_{name}_seconds", text, ("model_name",), buckets=buckets, registry=registry)
            return family.labels(model)

        def tokens(name: str, text: str) -> Counter:
            return Counter(f"edgephi_{name}", text, ("model_name",), registry=registry).labels(model)

        self._duration = seconds("request_duration", "From submission to the end of an answer.")
        self._ttft = seconds("time_to_first_token", "From submission to the first token.")
        self._inter_token = seconds("inter_token_latency", "Between two parts of an answer.", TOKEN_SECONDS)
        self._queue = seconds("request_queue_time", "From submission to the first step.")
        self._prefill = seconds("request_prefill_time", "From the first step to the first token.")
        self._decode = seconds("request_decode_time", "From the first token to the last.")
        self._prompt_tokens = tokens("prompt_tokens", "Prompt tokens of ended answers.")
        self._cached_tokens = tokens("cached_prompt_tokens", "Of them, tokens found in the cache.")
        self._generation_tokens = tokens("generation_tokens", "Generated tokens of ended answers.")
        self._finished = Counter(
            "edgephi_requests_finished", "Answers ended.", ("finish_reason", "model_name"), registry=registry
        )

    def watch_engine(self, stats: Callable[[], EngineStats]) -> None:
        """Report the engine's gauges from ``stats``, which must be quick and safe on any thread."""
        self.registry.register(_EngineCollector(stats, self._model))

    def watch_plan(self, plan: Plan, governor: GovernorTask, verification: VerificationTask) -> None:
        """Report the plan, what is taken on at present, and predictions beside measurements."""
        self.registry.register(_PlanCollector(plan, governor, verification, self._model))

    def call_started(self, method: Method) -> None:
        """Count a call that has begun."""
        self._started.labels(*method).inc()

    def call_ended(self, method: Method, code: grpc.StatusCode, duration_s: float, *, num_sent: int) -> None:
        """Count a call that has ended."""
        self._handled.labels(*method, code.name).inc()
        self._handling.labels(*method).observe(duration_s)
        if num_sent:
            self._sent.labels(*method).inc(num_sent)

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


class MetricsPage:
    """
    The page Prometheus reads, on a thread of its own from construction to :meth:`close`.

    Raises:
        ConfigError: If the address cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int) -> None:
        try:
            self._server: WSGIServer
            self._thread: threading.Thread
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise ConfigError(
                f"metrics address {host}:{port} cannot be listened on ({error.strerror}); choose another metrics_port"
            ) from error

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening and join the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], EngineStats], model: str) -> None:
        self._stats = stats
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """Read the engine once and report its gauges."""
        stats = self._stats()
        for name, text, value in (
            ("requests_running", "Requests being computed.", stats.running),
            ("requests_waiting", "Requests that wait for room.", stats.waiting),
            ("kv_cache_usage_ratio", "Part of the key and value pages in use.", stats.pages_used / stats.pages_total),
        ):
            family = GaugeMetricFamily(f"edgephi_{name}", text, labels=("model_name",))
            family.add_metric((self._model,), value)
            yield family


class _PlanCollector(Collector):
    def __init__(self, plan: Plan, governor: GovernorTask, verification: VerificationTask, model: str) -> None:
        self._plan = plan
        self._governor = governor
        self._verification = verification
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """Read governor and verification once; what is not known is left out."""
        plan, governor, finding = self._plan, self._governor.state, self._verification.finding
        predicted = plan.predicted or PredictedSpeed()
        for name, text, value in (
            ("plan_context_tokens", "Most tokens of a request.", plan.context_tokens),
            ("plan_max_running", "Most requests at once.", plan.max_running),
            ("plan_floor_tokens_per_second", "Least speed of an answer.", plan.floor_tokens_per_s),
            ("plan_memory_budget_bytes", "What the server may use.", plan.memory.budget_bytes),
            (
                "plan_full_tokens_per_second",
                "Predicted speed of each answer with full contexts.",
                predicted.each_full_tokens_per_s,
            ),
            ("governor_speed_level", "Steps below the plan for speed.", governor.level.speed),
            ("governor_memory_level", "Steps below the plan for memory.", governor.level.memory),
            ("governor_floor_missed", "1 if the floor cannot be held.", int(governor.is_floor_missed)),
            ("stream_tokens_per_second", "Speed of one answer.", governor.stream_tokens_per_s),
            (
                "memory_peak_predicted_bytes",
                "Memory expected with the pages used so far.",
                finding.predicted_peak_bytes,
            ),
            ("memory_peak_bytes", "Most memory that was in RAM.", finding.measured_peak_bytes),
            (
                "stream_predicted_tokens_per_second",
                "Speed of one answer expected for the load that was measured.",
                finding.predicted_stream_tokens_per_s,
            ),
            (
                "stream_measured_tokens_per_second",
                "Speed of one answer while answers were decoded and nothing else.",
                finding.measured_stream_tokens_per_s,
            ),
        ):
            if value is not None:
                family = GaugeMetricFamily(f"edgephi_{name}", text, labels=("model_name",))
                family.add_metric((self._model,), value)
                yield family
