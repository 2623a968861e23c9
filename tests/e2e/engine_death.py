"""
Engines that are stopped, and engines that are killed for want of memory, again and again, under a real front.

    python -m tests.e2e.engine_death --stops 200 --ooms 50      # short times of the watch
    python -m tests.e2e.engine_death --stops 20 --shipped       # those that edgephi serve has

Before each death answers are running and requests are waiting. Each must end once, the front must stay, and the next
engine must answer. Prints Markdown; the exit status is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tests.bench.control_group import MemoryGroup, NoControlGroup, memory_group
from tests.e2e.front import MAX_RUNNING, FrontOptions
from tests.e2e.rig import QUICK, Asked, End, Front, FrontLostError, Health, serving
from tests.isolation import engine_program

from edgephi.isolation.remote_loop import RemoteLoop

STEP_S = 0.01
NUM_WAITING = 3
MAX_STATUS_S = 11.0
MAX_RESPAWN_S = 2.0
"""Beyond the time that an engine takes to load."""
MAX_HEALTH_S = 0.25
"""Of 99 checks in 100; the probe shares two busy cores with front, engine and callers."""
GROUP_BYTES = 320 << 20
ENGINE_FAILED = ("UNAVAILABLE", "ENGINE_FAILED")


@dataclass(frozen=True)
class Death:
    """
    One death and what came of it.

    Attributes:
        ends: Of every call that was running or waiting.
        status_s: From the fault until the last of them knew its end.
        respawn_s: From then until the next answer.
    """

    ends: Sequence[End]
    status_s: float
    respawn_s: float


def die(front: Front, name: str, harm: Callable[[], Asked | None]) -> Death:
    """Let answers run and requests wait, do harm, and follow what comes of it."""
    running = [front.ask(f"{name} running {index}", 200) for index in range(MAX_RUNNING - 1)]
    for asked in running:
        assert asked.has_begun.wait(10)
    harmed_at = time.monotonic()
    culprit = harm()
    waiting = [front.ask(f"{name} waiting {index}", 200) for index in range(NUM_WAITING)]
    ends = [asked.end() for asked in (*running, *waiting, *([culprit] if culprit is not None else []))]
    return Death(ends, max(end.at for end in ends) - harmed_at, front.recover(f"{name} and on"))


def stop_engine(front: Front, name: str) -> Death:
    """Stop the engine's process, as SIGSTOP does: no thread of it runs any more."""

    def harm() -> None:
        os.kill(front.engine_pid, signal.SIGSTOP)

    return die(front, name, harm)


def eat_memory(front: Front, name: str) -> Death:
    """Let the engine take memory without end."""
    return die(front, name, lambda: front.ask(f"EAT 2 {name}"))


@contextlib.contextmanager
def confined(options: FrontOptions) -> Iterator[tuple[Front, MemoryGroup]]:
    """
    Run a front in a control group whose memory its engine can fill.

    Raises:
        NoControlGroup: If there is none here.
    """
    with memory_group(GROUP_BYTES) as group, serving(options, group) as front:
        yield front, group


def run_out_of_memory(options: FrontOptions, count: int) -> tuple[list[Death], Health, int]:
    """
    Let so many engines take all memory; return their deaths, the health meanwhile, and how many fronts went with one.

    Raises:
        NoControlGroup: If there is no group here to confine them.
    """
    deaths: list[Death] = []
    all_health, num_lost = Health(), 0
    while len(deaths) + num_lost < count:
        with confined(options) as (front, group), front.probed() as health:
            try:
                for index in range(count - len(deaths) - num_lost):
                    deaths.append(eat_memory(front, f"memory {index}"))
                    assert group.num_oom_kills == front.num_deaths == index + 1
            except FrontLostError:
                num_lost += 1
                health.failures.clear()  # of a front that is counted already
        all_health.durations += health.durations
        all_health.failures += health.failures
    return deaths, all_health, num_lost


def loading_s() -> float:
    """Return how long an engine process takes to load, the median of some."""
    times = []
    for _ in range(5):
        began_at = time.monotonic()
        command = (sys.executable, str(Path(engine_program.__file__)))
        with RemoteLoop(command, msgspec.msgpack.encode(engine_program.Options())) as loop:
            loop.wait_loaded()
            times.append(time.monotonic() - began_at)
    return statistics.median(times)


def report(what: str, deaths: Sequence[Death], health: Health, *, load_s: float, num_lost: int) -> list[str]:
    """Print a line of the table; return the goals that were missed."""
    status_s = [death.status_s for death in deaths]
    respawn_s = [death.respawn_s for death in deaths]
    print(
        f"| {what} | {len(deaths) + num_lost} | {num_lost} | {sum(len(death.ends) for death in deaths)} "
        f"| {statistics.median(status_s):.2f} / {max(status_s):.2f} "
        f"| {statistics.median(respawn_s):.2f} / {max(respawn_s):.2f} | {load_s:.2f} "
        f"| {len(health.durations)} | {len(health.failures)} | {1e3 * health.p99_s:.1f} / "
        f"{1e3 * max(health.durations):.1f} |",
        flush=True,
    )
    missed = []
    odd = {(end.code, end.reason) for death in deaths for end in death.ends if end.code != "UNAVAILABLE"}
    if odd:
        missed.append(f"{what}: calls ended with {odd}")
    if num_lost:
        missed.append(f"{what}: {num_lost} times the front ended with its engine")
    if max(status_s) > MAX_STATUS_S:
        missed.append(f"{what}: a call waited for {max(status_s):.1f} s")
    if max(respawn_s) > load_s + MAX_RESPAWN_S:
        missed.append(f"{what}: no answer for {max(respawn_s):.1f} s after a death")
    if health.failures or health.p99_s > MAX_HEALTH_S:
        missed.append(f"{what}: health p99 {health.p99_s:.3f} s, failures {health.failures[:3]}")
    return missed


HEAD = """\
| engine | deaths | front lost | calls ended | s until all ended p50 / max | s until next answer p50 / max \
| s to load | health checks | failed | ms p99 / max |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Let engines die, and print what came of it."""
    parser = argparse.ArgumentParser(prog="tests.e2e.engine_death", description=__doc__.strip().splitlines()[0])
    parser.add_argument("--stops", type=int, default=200, help="engines to stop")
    parser.add_argument("--ooms", type=int, default=50, help="engines to run out of memory (root, control groups)")
    parser.add_argument("--shipped", action="store_true", help="watch as edgephi serve does, which takes longer")
    arguments = parser.parse_args()
    often = {"max_deaths": 10_000, "deaths_within_s": 0.1}
    options = FrontOptions(liveness=often if arguments.shipped else QUICK, step_delay_s=STEP_S)
    load_s, missed = loading_s(), []
    print(HEAD)
    if arguments.stops:
        with serving(options) as front, front.probed() as health:
            deaths = [stop_engine(front, f"stop {index}") for index in range(arguments.stops)]
            counted = front.num_deaths
        missed += report("stopped", deaths, health, load_s=load_s, num_lost=0)
        missed += [] if counted == len(deaths) else [f"{counted} deaths of the engine"]
    if arguments.ooms:
        try:
            deaths, health, num_lost = run_out_of_memory(options, arguments.ooms)
            missed += report("out of memory", deaths, health, load_s=load_s, num_lost=num_lost)
        except NoControlGroup as reason:
            print(f"\nout of memory: skipped, {reason}")
    print("\n" + ("\n".join(f"missed: {text}" for text in missed) or "all goals met"))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
