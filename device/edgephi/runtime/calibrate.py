"""
How fast steps of a model are on this machine: what planning rests on.

Owns the measurement as a whole: loading, the time budget, what is said of the machine's quiet, and the keys under which
a result is kept. What is timed is edgephi.runtime.step_timing's, the file edgephi.profile.calibration's.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from edgephi.artifact.bundle import Bundle
from edgephi.artifact.manifest import Progress
from edgephi.errors import ConfigError, InsufficientMemory
from edgephi.profile.calibration import (
    Calibration,
    Conditions,
    build_key,
    device_key,
)
from edgephi.profile.fit import fit_step_times
from edgephi.profile.machine.kernelfile import read_text
from edgephi.profile.machine.probe import probe
from edgephi.profile.plan import KvDtype
from edgephi.runtime.bundles import ensure_bundle
from edgephi.runtime.model import LoadedModel, RuntimeOptions, kv_bytes_per_token, load_model
from edgephi.runtime.step_timing import Clock, Timings, time_steps

DEFAULT_TIME_BUDGET_S = 20.0
MIN_TIME_BUDGET_S = 1.0
# Of the budget, for measuring, however long loading took.
_MIN_MEASURING_SHARE = 0.25
# Kept free for what runs between two looks at the clock.
_END_SHARE = 0.03
# Pages to measure with: the first of these that memory allows.
_KV_TOKENS = (4096, 2048, 1024, 256)

# Beyond these a result is called noisy.
_MIN_CPU_SHARE = 0.85
_MAX_OTHER_CORES = 0.25
_MAX_BANDWIDTH_SPREAD = 0.15
# The kernel counts in hundredths of a second.
_MIN_COUNTED_S = 0.5

_ROOT = Path("/")


def calibrate_model(
    path: Path,
    runtime: RuntimeOptions,
    *,
    name: str | None = None,
    time_budget_s: float = DEFAULT_TIME_BUDGET_S,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> Calibration:
    """
    Load a model and measure its steps. Nothing is stored or judged.

    Args:
        path: An MLC-LLM folder; compiled first where that was not done, which the budget does not count.
        runtime: How to load it; its ``kv_tokens`` is not used: as many pages are taken as a long context needs, or as
            fit.
        name: The model's name for people; by default its folder's.
        time_budget_s: Seconds in all, loading included. Where loading takes most of it, as from a slow disk, measuring
            still gets a quarter.
        progress: Called while compiling and measuring.
        clock: Seconds.

    Raises:
        ConfigError: If the budget is too small.
        EngineFailed: If a step failed.
        EdgephiError: As ``load_model`` does.
    """
    if not time_budget_s >= MIN_TIME_BUDGET_S:
        raise ConfigError(f"time_budget_s is {time_budget_s:g}; must be at least {MIN_TIME_BUDGET_S:g}")
    ensure_bundle(path, runtime.bundle_options(), progress)
    started_at = clock()
    with _load(path, runtime) as model:
        load_s = clock() - started_at
        return calibrate_loaded(
            model,
            name=path.resolve().name if name is None else name,
            requested_threads=runtime.threads,
            load_s=load_s,
            time_budget_s=max(time_budget_s - load_s, _MIN_MEASURING_SHARE * time_budget_s),
            progress=progress,
            clock=clock,
        )


def calibrate_loaded(
    model: LoadedModel,
    *,
    name: str,
    requested_threads: int | None = None,
    load_s: float = 0.0,
    time_budget_s: float = DEFAULT_TIME_BUDGET_S,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> Calibration:
    """
    Measure the steps of a loaded model that nobody uses meanwhile; its pages are overwritten.

    Args:
        model: A loaded model; the more pages it has, the longer the contexts that are measured.
        name: Its name for people.
        requested_threads: Threads the user asked for, or None where they were chosen.
        load_s: Seconds it took to load, for the record.
        time_budget_s: Seconds to take.
        progress: Called while measuring.
        clock: Seconds.
    """
    facts = probe(_ROOT)
    bundle, backend = model.bundle, model.backend
    started_at = clock()
    others = _OtherWork(_ROOT)
    timings = time_steps(
        backend,
        threads=model.threads,
        deadline=started_at + time_budget_s * (1 - _END_SHARE),
        progress=progress,
        clock=clock,
    )
    bandwidth = timings.bandwidth_table()
    steps = timings.measured_steps()
    times = fit_step_times(
        steps,
        threads=model.threads,
        kv_bytes_per_token=kv_bytes_per_token(bundle),
        window_tokens=model.config.sliding_window,
        bandwidth_bytes_per_s=dict(bandwidth)[model.threads],
    )
    return Calibration(
        device_key=device_key(facts),
        build_key=build_key_of(bundle, model.threads),
        model_key=bundle.model_digest,
        measured_at=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        device=facts.board or facts.cpu.model or facts.cpu.arch,
        model=name,
        quantization=bundle.quantization,
        level=bundle.level,
        kv_dtype=KvDtype(bundle.kv_dtype),
        step_weight_bytes=backend.step_weight_bytes,
        kv_bytes_per_token=kv_bytes_per_token(bundle),
        requested_threads=requested_threads,
        tvm_version=importlib.metadata.version("apache-tvm"),
        edgephi_version=importlib.metadata.version("edgephi"),
        bandwidth=bandwidth,
        steps=steps,
        times=times,
        conditions=judge_conditions(timings, threads=model.threads, other_cores=others.cores()),
        load_s=load_s,
        total_s=load_s + clock() - started_at,
    )


def calibration_dir() -> Path:
    """Return the folder calibrations are kept in, in the user's cache folder. It may not exist yet."""
    return Path(platformdirs.user_cache_dir("edgephi")) / "calibration"


