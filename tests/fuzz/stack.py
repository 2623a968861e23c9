"""
The server's handlers behind its interceptors, without a socket: what comes in is bytes, what goes out is a status.

Owns stand-ins for gRPC's context, for the thread that makes prompts and for the engine, which takes a request by the
engine's own rules and ends it at once. Everything between them is the server's.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2_grpc
from prometheus_client import CollectorRegistry

from edgephi.engine.backend import BackendSpec
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.limits import EngineLimits
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    Finished,
    FinishReason,
    RequestId,
    SamplingParams,
    Timings,
    Usage,
    check_request,
)
from edgephi.generation.generator import Generator
from edgephi.pocket import model_dir
from edgephi.profile.machine.probe import probe, probe_live
from edgephi.profile.plan import Plan, PlanMemory
from edgephi.server.app import SERVICES
from edgephi.server.auth import AuthInterceptor
from edgephi.server.calls import ScopeInterceptor
from edgephi.server.device import DeviceHandler
from edgephi.server.errors import ErrorInterceptor
from edgephi.server.generation import GenerationHandler
from edgephi.server.interceptors import CallInterceptor
from edgephi.server.lifecycle import Lifecycle, ServerState
from edgephi.server.metrics import Metrics
from edgephi.server.model import ModelHandler
from edgephi.server.model_info import ModelInfo
from edgephi.server.tokenizing import TokenizingQueue
from edgephi.text.tokenizer import Tokenizer
from edgephi.v1 import device_service_pb2_grpc, generation_service_pb2_grpc, model_service_pb2_grpc

T = TypeVar("T")
CONTEXT_TOKENS = 256
_ENDLESS = ("/edgephi.v1.DeviceService/WatchState", "/grpc.health.v1.Health/Watch")
Metadata = tuple[tuple[str, str], ...]


@dataclasses.dataclass
class Outcome:
    """How a call ended, and what was said on the way: to the client and to the log."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    trailers: tuple[tuple[str, str | bytes], ...] = ()
    num_responses: int = 0
    accepted: EngineRequest | None = None
    log: list[tuple[str, str, dict[str, Any]]] = dataclasses.field(default_factory=list)

    @property
    def said(self) -> bytes:
        """Everything that leaves the service beside answers."""
        parts = [self.message, *(value for _, value in self.trailers), *(repr(line) for line in self.log)]
        return b"\n".join(part.encode(errors="replace") if isinstance(part, str) else part for part in parts)


class Stack:
    """
    The handlers of one server, ready to be called. Owns its event loop until :meth:`close`.

    Attributes:
        requests: The class of each method's request, by path.
        model: The served model.
        tokenizer: The served model's.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._outcome = Outcome()
        self.tokenizer = Tokenizer.from_model_dir(model_dir())
        self.model = ModelInfo(
            model_id="tiny",
            display_name="Tiny",
            architecture="phi3",
            quantization="none",
            context_tokens=CONTEXT_TOKENS,
        )
        self.requests: dict[str, type[Message]] = {}
        self._behaviors: dict[str, Any] = {}
        self._loop.run_until_complete(self._build())

    def call(self, path: str, data: bytes, metadata: Metadata = ()) -> Outcome:
        """Run one call to its end."""
        self._outcome = Outcome()
        handler = self._behaviors[path]
        context = _Context(self._outcome, metadata, leaves=path in _ENDLESS)
        self._loop.run_until_complete(self._run(handler, data, context))
        return self._outcome

    def close(self) -> None:
        """Close the event loop."""
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _run(self, handler: Any, data: bytes, context: _Context) -> None:
        request = handler.request_deserializer(data)
        is_stream = handler.response_streaming
        behavior = handler.unary_stream if is_stream else handler.unary_unary
        try:
            response = await behavior(request, context)
        except grpc.aio.AbortError:
            return
        except asyncio.CancelledError:
            if not context.cancelled():
                raise
            return
        if not is_stream:
            handler.response_serializer(response)
            self._outcome.num_responses += 1

    async def _build(self) -> None:
        spec = BackendSpec(
            vocab_size=self.tokenizer.vocab_size,
            page_size=16,
            num_pages=64,
            max_batch_tokens=64,
            max_context_tokens=CONTEXT_TOKENS,
        )
        idle = Engine(SimpleNamespace(spec=spec), EngineConfig())
        generator = Generator(
            self.tokenizer,
            _Loop(spec.vocab_size, idle.max_limits, lambda: self._outcome),
            context_tokens=CONTEXT_TOKENS,
            eos_token_ids=frozenset({self.tokenizer.special_id("<|end|>")}),
            defaults=SamplingParams(),
        )
        metrics = Metrics(CollectorRegistry(), model=self.model.model_id)
        lifecycle = Lifecycle(SERVICES)
        await lifecycle.enter(ServerState.READY)
        live = probe_live()
        found = _Registry()
        registry: Any = found
        generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(
            GenerationHandler(generator, self.model, lifecycle, metrics, _Inline(), max_duration_s=60),
            registry,
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelHandler((self.model,), lifecycle, generator.defaults), registry
        )
        plan = Plan(
            context_tokens=CONTEXT_TOKENS,
            max_running=4,
            prefill_chunk_tokens=16,
            mixed_chunk_tokens=8,
            default_max_tokens=64,
            page_tokens=16,
            num_pages=64,
            memory=PlanMemory(kv_bytes=4096),
        )
        device = DeviceHandler(
            probe(),
            plan,
            idle.stats,
            lambda: live,
            lifecycle,
            governor=None,
            verification=None,
            server_version="fuzz",
        )
        device_service_pb2_grpc.add_DeviceServiceServicer_to_server(device, registry)
        health_pb2_grpc.add_HealthServicer_to_server(lifecycle.health, registry)
        log = _Log(lambda: self._outcome)
        interceptors: list[ScopeInterceptor] = [
            CallInterceptor(log, metrics),
            ErrorInterceptor(log, metrics),
            AuthInterceptor(None, has_client_certificates=False, write_timeout_s=30.0),
        ]
        for path, handler in found.handlers.items():
            self._behaviors[path] = await _wrapped(handler, path, interceptors)
            self.requests[path] = _request_class(handler)


class _Context:
    """gRPC's context of one call; the client of a stream without an end leaves after its first response."""

    def __init__(self, outcome: Outcome, metadata: Metadata, *, leaves: bool) -> None:
        self._outcome = outcome
        self._metadata = metadata
        self._leaves = leaves
        self._has_left = False

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def set_trailing_metadata(self, metadata: Any) -> None:
        self._outcome.trailers = tuple(metadata)

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def time_remaining(self) -> float | None:
        return None

    def cancelled(self) -> bool:
        return self._has_left

    def done(self) -> bool:
        return self._has_left

    def code(self) -> grpc.StatusCode:
        return self._outcome.code

    async def write(self, response: Message) -> None:
        response.SerializeToString()
        self._outcome.num_responses += 1
        if self._leaves:
            self._has_left = True
            raise asyncio.CancelledError

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        self._outcome.code, self._outcome.message = code, details
        self._outcome.trailers = tuple(trailing_metadata) or self._outcome.trailers
        raise grpc.aio.AbortError(details)


