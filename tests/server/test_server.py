"""Health, reflection, models, device, metrics, TLS and the life of a server."""

from __future__ import annotations

import asyncio
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2  # type: ignore[import-untyped]  # publishes no stubs
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from edgephi.errors import ConfigError, EngineFailed
from edgephi.server.app import SERVICES
from edgephi.server.lifecycle import ServerState
from edgephi.server.settings import ServerSettings, is_loopback
from edgephi.v1 import device_pb2, device_service_pb2, generation_service_pb2, model_service_pb2
from edgephi.v1 import generation_pb2 as types
from edgephi.v1.device_service_pb2_grpc import DeviceServiceStub
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub
from edgephi.v1.model_service_pb2_grpc import ModelServiceStub

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
GO = generation_service_pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="Go")])


async def check(channel: grpc.aio.Channel, service: str) -> int:
    """Return the health of a service."""
    response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(response.status)


async def test_health_serves_only_between_the_first_token_and_draining(serve: Any) -> None:
    """Every name but liveness is NOT_SERVING until the model has produced a token, and again while draining."""
    async with (
        serve(step_delay_s=0.5, is_ready=False) as running,
        grpc.aio.insecure_channel(running.target, [("grpc.enable_retries", 0)]) as channel,
    ):
        assert [await check(channel, name) for name in ("", *SERVICES)] == [NOT_SERVING] * 4
        assert await check(channel, "liveness") == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [r async for r in GenerationServiceStub(channel).Chat(GO)]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        model = await ModelServiceStub(channel).GetModel(model_service_pb2.GetModelRequest(name="models/tiny-phi3"))
        assert model.model.state == model_service_pb2.MODEL_STATE_LOADING
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
        seen = aiter(watch)
        assert (await anext(seen)).status == NOT_SERVING
        await running.server.wait_ready()
        assert (await anext(seen)).status == SERVING
        assert [await check(channel, name) for name in ("", *SERVICES)] == [SERVING] * 4
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await check(channel, "no.such.Service")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        started = time.monotonic()
        await running.server.stop(10)
        assert (await anext(seen)).status == NOT_SERVING
        assert time.monotonic() - started < 2, "an idle watcher must not use up the grace"


async def test_a_model_that_cannot_answer_is_never_ready(serve: Any) -> None:
    """When the first token fails, wait_ready raises, the model is FAILED and health stays NOT_SERVING."""
    async with serve(step_delay_s=0.2, is_ready=False) as running:
        running.fail_next_forward(RuntimeError("broken"))
        with pytest.raises(EngineFailed):
            await running.server.wait_ready()
        assert running.server.state is ServerState.FAILED
        async with grpc.aio.insecure_channel(running.target, [("grpc.enable_retries", 0)]) as channel:
            assert await check(channel, "") == NOT_SERVING
            assert await check(channel, "liveness") == SERVING


async def test_an_ended_engine_is_noticed(serve: Any) -> None:
    """A server whose engine thread has ended stops serving by itself."""
    async with serve() as running:
        running.engine.close()
        for _ in range(60):
            if running.server.state is ServerState.FAILED:
                break
            await asyncio.sleep(0.05)
        assert running.server.state is ServerState.FAILED


async def test_stop_lets_a_running_answer_finish(serve: Any) -> None:
    """Draining refuses new requests at once and lets a running one come to its own end."""
    async with (
        serve(step_delay_s=0.03) as running,
        grpc.aio.insecure_channel(running.target, [("grpc.enable_retries", 0)]) as channel,
    ):
        events = aiter(GenerationServiceStub(channel).Chat(GO))
        await anext(events)
        stopping = asyncio.create_task(running.server.stop(10))
        await asyncio.sleep(0.05)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [r async for r in GenerationServiceStub(channel).Chat(GO)]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        rest = [response async for response in events]
        assert rest[-1].final.finish_reason == types.FINISH_REASON_STOP
        await stopping


async def test_stop_ends_an_answer_that_needs_longer_than_the_grace(serve: Any) -> None:
    """After the grace an answer ends with UNAVAILABLE, DRAINING and no final message, and its pages are free."""
    async with serve(step_delay_s=0.1) as running, grpc.aio.insecure_channel(running.target) as channel:
        events = aiter(GenerationServiceStub(channel).Chat(GO))
        await anext(events)
        stopping = asyncio.create_task(running.server.stop(0.2))
        rest: list[Any] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [rest.append(response) async for response in events]  # type: ignore[func-returns-value]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        trailers: Any = caught.value.trailing_metadata()
        status = status_pb2.Status.FromString(dict(trailers)["grpc-status-details-bin"])
        assert b"DRAINING" in status.details[0].value
        assert not any(response.HasField("final") for response in rest)
        await stopping
        assert running.is_idle()


