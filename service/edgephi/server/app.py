"""
The server: puts handlers, interceptors, health, reflection and metrics on one listening address.

Owns start, readiness and the order of stopping. Signals are the program's business; the generator, its engine and its
backend are passed in and closed by whoever made them, after the server has stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Protocol

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from edgephi.engine.health import EngineHealth
from edgephi.errors import ConfigError
from edgephi.generation.generator import Generator
from edgephi.profile.governor import Governor, policy_for
from edgephi.profile.machine.probe import DeviceFacts, LiveFacts, probe_live
from edgephi.profile.plan import Plan, PlanKind
from edgephi.profile.verification import ExpectedSpeed, Verifier
from edgephi.server.auth import AuthInterceptor
from edgephi.server.channel_options import channel_options, max_connections
from edgephi.server.credentials import open_credentials
from edgephi.server.device import DeviceHandler
from edgephi.server.engine_watch import EngineWatch
from edgephi.server.errors import ErrorInterceptor
from edgephi.server.generation import GenerationHandler
from edgephi.server.governor import GovernedEngine, GovernorTask
from edgephi.server.interceptors import CallInterceptor, MetadataInterceptor
from edgephi.server.lifecycle import Lifecycle, ServerState
from edgephi.server.model import ModelHandler
from edgephi.server.model_info import ModelInfo
from edgephi.server.observability import Observability
from edgephi.server.settings import ServerSettings
from edgephi.server.tokenizing import TokenizingQueue
from edgephi.server.verification import VerificationTask
from edgephi.v1 import (
    device_service_pb2,
    device_service_pb2_grpc,
    generation_service_pb2,
    generation_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)

LAST_MESSAGES_S = 0.5
"""How long the answers that were ended at the end of the grace may take to tell so."""
SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (generation_service_pb2, "GenerationService"),
        (model_service_pb2, "ModelService"),
        (device_service_pb2, "DeviceService"),
    )
)


class EngineView(GovernedEngine, Protocol):
    """What the server watches and limits of the engine; ``edgephi.engine.loop.EngineLoop`` is one."""

    @property
    def is_alive(self) -> bool:
        """Whether the engine can go on."""
        ...

    def health(self) -> EngineHealth:
        """How the engine is; quick."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """
    What a server serves; everything in it outlives the server.

    Attributes:
        generator: Makes answers.
        engine: The engine under it, to watch.
        model: What is said of the model.
        device: The machine, as it was probed.
        plan: The plan in force. One that was planned is governed and verified while the server runs.
        expected: What predicts the speed of any load, or None where nothing does.
        probe_live: Reads how the machine is doing; may take a moment.
    """

    generator: Generator
    engine: EngineView
    model: ModelInfo
    device: DeviceFacts
    plan: Plan
    expected: ExpectedSpeed | None = None
    probe_live: Callable[[], LiveFacts] = probe_live


class Server:
    """
    One server on one event loop, from :meth:`start` to :meth:`stop`.

    Make it within the loop that runs it. After ``start`` it listens; it takes requests once the model has produced
    a token, which ``wait_ready`` waits for.

    Args:
        served: Model, machine and plan.
        settings: Address and limits.
        registry: Where metrics are registered; a new one by default.
        log: structlog logger; the program's by default.

    Raises:
        ConfigError: If certificates or tokens cannot be used.
    """

    def __init__(
        self,
        served: Served,
        settings: ServerSettings,
        *,
        registry: CollectorRegistry | None = None,
        log: Any = None,
    ) -> None:
        self._served = served
        self._settings = settings
        self._log = structlog.get_logger("edgephi.server") if log is None else log
        self._observability = Observability(
            settings,
            model_id=served.model.model_id,
            version=_version(),
            plan=served.plan,
            stats=served.engine.stats,
            health=served.engine.health,
            probe_live=served.probe_live,
            registry=CollectorRegistry() if registry is None else registry,
            log=self._log,
        )
        self._governor: GovernorTask | None = None
        self._verification: VerificationTask | None = None
        if served.plan.kind is not PlanKind.STATIC:
            self._govern(served)
        self._lifecycle = Lifecycle(SERVICES)
        self._tokenizing = TokenizingQueue()
        self._port: int | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None
        self._credentials = open_credentials(settings, log=self._log)
        self._observability.watch_server(self._lifecycle, self._credentials.tls)
        # The outermost first: the line in the log needs the code that the error was mapped to.
        interceptors = [
            CallInterceptor(self._log, self._observability.metrics, self._observability.tracing),
            ErrorInterceptor(self._log, self._observability.metrics),
            MetadataInterceptor(),
            AuthInterceptor(
                self._credentials.tokens,
                has_client_certificates=settings.tls_client_ca is not None,
                write_timeout_s=settings.write_timeout_s,
            ),
        ]
        options = channel_options(settings, memory_bytes=served.device.memory.total_bytes)
        self._server = grpc.aio.server(interceptors=interceptors, options=options)
        self._add_services()

    @property
    def port(self) -> int:
        """The TCP port it listens on; known after ``start``."""
        assert self._port is not None, "start() was not awaited"
        return self._port

    @property
    def metrics_port(self) -> int | None:
        """The TCP port of the metrics page; None without one."""
        return self._observability.page_port

    @property
    def state(self) -> ServerState:
        """What the server is doing."""
        return self._lifecycle.state

    @property
    def num_active(self) -> int:
        """Answers being given."""
        return self._lifecycle.num_active

    async def start(self) -> None:
        """
        Listen, and begin to warm the model up.

        Raises:
            ConfigError: If an address cannot be listened on.
        """
        self._lifecycle.begin()
        settings = self._settings
        self._port = self._bind()
        try:
            self._observability.open_page()
            await self._server.start()
        except BaseException:
            await self.stop(0)
            raise
        watch = EngineWatch(
            self._served.generator,
            self._served.engine.health,
            self._lifecycle,
            model=self._served.model.name,
            log=self._log,
        )
        self._tasks = [asyncio.create_task(watch.run())]
        self._tasks += [
            asyncio.create_task(task.run()) for task in (self._governor, self._verification) if task is not None
        ]
        if self._credentials.tls is not None:
            self._tasks.append(asyncio.create_task(self._credentials.tls.watch()))
        self._log.info(
            "server.listening",
            host=settings.host,
            port=self._port,
            metrics_port=self.metrics_port,
            tls=settings.has_tls,
            mutual_tls=settings.tls_client_ca is not None,
            max_connections=max_connections(settings, self._served.device.memory.total_bytes),
            tokens=settings.tokens is not None,
            model=self._served.model.name,
        )

    async def wait_ready(self) -> None:
        """
        Wait until requests are taken.

        Raises:
            EngineFailed: If the model did not produce its first token.
            NotReady: If the server is stopping.
        """
        await self._lifecycle.wait_ready()

    def reload(self) -> None:
        """Read certificates that have changed now, and not with the next connection; other settings need a restart."""
        if self._credentials.tls is not None:
            self._credentials.tls.refresh()
        self._log.info("server.reloaded", tls=self._settings.has_tls)

    async def stop(self, grace_s: float) -> None:
        """
        Refuse new requests, let running answers finish, then close. Calling it again waits for the same end.

        Args:
            grace_s: How long running answers may take; the calls of those that need longer end with Draining.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(grace_s))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace_s: float) -> None:
        self._log.info("server.draining", active=self._lifecycle.num_active, grace_s=grace_s)
        await self._lifecycle.enter(ServerState.DRAINING)
        is_idle = await self._lifecycle.wait_idle(grace_s)
        if not is_idle:
            self._lifecycle.stop_all(self._served.generator)
            is_idle = await self._lifecycle.wait_idle(LAST_MESSAGES_S)
        # Short, because an idle health watcher would use up any grace given here.
        await self._server.stop(0.2)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tokenizing.close()
        await asyncio.to_thread(self._observability.close)
        self._log.info("server.stopped", finished_all=is_idle)

    def _govern(self, served: Served) -> None:
        """Prepare what holds a plan to its promise while the server runs."""
        plan, stats = served.plan, served.engine.stats
        policy = policy_for(plan)
        if served.expected is not None:
            rows_s = served.expected.times.rows_s
            policy = dataclasses.replace(policy, batch_cost=max(0.0, rows_s(2) / rows_s(1) - 1))
        governor = Governor(plan, policy)
        self._governor = GovernorTask(
            governor, served.engine, cpus=plan.cpus, probe_live=self._observability.probe_live, log=self._log
        )
        verifier = Verifier(plan.memory, served.expected)
        self._verification = VerificationTask(
            verifier, stats, self._observability.probe_live, page_tokens=plan.page_tokens, log=self._log
        )
        self._observability.watch_governed(self._governor, self._verification)

    def _add_services(self) -> None:
        served, lifecycle = self._served, self._lifecycle
        generation = GenerationHandler(
            served.generator,
            served.model,
            lifecycle,
            self._observability.metrics,
            self._tokenizing,
            max_duration_s=self._settings.max_duration_s,
        )
        model = ModelHandler((served.model,), lifecycle, served.generator.defaults)
        device = DeviceHandler(
            served.device,
            served.plan,
            served.engine.stats,
            self._observability.probe_live,
            lifecycle,
            governor=self._governor,
            verification=self._verification,
            server_version=_version(),
        )
        generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(generation, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(model, self._server)
        device_service_pb2_grpc.add_DeviceServiceServicer_to_server(device, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(lifecycle.health, self._server)
        if self._settings.reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    def _bind(self) -> int:
        address = self._settings.address
        try:
            if self._credentials.tls is not None:
                port = self._server.add_secure_port(address, self._credentials.tls.credentials())
            else:
                port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(f"{address} cannot be listened on; choose another host or port ({error})") from error
        if port == 0:
            raise ConfigError(f"{address} cannot be listened on; choose another host or port")
        return port


def _version() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("edgephi")
    return "unknown"
