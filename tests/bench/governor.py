"""
The governor at work: an engine with several streams in a control group that is made too small for it for a while.

    python -m tests.bench.governor [--model DIR] [--streams 4] [--quota 25] [--floor-share 0.7] [--interval 30]
    python -m tests.bench.governor --memory [--model DIR] [--streams 4] [--interval 30]

A process of its own serves a model to streams that ask again and again. The first phase measures the speed of a stream;
its --floor-share becomes the floor to hold. Then the group may use --quota percent of the cores that compute, then all
again. With --memory the group gets a limit that leaves 512 MiB free instead, then a neighbour in the group takes all
but 32 MiB of that, and gives it back. Prints the time line, each change with its reason, and how the answers ended;
those that lived through a change are asked for again at the end, alone, and compared. Needs the right to make control
groups (root).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench.control_group import (
    ControlGroup,
    CpuGroup,
    MemoryGroup,
    NoControlGroup,
    cpu_group,
    drop_cached,
    memory_group,
)
from tests.bench.memory_hog import memory_hog

from edgephi.artifact.synth import synthesize

_END_TIMEOUT_S = 120.0
_MIB = 1 << 20
_HEADROOM_BYTES = 512 * _MIB
_LEFT_BYTES = 32 * _MIB
_NO_LIMIT_BYTES = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """
    What is shown.

    Attributes:
        model: A model's folder.
        streams: Streams at once, and the plan's ``max_running``.
        prompt_tokens: Length of a prompt; each is random.
        answer_tokens: Length of an answer.
        floor_share: Part of the first phase's speed that becomes the floor.
        quota: Percent of the computing cores in the second phase.
        is_about_memory: Whether the second phase is short of memory instead of CPU time; there is no floor then.
        phases_s: Longest duration of the three phases.
        min_interval_s: Least time between two changes.
        down_s: How long answers must be slow.
        up_s: How long they must be fast enough.
        sample_s: Time between two samples.
    """

    model: str
    streams: int = 4
    prompt_tokens: int = 24
    answer_tokens: int = 32
    floor_share: float = 0.7
    quota: float = 25.0
    is_about_memory: bool = False
    phases_s: tuple[float, float, float] = (30.0, 150.0, 300.0)
    min_interval_s: float = 30.0
    down_s: float = 5.0
    up_s: float = 30.0
    sample_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """
    One sample of the time line; ``at_s`` counts from the beginning, the change is one made at that moment.

    ``is_short`` says that the group is too small, by quota or by memory.
    """

    at_s: float
    quota: float
    is_short: bool
    speed_level: int
    memory_level: int
    available_mib: int | None
    max_request_tokens: int
    max_running: int
    mixed_chunk_tokens: int
    running: int
    waiting: int
    stream_tokens_per_s: float | None
    change: str | None = None
    missed: str | None = None


@dataclass(slots=True)
class Story:
    """All that happened; ``ends`` counts answers by their reason."""

    floor_tokens_per_s: float | None = None
    moments: list[Moment] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    num_compared: int = 0
    num_different: int = 0

    @property
    def changes(self) -> list[Moment]:
        """Moments of a change."""
        return [moment for moment in self.moments if moment.change is not None]


def main() -> None:
    """Show what the command line says."""
    parser = argparse.ArgumentParser(description="The governor while a CPU quota is cut and restored.")
    parser.add_argument("--model", help="folder of a model; by default a small one with random weights")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--answer-tokens", type=int, default=32)
    parser.add_argument("--quota", type=float, default=25.0, help="percent of the computing cores")
    parser.add_argument("--memory", action="store_true", help="be short of memory instead of CPU time")
    parser.add_argument("--floor-share", type=float, default=0.7, help="floor, as a part of the speed with all cores")
    parser.add_argument(
        "--interval",
        type=float,
        default=30.0,
        help="least seconds between two changes, and of fast answers before a step up",
    )
    parser.add_argument("--phases", type=float, nargs=3, default=(30.0, 150.0, 300.0), help="longest, in seconds")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or str(synthesize("phi3-small", Path(folder) / "phi3-small"))
        scenario = Scenario(
            model=model,
            streams=given.streams,
            prompt_tokens=given.prompt_tokens,
            answer_tokens=given.answer_tokens,
            floor_share=given.floor_share,
            quota=100.0 if given.memory else given.quota,
            is_about_memory=given.memory,
            phases_s=tuple(given.phases),
            min_interval_s=given.interval,
            up_s=given.interval,
        )
        print(
            f"{'s':>6} {'quota':>6} {'MiB left':>8} {'levels':>6} {'most':>4} {'chunk':>5} {'tokens':>6} {'run':>4} "
            f"{'wait':>5} {'tok/s each':>10}"
        )
        try:
            story = show(scenario, tell=_print_moment)
        except NoControlGroup as error:
            sys.exit(str(error))
    floor = "no floor" if story.floor_tokens_per_s is None else f"floor {story.floor_tokens_per_s:.1f} tok/s"
    print(f"\n{floor}; answers by their end: {story.ends}")
    print(f"{story.num_compared} answers that lived through a change asked again alone: {story.num_different} differ")


def show(scenario: Scenario, *, tell: Callable[[Moment], None] = lambda _: None) -> Story:
    """
    Run a scenario; the last phase ends early once the plan is in force again.

    Raises:
        NoControlGroup: If this process may not limit processors.
    """
    story = Story()
    with _group(scenario) as group, _worker(scenario, group) as worker:
        cores = json.loads(_read(worker))["threads"]
        start = time.monotonic()

        def follow(seconds: float, *, is_short: bool = False, until_planned: bool = False) -> list[Moment]:
            """Take the worker's samples for so long, or until the plan is in force."""
            began, seen = time.monotonic(), []
            quota = scenario.quota if is_short else 100.0
            while time.monotonic() - began < seconds:
                at_s = time.monotonic() - start
                moment = Moment(at_s=at_s, quota=quota, is_short=is_short, **json.loads(_read(worker)))
                seen.append(moment)
                story.moments.append(moment)
                tell(moment)
                if until_planned and (moment.speed_level, moment.memory_level) == (0, 0):
                    break
            return seen

        full, short, restored = scenario.phases_s
        before = follow(full)
        if not scenario.is_about_memory:
            speeds = sorted(m.stream_tokens_per_s for m in before[1:] if m.stream_tokens_per_s is not None)
            story.floor_tokens_per_s = speeds[len(speeds) // 2] * scenario.floor_share
            _write(worker, str(story.floor_tokens_per_s))
        with _squeezed(scenario, group, cores):
            follow(short, is_short=True)
        follow(restored, until_planned=True)
        _write(worker, "end")
        for line in iter(worker.stdout.readline, "") if worker.stdout else ():
            last = json.loads(line)
            if "ends" in last:
                story.ends = last["ends"]
                story.num_compared, story.num_different = last["num_compared"], last["num_different"]
        worker.wait(_END_TIMEOUT_S)
    return story


@contextlib.contextmanager
def _group(scenario: Scenario) -> Iterator[CpuGroup | MemoryGroup]:
    """Make the group that is to be too small, with no limit yet that matters."""
    if not scenario.is_about_memory:
        with cpu_group() as of_cpu:
            yield of_cpu
        return
    drop_cached(Path(scenario.model))
    with memory_group(_NO_LIMIT_BYTES) as of_memory:
        yield of_memory


@contextlib.contextmanager
def _squeezed(scenario: Scenario, group: CpuGroup | MemoryGroup, cores: int) -> Iterator[None]:
    """Make a group too small for the block."""
    if isinstance(group, CpuGroup):
        group.limit(cores * scenario.quota / 100)
        yield
        group.limit(None)
        return
    group.limit(group.needed_bytes + _HEADROOM_BYTES)
    with memory_hog(group, _HEADROOM_BYTES - _LEFT_BYTES):
        yield


def _print_moment(moment: Moment) -> None:
    speed = "-" if moment.stream_tokens_per_s is None else f"{moment.stream_tokens_per_s:.1f}"
    note = moment.change or moment.missed or ""
    if note or round(moment.at_s) % 5 == 0:
        print(
            f"{moment.at_s:6.0f} {moment.quota:5.0f}% {_or_dash(moment.available_mib):>8} "
            f"{f'{moment.speed_level}, {moment.memory_level}':>6} {moment.max_running:4} {moment.mixed_chunk_tokens:5} "
            f"{moment.max_request_tokens:6} {moment.running:4} {moment.waiting:5} {speed:>10}  {note}",
            flush=True,
        )


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


@contextlib.contextmanager
def _worker(scenario: Scenario, group: ControlGroup) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-c",
        "from tests.bench.governor_worker import work; work()",
        json.dumps(asdict(scenario)),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            group.add(process.pid)
            _write(process, "go")  # only now, so that all its threads are born in the group
            yield process
        finally:
            process.kill()


def _write(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the worker has ended; its error is above")
    return line


if __name__ == "__main__":
    main()
