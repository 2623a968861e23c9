"""Admission through a real server and a real client: what a full queue tells, to whom, and what it costs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # publishes no stubs
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from edgephi.engine.admission import AdmissionConfig
from edgephi.server.tokens import add_token
from edgephi.v1 import generation_pb2 as types
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

NO_RETRIES = [("grpc.enable_retries", 0)]
REQUEST = pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="Go")])


async def reason_of(call: Any) -> str:
    """Read a call that is refused; return the reason, having checked that nothing was sent before."""
    with pytest.raises(grpc.aio.AioRpcError):
        _ = [response async for response in call]
    assert await call.initial_metadata() in (None, grpc.aio.Metadata()), "a client could not retry it"
    status = await rpc_status.aio.from_call(call)  # type: ignore[attr-defined]  # missing in the stubs
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return str(info.reason)


async def end_of(call: Any) -> str:
    """Read a call to its end; whether client or server ends it at its deadline is a matter of moments."""
    try:
        responses = [response async for response in call]
    except grpc.aio.AioRpcError as error:
        return "deadline" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else error.code().name
    final = responses[-1].final
    return "deadline" if final.finish_reason == types.FINISH_REASON_DEADLINE else "answer"


async def occupy(running: Any, stub: Any, count: int, **arguments: Any) -> list[asyncio.Task[str]]:
    """Start so many answers that cannot go on, and wait until the server has them."""

    async def read() -> str:
        responses = [response async for response in stub.Chat(REQUEST, **arguments)]
        return str(responses[-1].WhichOneof("event"))

    before = running.server.num_active
    tasks = [asyncio.create_task(read()) for _ in range(count)]
    async with asyncio.timeout(10):
        while running.server.num_active < before + count:
            await asyncio.sleep(0.005)
    return tasks


async def test_each_bound_is_told_by_its_name(serve: Any) -> None:
    """One client's own bound: refused before anything is sent, and before its prompt is rendered."""
    bounds = AdmissionConfig(max_waiting=4, max_waiting_per_client=2)
    async with (
        serve(max_running=1, admission=bounds) as running,
        grpc.aio.insecure_channel(running.target, NO_RETRIES) as channel,
    ):
        stub = GenerationServiceStub(channel)
        go_on = running.backend.hold_after(0)
        try:
            tasks = await occupy(running, stub, 4)  # one runs, one is next, two wait
            num_started = running.generator.num_started
            assert await reason_of(stub.Chat(REQUEST)) == "CLIENT_QUEUE_FULL"
            assert running.generator.num_started == num_started
        finally:
            go_on.set()
        assert await asyncio.gather(*tasks) == ["final"] * 4
        assert [r async for r in stub.Chat(REQUEST)][-1].WhichOneof("event") == "final"


async def test_a_full_queue_refuses_one_client_and_takes_another_in(serve: Any, tmp_path: Path) -> None:
    """
    Clients are told apart by their tokens: a greedy one is refused while a modest one is still taken; the control: the
    same request with the greedy one's token is refused.
    """
    file = tmp_path / "tokens.json"
    secrets = {name: add_token(file, name)[0] for name in ("greedy", "modest")}
    headers = {name: (("authorization", f"Bearer {secret}"),) for name, secret in secrets.items()}
    async with (
        serve(max_running=1, admission=AdmissionConfig(max_waiting=4), tokens=file) as running,
        grpc.aio.insecure_channel(running.target, NO_RETRIES) as channel,
    ):
        stub = GenerationServiceStub(channel)
        go_on = running.backend.hold_after(0)
        try:
            greedy = await occupy(running, stub, 4, metadata=headers["greedy"])
            assert await reason_of(stub.Chat(REQUEST, metadata=headers["greedy"])) == "QUEUE_FULL"
            modest = await occupy(running, stub, 1, metadata=headers["modest"])
            assert await reason_of(stub.Chat(REQUEST, metadata=headers["modest"])) == "QUEUE_FULL"
            health = health_pb2_grpc.HealthStub(channel)
            alive = await health.Check(health_pb2.HealthCheckRequest(service="liveness"))
            assert alive.status == health_pb2.HealthCheckResponse.SERVING
        finally:
            go_on.set()
        assert await asyncio.gather(*greedy, *modest) == ["final"] * 5


async def test_a_deadline_that_cannot_be_met_is_refused_at_once(serve: Any) -> None:
    """Once speeds are known, a deadline before the expected first token is refused, and a later one is answered."""
    async with (
        serve(max_running=1, step_delay_s=0.02, admission=AdmissionConfig()) as running,
        grpc.aio.insecure_channel(running.target, NO_RETRIES) as channel,
    ):
        stub = GenerationServiceStub(channel)
        assert [r async for r in stub.Chat(REQUEST)][-1].final.timings.decode_duration.ToSeconds() == 0
        go_on = running.backend.hold_after(0)
        try:
            tasks = await occupy(running, stub, 6)
            hopeless = stub.Chat(REQUEST, timeout=0.5)
            assert await reason_of(hopeless) == "DEADLINE_TOO_SHORT"
            tasks += await occupy(running, stub, 1, timeout=60)
        finally:
            go_on.set()
        assert await asyncio.gather(*tasks) == ["final"] * 7


async def test_cancel_and_deadline_in_the_queue_free_the_place(serve: Any) -> None:
    """A client that gives up while it waits leaves the queue at once, so that the next one is taken."""
    async with (
        serve(max_running=1, admission=AdmissionConfig(max_waiting=4)) as running,
        grpc.aio.insecure_channel(running.target, NO_RETRIES) as channel,
    ):
        stub = GenerationServiceStub(channel)
        go_on = running.backend.hold_after(0)
        try:
            tasks = await occupy(running, stub, 3)
            leaving = await occupy(running, stub, 1)
            assert await reason_of(stub.Chat(REQUEST)) == "QUEUE_FULL"
            leaving[0].cancel()
            async with asyncio.timeout(10):
                while running.server.num_active > 3:
                    await asyncio.sleep(0.005)
            assert await end_of(stub.Chat(REQUEST, timeout=0.3)) == "deadline"
            async with asyncio.timeout(10):
                while running.server.num_active > 3:
                    await asyncio.sleep(0.005)
            tasks += await occupy(running, stub, 1)
        finally:
            go_on.set()
        assert await asyncio.gather(*tasks) == ["final"] * 4
