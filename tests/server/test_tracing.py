"""Traces of calls, as a real collector receives them over gRPC."""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from tests.server.collector import Collector, attributes_of

from edgephi.errors import ConfigError, EngineFailed
from edgephi.server import tracing
from edgephi.server.settings import ServerSettings
from edgephi.v1 import generation_pb2 as types
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
GO = pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="Go")])


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that runs during the test."""
    collector = Collector()
    yield collector
    collector.close()


async def ask(channel: grpc.aio.Channel, *metadata: tuple[str, str]) -> list[pb2.ChatResponse]:
    """Ask for an answer."""
    return [response async for response in GenerationServiceStub(channel).Chat(GO, metadata=metadata)]


def by_name(collector: Collector) -> dict[str, trace_pb2.Span]:
    """Return the spans, which must have different names."""
    spans = collector.spans()
    named = {span.name: span for span in spans}
    assert len(named) == len(spans)
    return named


async def test_a_call_is_one_span_with_its_phases(serve: Any, collector: Collector) -> None:
    """An answer's span belongs to the caller's trace, has tokens, reason and time, and holds its phases in order."""
    async with (
        serve(otlp_endpoint=collector.endpoint, step_delay_s=0.002) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        responses = await ask(channel, ("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"), ("x-request-id", "request-1"))
        (line,) = await running.wait_finished("Chat", 1)
    usage = responses[-1].final.usage
    spans = by_name(collector)
    assert spans.keys() == {"chat tiny-phi3", "queue", "prefill", "decode"}
    call = spans["chat tiny-phi3"]
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert call.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert line["trace_id"] == TRACE_ID
    attributes = attributes_of(call)
    ttft_s = attributes.pop("gen_ai.response.time_to_first_chunk")
    assert ttft_s * 1000 == pytest.approx(line["ttft_ms"], abs=0.1)
    assert attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "edgephi.v1.GenerationService/Chat",
        "rpc.response.status_code": "OK",
        "edgephi.request.id": "request-1",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "edgephi",
        "gen_ai.request.model": "tiny-phi3",
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ["stop"],
    }
    queue, prefill, decode = (spans[name] for name in ("queue", "prefill", "decode"))
    assert {span.parent_span_id for span in (queue, prefill, decode)} == {call.span_id}
    assert queue.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano
    assert (prefill.end_time_unix_nano - queue.start_time_unix_nano) / 1e9 == pytest.approx(ttft_s, abs=1e-6)
    assert call.start_time_unix_nano <= queue.start_time_unix_nano + 5_000_000  # two clocks, read one after the other
    assert decode.end_time_unix_nano <= call.end_time_unix_nano


async def test_a_server_names_itself(serve: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resource is edgephi with its version, or what the standard variable names it."""
    names = []
    for value in (None, "kitchen"):
        if value is not None:
            monkeypatch.setenv("OTEL_SERVICE_NAME", value)
        async with (
            serve(otlp_endpoint=collector.endpoint) as running,
            grpc.aio.insecure_channel(running.target) as channel,
        ):
            await ask(channel)
        resource = collector.requests[-1].resource_spans[0].resource
        found = {attribute.key: attribute.value.string_value for attribute in resource.attributes}
        assert found["service.version"]
        names.append(found["service.name"])
    assert names == ["edgephi", "kitchen"]


async def test_a_caller_that_samples_nothing_is_not_traced(serve: Any, collector: Collector) -> None:
    """A traceparent without the sampled flag leaves no span; a malformed one counts as none."""
    async with (
        serve(otlp_endpoint=collector.endpoint) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        await ask(channel, ("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-00"))
        await ask(channel, ("traceparent", "00-no-trace-01"), ("tracestate", "x" * 600))
        await running.wait_finished("Chat", 2)
    (call,) = [span for span in collector.spans() if span.name.startswith("chat")]
    assert call.trace_id.hex() != TRACE_ID
    assert call.parent_span_id == b""


async def test_refusals_and_failures_are_told_apart(serve: Any, collector: Collector) -> None:
    """A refused request has its reason and no error; a failure of the server's own is an error; neither has phases."""
    async with (
        serve(otlp_endpoint=collector.endpoint) as running,
        grpc.aio.insecure_channel(running.target, [("grpc.enable_retries", 0)]) as channel,
    ):
        for request in (pb2.CountTokensRequest(), pb2.CountTokensRequest(prompt="a")):
            call = GenerationServiceStub(channel).CountTokens(request)
            assert (await call.code() is grpc.StatusCode.OK) is (request.prompt == "a")
        running.generator.faults = [EngineFailed("the secret is out")]
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(channel)
        await running.wait_finished("Chat", 1)
    refused, counted, failed = collector.spans()
    assert refused.name == counted.name == "edgephi.v1.GenerationService/CountTokens"
    assert attributes_of(refused)["error.type"] == "INVALID_REQUEST"
    assert refused.status.code == counted.status.code == trace_pb2.Status.STATUS_CODE_UNSET
    assert "error.type" not in attributes_of(counted)
    assert (failed.name, failed.status.code) == ("chat tiny-phi3", trace_pb2.Status.STATUS_CODE_ERROR)
    assert attributes_of(failed)["error.type"] == "ENGINE_FAILED"
    assert b"secret" not in failed.SerializeToString()
    assert not failed.events


async def test_probes_leave_no_spans(serve: Any, collector: Collector) -> None:
    """Health checks, which come every few seconds, are not traced."""
    async with (
        serve(otlp_endpoint=collector.endpoint) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert collector.spans() == []


async def test_a_collector_that_is_gone_hurts_no_call(serve: Any) -> None:
    """With nobody listening at the endpoint answers are whole, and the server stops within its bound."""
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with (
            serve(otlp_endpoint=endpoint) as running,
            grpc.aio.insecure_channel(running.target) as channel,
        ):
            for _ in range(3):
                assert (await ask(channel))[-1].final.finish_reason == types.FINISH_REASON_STOP
            stopping_at = time.monotonic()
        assert time.monotonic() - stopping_at < 20  # the exporter alone would wait 30


async def test_a_tracer_that_fails_hurts_no_call(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tracer raises, at the start of a call or at its end, answers are whole and the log tells it once."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no spans today")

    collector = Collector()
    async with (
        serve(otlp_endpoint=collector.endpoint) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        monkeypatch.setattr(tracing.CallSpan, "_describe", fail)
        await ask(channel)
        monkeypatch.setattr(running.server._observability.tracing._tracer, "start_span", fail)
        for _ in range(2):
            assert (await ask(channel))[-1].final.finish_reason == types.FINISH_REASON_STOP
        await running.wait_finished("Chat", 3)
        told = [line for line in running.log if line["event"] == "tracing.failed"]
        assert len(told) == 1
    collector.close()


async def test_traces_are_off_by_default(serve: Any) -> None:
    """Without an endpoint there is no tracer and no trace in the log."""
    assert ServerSettings().otlp_endpoint is None
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        assert running.server._observability.tracing is None
        await ask(channel)
        (line,) = await running.wait_finished("Chat", 1)
    assert "trace_id" not in line


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without OpenTelemetry an endpoint is refused with the command that installs it, and none asks for nothing."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("opentelemetry") else real(name, *rest)
    )
    tracing.check_tracing(None)
    with pytest.raises(ConfigError, match=r"pip install 'edgephi\[otel\]'"):
        tracing.check_tracing("http://127.0.0.1:4317")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "http://", "ftp://a:1", "http://a b:1", "http://user:pw@a:1"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    """An endpoint is http or https with host and port, and holds no password."""
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        ServerSettings(otlp_endpoint=endpoint)
