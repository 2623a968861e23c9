"""
What a server is doing, from loading to stopped, and the answers it is giving.

Owns the state, the health of each service and the set of running answers. Everything here runs on the server's event
loop; only ``stop_all`` reaches into the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Iterator, Sequence

from edgephi.engine.request import FinishReason
from edgephi.errors import Draining, EngineFailed, NotReady, Overloaded
from edgephi.generation.generator import Generator
from edgephi.server.health import Health

LIVENESS = "liveness"
READINESS = "readiness"
SHED_S = 2.0
"""How long readiness stays off after a request was refused because the queue is full."""


class ServerState(enum.Enum):
    """What a server is doing."""

    LOADING = "loading"  # the model has not produced a token yet
    READY = "ready"
    DRAINING = "draining"  # running answers finish, nothing new is taken
    FAILED = "failed"  # the engine cannot go on


class Lifecycle:
    """
    State of one server; made and used by it.

    Health: ``liveness`` serves as long as the event loop runs; every service serves in READY only; ``readiness`` and
    ``""``, its other name, serve in READY only and not while requests are shed. A probe that restarts a server must
    ask for ``liveness``: load and a model that is being loaded again are no reason to.

    Args:
        services: Full names of the services that need the model.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self.health = Health()
        self._services = tuple(services)
        self._state = ServerState.LOADING
        self._is_shedding = False
        self._shed_end: asyncio.TimerHandle | None = None
        self._active: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._changed = asyncio.Condition()
        self.draining = asyncio.Event()

    @property
    def state(self) -> ServerState:
        """What the server is doing."""
        return self._state

    @property
    def num_active(self) -> int:
        """Answers being given."""
        return len(self._active)

    def begin(self) -> None:
        """Say what is true before anything is loaded."""
        self._tell()

    def refused(self, error: Overloaded) -> None:
        """Take readiness off for a while if the queue was full, so that those who balance load go elsewhere."""
        if not error.limit.startswith("queue_"):
            return  # one client's own limit
        if self._shed_end is not None:
            self._shed_end.cancel()
        self._shed_end = asyncio.get_running_loop().call_later(SHED_S, self._shed, False)
        self._shed(True)

    async def enter(self, state: ServerState) -> None:
        """Change the state and the health that follows from it; DRAINING is never left."""
        if self._state is ServerState.DRAINING:
            return
        self._state = state
        self._tell()
        if state is ServerState.DRAINING:
            self.draining.set()
        async with self._changed:
            self._changed.notify_all()

    async def wait_ready(self) -> None:
        """
        Wait until the model has produced a token.

        Raises:
            EngineFailed: If it could not.
            NotReady: If the server is stopping.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._state is not ServerState.LOADING)
        self.require_ready()

    def require_ready(self) -> None:
        """
        Refuse a request that cannot be computed now.

        Raises:
            NotReady: While the model is loading.
            Draining: From the moment the server drains.
            EngineFailed: If the engine cannot go on.
        """
        if self._state is ServerState.LOADING:
            raise NotReady("the model is still loading; retry in a moment")
        if self._state is ServerState.DRAINING:
            raise Draining("the server is shutting down; retry on another one")
        if self._state is ServerState.FAILED:
            raise EngineFailed("the engine has failed and takes no requests; restart the server")

    @contextlib.contextmanager
    def answering(self, engine_id: str) -> Iterator[None]:
        """Count an answer as active within the block."""
        self._active.add(engine_id)
        self._idle.clear()
        try:
            yield
        finally:
            self._active.discard(engine_id)
            if not self._active:
                self._idle.set()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no answer is active, at most ``timeout_s`` seconds; return whether none is."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return not self._active

    async def wait_draining(self, timeout_s: float) -> None:
        """Wait until the server drains, at most ``timeout_s`` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.draining.wait(), timeout_s)

    def stop_all(self, generator: Generator) -> None:
        """End every active answer; each tells its client that the server drains."""
        for engine_id in tuple(self._active):
            generator.cancel(engine_id, FinishReason.CANCELLED)

    def _shed(self, is_shedding: bool) -> None:
        if is_shedding is not self._is_shedding:
            self._is_shedding = is_shedding
            self._tell()

    def _tell(self) -> None:
        is_ready = self._state is ServerState.READY
        for service in self._services:
            self.health.set(service, is_serving=is_ready)
        for name in ("", READINESS):
            self.health.set(name, is_serving=is_ready and not self._is_shedding)
        # Also while draining: a probe of liveness would otherwise end the answers that may still finish.
        self.health.set(LIVENESS, is_serving=True)