async def test_reflection_lists_every_service(serve: Any) -> None:
    """Tools find all services, with the contract's own descriptors, and nothing when reflection is off."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    by_name = reflection_pb2.ServerReflectionRequest(file_containing_symbol="edgephi.v1.GenerationService")
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed, found = [r async for r in stub.ServerReflectionInfo(iter([request, by_name]))]
        names = {service.name for service in listed.list_services_response.service}
        assert set(SERVICES) < names
        assert "grpc.health.v1.Health" in names
        files = found.file_descriptor_response.file_descriptor_proto
        parsed = [descriptor_pb2.FileDescriptorProto.FromString(data).name for data in files]
        assert "edgephi/v1/generation_service.proto" in parsed
    async with serve(reflection=False) as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [r async for r in stub.ServerReflectionInfo(iter([request]))]
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_models_are_listed_and_paged(serve: Any) -> None:
    """ListModels describes the model, GetModel agrees, and bad paging or names are refused."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = ModelServiceStub(channel)
        listed = await stub.ListModels(model_service_pb2.ListModelsRequest(page_size=5000))
        (model,) = listed.models
        assert listed.next_page_token == ""
        assert (model.name, model.architecture, model.context_tokens) == ("models/tiny-phi3", "phi3", 512)
        assert model.state == model_service_pb2.MODEL_STATE_READY
        assert not model.HasField("num_parameters"), "unknown is absent"
        assert model.default_sampling.HasField("temperature")
        assert not model.default_sampling.HasField("seed")
        got = await stub.GetModel(model_service_pb2.GetModelRequest(name=model.name))
        assert got.model == model
        for call, code in (
            (stub.ListModels(model_service_pb2.ListModelsRequest(page_size=-1)), grpc.StatusCode.INVALID_ARGUMENT),
            (stub.ListModels(model_service_pb2.ListModelsRequest(page_token="x")), grpc.StatusCode.INVALID_ARGUMENT),
            (stub.ListModels(model_service_pb2.ListModelsRequest(page_token="ä")), grpc.StatusCode.INVALID_ARGUMENT),
            (stub.GetModel(model_service_pb2.GetModelRequest(name="tiny-phi3")), grpc.StatusCode.INVALID_ARGUMENT),
            (stub.GetModel(model_service_pb2.GetModelRequest(name="models/other")), grpc.StatusCode.NOT_FOUND),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is code


async def test_device_and_plan_tell_what_is_known_and_no_more(serve: Any, device: Any) -> None:
    """GetDevice reports the probed facts, GetPlan the static plan, without predictions nobody made."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = DeviceServiceStub(channel)
        found = (await stub.GetDevice(device_service_pb2.GetDeviceRequest())).device
        assert found.cpu.arch == device.cpu.arch
        assert list(found.cpu.features) == sorted(device.cpu.features)
        assert found.memory.total_bytes == device.memory.total_bytes
        assert found.HasField("board") is (device.board is not None)
        assert found.server_version
        plan = (await stub.GetPlan(device_service_pb2.GetPlanRequest())).plan
        assert plan.kind == device_pb2.PLAN_KIND_STATIC
        assert (plan.context_tokens, plan.max_running, plan.num_pages, plan.page_tokens) == (512, 4, 128, 8)
        assert (plan.prefill_chunk_tokens, plan.mixed_chunk_tokens, plan.default_max_tokens) == (16, 8, 256)
        assert plan.memory.kv_bytes == 4096
        present = {field.name for field, _ in plan.ListFields()}
        assert present.isdisjoint({"predicted", "meets_floor", "floor_tokens_per_second", "num_threads", "remedies"})
        assert not plan.memory.HasField("weights_bytes")


async def test_live_state_is_streamed_until_the_server_drains(serve: Any) -> None:
    """WatchState reports at once and per interval, counts running requests and speed, and ends with UNAVAILABLE."""
    async with (
        serve(step_delay_s=0.02) as running,
        grpc.aio.insecure_channel(running.target, [("grpc.enable_retries", 0)]) as channel,
    ):
        request = device_service_pb2.WatchStateRequest(interval=Duration(nanos=100_000_000))
        states = aiter(DeviceServiceStub(channel).WatchState(request))
        first = (await anext(states)).state
        assert first.is_ready
        assert first.num_pages == 128
        assert not first.HasField("output_tokens_per_second")
        answer = aiter(GenerationServiceStub(channel).Chat(GO))
        await anext(answer)
        await anext(states)
        second = (await anext(states)).state
        assert second.num_running == 1
        assert second.num_used_pages > 0
        assert second.output_tokens_per_second > 0
        assert second.sample_time.ToNanoseconds() > first.sample_time.ToNanoseconds()
        _ = [r async for r in answer]
        stopping = asyncio.create_task(running.server.stop(1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [state async for state in states]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await stopping


@pytest.mark.parametrize(
    "interval", [Duration(), Duration(nanos=99_000_000), Duration(seconds=61), Duration(seconds=-1)]
)
async def test_an_interval_out_of_bounds_is_refused(serve: Any, interval: Duration) -> None:
    """WatchState takes 0.1 to 60 seconds."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        request = device_service_pb2.WatchStateRequest(interval=interval)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [state async for state in DeviceServiceStub(channel).WatchState(request)]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_metrics_count_calls_tokens_and_times(serve: Any) -> None:
    """The Prometheus page counts calls by code, tokens, durations and engine gauges of this server alone."""
    async with serve(metrics_port=0) as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = GenerationServiceStub(channel)
        responses = [r async for r in stub.Chat(GO)]
        usage = responses[-1].final.usage
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.CountTokens(generation_service_pb2.CountTokensRequest())
        await stub.CountTokens(generation_service_pb2.CountTokensRequest(prompt="a"))
        await running.wait_finished("Chat", 1)
        await running.wait_finished("CountTokens", 2)
        url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
        values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        chat = 'grpc_method="Chat",grpc_service="edgephi.v1.GenerationService",grpc_type="server_stream"'
        count = 'grpc_method="CountTokens",grpc_service="edgephi.v1.GenerationService",grpc_type="unary"'
        model = 'model_name="tiny-phi3"'
        expected = {
            f"grpc_server_started_total{{{chat}}}": 1,
            f"grpc_server_msg_sent_total{{{chat}}}": len(responses),
            f"grpc_server_started_total{{{count}}}": 2,
            f"grpc_server_msg_sent_total{{{count}}}": 1,
            f"edgephi_prompt_tokens_total{{{model}}}": usage.prompt_tokens,
            f"edgephi_generation_tokens_total{{{model}}}": usage.output_tokens,
            f'edgephi_requests_finished_total{{finish_reason="stop",{model}}}': 1,
            f"edgephi_time_to_first_token_seconds_count{{{model}}}": 1,
            f'edgephi_time_to_first_token_seconds_bucket{{le="640.0",{model}}}': 1,
            f"edgephi_request_duration_seconds_count{{{model}}}": 1,
            f"edgephi_requests_running{{{model}}}": 0,
            f"edgephi_requests_waiting{{{model}}}": 0,
            f"edgephi_kv_cache_usage_ratio{{{model}}}": 0,
        }
        assert {name: float(values[name]) for name in expected} == expected
        codes = {name: value for name, value in values.items() if name.startswith("grpc_server_handled_total")}
        assert any('grpc_code="InvalidArgument"' in name and float(value) == 1 for name, value in codes.items())
        assert float(values[f"edgephi_inter_token_latency_seconds_count{{{model}}}"]) > 0


async def test_a_taken_port_is_a_clear_error(serve: Any) -> None:
    """A second server on the same port, or on the metrics port, is refused instead of sharing it."""
    async with serve(metrics_port=0) as running:
        with pytest.raises(ConfigError, match="cannot be listened on"):
            async with serve(port=running.server.port):
                pass
        with pytest.raises(ConfigError, match="metrics_port"):
            async with serve(metrics_port=running.server.metrics_port):
                pass


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server and a client certificate, and a client of another authority."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for authority in ("ca", "other"):
        openssl(
            "req",
            "-x509",
            *new_key,
            "-subj",
            f"/CN={authority}",
            "-keyout",
            f"{authority}.key",
            "-out",
            f"{authority}.pem",
        )
    for name, authority in (("server", "ca"), ("client", "ca"), ("stranger", "other")):
        openssl("req", "-new", *new_key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signing = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", "san")
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-days", "2", "-out", f"{name}.pem")
    openssl("ec", "-in", "server.key", "-aes128", "-passout", "pass:word", "-out", "locked.key")
    return folder


async def test_tls_serves_those_who_trust_it_and_no_plain_text(serve: Any, certificates: Path) -> None:
    """With a certificate the server answers over TLS only."""
    tls = {"tls_cert": certificates / "server.pem", "tls_key": certificates / "server.key"}
    trust = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
    async with serve(**tls) as running:
        async with grpc.aio.secure_channel(running.target, trust) as channel:
            assert await check(channel, "") == SERVING
        async with grpc.aio.insecure_channel(running.target) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(channel, "")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_serves_certified_clients_only(serve: Any, certificates: Path) -> None:
    """With a client authority, a client needs a certificate that it signed."""
    settings = {
        "tls_cert": certificates / "server.pem",
        "tls_key": certificates / "server.key",
        "tls_client_ca": certificates / "ca.pem",
    }
    root = (certificates / "ca.pem").read_bytes()

    def credentials(name: str | None) -> grpc.ChannelCredentials:
        if name is None:
            return grpc.ssl_channel_credentials(root)
        key, chain = ((certificates / f"{name}.{kind}").read_bytes() for kind in ("key", "pem"))
        return grpc.ssl_channel_credentials(root, key, chain)

    async with serve(**settings) as running:
        async with grpc.aio.secure_channel(running.target, credentials("client")) as channel:
            assert await check(channel, "") == SERVING
        for name in (None, "stranger"):
            async with grpc.aio.secure_channel(running.target, credentials(name)) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await check(channel, "")
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_unusable_certificates_stop_the_start(serve: Any, certificates: Path, tmp_path: Path) -> None:
    """A missing file, a file that is not PEM and a key of another certificate are errors with the setting's name."""
    (tmp_path / "noise").write_bytes(b"noise")
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    good_cert, good_key = certificates / "server.pem", certificates / "server.key"
    for cert, key, what in (
        (tmp_path / "absent", good_key, "tls_cert"),
        (good_cert, tmp_path / "noise", "tls_key"),
        (damaged, good_key, "tls_cert"),
        (good_cert, certificates / "client.key", "tls_key"),
        (good_cert, certificates / "locked.key", "unencrypted"),
    ):
        with pytest.raises(ConfigError, match=what):
            async with serve(tls_cert=cert, tls_key=key):
                pass
    with pytest.raises(ConfigError, match="tls_client_ca"):
        async with serve(tls_cert=good_cert, tls_key=good_key, tls_client_ca=tmp_path / "noise"):
            pass


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("robot.local", False),
        ("localhost.example.org", False),
    ],
)
def test_a_network_address_needs_tls_or_a_clear_word(host: str, local: bool) -> None:
    """Only loopback may be listened on without TLS and without asking who calls, unless insecure_lan says so."""
    tls: dict[str, Any] = {"tls_cert": Path("c"), "tls_key": Path("k")}
    assert is_loopback(host) is local
    if not local:
        with pytest.raises(ConfigError, match=r"there is no TLS .*edgephi token add.* insecure_lan"):
            ServerSettings(host=host)
        with pytest.raises(ConfigError, match=r"(?<!there is no TLS).*edgephi token add.* insecure_lan"):
            ServerSettings(host=host, **tls)
        with pytest.raises(ConfigError, match=r"there is no TLS.* insecure_lan"):
            ServerSettings(host=host, tokens=Path("t"))
    assert ServerSettings(host=host, insecure_lan=True).host == host
    assert ServerSettings(host=host, tokens=Path("t"), **tls).has_tls
    assert ServerSettings(host=host, tls_client_ca=Path("a"), **tls).asks_who_calls


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"port": -1}, "port"),
        ({"port": 65536}, "port"),
        ({"metrics_port": 70000}, "metrics_port"),
        ({"max_message_bytes": 10}, "max_message_bytes"),
        ({"max_duration_s": 0}, "max_duration_s"),
        ({"max_duration_s": float("nan")}, "max_duration_s"),
        ({"tls_cert": Path("c")}, "tls_key"),
        ({"tls_client_ca": Path("c")}, "tls_client_ca"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], name: str) -> None:
    """A setting out of bounds is named."""
    with pytest.raises(ConfigError, match=name):
        ServerSettings(**settings)


def test_ipv6_addresses_are_bracketed() -> None:
    """GRPC wants [::1]:port."""
    assert ServerSettings(host="::1", port=1).address == "[::1]:1"
    assert ServerSettings(port=2).address == "127.0.0.1:2"