class _Registry:
    """A server that only remembers what it is given."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Do nothing: the same methods come by name as well."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


class _Log:
    """A logger that keeps what it is told with the call at hand."""

    def __init__(self, outcome: Callable[[], Outcome]) -> None:
        self._outcome = outcome

    def info(self, event: str, **fields: Any) -> None:
        self._outcome().log.append(("info", event, fields))

    def debug(self, event: str, **fields: Any) -> None:
        self._outcome().log.append(("debug", event, fields))

    def error(self, event: str, **fields: Any) -> None:
        self._outcome().log.append(("error", event, fields))


class _Inline(TokenizingQueue):
    """Makes prompts at once, on the thread that asks."""

    async def run(self, make_prompt: Callable[[], T], *, num_bytes: int) -> T:
        del num_bytes
        return make_prompt()


class _Loop:
    """An engine that checks a request by the engine's rules and ends it."""

    def __init__(self, vocab_size: int, limits: EngineLimits, outcome: Callable[[], Outcome]) -> None:
        self.limits = limits
        self._vocab_size = vocab_size
        self._outcome = outcome

    def submit(self, request: EngineRequest, sink: Callable[[EngineEvent], None]) -> None:
        check_request(request, vocab_size=self._vocab_size, context_tokens=CONTEXT_TOKENS)
        self._outcome().accepted = request
        usage = Usage(prompt_tokens=len(request.prompt), cached_tokens=0, output_tokens=0)
        timings = Timings(queue_s=0.0, prefill_s=0.0, decode_s=0.0)
        sink(Finished(request_id=request.request_id, reason=FinishReason.LENGTH, usage=usage, timings=timings))

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Do nothing: it has ended."""


async def _wrapped(handler: Any, path: str, interceptors: Sequence[ScopeInterceptor]) -> Any:
    details: Any = SimpleNamespace(method=path, invocation_metadata=())

    async def innermost(_: Any) -> Any:
        return handler

    continuation: Callable[[Any], Awaitable[Any]] = innermost
    for interceptor in reversed(interceptors):
        continuation = _behind(interceptor, continuation)
    return await continuation(details)


def _behind(
    interceptor: ScopeInterceptor, continuation: Callable[[Any], Awaitable[Any]]
) -> Callable[[Any], Awaitable[Any]]:
    async def intercept(details: Any) -> Any:
        return await interceptor.intercept_service(continuation, details)

    return intercept


def _request_class(handler: Any) -> type[Message]:
    kind: type[Message] = type(handler.request_deserializer(b""))
    return kind
