"""
What a server process and its engine hold while they are asked, and whether it grows.

Two judgements. At rest, that is with every connection closed: descriptors, threads and tasks must be back at what they
were at rest after the warm-up, and objects nearly so. Under load: memory is fitted against the number of calls, by the
median of slopes (Theil-Sen) between the least values of windows of the second half, which neither a peak nor the growth
of a warm-up tilts. It grows if both the slope and the sum over the second half are beyond their limits, for within a
few megabytes memory goes up and down by itself.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgephi.cli.processes import descendants

MAX_BYTES_PER_CALL = 64
"""1 MB an hour is so much at 4.3 calls a second, which is more than a robot asks."""
NOISE_BYTES = 4 << 20
MAX_OBJECTS_PER_CALL = 0.01
NUM_WINDOWS = 10
GAUGES = (
    "soak_tasks",
    "edgephi_server_answers",
    "edgephi_requests_running",
    "edgephi_requests_waiting",
    "edgephi_kv_cache_usage_ratio",
)
_PROBE_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a process holds; descriptors are None where the system does not tell."""

    rss_bytes: int
    threads: int
    descriptors: int | None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Both processes after so many calls."""

    num_calls: int
    front: Held
    engine: Held


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Both processes and the gauges when nobody asks; codes are ended calls by status."""

    front: Held
    engine: Held
    gauges: dict[str, float]
    objects: float
    num_started: float
    codes: dict[str, float]
    deaths: float

    def leftovers(self, before: Rest) -> dict[str, float]:
        """What there is more of than there was before."""
        grown: dict[str, float] = {}
        for name in ("front", "engine"):
            now, then = getattr(self, name), getattr(before, name)
            grown[f"threads of the {name}"] = now.threads - then.threads
            grown[f"descriptors of the {name}"] = (now.descriptors or 0) - (then.descriptors or 0)
        grown["tasks"] = self.gauges["soak_tasks"] - before.gauges["soak_tasks"]
        grown |= {name: self.gauges[name] for name in GAUGES[1:]}
        grown["calls that have not ended"] = self.num_started - sum(self.codes.values())
        return grown


class Watch:
    """Looks at a server process and its engine, found as its only child."""

    def __init__(self, pid: int, metrics_port: int) -> None:
        self._pid = pid
        (self._engine_pid,) = descendants(pid)
        self._url = f"http://127.0.0.1:{metrics_port}/metrics"
        self.samples: list[Sample] = []

    async def sample(self, num_calls: Callable[[], int]) -> None:
        """Take samples until cancelled."""
        while True:
            front, engine = _held(self._pid), _held(self._engine_pid)
            self.samples.append(Sample(num_calls=num_calls(), front=front, engine=engine))
            await asyncio.sleep(_PROBE_S)

    async def rest(self, before: Rest | None, timeout_s: float) -> Rest:
        """Wait until no more is left than *before*, or nothing changes where that is None; at most so long."""
        deadline = time.monotonic() + timeout_s
        last: Rest | None = None
        while True:
            gc.collect()  # a cancelled call of our own keeps its closed connection open until then
            now = await asyncio.to_thread(self._rest)
            if before is not None:
                is_over = all(value <= 0 for value in now.leftovers(before).values())
            else:
                is_over = last is not None and not any(now.leftovers(last).values())
            if is_over or time.monotonic() > deadline:
                return now
            last = now
            await asyncio.sleep(1.0)

    def _rest(self) -> Rest:
        page = urllib.request.urlopen(self._url, timeout=30).read().decode()
        values: dict[str, float] = {}
        codes: dict[str, float] = {}
        for line in page.splitlines():
            if line.startswith("#"):
                continue
            series, _, value = line.rpartition(" ")
            name = series.partition("{")[0]
            values[name] = values.get(name, 0.0) + float(value)
            if name == "grpc_server_handled_total":
                code = series.partition('grpc_code="')[2].partition('"')[0]
                codes[code] = codes.get(code, 0.0) + float(value)
        return Rest(
            front=_held(self._pid),
            engine=_held(self._engine_pid),
            gauges={name: values[name] for name in GAUGES},
            objects=values["soak_objects"],
            num_started=values["grpc_server_started_total"],
            codes=codes,
            deaths=values["edgephi_engine_deaths_total"],
        )


@dataclass(frozen=True)
class Growth:
    """Memory of a process in the second half of a run, by the fit."""

    bytes_per_call: float
    total_bytes: float

    @property
    def is_leak(self) -> bool:
        """Whether it is beyond both limits."""
        return self.bytes_per_call > MAX_BYTES_PER_CALL and self.total_bytes > NOISE_BYTES


def growth(points: Sequence[tuple[int, int]]) -> Growth:
    """Fit (calls, bytes), in the order they were taken."""
    half = [(calls, size) for calls, size in points if calls >= points[-1][0] / 2]
    first, last = half[0][0], half[-1][0]
    least: dict[int, tuple[int, int]] = {}
    for calls, size in half:
        window = min(NUM_WINDOWS - 1, NUM_WINDOWS * (calls - first) // max(1, last - first))
        if window not in least or size < least[window][1]:
            least[window] = (calls, size)
    pairs = itertools.combinations(sorted(least.values()), 2)
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if b[0] > a[0]]
    slope = statistics.median(slopes) if slopes else 0.0
    return Growth(slope, slope * (last - first))


def judge(before: Rest, after: Rest, samples: Sequence[Sample], num_calls: int) -> list[str]:
    """Return what has grown, or was left, in words."""
    found = [f"{value:g} {name} left over" for name, value in after.leftovers(before).items() if value > 0]
    objects = after.objects - before.objects
    if objects > max(500, MAX_OBJECTS_PER_CALL * num_calls):
        found.append(f"{objects:.0f} more objects after {num_calls} calls")
    for name in ("front", "engine"):
        grown = growth([(sample.num_calls, getattr(sample, name).rss_bytes) for sample in samples])
        if grown.is_leak:
            found.append(
                f"memory of the {name} grows by {grown.bytes_per_call:.0f} bytes a call, "
                f"{grown.total_bytes / 1e6:.1f} MB in the second half"
            )
    odd = {code: count for code, count in after.codes.items() if code in ("INTERNAL", "UNKNOWN", "DATA_LOSS")}
    found += [f"the server ended {count:.0f} calls with {code}" for code, count in odd.items()]
    if after.deaths:
        found.append(f"the engine died {after.deaths:.0f} times")
    return found


def _held(pid: int) -> Held:
    folder = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text(errors="replace").splitlines())
    try:
        descriptors = sum(1 for _ in (folder / "fd").iterdir())
    except PermissionError:  # the engine lets nobody but root look into it
        descriptors = None
    rss_bytes = int(status["VmRSS"].split()[0]) << 10
    return Held(rss_bytes=rss_bytes, threads=int(status["Threads"]), descriptors=descriptors)
