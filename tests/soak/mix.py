"""
What is asked in a soak: kinds of calls, how often each comes, and which ends of it are explained.

A call ends with a status code, or with what no status tells: ``NO_FINAL`` is a stream that ended well without its last
message, ``NO_MESSAGE`` one of which nothing came.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edgephi.v1 import device_service_pb2 as device_pb2
from edgephi.v1 import generation_pb2, sampling_pb2
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1 import model_service_pb2 as model_pb2
from edgephi.v1.device_service_pb2_grpc import DeviceServiceStub
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub
from edgephi.v1.model_service_pb2_grpc import ModelServiceStub

NUM_CONNECTIONS = 8
"""So few that with what was cancelled a moment ago each is at times at its 16 calls."""
TIMEOUT_S = 30.0
COLLECT_EVERY = 500
"""A cancelled call keeps its closed connection open until it is collected, and the server has room for 64."""
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)
_WORDS = ("turn", "on", "the", "lamp", "kitchen", "hall", "door", "close", "go", "forward", "left", "stop", "please")
_ADDRESSES = ("liveness", "readiness", "", "edgephi.v1.GenerationService")


class Peer:
    """One connection to the server; closing it ends its calls."""

    def __init__(self, address: str, metadata: tuple[tuple[str, str], ...]) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.generation = GenerationServiceStub(self.channel)
        self.model = ModelServiceStub(self.channel)
        self.device = DeviceServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        self.metadata = metadata


Call = Callable[[Peer, random.Random], Awaitable[str]]


@dataclass(frozen=True)
class Kind:
    """A kind of call: how many of a hundred it is, and the codes it may end with."""

    weight: float
    expected: frozenset[str]
    call: Call


def message(draw: random.Random, *, num_words: int | None = None) -> generation_pb2.Message:
    """Return something that a person might say, or much more than that."""
    count = num_words or draw.choices((1, 3, 8, 40, 300), (20, 30, 40, 9, 1))[0]
    return generation_pb2.Message(role=generation_pb2.ROLE_USER, content=" ".join(draw.choices(_WORDS, k=count)))


def chat_request(draw: random.Random, max_tokens: int) -> pb2.ChatRequest:
    """Return a chat with an answer of at most so many tokens."""
    sampling = sampling_pb2.SamplingParams(max_tokens=max_tokens, temperature=draw.choice((0.0, 0.7)))
    return pb2.ChatRequest(messages=[message(draw)], sampling=sampling)


async def check(peer: Peer, draw: random.Random) -> str:
    """Ask how one service is."""
    await peer.health.Check(health_pb2.HealthCheckRequest(service=draw.choice(_ADDRESSES)), timeout=TIMEOUT_S)
    return "OK"


async def check_unknown(peer: Peer, draw: random.Random) -> str:
    """Ask how a service is that is not there."""
    await peer.health.Check(health_pb2.HealthCheckRequest(service=f"none{draw.random()}"), timeout=TIMEOUT_S)
    return "OK"


async def unary(peer: Peer, draw: random.Random) -> str:
    """Call one of the methods that answer with one message."""
    chat = generation_pb2.Messages(messages=[message(draw)])
    calls: tuple[tuple[Any, Any], ...] = (
        (peer.model.ListModels, model_pb2.ListModelsRequest()),
        (peer.device.GetDevice, device_pb2.GetDeviceRequest()),
        (peer.device.GetPlan, device_pb2.GetPlanRequest()),
        (peer.generation.CountTokens, pb2.CountTokensRequest(prompt=message(draw).content)),
        (peer.generation.CountTokens, pb2.CountTokensRequest(chat=chat)),
    )
    call, request = draw.choice(calls)
    await call(request, timeout=TIMEOUT_S, metadata=peer.metadata)
    return "OK"


async def unknown_model(peer: Peer, draw: random.Random) -> str:
    """Ask for a model that is not served."""
    await peer.model.GetModel(
        model_pb2.GetModelRequest(name=f"models/none-{draw.randrange(10**9)}"),
        timeout=TIMEOUT_S,
        metadata=peer.metadata,
    )
    return "OK"


async def chat(peer: Peer, draw: random.Random) -> str:
    """Read a whole answer."""
    request = chat_request(draw, draw.choices((1, 2, 4, 8, 47), (40, 30, 15, 10, 5))[0])
    return await _whole(peer.generation.Chat(request, timeout=TIMEOUT_S, metadata=peer.metadata))


async def complete(peer: Peer, draw: random.Random) -> str:
    """Read a whole continuation, perhaps with a stop string and log-probabilities."""
    sampling = sampling_pb2.SamplingParams(max_tokens=draw.choice((1, 2, 6)), temperature=0.0, stop=["fake", "zzz"])
    if draw.random() < 0.5:
        sampling.logprobs = 3
    request = pb2.CompleteRequest(prompt=message(draw).content, sampling=sampling)
    return await _whole(peer.generation.Complete(request, timeout=TIMEOUT_S, metadata=peer.metadata))


async def cancelled(peer: Peer, draw: random.Random) -> str:
    """Cancel a chat at a random moment: at once, in the queue, in the middle or near its end."""
    call = peer.generation.Chat(chat_request(draw, 47), timeout=TIMEOUT_S, metadata=peer.metadata)
    await asyncio.sleep(draw.choice((0.0, 0.002, 0.02, 0.2)) * draw.random())
    if draw.random() < 0.5:
        await call.read()
    call.cancel()
    return str((await call.code()).name)


async def dropped(peer: Peer, draw: random.Random) -> str:
    """Stop reading a chat and forget it, as a program does that raised."""
    task = asyncio.create_task(chat(peer, draw))
    await asyncio.sleep(0.1 * draw.random())
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return "CANCELLED"


async def hurried(peer: Peer, draw: random.Random) -> str:
    """Ask with a deadline that may be too short."""
    request = chat_request(draw, draw.choice((2, 47)))
    timeout_s = draw.choice((0.0005, 0.005, 0.05, 0.3)) * (0.5 + draw.random())
    return await _whole(peer.generation.Chat(request, timeout=timeout_s, metadata=peer.metadata))


async def invalid(peer: Peer, draw: random.Random) -> str:
    """Ask for what is out of bounds."""
    bad = chat_request(draw, 4)
    match draw.randrange(6):
        case 0:
            del bad.messages[:]
        case 1:
            bad.sampling.temperature = 3.0
        case 2:
            bad.sampling.max_tokens = 0
        case 3:
            bad.messages[0].role = generation_pb2.ROLE_UNSPECIFIED
        case 4:
            bad.sampling.max_tokens = 1_000_000
        case _:
            request = model_pb2.ListModelsRequest(page_token=f"no{draw.random()}")
            await peer.model.ListModels(request, timeout=TIMEOUT_S, metadata=peer.metadata)
            return "OK"
    return await _whole(peer.generation.Chat(bad, timeout=TIMEOUT_S, metadata=peer.metadata))


async def stranger(peer: Peer, draw: random.Random) -> str:
    """Ask without a token, or with one that nobody has."""
    metadata = draw.choice(((), (("authorization", f"Bearer edgephi_{draw.randrange(10**12)}"),)))
    if draw.random() < 0.5:
        return await _whole(peer.generation.Chat(chat_request(draw, 2), timeout=TIMEOUT_S, metadata=metadata))
    await peer.model.ListModels(model_pb2.ListModelsRequest(), timeout=TIMEOUT_S, metadata=metadata)
    return "OK"


async def unknown_method(peer: Peer, draw: random.Random) -> str:
    """Call what the server does not have."""
    call = peer.channel.unary_unary(f"/edgephi.v1.None/M{draw.randrange(3)}", bytes, bytes)
    await call(b"", timeout=TIMEOUT_S)
    return "OK"


async def watched(peer: Peer, draw: random.Random) -> str:
    """Watch health or the device, and leave after the first message."""
    call: Any
    if draw.random() < 0.5:
        call = peer.health.Watch(health_pb2.HealthCheckRequest(service="liveness"), timeout=TIMEOUT_S)
    else:
        call = peer.device.WatchState(device_pb2.WatchStateRequest(), timeout=TIMEOUT_S, metadata=peer.metadata)
    if not isinstance(await call.read(), Message):
        return "NO_MESSAGE"
    call.cancel()
    return str((await call.code()).name)


async def _whole(call: Any) -> str:
    last = None
    async for response in call:
        last = response
    return "OK" if last is not None and last.HasField("final") else "NO_FINAL"


def _kind(weight: float, call: Call, *expected: str) -> Kind:
    return Kind(weight, frozenset(expected), call)


KINDS: Mapping[str, Kind] = {
    "health": _kind(22, check, "OK"),
    "health of nobody": _kind(2, check_unknown, "NOT_FOUND"),
    "unary": _kind(25, unary, "OK"),
    "unknown model": _kind(3, unknown_model, "NOT_FOUND"),
    "unknown method": _kind(1, unknown_method, "UNIMPLEMENTED"),
    "chat": _kind(15, chat, "OK"),
    "completion": _kind(6, complete, "OK"),
    "cancelled chat": _kind(8, cancelled, "CANCELLED", "OK"),
    "dropped chat": _kind(3, dropped, "CANCELLED", "OK"),
    "short deadline": _kind(5, hurried, "DEADLINE_EXCEEDED", "OK"),
    "invalid": _kind(5, invalid, "INVALID_ARGUMENT"),
    "unauthenticated": _kind(3, stranger, "UNAUTHENTICATED"),
    "watch": _kind(2, watched, "CANCELLED"),
}
_ON_A_NEW_CONNECTION = ("health", "unary", "chat", "completion", "cancelled chat", "invalid", "unauthenticated")


@dataclass
class Tally:
    """Ends of calls by kind and code, and those that nothing explains."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)
    num_done: int = 0

    def add(self, name: str, kind: Kind, code: str, details: str) -> None:
        """Count a call."""
        by_code = self.counts.setdefault(name, {})
        by_code[code] = by_code.get(code, 0) + 1
        self.num_done += 1
        if code not in kind.expected:
            self.unexplained.append(f"{name}: {code} {details}".strip())


