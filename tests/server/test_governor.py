"""GovernorTask over a real engine loop: what it makes of measurements and sensors, applies, logs and remembers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog

from edgephi.engine.backend import F32Array, ForwardBatch
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.limits import EngineLimits
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import EngineEvent, EngineRequest, Finished, FinishReason, RequestId, SamplingParams
from edgephi.profile.governor import Governor, GovernorPolicy, Level, policy_for
from edgephi.profile.machine.pressure import CgroupUse, Pressure
from edgephi.profile.machine.probe import LiveFacts
from edgephi.profile.machine.thermal import ThermalZone, TripPoint
from edgephi.profile.machine.throttle import FrequencyPolicy, ThrottleFacts
from edgephi.profile.plan import Plan
from edgephi.runtime.fake import FakeBackend
from edgephi.server.governor import GovernorTask, make_sample

MIB = 1 << 20
_PATIENCE_S = 20.0
PLAN = Plan(
    context_tokens=512,
    max_running=2,
    prefill_chunk_tokens=64,
    mixed_chunk_tokens=16,
    default_max_tokens=64,
    page_tokens=16,
    num_pages=64,
    floor_tokens_per_s=12.0,
)
QUIET = LiveFacts(resident_bytes=None, available_bytes=8192 * MIB, zones=())


class Rig:
    """An engine whose forwards take as long as a test says, by a clock that only they and the test move."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.step_s = 0.05
        self.live = QUIET
        self.log: list[MutableMapping[str, Any]] = []
        rig = self

        class TimedBackend(FakeBackend):
            def forward(self, batch: ForwardBatch) -> F32Array:
                rig.now += rig.step_s
                return super().forward(batch)

        self.backend = TimedBackend(vocab_size=50, num_pages=64, max_context_tokens=512)
        self.engine = Engine(self.backend, EngineConfig(max_running=2), clock=lambda: self.now)
        self.loop = EngineLoop(self.engine)
        self._num_answers = 0

    def task(self, policy: GovernorPolicy | None = None) -> GovernorTask:
        """Return a task over this engine; its log goes to ``log``."""

        def keep(_logger: object, level: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
            self.log.append({**line, "level": level})
            raise structlog.DropEvent

        return GovernorTask(
            Governor(PLAN, policy),
            self.loop,
            probe_live=lambda: self.live,
            clock=lambda: self.now,
            log=structlog.wrap_logger(structlog.PrintLogger(), processors=[keep]),
        )

    def answer(self, num_tokens: int) -> Finished:
        """Let the engine give one answer of so many tokens, to its end."""
        self._num_answers += 1
        ended = threading.Event()
        ends: list[Finished] = []

        def sink(event: EngineEvent) -> None:
            if isinstance(event, Finished):
                ends.append(event)
                ended.set()

        request = EngineRequest(
            request_id=RequestId(f"r{self._num_answers}"),
            prompt=(1, 2, 3),
            max_tokens=num_tokens,
            sampling=SamplingParams(temperature=0.0),
        )
        self.loop.submit(request, sink)
        assert ended.wait(_PATIENCE_S)
        return ends[0]


@pytest.fixture
def rig() -> Iterator[Rig]:
    """An engine with two places, idle."""
    made = Rig()
    with contextlib.closing(made.loop):
        yield made


async def test_slow_answers_lower_the_limits_and_fast_ones_raise_them(rig: Rig) -> None:
    """Below the floor the engine gets the next level's limits, above it the plan's again; both are logged."""
    task = rig.task()
    rig.step_s = 0.125
    while task.state.level == Level():
        assert rig.answer(9).reason is FinishReason.LENGTH
        await task.tick()
    lowered = rig.loop.limits
    assert (lowered.max_running, lowered.mixed_chunk_tokens, lowered.keeps_cached_pages) == (1, 4, True)
    assert lowered.reason == "to keep the speed of running answers"
    assert task.state.limits.max_running == 1
    assert task.state.stream_tokens_per_s == pytest.approx(8.0)
    rig.step_s = 0.025
    while task.state.level != Level():
        assert rig.answer(41).reason is FinishReason.LENGTH
        await task.tick()
    assert rig.loop.limits == rig.loop.max_limits
    levels = [(line["event"], line["level"], line["speed_level"], line["max_running"]) for line in rig.log]
    assert levels[0] == ("governor.changed", "warning", 3, 1)
    assert levels[-1] == ("governor.changed", "info", 0, 2)
    assert rig.log[0]["reason"] == "answers are too slow: 8.0 tok/s each of 1, floor 12"
    assert [event.reason for event in task.state.events] == [line["reason"] for line in rig.log]


async def test_a_floor_that_cannot_be_held_is_logged_once(rig: Rig) -> None:
    """At the lowest level the miss becomes one warning and one event, and the state says that it lasts."""
    task = rig.task()
    rig.step_s = 0.25
    for _ in range(60):
        rig.answer(9)
        await task.tick()
    missed = [line for line in rig.log if line["event"] == "governor.floor_missed"]
    assert [(line["level"], line["reason"]) for line in missed] == [
        ("warning", "floor cannot be held: 4.0 of 12 tok/s")
    ]
    assert task.state.is_floor_missed
    assert task.state.events[-1].reason == missed[0]["reason"]


async def test_short_memory_drops_cached_pages(rig: Rig) -> None:
    """When memory runs short, the engine's idle prefixes are gone before the next answer."""
    task = rig.task()
    rig.answer(40)
    assert rig.loop.stats().pages_cached > 0
    rig.live = dataclasses.replace(QUIET, available_bytes=10 * MIB)
    await task.tick()
    assert task.state.level == Level(0, 1)
    rig.answer(2)
    assert rig.loop.stats().pages_cached == 0
    assert rig.loop.limits.reason == "because memory is short"


async def test_an_idle_engine_is_left_alone(rig: Rig) -> None:
    """Without an answer there is no speed, and nothing changes."""
    task = rig.task()
    for _ in range(50):
        rig.now += 1.0
        await task.tick()
    assert task.state.stream_tokens_per_s is None
    assert task.state.events == ()
    assert rig.log == []


async def test_limits_stay_within_what_the_engine_was_made_for(rig: Rig) -> None:
    """A plan that allows more than the engine was configured for gets what the engine can."""
    plan = dataclasses.replace(
        PLAN, context_tokens=4096, prefill_chunk_tokens=256, mixed_chunk_tokens=128, max_running=8
    )
    governor = Governor(plan, policy_for(plan))
    task = GovernorTask(governor, rig.loop, probe_live=lambda: rig.live, clock=lambda: rig.now)
    rig.live = dataclasses.replace(QUIET, available_bytes=10 * MIB)
    await task.tick()
    most = rig.loop.max_limits
    assert rig.loop.limits == dataclasses.replace(most, keeps_cached_pages=False, reason="because memory is short")


async def test_a_failure_is_logged_and_the_next_sample_taken(rig: Rig) -> None:
    """A sensor that raises does not end the task."""
    calls = 0
    enough = asyncio.Event()
    here = asyncio.get_running_loop()

    def probe() -> LiveFacts:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a bug in a sensor")
        here.call_soon_threadsafe(enough.set)
        return QUIET

    lines: list[str] = []

    def keep(_logger: object, _level: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        lines.append(line["event"])
        raise structlog.DropEvent

    log = structlog.wrap_logger(structlog.PrintLogger(), processors=[keep])
    task = GovernorTask(Governor(PLAN), rig.loop, probe_live=probe, interval_s=0.001, log=log)
    running = asyncio.create_task(task.run())
    async with asyncio.timeout(_PATIENCE_S):
        await enough.wait()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert lines == ["governor.failed"]


def test_a_sample_takes_what_matters_from_the_sensors(rig: Rig) -> None:
    """The zone nearest to slowing cores down, the fastest computing core, the tighter memory and all counters."""
    live = LiveFacts(
        resident_bytes=1,
        available_bytes=500 * MIB,
        zones=(
            ThermalZone("battery", 99.0),
            ThermalZone("gpu", 70.0, (TripPoint("passive", 95.0), TripPoint("critical", 71.0))),
            ThermalZone("cpu", 60.0, (TripPoint("passive", 80.0), TripPoint("critical", 110.0))),
        ),
        pressure=Pressure(some_avg10=3.5, full_avg10=1.0, is_own=True),
        cgroup=CgroupUse(memory_left_bytes=300 * MIB, high_events=1, max_events=2, oom_kill_events=3),
        frequencies=(
            FrequencyPolicy((0, 1), 600, 1800, 1800),
            FrequencyPolicy((2, 3), 1200, 2400, 2400),
            FrequencyPolicy((4,), 3000, 3000, 3000),
        ),
        throttle=ThrottleFacts(is_throttled=False, is_under_voltage=True),
    )
    stats = rig.loop.stats()
    later = dataclasses.replace(
        stats,
        running=2,
        waiting=1,
        tokens_prefilled_total=stats.tokens_prefilled_total + 7,
        decode_tokens_total=stats.decode_tokens_total + 30,
        decode_stream_s_total=stats.decode_stream_s_total + 2.0,
    )
    sample = make_sample(5.0, stats, later, live, cpus=(1, 2))
    assert (sample.stream_tokens_per_s, sample.num_running, sample.num_waiting) == (15.0, 2, 1)
    assert (sample.prefilled_tokens, sample.temperature_c, sample.trip_c) == (7, 60.0, 80.0)
    assert (sample.frequency_ratio, sample.is_throttled) == (0.5, True)
    assert (sample.memory_available_bytes, sample.memory_pressure_avg10) == (300 * MIB, 3.5)
    assert (sample.memory_high_events, sample.memory_max_events, sample.oom_kill_events) == (1, 2, 3)
    quiet = make_sample(6.0, later, later, QUIET)
    assert (quiet.stream_tokens_per_s, quiet.is_throttled, quiet.frequency_ratio) == (None, None, None)


def test_every_limit_of_the_engine_has_a_step() -> None:
    """The engine's limits and the governor's have the same fields, so that none is forgotten when they are applied."""
    from edgephi.profile.ladders import ServingLimits

    assert [f.name for f in dataclasses.fields(EngineLimits)] == [f.name for f in dataclasses.fields(ServingLimits)]
