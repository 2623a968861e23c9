"""
Whatever ends a call, in whatever phase, frees what it held: the matrix of ends and phases.

A real server and stock clients; a proxy between them stands for the network where it breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from edgephi.errors import EngineFailed
from edgephi.v1 import generation_pb2 as v1
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1 import generation_service_pb2_grpc as pb2_grpc

LONG = "where does the robot go now " * 12
# A stock client that takes a message or two and no more until it is read from.
TINY_WINDOW = (("grpc.http2.lookahead_bytes", 64), ("grpc.http2.bdp_probe", 0))


class Proxy:
    """A TCP hop between a client and a server that can fall silent or break."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()

    def fall_silent(self) -> None:
        """Lose every byte from now on, both ways, as a radio out of reach does."""
        self._is_open.clear()

    def reset(self) -> None:
        """Break all connections with RST."""
        for writer in self._writers:
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self._is_open.wait()
                sink.write(data)
                await sink.drain()
            sink.close()


class Client:
    """One call through a proxy, and what a test does to it."""

    def __init__(self, running: Any, proxy: Proxy, method: str, *, is_tiny: bool = False) -> None:
        self.running, self.proxy = running, proxy
        options = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), *(TINY_WINDOW if is_tiny else ()))
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}", options=options)
        self._stub = pb2_grpc.GenerationServiceStub(self.channel)
        self._method = method
        self.call: Any = None

    def begin(self, prompt: str, timeout_s: float | None = None) -> None:
        """Send the request."""
        if self._method == "Chat":
            chat = pb2.ChatRequest()
            chat.messages.add(role=v1.ROLE_USER).content = prompt
            self.call = self._stub.Chat(chat, timeout=timeout_s)
        else:
            self.call = self._stub.Complete(pb2.CompleteRequest(prompt=prompt), timeout=timeout_s)


async def _until(is_so: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not is_so():
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"not within {timeout_s:g} s: {what}")


async def _text(call: Any) -> None:
    while (await call.read()).WhichOneof("event") != "delta":
        pass


async def _read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
        pass


async def _cancelled(client: Client) -> None:
    client.call.cancel()


async def _channel_closed(client: Client) -> None:
    await client.channel.close(None)


async def _reset(client: Client) -> None:
    client.proxy.reset()


async def _silent(client: Client) -> None:
    client.proxy.fall_silent()


async def _not_reading(client: Client) -> None:
    """Nothing more is read: the tiny window is full."""


async def _engine_fault(client: Client) -> None:
    client.running.fail_next_forward(EngineFailed("broken on purpose"))


async def _deadline(client: Client) -> None:
    """The deadline given at the start passes."""


ENDS: dict[str, Callable[[Client], Awaitable[None]]] = {
    "cancel": _cancelled,
    "channel closed": _channel_closed,
    "reset": _reset,
    "link down": _silent,
    "not reading": _not_reading,
    "engine fault": _engine_fault,
    "deadline": _deadline,
}
PHASES = ("queued", "prefill", "decode")


@contextlib.asynccontextmanager
async def _serving(serve: Any, **settings: Any) -> AsyncIterator[Any]:
    defaults = {"keepalive_s": 1.0, "keepalive_timeout_s": 1.0, "write_timeout_s": 0.5}
    # No script, so that answers are as long as they may be.
    async with serve(script=None, max_running=1, step_delay_s=0.02, **{**defaults, **settings}) as running:
        yield running


