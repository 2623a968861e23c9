"""When the watchdog's sign of life is given, and when it is not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator

import pytest

from edgephi.cli import watchdog as module
from edgephi.cli.sd_notify import Notifier
from edgephi.cli.watchdog import MAX_STALL_S, Watchdog
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.health import EngineHealth, EngineState
from edgephi.engine.stats import EngineStats
from edgephi.runtime.fake import FakeBackend

IDLE = Engine(FakeBackend(num_pages=2), EngineConfig()).stats()
BUSY = dataclasses.replace(IDLE, running=1)


class Told(Notifier):
    """Keeps what is told instead of sending it."""

    def __init__(self, watchdog_s: float | None) -> None:
        super().__init__("/dev/null", watchdog_s)
        self.fields: list[dict[str, str | int]] = []

    def tell(self, **fields: str | int) -> None:
        """Keep the fields."""
        self.fields.append(fields)


class Watched:
    """An engine as a test wants it to look."""

    def __init__(self, stats: EngineStats = IDLE, state: EngineState = EngineState.RUNNING) -> None:
        self.last_step_at = 0.0
        self.load = stats
        self.state = state

    def stats(self) -> EngineStats:
        """What the test set."""
        return self.load

    def health(self) -> EngineHealth:
        """What the test set."""
        return EngineHealth(state=self.state)


@pytest.mark.parametrize(
    ("stats", "state", "steps", "expected"),
    [
        (IDLE, EngineState.RUNNING, False, True),
        (BUSY, EngineState.RUNNING, True, True),
        (BUSY, EngineState.RUNNING, False, False),
        (dataclasses.replace(IDLE, waiting=1), EngineState.RUNNING, False, False),
        (BUSY, EngineState.STARTING, False, True),
        (IDLE, EngineState.FAILED, True, False),
    ],
)
def test_progress(stats: EngineStats, state: EngineState, steps: bool, expected: bool) -> None:
    """An engine is alive while it is idle, loading, or completes steps; work without a step is a stall."""
    now = 0.0
    engine = Watched(stats, state)
    watchdog = Watchdog(Told(1), engine, clock=lambda: now)
    watchdog.makes_progress()
    for _ in range(30):
        now += MAX_STALL_S / 20
        engine.last_step_at += steps
        last = watchdog.makes_progress()
    assert last is expected


def test_idle_time_is_no_stall() -> None:
    """A request after a long pause has the whole time for its first step, and one step ends a stall."""
    now = 0.0
    engine = Watched()
    watchdog = Watchdog(Told(1), engine, clock=lambda: now)
    assert watchdog.makes_progress()
    now += 3600
    assert watchdog.makes_progress()
    engine.load = BUSY
    now += MAX_STALL_S - 1
    assert watchdog.makes_progress()
    now += 2
    assert not watchdog.makes_progress()
    engine.last_step_at = 1.0
    assert watchdog.makes_progress()


@contextlib.asynccontextmanager
async def running(watchdog: Watchdog) -> AsyncIterator[None]:
    """Run a watchdog within the block."""
    task = asyncio.create_task(watchdog.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_signs_of_life_come_twice_in_an_interval() -> None:
    """A live server tells WATCHDOG=1 again and again; a stuck engine ends it."""
    notifier, engine = Told(0.08), Watched()
    async with running(Watchdog(notifier, engine, max_stall_s=0.05)):
        async with asyncio.timeout(10):
            while len(notifier.fields) < 4:
                await asyncio.sleep(0.01)
        engine.load = BUSY  # and no step any more
        await asyncio.sleep(0.3)
        count = len(notifier.fields)
        await asyncio.sleep(0.3)
        assert len(notifier.fields) == count
    assert all(fields == {"WATCHDOG": 1} for fields in notifier.fields)


async def test_a_late_event_loop_gives_no_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """While callbacks keep the loop busy beyond the limit nothing is told; when it is on time again, it is."""
    monkeypatch.setattr(module, "MAX_LAG_S", 0.1)
    notifier, engine = Told(0.08), Watched()
    async with running(Watchdog(notifier, engine)):
        await asyncio.sleep(0)
        for _ in range(3):
            time.sleep(0.3)
            await asyncio.sleep(0)
        assert notifier.fields == []
        async with asyncio.timeout(10):
            while not notifier.fields:
                await asyncio.sleep(0.01)


async def test_without_an_interval_nothing_runs() -> None:
    """A manager without a watchdog is told nothing."""
    notifier = Told(None)
    await asyncio.wait_for(Watchdog(notifier, Watched()).run(), 5)
    assert notifier.fields == []
