"""
Follows the engine: warms it up after every start, and says what it became.

Owns what the server is because of its engine: LOADING until a first token and again after a death, READY, FAILED. How
a dead engine is started again is the engine's own business (edgephi.isolation).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from edgephi.engine.health import EngineHealth, EngineState
from edgephi.engine.request import FinishReason, SamplingParams
from edgephi.errors import EdgephiError, EngineFailed
from edgephi.generation.generator import Generator
from edgephi.generation.request import Final, GenerationEvent, GenerationRequest
from edgephi.server.lifecycle import Lifecycle, ServerState

CHECK_S = 0.2
"""Time between two looks. So long the server may still count as ready although its engine has died."""


class EngineWatch:
    """
    Lives as long as its server, which runs :meth:`run` and cancels it.

    Args:
        generator: Makes the tokens that show that an engine works.
        health: How the engine is; quick.
        lifecycle: Is told.
        model: Name of the model, for the log.
        check_s: Time between two looks.
        log: structlog logger.
    """

    def __init__(
        self,
        generator: Generator,
        health: Callable[[], EngineHealth],
        lifecycle: Lifecycle,
        *,
        model: str,
        log: Any,
        check_s: float = CHECK_S,
    ) -> None:
        self._generator = generator
        self._health = health
        self._lifecycle = lifecycle
        self._model = model
        self._log = log
        self._check_s = check_s
        self._num_deaths = 0
        self._warmed_start = 0  # the start whose engine was warmed up; 0 before the first

    async def run(self) -> None:
        """Follow the engine until it has failed for good."""
        while self._lifecycle.state is not ServerState.FAILED:
            health = self._health()
            if health.deaths_total > self._num_deaths:
                self._num_deaths = health.deaths_total
                self._log.error("engine.died", reason=health.last_death, deaths_total=health.deaths_total)
                if health.state is not EngineState.FAILED:
                    await self._lifecycle.enter(ServerState.LOADING)
            if health.state is EngineState.FAILED:
                self._log.error("server.engine_ended", reason=health.last_death)
                await self._lifecycle.enter(ServerState.FAILED)
            elif health.state is EngineState.RUNNING and health.starts_total != self._warmed_start:
                await self._warm_up(health)
            else:
                await asyncio.sleep(self._check_s)

    async def _warm_up(self, health: EngineHealth) -> None:
        """Produce one token, so that READY is a fact and not a hope."""
        try:
            await self._first_token(health.starts_total)
        except EdgephiError as error:
            self._log.error("server.warm_up_failed", exc_info=error)
            if self._warmed_start == 0 or not self._has_died_since(health):
                await self._lifecycle.enter(ServerState.FAILED)
            # Otherwise it died again: its supervisor knows how often is too often.
            return
        if self._warmed_start == 0:
            self._log.info("server.ready", model=self._model)
        else:
            self._log.info("engine.started", starts_total=health.starts_total, model=self._model)
        self._warmed_start = health.starts_total
        await self._lifecycle.enter(ServerState.READY)

    def _has_died_since(self, health: EngineHealth) -> bool:
        return self._health().deaths_total != health.deaths_total

    async def _first_token(self, start: int) -> None:
        loop = asyncio.get_running_loop()
        final: asyncio.Future[Final] = loop.create_future()

        def sink(event: GenerationEvent) -> None:
            if isinstance(event, Final):
                loop.call_soon_threadsafe(functools.partial(_resolve, final, event))

        prompt = await asyncio.to_thread(self._generator.completion_prompt, "1")
        # The seed changes nothing but what the request is taken for: engines that die in their warm-up for want of
        # memory must not have the next one refused as a request that kills.
        sampling = SamplingParams(temperature=0.0, seed=start)
        request = GenerationRequest(request_id="#warm-up", prompt=prompt, max_tokens=1, sampling=sampling)
        self._generator.start(request, sink)
        try:
            end = await final
        finally:
            self._generator.cancel(request.request_id)
        if end.reason is FinishReason.ERROR or end.usage.output_tokens < 1:
            raise EngineFailed(end.error or f"the first answer ended with {end.reason.value} and no token")


def _resolve(future: asyncio.Future[Final], value: Final) -> None:
    if not future.done():
        future.set_result(value)
