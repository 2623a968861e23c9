"""What a server that is asked to stop does with each kind of call, in the same process, and its health meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # publishes no stubs
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edgephi.errors import Overloaded
from edgephi.server import lifecycle as module
from edgephi.server.app import SERVICES, Server
from edgephi.server.lifecycle import LIVENESS, READINESS, Lifecycle, ServerState
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1 import sampling_pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

TINY_WINDOW = (("grpc.http2.lookahead_bytes", 64), ("grpc.http2.bdp_probe", 0))
LONG = "go " * 100  # some seven chunks of prefill
STEP_S = 0.02
Serving = health_pb2.HealthCheckResponse


@dataclasses.dataclass(frozen=True)
class End:
    """How a stream ended: its status, the reason the server gave with it, and whether the answer was complete."""

    code: grpc.StatusCode
    reason: str | None
    is_whole: bool


async def end_of(call: Any) -> End:
    """Read a stream to its end."""
    is_whole = False
    try:
        async for response in call:
            is_whole = is_whole or response.HasField("final")
    except grpc.aio.AioRpcError as error:
        return End(error.code(), reason_of(error), is_whole)
    return End(grpc.StatusCode.OK, None, is_whole)


def reason_of(error: grpc.aio.AioRpcError) -> str | None:
    """Return ErrorInfo.reason of a status, None where the server did not make it."""
    trailers: Any = error.trailing_metadata() or ()
    details = dict(trailers).get("grpc-status-details-bin")
    if details is None:
        return None
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(details).details[0].Unpack(info)
    return str(info.reason)


@contextlib.asynccontextmanager
async def connected(running: Any, *options: tuple[str, int]) -> AsyncIterator[GenerationServiceStub]:
    """Open a channel that does not retry."""
    async with grpc.aio.insecure_channel(running.target, [("grpc.enable_retries", 0), *options]) as channel:
        yield GenerationServiceStub(channel)


def answer(stub: GenerationServiceStub, text: str = "go", max_tokens: int = 60) -> Any:
    """Ask for an answer."""
    return stub.Complete(pb2.CompleteRequest(prompt=text, sampling=sampling_pb2.SamplingParams(max_tokens=max_tokens)))


async def until(condition: Any) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


WHOLE = End(grpc.StatusCode.OK, None, is_whole=True)
CUT = End(grpc.StatusCode.UNAVAILABLE, "DRAINING", is_whole=False)


@pytest.mark.parametrize(("grace_s", "expected"), [(20, WHOLE), (0, CUT)], ids=["within the grace", "no grace"])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decoding"])
async def test_an_answer_is_whole_or_known_to_be_cut(serve: Any, phase: str, grace_s: float, expected: End) -> None:
    """In every phase an answer finishes within the grace, or ends with UNAVAILABLE and DRAINING; pages are free."""
    async with serve(script=None, max_running=1, step_delay_s=STEP_S) as running, connected(running) as stub:
        engine = running.engine
        prefilled = engine.stats().tokens_prefilled_total
        calls = [answer(stub, LONG if phase == "prefill" else "go")]
        if phase == "prefill":
            await until(lambda: engine.stats().tokens_prefilled_total > prefilled)
        else:
            await until(lambda: engine.stats().running == 1)
        if phase == "queued":
            calls.append(answer(stub))
            await until(lambda: engine.stats().waiting == 1)
        ends = asyncio.gather(*map(end_of, calls))
        await running.server.stop(grace_s)
        assert await ends == [expected] * len(calls)
        await until(running.is_idle)


async def test_an_idle_server_stops_at_once(serve: Any) -> None:
    """Without an answer nobody waits for the grace."""
    async with serve() as running:
        await asyncio.wait_for(running.server.stop(600), 20)


async def test_a_loading_server_stops_at_once(serve: Any) -> None:
    """A server that warms up is not waited for, and whoever waits for it is told."""
    async with serve(step_delay_s=0.3, is_ready=False) as running:
        states = [running.server.state]
        await asyncio.wait_for(running.server.stop(600), 20)
        states.append(running.server.state)
        assert states == [ServerState.LOADING, ServerState.DRAINING]


async def test_a_reader_that_takes_nothing_does_not_keep_a_server(serve: Any) -> None:
    """A call that is stuck in a write is ended after the grace, and its client is told something but OK."""
    async with (
        serve(script=None, step_delay_s=0.001, write_timeout_s=600) as running,
        connected(running, *TINY_WINDOW) as stub,
    ):
        call = answer(stub, max_tokens=480)
        await until(lambda: running.server.num_active == 1)
        sent = -1
        while sent != (sent := running.engine.stats().tokens_generated_total):
            await asyncio.sleep(0.1)  # until the engine has given all, far more than the client has room for
        assert running.server.num_active == 1
        await asyncio.wait_for(running.server.stop(0.2), 20)
        end = await asyncio.wait_for(end_of(call), 20)
        assert not end.is_whole
        assert end.code is not grpc.StatusCode.OK


async def test_new_calls_are_refused_with_a_short_delay(serve: Any) -> None:
    """A draining server refuses at once, says why and that another server may be tried soon; probes of life go on."""
    async with serve(script=None, step_delay_s=STEP_S) as running, connected(running) as stub:
        first = answer(stub)
        await until(lambda: running.server.num_active == 1)
        stopping = asyncio.create_task(running.server.stop(20))
        await until(lambda: running.server.state is ServerState.DRAINING)
        refused = answer(stub)
        assert await end_of(refused) == CUT
        trailers = dict(await refused.trailing_metadata())
        assert int(trailers["grpc-retry-pushback-ms"]) <= 200
        assert len(await refused.initial_metadata()) == 0, "a refusal must be retried by gRPC itself"
        async with grpc.aio.insecure_channel(running.target) as channel:
            probe = health_pb2_grpc.HealthStub(channel)
            statuses = (await probe.List(health_pb2.HealthListRequest())).statuses
            serving = {name for name, response in statuses.items() if response.status == Serving.SERVING}
            assert serving == {LIVENESS}
        assert await end_of(first) == WHOLE
        await stopping


async def test_the_matrix_sees_a_server_that_does_not_drain(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a server that closes without draining cuts answers and does not say why."""

    async def close(server: Any, _grace_s: float) -> None:
        await server._server.stop(0)

    async with serve(script=None, max_running=1, step_delay_s=STEP_S) as running, connected(running) as stub:
        ends = asyncio.gather(end_of(answer(stub)))
        await until(lambda: running.engine.stats().running == 1)
        with monkeypatch.context() as patched:
            patched.setattr(Server, "_stop", close)
            await running.server.stop(20)
            (end,) = await ends
        assert end not in (WHOLE, CUT)
        running.server._stopping = None  # so that the fixture's own stop ends the rest


