"""The metrics page: what is on it, what is not, and that reading it disturbs nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from tests.server.watched import ALL_SENSORS, EXPECTED, NO_SENSORS, PLANNED

from edgephi.engine.health import EngineHealth, EngineState
from edgephi.errors import DeadlineTooShort, EngineFailed, Overloaded, RequestQuarantined
from edgephi.profile.machine.probe import LiveFacts
from edgephi.profile.machine.process import read_process_memory
from edgephi.server.metrics import SECONDS, Metrics, code_name
from edgephi.server.sensors import Sensors
from edgephi.server.server_rows import EngineReading
from edgephi.server.settings import ServerSettings
from edgephi.v1 import generation_pb2 as types
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

GO = pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="Go")])
MODEL = '{model_name="tiny-phi3"}'
# These are measured over seconds of decoding.
MEASURED_UNDER_LOAD = {
    "edgephi_stream_tokens_per_second",
    "edgephi_stream_predicted_tokens_per_second",
    "edgephi_stream_measured_tokens_per_second",
}


def names_of(page: Mapping[str, float]) -> set[str]:
    """Return the names of families on a page."""
    names = {series.split("{")[0] for series in page}
    return names | {name.removesuffix("_bucket") for name in names if name.endswith("_bucket")}


async def ask(channel: grpc.aio.Channel) -> None:
    """Ask for one answer, whatever comes of it."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        _ = [response async for response in GenerationServiceStub(channel).Chat(GO)]


async def test_everything_that_is_documented_is_on_the_page(serve: Any, pki: Any) -> None:
    """Where everything is known, each family has a series with exactly the labels it is documented with."""
    async with (
        serve(
            metrics_port=0, planned=PLANNED, expected=EXPECTED, probe_live=lambda: ALL_SENSORS, **pki.server()
        ) as running,
        grpc.aio.secure_channel(running.target, grpc.ssl_channel_credentials(pki.ca.read_bytes())) as channel,
    ):
        running.generator.faults = [Overloaded("full", retry_after_ms=1)]
        for _ in range(2):
            await ask(channel)
        await running.wait_finished("Chat", 2)
        async with asyncio.timeout(10):
            while f"edgephi_memory_peak_predicted_bytes{MODEL}" not in (page := await running.page()):
                await asyncio.sleep(0.05)
        families = list(Metrics(CollectorRegistry(), model="m").families())
        assert {family.name for family in families} - names_of(page) <= MEASURED_UNDER_LOAD
        for family in families:
            shown = [name for name in page if name.split("{")[0] in (family.name, f"{family.name}_count")]
            for series in shown:
                labels = series.partition("{")[2].rstrip("}")
                assert {part.split("=")[0] for part in labels.split('",') if part} == set(family.labels), series


async def test_the_page_has_the_standard_metrics_of_a_process(serve: Any) -> None:
    """Start, CPU time, memory and descriptors of the front have the names every dashboard knows."""
    async with serve(metrics_port=0) as running:
        page = await running.page()
    assert 0 < page["process_start_time_seconds"] <= time.time() + 1
    assert page["process_resident_memory_bytes"] > 0
    assert {"process_cpu_seconds_total", "process_open_fds"} <= page.keys()


def test_names_and_types_follow_the_conventions() -> None:
    """Counters end in _total and nothing else does; units are base units; every name of ours has our prefix."""
    for family in Metrics(CollectorRegistry(), model="m").families():
        assert family.name.startswith(("edgephi_", "grpc_server_"))
        assert family.name.endswith("_total") is (family.kind == "counter"), family.name
        assert not set(family.name.split("_")) & {"ms", "millis", "mhz", "percent", "kib", "mb", "minutes"}, family
        assert family.text.endswith("."), family
        if family.kind == "histogram":
            assert family.name.endswith("_seconds")


def test_buckets_reach_the_minutes_that_a_slow_board_takes() -> None:
    """A prompt of 20 to 320 s falls between bounds, and not beyond the last."""
    assert {20.0, 40.0, 80.0, 160.0, 320.0} <= set(SECONDS)
    assert list(SECONDS) == sorted(set(SECONDS))


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (grpc.StatusCode.OK, "OK"),
        (grpc.StatusCode.CANCELLED, "Canceled"),
        (grpc.StatusCode.INVALID_ARGUMENT, "InvalidArgument"),
        (grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated"),
    ],
)
def test_codes_are_written_as_go_does(code: grpc.StatusCode, name: str) -> None:
    """Alerts that were written for a Go server match."""
    assert code_name(code) == name


