"""
How speed grows with the number of threads, and what is left of it while other programs use the cores.

    python -m tests.bench.threads --model DIR [--threads 1 2] [--spin 1000] [--busy 0 1]

Each setting has a process of its own with the model loaded once; they take turns, so that all see the same minutes.
Beside the computing thread each has one that wants to wake every 5 ms, as the network front does; how late it wakes is
measured. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgephi.engine.backend import ForwardBatch
from edgephi.runtime import RuntimeOptions, load_model

DECODE_TOKENS = 8
PREFILL_TOKENS = 64
FRONT_PERIOD_S = 0.005
KV_TOKENS = 512
_SPIN_ENV = "TVM_THREAD_POOL_SPIN_COUNT"
_PAUSE_S = 0.15  # longer than workers spin after a step, so that one setting does not slow the next


@dataclass(frozen=True, slots=True)
class Sample:
    """
    One turn of a setting.

    Attributes:
        decode_ms: Median of the time of a decode step.
        worst_ms: Longest decode step.
        prefill_ms: Time of one chunk of 64 prompt tokens.
        late_ms: How late the front's thread woke, 95th percentile.
    """

    decode_ms: float
    worst_ms: float
    prefill_ms: float
    late_ms: float


def main() -> None:
    """Measure as the command line says and print the table."""
    parser = argparse.ArgumentParser(description="Speed by threads, on an idle and on a busy machine.")
    parser.add_argument("--model", type=Path, required=True, help="folder of a model")
    parser.add_argument("--threads", type=int, nargs="+", default=range(1, len(os.sched_getaffinity(0)) + 1))
    parser.add_argument("--spin", type=int, nargs="+", default=[1000], help="yields before a worker sleeps")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1], help="other programs that use a core each")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    settings = list(itertools.product(arguments.threads, arguments.spin))
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker(arguments.model, *setting)) for setting in settings]
        print("| other programs | threads | spin | decode tok/s | worst step ms | prefill tok/s | front late ms |")
        print("|---|---|---|---|---|---|---|")
        for busy in arguments.busy:
            turns: list[list[Sample]] = [[] for _ in settings]
            with _busy_programs(busy):
                for _ in range(arguments.rounds):
                    for worker, samples in zip(workers, turns, strict=True):
                        samples.append(_ask(worker))
                        time.sleep(_PAUSE_S)
            for (threads, spin), samples in zip(settings, turns, strict=True):
                print(f"| {busy} | {threads} | {spin} | {_row(samples)} |", flush=True)


def _row(samples: list[Sample]) -> str:
    decode = statistics.median(1000 / sample.decode_ms for sample in samples)
    prefill = statistics.median(1000 * PREFILL_TOKENS / sample.prefill_ms for sample in samples)
    worst = max(sample.worst_ms for sample in samples)
    late = statistics.median(sample.late_ms for sample in samples)
    return f"{decode:.1f} | {worst:.0f} | {prefill:.0f} | {late:.1f}"


@contextmanager
def _worker(model: Path, threads: int, spin: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", "from tests.bench.threads import serve; serve()", str(model), str(threads)]
    environment = os.environ | {_SPIN_ENV: str(spin)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        _ask(process)  # loads, and touches all memory once
        yield process
        process.kill()


@contextmanager
def _busy_programs(count: int) -> Iterator[None]:
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def _ask(worker: subprocess.Popen[str]) -> Sample:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return Sample(**json.loads(worker.stdout.readline()))


def serve() -> None:
    """Load the model and take a sample for each line of standard input; what a worker process runs."""
    path, threads = sys.argv[1:]
    with load_model(path, RuntimeOptions(threads=int(threads), kv_tokens=KV_TOKENS)) as model:
        page_size = model.backend.spec.page_size

        def step(start: int, rows: int) -> float:
            batch = _batch(start, rows, page_size)
            began = time.perf_counter()
            model.backend.forward(batch)
            return (time.perf_counter() - began) * 1000

        for _ in sys.stdin:
            with _front() as late:
                step(0, 1)  # wakes the workers
                decode = [step(position, 1) for position in range(DECODE_TOKENS)]
                prefill = step(0, PREFILL_TOKENS)
            percentile = statistics.quantiles(late, n=20)[-1] if len(late) > 1 else 0.0
            sample = Sample(statistics.median(decode), max(decode), prefill, percentile)
            print(json.dumps(asdict(sample)), flush=True)


@contextmanager
def _front() -> Iterator[list[float]]:
    """Keep a thread that wakes every 5 ms for the block; what it is given collects how late it woke, in ms."""
    late: list[float] = []
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            began = time.perf_counter()
            time.sleep(FRONT_PERIOD_S)
            late.append((time.perf_counter() - began - FRONT_PERIOD_S) * 1000)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield late
    finally:
        over.set()
        thread.join()


def _batch(start: int, rows: int, page_size: int) -> ForwardBatch:
    """One sequence in pages 0, 1, 2, ..., its rows from *start*, wanting the last one's logits."""
    positions = np.arange(start, start + rows, dtype=np.int32)
    pages = np.arange(-(-(start + rows) // page_size), dtype=np.int32)
    return ForwardBatch(
        tokens=positions + 5,
        positions=positions,
        slots=positions,
        row_start=np.array([0, rows], dtype=np.int32),
        block_table=pages[None, :],
        kv_len=np.array([start + rows], dtype=np.int32),
        logit_rows=np.array([rows - 1], dtype=np.int32),
    )


if __name__ == "__main__":
    main()