@pytest.mark.parametrize(
    ("end", "phase", "method"),
    [(end, phase, "Complete") for end in ENDS for phase in PHASES] + [(end, "decode", "Chat") for end in ENDS],
)
async def test_every_end_in_every_phase_frees_place_and_pages(serve: Any, end: str, phase: str, method: str) -> None:
    """The request is out of the engine, its pages are free and its call is logged; the next one is answered."""
    async with _serving(serve) as running, Proxy(running.server.port) as proxy, Proxy(running.server.port) as other:
        engine = running.engine
        companion = Client(running, other, "Complete")
        client = Client(running, proxy, method, is_tiny=end == "not reading")
        prefilled = engine.stats().tokens_prefilled_total
        if phase == "queued":
            companion.begin("go " * 3)
            await _text(companion.call)
        client.begin(LONG, timeout_s=0.6 if end == "deadline" else None)
        if phase == "queued":
            await _until(lambda: engine.stats().waiting == 1, "the request waits")
        elif phase == "prefill":
            await _until(lambda: engine.stats().tokens_prefilled_total > prefilled, "the prompt is being computed")
        else:
            await _text(client.call)
        await ENDS[end](client)
        if phase == "queued" and end in ("not reading", "engine fault"):
            # Neither touches a request that waits; it goes on when its turn comes.
            companion.call.cancel()
            await _until(lambda: engine.stats().waiting == 0, "the request has its turn")
            client.call.cancel()
        elif phase == "queued":
            await _until(lambda: engine.stats().waiting == 0, "the request has left the queue")
            assert engine.stats().running == 1, "the other one goes on"
            companion.call.cancel()
        await _until(running.is_idle, "its place and its pages are free")
        await running.wait_finished(method, 1)
        await _until(lambda: running.server.num_active == 0, "no answer is counted as active")
        # Through a connection of its own, for that of the client may be broken.
        async with Proxy(running.server.port) as third:
            again = Client(running, third, method)
            again.begin("go " * 3)
            await _text(again.call)
            await again.channel.close(None)
        await _until(running.is_idle, "the next one's place is free as well")
        await client.channel.close(None)
        await companion.channel.close(None)


async def test_without_a_limit_a_reader_that_takes_nothing_keeps_its_place(serve: Any) -> None:
    """The negative control: with a limit far away the same client is still running when the matrix has given up."""
    async with _serving(serve, write_timeout_s=600) as running, Proxy(running.server.port) as proxy:
        client = Client(running, proxy, "Complete", is_tiny=True)
        client.begin(LONG)
        await _text(client.call)
        await asyncio.sleep(2.0)
        assert running.server.num_active == 1
        await client.channel.close(None)


async def test_without_keepalive_a_lost_link_keeps_its_place(serve: Any) -> None:
    """The negative control: a silent connection that nobody asks for life is not noticed."""
    async with (
        _serving(serve, keepalive_s=600, write_timeout_s=600) as running,
        Proxy(running.server.port) as proxy,
    ):
        client = Client(running, proxy, "Complete", is_tiny=True)
        client.begin(LONG)
        await _text(client.call)
        proxy.fall_silent()
        await asyncio.sleep(3.0)
        assert running.server.num_active == 1
        await client.channel.close(None)


async def test_a_reader_that_does_not_read_is_told_why(serve: Any) -> None:
    """When it reads again it gets RESOURCE_EXHAUSTED with the reason."""
    async with _serving(serve) as running, Proxy(running.server.port) as proxy:
        client = Client(running, proxy, "Complete", is_tiny=True)
        client.begin(LONG)
        await _text(client.call)
        await _until(running.is_idle, "its place is free")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _read_to_the_end(client.call)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "not taken" in (refused.value.details() or "")
        await client.channel.close(None)


async def test_a_sign_of_life_comes_every_second_before_the_text(serve: Any) -> None:
    """A request that waits for its turn is told its progress, zero, once a second."""
    async with _serving(serve) as running:
        channel = grpc.aio.insecure_channel(running.target)
        stub = pb2_grpc.GenerationServiceStub(channel)
        companion = stub.Complete(pb2.CompleteRequest(prompt="go " * 3))
        await _text(companion)
        waiting = stub.Complete(pb2.CompleteRequest(prompt="stop"))
        for _ in range(2):
            async with asyncio.timeout(3):
                message: Any = await waiting.read()
            assert message.prefill_progress.done_tokens == 0
            assert message.prefill_progress.total_tokens >= 1
        await channel.close(None)


async def test_a_slow_reader_does_not_slow_its_neighbour(serve: Any) -> None:
    """Beside a client that takes nothing another one gets its whole answer, token by token."""
    settings = {"write_timeout_s": 600, "keepalive_s": 600}
    async with (
        serve(script=None, max_running=2, step_delay_s=0.002, **settings) as running,
        Proxy(running.server.port) as proxy,
    ):
        stuck = Client(running, proxy, "Complete", is_tiny=True)
        stuck.begin(LONG)
        await _text(stuck.call)
        channel = grpc.aio.insecure_channel(running.target)
        request = pb2.CompleteRequest(prompt="go")
        request.sampling.max_tokens = 100
        events = [message async for message in pb2_grpc.GenerationServiceStub(channel).Complete(request)]
        assert events[-1].final.usage.output_tokens == 100
        assert running.server.num_active == 1, "the stuck one is still there, so this was beside it"
        await stuck.channel.close(None)
        await channel.close(None)