async def test_calls_count_messages_both_ways(serve: Any) -> None:
    """A call counts what it received and what it sent, and a malformed message as received."""
    async with serve(metrics_port=0) as running, grpc.aio.insecure_channel(running.target) as channel:
        responses = [response async for response in GenerationServiceStub(channel).Chat(GO)]
        raw: Any = channel.unary_unary("/edgephi.v1.GenerationService/CountTokens", None, None)
        with pytest.raises(grpc.aio.AioRpcError):
            await raw(b"\xff\xff")
        await running.wait_finished("CountTokens", 1)
        page = await running.page()
    chat = '{grpc_method="Chat",grpc_service="edgephi.v1.GenerationService",grpc_type="server_stream"}'
    count = '{grpc_method="CountTokens",grpc_service="edgephi.v1.GenerationService",grpc_type="unary"}'
    assert page[f"grpc_server_msg_received_total{chat}"] == 1
    assert page[f"grpc_server_msg_sent_total{chat}"] == len(responses)
    assert page[f"grpc_server_msg_received_total{count}"] == 1
    assert page[f"grpc_server_msg_sent_total{count}"] == 0


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (Overloaded("full", retry_after_ms=1, limit="queue_tokens"), "queue_tokens"),
        (DeadlineTooShort(estimated_s=9.0, remaining_s=1.0), "deadline"),
        (RequestQuarantined("again"), "quarantine"),
        (EngineFailed("dead"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_refusals_are_counted_by_the_limit_that_was_reached(serve: Any, error: Exception, limit: str) -> None:
    """Each refusal counts once for its limit and once for its reason; a failure is no refusal."""
    async with (
        serve(metrics_port=0) as running,
        grpc.aio.insecure_channel(running.target, [("grpc.enable_retries", 0)]) as channel,
    ):
        running.generator.faults = [error]
        await ask(channel)
        (line,) = await running.wait_finished("Chat", 1)
        page = await running.page()
    refused = {name: value for name, value in page.items() if name.startswith("edgephi_requests_refused_total")}
    assert refused == ({f'edgephi_requests_refused_total{{limit="{limit}"}}': 1.0} if limit else {})
    assert page[f'edgephi_call_errors_total{{reason="{line["error"]}"}}'] == 1


async def test_sensors_become_series_with_base_units(serve: Any) -> None:
    """Zones of one name keep apart, clocks are in hertz by cores, pressure and charge are ratios."""
    async with serve(metrics_port=0, probe_live=lambda: ALL_SENSORS) as running:
        page = await running.page()
    assert page['edgephi_device_temperature_celsius{zone="cpu-thermal"}'] == 61.5
    assert page['edgephi_device_temperature_celsius{zone="cpu-thermal#2"}'] == 60.0
    assert page['edgephi_device_throttle_temperature_celsius{zone="cpu-thermal"}'] == 80.0
    assert page['edgephi_device_frequency_hertz{cpus="0-3"}'] == 1.5e9
    assert page['edgephi_device_frequency_max_hertz{cpus="4,6"}'] == 1.8e9
    assert 'edgephi_device_frequency_hertz{cpus="4,6"}' not in page
    assert (page["edgephi_device_throttled"], page["edgephi_device_under_voltage"]) == (1, 0)
    assert page['edgephi_device_memory_pressure_ratio{tasks="some"}'] == 0.125
    assert page['edgephi_device_battery_charge_ratio{battery="BAT0"}'] == 0.75
    assert page["edgephi_cgroup_cpu_throttled_seconds_total"] == 2.5
    assert page["edgephi_cgroup_memory_left_bytes"] == ALL_SENSORS.cgroup.memory_left_bytes


async def test_absent_sensors_have_no_series(serve: Any) -> None:
    """A machine that tells nothing is reported with no number, rather than with zeros."""
    async with serve(metrics_port=0, probe_live=lambda: NO_SENSORS) as running:
        page = await running.page()
    assert not [name for name in page if name.startswith(("edgephi_device_", "edgephi_cgroup_"))]
    assert not [name for name in page if name.startswith(("edgephi_tls_", "edgephi_governor_"))]
    assert f"edgephi_plan_context_tokens{MODEL}" in page
    assert f"edgephi_plan_floor_tokens_per_second{MODEL}" not in page


@pytest.mark.parametrize(("min_interval_s", "num_read"), [(1.0, 3), (0.0, 30)], ids=["once-a-second", "no-protection"])
def test_sensors_are_read_once_a_second_however_often_they_are_asked(min_interval_s: float, num_read: int) -> None:
    """Thirty readings within three seconds read the sensors three times; without the protection thirty times."""
    now, reads = 100.0, 0

    def probe_live() -> LiveFacts:
        nonlocal reads
        reads += 1
        return NO_SENSORS

    sensors = Sensors(probe_live, min_interval_s=min_interval_s, clock=lambda: now)
    for _ in range(30):
        assert sensors.read_soon() is sensors.read() is NO_SENSORS if min_interval_s else sensors.read_soon()
        now += 0.1
    assert reads == num_read


async def test_a_stuck_sensor_holds_up_neither_the_server_nor_the_page(serve: Any) -> None:
    """While a sensor does not answer, calls and probes are answered and the page comes, without the device."""
    go_on, asked = threading.Event(), threading.Event()

    def stuck() -> LiveFacts:
        asked.set()
        assert go_on.wait(30)
        return ALL_SENSORS

    async with serve(metrics_port=0, probe_live=stuck) as running, grpc.aio.insecure_channel(running.target) as channel:
        try:
            first = asyncio.create_task(running.page())
            assert await asyncio.to_thread(asked.wait, 10)
            response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert response.status == health_pb2.HealthCheckResponse.SERVING
            await ask(channel)
            page = await running.page()
            assert page['edgephi_requests_finished_total{finish_reason="stop",model_name="tiny-phi3"}'] == 1
            assert not [name for name in page if name.startswith("edgephi_device_")]
            assert not first.done()
        finally:
            go_on.set()
        assert 'edgephi_device_temperature_celsius{zone="gpu-thermal"}' in await first


async def test_the_engine_tells_its_starts_and_deaths(serve: Any) -> None:
    """Condition, starts, deaths and quarantined requests are those that the engine's health tells."""
    async with serve(metrics_port=0) as running:
        stats, page = running.engine.stats(), await running.page()
    assert (page[f"edgephi_engine_up{MODEL}"], page[f"edgephi_engine_starts_total{MODEL}"]) == (1, 1)
    health = EngineHealth(state=EngineState.STARTING, starts_total=3, deaths_total=2, quarantined_total=1)
    metrics = Metrics(CollectorRegistry(), model="m")
    metrics.watch_engine(lambda: EngineReading(stats=stats, health=health))
    told = {
        name: metrics.registry.get_sample_value(f"edgephi_{name}", {"model_name": "m"})
        for name in ("engine_up", "engine_starts_total", "engine_deaths_total", "requests_quarantined_total")
    }
    assert tuple(told.values()) == (0, 3, 2, 1)


async def test_memory_of_an_engine_process_stands_beside_the_fronts(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of the engine's own has its own series; one that has ended has none."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        async with serve(metrics_port=0) as running:
            health = EngineHealth(state=EngineState.RUNNING, process_id=child.pid)
            monkeypatch.setattr(running.server._observability, "_health", lambda: health)
            page = await running.page()
            child.kill()
            child.wait()
            after = await running.page()
        assert page['edgephi_process_resident_bytes{process="engine"}'] > 0
        assert (
            page['edgephi_process_peak_bytes{process="front"}'] > page['edgephi_process_peak_bytes{process="engine"}']
        )
        assert 'edgephi_process_resident_bytes{process="engine"}' not in after
        assert 'edgephi_process_resident_bytes{process="front"}' in after
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None
        child.stdin.close()


def test_memory_of_this_process_is_what_the_kernel_counts() -> None:
    """The memory of a process read by its number is that of the process itself."""
    own, same = read_process_memory(None), read_process_memory(os.getpid())
    assert own.resident_bytes is not None
    assert own.peak_bytes == same.peak_bytes
    assert read_process_memory(2**22 + 1).resident_bytes is None


async def test_the_certificate_tells_when_it_expires(serve: Any, pki: Any) -> None:
    """With TLS the page has the time at which the certificate in force ends."""
    async with serve(metrics_port=0, **pki.server()) as running:
        page = await running.page()
    left_s = page["edgephi_tls_certificate_expiry_timestamp_seconds"] - time.time()
    assert 80 * 86400 < left_s < 91 * 86400


async def test_readiness_is_a_gauge(serve: Any) -> None:
    """The page tells whether requests are taken, also while the model is warming up."""
    async with serve(metrics_port=0, is_ready=False, step_delay_s=0.3) as running:
        assert (await running.page())["edgephi_server_ready"] == 0
        await running.server.wait_ready()
        assert (await running.page())["edgephi_server_ready"] == 1


def test_the_page_is_on_loopback_unless_told_otherwise(tmp_path: Path) -> None:
    """Nothing is served by default, and the default address is this machine's own."""
    settings = ServerSettings()
    assert (settings.metrics_port, settings.metrics_host) == (None, "127.0.0.1")