async def test_health_names_follow_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness and its other name "" stop while requests are shed; services only with the engine; liveness never."""
    lifecycle = Lifecycle(SERVICES)
    health: Any = lifecycle.health

    async def serving() -> set[str]:
        statuses = (await health.List(health_pb2.HealthListRequest(), None)).statuses
        return {name for name, response in statuses.items() if response.status == Serving.SERVING}

    lifecycle.begin()
    everything = {"", READINESS, LIVENESS, *SERVICES}
    assert await serving() == {LIVENESS}
    await lifecycle.enter(ServerState.READY)
    assert await serving() == everything
    monkeypatch.setattr(module, "SHED_S", 0.2)
    lifecycle.refused(Overloaded("one client asks too much", retry_after_ms=1, limit="client_requests"))
    assert await serving() == everything
    lifecycle.refused(Overloaded("the queue is full", retry_after_ms=1, limit="queue_tokens"))
    assert await serving() == {LIVENESS, *SERVICES}
    async with asyncio.timeout(20):
        while await serving() != everything:
            await asyncio.sleep(0.01)
    await lifecycle.enter(ServerState.FAILED)
    assert await serving() == {LIVENESS}
    await lifecycle.enter(ServerState.DRAINING)
    await lifecycle.enter(ServerState.READY)
    assert await serving() == {LIVENESS}, "draining is never left"


async def test_a_full_queue_takes_readiness_off(serve: Any) -> None:
    """A refusal for lack of room is told to those who balance load, while the service itself stays healthy."""
    async with serve(script=None, max_running=1, max_waiting=1, step_delay_s=STEP_S) as running:
        async with connected(running) as stub:
            calls = [answer(stub) for _ in range(3)]
            ends = await asyncio.gather(*map(end_of, calls))
            assert {end.code for end in ends} == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
            again = [answer(stub) for _ in range(3)]
            await until(lambda: running.server._lifecycle._is_shedding)
            for call in again:
                call.cancel()
        async with grpc.aio.insecure_channel(running.target) as channel:
            probe = health_pb2_grpc.HealthStub(channel)
            statuses = (await probe.List(health_pb2.HealthListRequest())).statuses
            assert statuses[READINESS].status == statuses[""].status == Serving.NOT_SERVING
            assert statuses[SERVICES[0]].status == Serving.SERVING


async def test_a_watcher_that_reads_nothing_holds_up_nobody(serve: Any) -> None:
    """A health watcher whose messages are not taken delays neither a change of health nor the end of the server."""
    async with serve(write_timeout_s=600) as running:
        health = running.server._lifecycle.health
        watcher = health.Watch(health_pb2.HealthCheckRequest(service=READINESS), None)
        assert (await anext(watcher)).status == Serving.SERVING
        # It is now where a write that never ends would keep it; another one still hears of the change.
        other = health.Watch(health_pb2.HealthCheckRequest(service=READINESS), None)
        assert (await anext(other)).status == Serving.SERVING
        heard = asyncio.ensure_future(anext(other))
        await asyncio.wait_for(running.server.stop(0), 20)
        assert (await asyncio.wait_for(heard, 5)).status == Serving.NOT_SERVING
        assert (await anext(watcher)).status == Serving.NOT_SERVING


async def test_a_watched_name_may_become_known() -> None:
    """A watcher of an unknown name hears so, then of its status; changes that cancel out are not sent."""
    lifecycle = Lifecycle(())
    watcher: Any = lifecycle.health.Watch(health_pb2.HealthCheckRequest(service="later"), None)
    assert (await anext(watcher)).status == Serving.SERVICE_UNKNOWN
    lifecycle.health.set("later", is_serving=False)
    lifecycle.health.set("later", is_serving=True)
    assert (await anext(watcher)).status == Serving.SERVING
