"""The asyncio client against a real server on the same event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from edgephi.client import (
    AsyncChatStream,
    AsyncClient,
    DeadlinePassed,
    Delta,
    FinalInfo,
    RequestRefused,
    ServerUnavailable,
    StreamCut,
)
from edgephi.errors import Overloaded
from edgephi.v1 import generation_pb2, generation_service_pb2

ANSWER = "The robot moves to the left and stops at the door."
# Takes several seconds at the delays used below, so that only a cancelled request can be gone before.
LONG_ANSWER = " ".join([ANSWER] * 12)


async def until(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.005)


async def test_a_chat_is_text_and_then_its_end(serve: Any) -> None:
    """Iterating gives the text; afterwards final has reason, usage and timings; events() gives all."""
    async with serve() as running, AsyncClient(running.target) as client:
        stream = client.chat("Where is the robot?")
        assert "".join([text async for text in stream]) == ANSWER
        assert stream.final is not None
        assert stream.final.reason == "stop"
        events = [event async for event in client.chat("Go", max_tokens=2).events()]
        assert isinstance(events[-1], FinalInfo)
        assert any(isinstance(event, Delta) for event in events)


async def test_every_other_method(serve: Any) -> None:
    """complete, count_tokens, models, model, device, plan, watch and health answer."""
    async with serve() as running, AsyncClient(running.target) as client:
        assert (await client.complete("The door").read()).strip() == ANSWER
        assert await client.count_tokens("Hi") > await client.count_tokens(prompt="Hi") > 1
        (model,) = await client.models()
        assert await client.model(model.name) == model
        assert (await client.device()).cpu.arch
        assert (await client.plan()).context_tokens == 512
        num_states = 0
        async for state in client.watch(0.1):
            assert state.is_ready
            num_states += 1
            if num_states == 2:
                break
        assert await client.health("liveness")
        assert not await client.health("no.such.Service")
        await client.wait_ready(1)


async def test_cancel_and_a_cancelled_task_free_the_pages(serve: Any) -> None:
    """After cancel the iteration ends; a cancelled task stays cancelled; both drop the request at the server."""
    async with serve(step_delay_s=0.02, script=LONG_ANSWER) as running, AsyncClient(running.target) as client:
        stream = client.chat("Where is the robot?")
        async for _ in stream:
            stream.cancel()
        assert stream.final is None
        await until(running.is_idle, 1.0)
        task = asyncio.create_task(client.chat("Where is the robot?").read())
        await until(lambda: not running.is_idle())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(running.is_idle, 1.0)
        async with client.chat("Where is the robot?") as left_early:
            async for _ in left_early:
                break
        await until(running.is_idle, 1.0)


async def test_many_answers_at_once(serve: Any) -> None:
    """Answers of one client run side by side."""
    async with serve(step_delay_s=0.002) as running, AsyncClient(running.target) as client:
        answers = await asyncio.gather(*(client.chat("Go").read() for _ in range(8)))
        assert list(answers) == [ANSWER] * 8
        assert running.is_idle()


async def test_errors_are_those_of_the_blocking_client(serve: Any) -> None:
    """Refusals, time limits, retries and cut streams look the same."""
    async with serve(step_delay_s=0.02) as running, AsyncClient(running.target) as client:
        with pytest.raises(RequestRefused) as caught:
            await client.chat("Go", min_p=2).read()
        assert [violation.field for violation in caught.value.violations] == ["sampling.min_p"]
        with pytest.raises(DeadlinePassed):
            await client.chat("Go", timeout_s=0.1).read()
        running.generator.faults = [Overloaded("full", retry_after_ms=20)]
        assert await client.chat("Go").read() == ANSWER
        texts = aiter(client.chat("Where is the robot?"))
        await anext(texts)
        running.fail_next_forward(RuntimeError("broken"))
        with pytest.raises(StreamCut):
            _ = [text async for text in texts]
    async with AsyncClient("127.0.0.1:1", can_retry=False) as client:
        with pytest.raises(ServerUnavailable):
            await client.models()
        with pytest.raises(ServerUnavailable):
            await client.wait_ready(0.3)


class _Call:
    """Responses without a server: what a cut connection leaves."""

    async def __aiter__(self) -> AsyncIterator[generation_service_pb2.ChatResponse]:
        yield generation_service_pb2.ChatResponse(delta=generation_pb2.Delta(text="half"))

    def cancel(self) -> None:
        """Do nothing."""


async def test_a_stream_without_an_end_is_cut() -> None:
    """Text without a final message raises StreamCut."""
    with pytest.raises(StreamCut):
        await AsyncChatStream(_Call()).read()