def build_key_of(bundle: Bundle, threads: int) -> str:
    """Return the key of what runs when a bundle is loaded with the packages installed here."""
    return build_key(
        fingerprint=bundle.fingerprint,
        kv_dtype=KvDtype(bundle.kv_dtype),
        threads=threads,
        tvm_version=importlib.metadata.version("apache-tvm"),
        edgephi_version=importlib.metadata.version("edgephi"),
    )


def judge_conditions(timings: Timings, *, threads: int, other_cores: float | None) -> Conditions:
    """
    Say how quiet the machine was while steps were timed.

    Args:
        timings: Of the steps and reads.
        threads: Threads that computed.
        other_cores: Cores that were busy with anything else, or None.
    """
    cpu_share = timings.cpu_s / max(timings.busy_s * threads, 1e-9)
    spread = _middle_half(timings.bandwidth[threads])
    noise = []
    if cpu_share < _MIN_CPU_SHARE:
        noise.append(f"the threads that computed had {100 * cpu_share:.0f} % of the time of their cores")
    if other_cores is not None and other_cores > _MAX_OTHER_CORES:
        noise.append(f"other programs kept {other_cores:.1f} cores busy")
    if spread > _MAX_BANDWIDTH_SPREAD:
        noise.append(f"memory was read at speeds {100 * spread:.0f} % apart")
    return Conditions(cpu_share=cpu_share, other_cores=other_cores, bandwidth_spread=spread, noise=tuple(noise))


class _OtherWork:
    """How many cores are busy with something else than this process, from its making on."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._started = self._read()

    def cores(self) -> float | None:
        """Return the average, or None where the kernel does not tell or the time was too short."""
        now = self._read()
        if now is None or self._started is None:
            return None
        wall_s, busy_s, own_s = (after - before for before, after in zip(self._started, now, strict=True))
        return max(0.0, (busy_s - own_s) / wall_s) if wall_s >= _MIN_COUNTED_S else None

    def _read(self) -> tuple[float, float, float] | None:
        """Seconds of the clock, of all cores' work, and of this process's."""
        busy_s = _busy_s(self._root)
        return None if busy_s is None else (time.monotonic(), busy_s, time.process_time())


def _busy_s(root: Path) -> float | None:
    """
    Return the seconds all cores have been busy since the start, by the first line of /proc/stat.

    Source: Linux, proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal, and guests that user contains.
    """
    name, *ticks = ((read_text(root / "proc/stat") or "").partition("\n")[0].split() or [""])[:9]
    if name != "cpu" or len(ticks) < 7 or not all(tick.isdecimal() for tick in ticks):
        return None
    busy = sum(int(tick) for index, tick in enumerate(ticks) if index not in (3, 4))
    return busy / os.sysconf("SC_CLK_TCK")


def _middle_half(samples: Sequence[float]) -> float:
    """Return how far the quartiles are apart, as a part of the median; 0 for fewer than four samples."""
    if len(samples) < 4:
        return 0.0
    low, median, high = statistics.quantiles(samples, n=4)
    return (high - low) / median


def _load(path: Path, runtime: RuntimeOptions) -> LoadedModel:
    """Load with pages for as long a context as memory allows."""
    for kv_tokens in _KV_TOKENS[:-1]:
        try:
            return load_model(path, dataclasses.replace(runtime, kv_tokens=kv_tokens))
        except InsufficientMemory:
            continue
    return load_model(path, dataclasses.replace(runtime, kv_tokens=_KV_TOKENS[-1]))