class Mix:
    """Asks a random mix over a few lasting connections and many new ones; use it as an async context manager."""

    def __init__(self, address: str, token: str, seed: int) -> None:
        self.tally = Tally()
        self._address = address
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._draw = random.Random(seed)

    async def fill_pools(self) -> None:
        """Ask at once for what the server reads on threads: its pool grows with how many are needed, and stays."""
        async with contextlib.AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(self._peer()) for _ in range(NUM_CONNECTIONS)]
            await asyncio.gather(*(self._ask(peer, ("watch",)) for peer in peers for _ in range(4)))

    async def run(self, num_calls: int, num_connections: int, num_workers: int) -> None:
        """Ask so many times in all, on that many new connections besides, so many at once."""
        left = [num_calls, num_connections]
        async with contextlib.AsyncExitStack() as stack:
            lasting = itertools.cycle([await stack.enter_async_context(self._peer()) for _ in range(NUM_CONNECTIONS)])
            few = asyncio.Semaphore(8)  # the server has room for 64 connections, and some are still being closed

            async def work() -> None:
                while sum(left):
                    is_new = self._draw.randrange(sum(left)) < left[1]
                    left[is_new] -= 1
                    if not is_new:
                        await self._ask(next(lasting), tuple(KINDS))
                        continue
                    async with few, self._peer() as peer:
                        await self._ask(peer, _ON_A_NEW_CONNECTION, prefix="new connection, ")

            await asyncio.gather(*(work() for _ in range(num_workers)))

    @contextlib.asynccontextmanager
    async def _peer(self) -> AsyncIterator[Peer]:
        peer = Peer(self._address, self._metadata)
        try:
            yield peer
        finally:
            await peer.channel.close(None)

    async def _ask(self, peer: Peer, names: tuple[str, ...], prefix: str = "") -> None:
        name = self._draw.choices(names, [KINDS[name].weight for name in names])[0]
        kind, details = KINDS[name], ""
        try:
            code = await kind.call(peer, self._draw)
        except grpc.aio.AioRpcError as error:
            code, details = error.code().name, error.details() or ""
        self.tally.add(prefix + name, kind, code, details)
        if self.tally.num_done % COLLECT_EVERY == 0:
            gc.collect()
