"""
DeviceService: one handler per method.

Owns the rate of the live state. Reads the machine in a thread, because a sensor may be slow to answer.
"""

# ruff: noqa: N802, ARG002 - names and arguments of the handlers are the contract's
from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from edgephi.engine.stats import EngineStats
from edgephi.errors import Draining, InvalidRequest
from edgephi.profile.machine.probe import DeviceFacts, LiveFacts
from edgephi.profile.plan import Plan
from edgephi.server import describe
from edgephi.server.calls import Context
from edgephi.server.governor import GovernorTask
from edgephi.server.lifecycle import Lifecycle, ServerState
from edgephi.server.limits import violations
from edgephi.server.verification import VerificationTask
from edgephi.v1 import device_service_pb2 as pb2
from edgephi.v1.device_service_pb2_grpc import DeviceServiceServicer

DEFAULT_INTERVAL_S = 1.0


class DeviceHandler(DeviceServiceServicer):
    """
    Describes the machine. Lives as long as its server.

    Args:
        facts: The machine, as it was probed at the start.
        plan: The plan in force.
        stats: The engine's gauges; quick.
        probe_live: Reads temperatures and memory; may take a moment.
        lifecycle: Says what the server is doing.
        governor: Limits what is taken on, or None where nothing does.
        verification: Holds the plan's predictions against measurements, or None where nothing does.
        server_version: Version of this package.
    """

    def __init__(
        self,
        facts: DeviceFacts,
        plan: Plan,
        stats: Callable[[], EngineStats],
        probe_live: Callable[[], LiveFacts],
        lifecycle: Lifecycle,
        *,
        governor: GovernorTask | None,
        verification: VerificationTask | None,
        server_version: str,
    ) -> None:
        self._facts = facts
        self._plan = plan
        self._stats = stats
        self._probe_live = probe_live
        self._lifecycle = lifecycle
        self._governor = governor
        self._verification = verification
        self._server_version = server_version

    async def GetDevice(self, request: pb2.GetDeviceRequest, context: Context) -> pb2.GetDeviceResponse:
        """Describe the machine."""
        device = describe.device_message(self._facts, server_version=self._server_version)
        return pb2.GetDeviceResponse(device=device)

    async def GetPlan(self, request: pb2.GetPlanRequest, context: Context) -> pb2.GetPlanResponse:
        """Describe the plan in force."""
        return pb2.GetPlanResponse(plan=describe.plan_message(self._plan))

    async def WatchState(
        self, request: pb2.WatchStateRequest, context: Context
    ) -> AsyncIterator[pb2.WatchStateResponse]:
        """Report the live state at once and then once per interval."""
        interval_s = _interval_s(request)
        last: tuple[float, int] | None = None
        while not self._lifecycle.draining.is_set():
            live = await asyncio.to_thread(self._probe_live)
            stats, now = self._stats(), time.monotonic()
            rate = None if last is None else (stats.tokens_generated_total - last[1]) / (now - last[0])
            last = (now, stats.tokens_generated_total)
            is_ready = self._lifecycle.state is ServerState.READY
            state = describe.state_message(stats, live, output_tokens_per_s=rate, is_ready=is_ready)
            if self._governor is not None:
                describe.add_governor(state, self._governor.state, now=self._governor.now)
            if self._verification is not None:
                state.verification.CopyFrom(describe.verification_message(self._verification.finding))
            yield pb2.WatchStateResponse(state=state)
            await self._lifecycle.wait_draining(interval_s)
        raise Draining("the server is shutting down; watch another one, or this one again when it is back")


def _interval_s(request: pb2.WatchStateRequest) -> float:
    found = violations(request)
    if found:
        raise InvalidRequest(*found)
    if not request.HasField("interval"):
        return DEFAULT_INTERVAL_S
    return request.interval.seconds + request.interval.nanos / 1e9
