"""
Times reads of memory and kinds of steps on a backend, as many and as often as a time budget allows.

Owns which steps are worth timing, in which order and how often. Knows no model file and keeps no result.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgephi.artifact.manifest import Progress
from edgephi.engine.backend import BackendSpec, F32Array, ForwardBatch
from edgephi.engine.request import SamplingParams
from edgephi.engine.sampling import Sampler
from edgephi.profile.calibration import MeasuredStep

DECODE_BATCHES = (1, 2, 4, 3, 8)
CHUNKS = (16, 64, 128, 256)
CHUNKS_BEHIND_CONTEXT = (16, 64)
# Many samples of quick steps do not make a median better than this many.
MAX_SAMPLES = 21
# A kind of step that takes sixteen times as long is timed an eighth as often: decodes are what plans rest on, and a
# long step averages over a longer time by itself.
TURN_EXPONENT = 0.75
# What is not known to be quick is tried only if it should leave this many times its duration for everything else.
SPARE_FACTOR = 2.0

Clock = Callable[[], float]


class TimedBackend(Protocol):
    """What is timed; :class:`edgephi.runtime.tvm_backend.TvmBackend` is one."""

    @property
    def spec(self) -> BackendSpec:
        """Sizes to respect."""
        ...

    def forward(self, batch: ForwardBatch) -> F32Array:
        """Compute logits."""
        ...

    def read_weights(self) -> int:
        """Read all weights once and return how many bytes that was."""
        ...

    def use_threads(self, count: int) -> None:
        """Compute with so many threads from now on."""
        ...

    def fill_pages(self) -> None:
        """Copy page 0 to all others."""
        ...


@dataclass(frozen=True, slots=True)
class StepKind:
    """So many sequences, each with so many new tokens behind so many known ones."""

    sequences: int
    rows: int
    context_tokens: int


@dataclass(slots=True)
class Timings:
    """
    Samples, filled by :func:`time_steps`.

    Attributes:
        steps: Seconds of each kind of step.
        bandwidth: Bytes per second of reading the weights, by number of threads.
        busy_s: Seconds in which all threads were asked to compute.
        cpu_s: CPU seconds the process used in them.
    """

    steps: dict[StepKind, list[float]] = field(default_factory=dict)
    bandwidth: dict[int, list[float]] = field(default_factory=dict)
    busy_s: float = 0.0
    cpu_s: float = 0.0

    def measured_steps(self) -> tuple[MeasuredStep, ...]:
        """Return the median of each kind of step."""
        return tuple(
            MeasuredStep(
                sequences=kind.sequences,
                rows=kind.rows,
                context_tokens=kind.context_tokens,
                seconds=statistics.median(seconds),
                samples=len(seconds),
            )
            for kind, seconds in self.steps.items()
        )

    def bandwidth_table(self) -> tuple[tuple[int, float], ...]:
        """Return the median bytes per second for each number of threads, ascending."""
        return tuple((threads, statistics.median(found)) for threads, found in sorted(self.bandwidth.items()))


def time_steps(
    backend: TimedBackend,
    *,
    threads: int,
    deadline: float,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> Timings:
    """
    Time everything once, the most useful first, then again and again in turns until the deadline.

    A step that is expected to take more than its part of what is left is not timed at all, so a slow board measures
    fewer kinds. Quick steps are timed again more often than long ones, but all are spread over the whole time: a
    machine that slows down for a while slows all of them.

    Args:
        backend: Its pages are overwritten.
        threads: Threads that compute; reading is timed with fewer as well.
        deadline: When to stop, on *clock*. One sample of reading and of the quickest steps is taken even if it is past.
        progress: Called with what is left of the time.
        clock: Seconds.
        cpu_clock: CPU seconds of this process.
    """
    timer = _Timer(backend, threads, clock, cpu_clock)
    timer.warm_up()
    started_at = clock()
    jobs = timer.jobs()
    todo = list(jobs)
    known: list[_Job] = []
    while True:
        now = clock()
        if progress is not None:
            progress("measuring", round(1000 * (now - started_at)), round(1000 * max(deadline - started_at, 1e-3)))
        left = deadline - now
        if todo:
            job = todo.pop(0)
            if not job.is_needed and SPARE_FACTOR * timer.expected_s(job) > left:
                continue
            known.append(job)
        else:
            due = [job for job in known if job.num_samples < MAX_SAMPLES and job.cost_s < left]
            if not due:
                return timer.timings
            job = min(due, key=lambda job: job.turn)
        timer.run(job)


@dataclass(slots=True)
class _Job:
    """
    One thing to time.

    Attributes:
        threads: Threads to read with, or None for a step.
        kind: The step, or None for reading.
        batch: Its arrays.
        is_needed: Whether nothing can be fitted without it.
        turn: Due before all jobs with a higher one.
        cost_s: What its last sample took.
        num_samples: Samples taken.
    """

    threads: int | None = None
    kind: StepKind | None = None
    batch: ForwardBatch | None = None
    is_needed: bool = False
    turn: float = 0.0
    cost_s: float = 0.0
    num_samples: int = 0


class _Timer:
    """Runs jobs and keeps their samples."""

    def __init__(self, backend: TimedBackend, threads: int, clock: Clock, cpu_clock: Clock) -> None:
        self.timings = Timings()
        self._backend = backend
        self._threads = threads
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._weight_bytes = 0
        spec = backend.spec
        self._sampler = Sampler(SamplingParams(temperature=0.0), (), spec.vocab_size)
        self._context = min(spec.max_context_tokens, spec.num_pages * spec.page_size)

    def warm_up(self) -> None:
        """Bring weights and pages into memory and wake the threads; a page that was computed goes to all pages."""
        self._backend.use_threads(self._threads)
        self._backend.forward(make_batch(StepKind(1, 1, 0), self._backend.spec))
        self._backend.fill_pages()
        self._backend.forward(make_batch(StepKind(1, 1, self._context - 1), self._backend.spec))

    def jobs(self) -> list[_Job]:
        """Return what is worth timing on this backend, the most useful first."""
        own, *fewer = [_Job(threads=count, is_needed=count == self._threads) for count in _thread_counts(self._threads)]
        quarter, half = self._context // 4, self._context // 2
        needed = [StepKind(1, 1, 0), StepKind(1, 1, self._context - 1), StepKind(1, CHUNKS[0], 0)]
        kinds = [
            *needed,
            StepKind(1, CHUNKS_BEHIND_CONTEXT[0], half),
            *(StepKind(count, 1, 0) for count in DECODE_BATCHES),
            StepKind(1, 1, half),
            StepKind(1, 1, quarter),
            StepKind(4, 1, quarter - 1),
            *(StepKind(1, count, 0) for count in CHUNKS),
            *(StepKind(1, count, half) for count in CHUNKS_BEHIND_CONTEXT),
        ]
        steps = [
            _Job(kind=kind, batch=make_batch(kind, self._backend.spec), is_needed=kind in needed)
            for kind in dict.fromkeys(kinds)
            if self._fits(kind)
        ]
        return [own, *steps[: len(needed)], *fewer, *steps[len(needed) :]]

    def expected_s(self, job: _Job) -> float:
        """Return about how long a job that was not run yet takes, judged by those that were."""
        if job.kind is None:
            fastest = max(self.timings.bandwidth[self._threads])
            return self._weight_bytes / fastest * self._threads / (job.threads or 1)
        rows = job.kind.sequences * job.kind.rows
        done = [(kind.sequences * kind.rows, samples[-1]) for kind, samples in self.timings.steps.items()]
        nearest, seconds = min(done, key=lambda known: abs(math.log(known[0] / rows)))
        return seconds * max(1.0, rows / nearest)

    def run(self, job: _Job) -> None:
        """Take one sample."""
        started_at = self._clock()
        if job.kind is None:
            assert job.threads is not None
            self._read(job.threads)
        else:
            assert job.batch is not None
            self._step(job.kind, job.batch)
        job.cost_s = max(self._clock() - started_at, 1e-9)
        job.num_samples += 1
        job.turn += job.cost_s**TURN_EXPONENT

    def _read(self, threads: int) -> None:
        if threads != self._threads:
            self._backend.use_threads(threads)
            self._backend.read_weights()  # wakes them
        started_at = self._clock()
        self._weight_bytes = self._backend.read_weights()
        seconds = max(self._clock() - started_at, 1e-9)
        if threads != self._threads:
            self._backend.use_threads(self._threads)
        self.timings.bandwidth.setdefault(threads, []).append(self._weight_bytes / seconds)

    def _step(self, kind: StepKind, batch: ForwardBatch) -> None:
        started_at, cpu_started_at = self._clock(), self._cpu_clock()
        logits = self._backend.forward(batch)
        computed_at, cpu_computed_at = self._clock(), self._cpu_clock()
        for row in logits:  # as the engine draws a token for each sequence
            self._sampler.sample(row)
        self.timings.steps.setdefault(kind, []).append(max(self._clock() - started_at, 1e-9))
        self.timings.busy_s += computed_at - started_at
        self.timings.cpu_s += cpu_computed_at - cpu_started_at

    def _fits(self, kind: StepKind) -> bool:
        spec = self._backend.spec
        end = kind.context_tokens + kind.rows
        pages = kind.sequences * -(-end // spec.page_size)
        is_behind = kind.context_tokens > 0
        return (
            kind.sequences * kind.rows <= spec.max_batch_tokens
            and end <= self._context
            and pages <= spec.num_pages
            and kind.context_tokens >= 0
            and (not is_behind or kind.context_tokens >= spec.page_size)
        )


def make_batch(kind: StepKind, spec: BackendSpec) -> ForwardBatch:
    """Build a step: random tokens, pages of its own for each sequence, logits of each sequence's last row."""
    start, end = kind.context_tokens, kind.context_tokens + kind.rows
    num_pages = -(-end // spec.page_size)
    table = np.arange(kind.sequences * num_pages, dtype=np.int32).reshape(kind.sequences, num_pages)
    positions = np.arange(start, end, dtype=np.int32)
    slots = table[:, positions // spec.page_size] * spec.page_size + positions % spec.page_size
    num_rows = kind.sequences * kind.rows
    return ForwardBatch(
        tokens=np.random.default_rng(0).integers(0, spec.vocab_size, num_rows, dtype=np.int32),
        positions=np.tile(positions, kind.sequences),
        slots=slots.reshape(-1).astype(np.int32),
        row_start=np.arange(0, num_rows + 1, kind.rows, dtype=np.int32),
        block_table=table,
        kv_len=np.full(kind.sequences, end, dtype=np.int32),
        logit_rows=np.arange(kind.rows - 1, num_rows, kind.rows, dtype=np.int32),
    )


def _thread_counts(threads: int) -> list[int]:
    """Return *threads*, 1 and the powers of two between, in this order."""
    between = itertools.takewhile(lambda count: count < threads, (2**power for power in range(1, 16)))
    return list(dict.fromkeys((threads, 1, *between)))
