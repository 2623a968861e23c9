"""
Measure edgephi and its peers in turns, so that all of them see the same minutes of a machine.

    make bench-peers
    python -m tests.bench.compare --help

Every engine runs in a process of its own that is stopped (SIGSTOP) while another one is measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.bench.report import EDGEPHI, Row, medians_table, ratios_table

ROOT = Path(__file__).resolve().parents[2]
PEERS_PYTHON = ROOT / "build/peers-venv/bin/python"
MODELS = ROOT / "build/peers"
TARGET = MODELS / "comparison.json"

DECODE_TOKENS = 32
MEMORY_CONTEXT = 4096
SPARE_TOKENS = 8  # of room that sessions need beside what is timed
_ANSWER_CHUNK = 4000  # characters of a failed worker's log to show


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """
    A process: an engine with a model loaded once.

    Attributes:
        module: In ``tests/bench/workers``.
        python: The interpreter that has the engine.
        model: File or folder of the model.
        settings: Further keyword arguments of the worker's engine.
    """

    module: str
    python: Path
    model: Path
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """A column of the tables: a worker, by name, and the settings of its sessions."""

    worker: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    A line of the tables.

    Attributes:
        row: Name, title and which way is better.
        request: What a worker is asked.
        value: What is made of its answer.
        is_fresh: Whether each sample needs a process that has loaded nothing.
        is_single: Whether one sample is enough, because nothing about it is noisy.
    """

    row: Row
    request: dict[str, Any]
    value: Callable[[dict[str, float]], float]
    is_fresh: bool = False
    is_single: bool = False


def peer_workers() -> dict[str, WorkerSpec]:
    """The processes of the peers."""
    return {
        "llama": WorkerSpec(module="llama", python=PEERS_PYTHON, model=MODELS / "phi3.gguf"),
        "onnx-float32": WorkerSpec(module="onnxruntime", python=PEERS_PYTHON, model=MODELS / "onnx/float32"),
        "onnx-int8": WorkerSpec(module="onnxruntime", python=PEERS_PYTHON, model=MODELS / "onnx/int8"),
        "openvino-bf16": WorkerSpec(
            module="openvino", python=PEERS_PYTHON, model=MODELS / "openvino", settings={"precision": "bf16"}
        ),
        "openvino-f32": WorkerSpec(
            module="openvino", python=PEERS_PYTHON, model=MODELS / "openvino", settings={"precision": "f32"}
        ),
    }


# The part before the first space is the family (tests.bench.report.family).
PEERS = {
    "llama.cpp f16": EngineSpec(worker="llama", settings={"flash_attention": False, "kv": "f16"}),
    "llama.cpp fa f16": EngineSpec(worker="llama", settings={"flash_attention": True, "kv": "f16"}),
    "llama.cpp fa q8_0": EngineSpec(worker="llama", settings={"flash_attention": True, "kv": "q8_0"}),
    "onnxruntime f32": EngineSpec(worker="onnx-float32"),
    "onnxruntime int8": EngineSpec(worker="onnx-int8"),
    "openvino bf16": EngineSpec(worker="openvino-bf16"),
    "openvino f32": EngineSpec(worker="openvino-f32"),
}

# Unless asked for: another model of 3 GB in memory, and never better than int8 on machines seen so far.
LEFT_OUT = {"onnxruntime f32"}


def _decode(name: str, title: str, context: int, batch: int) -> Case:
    request = {"op": "decode", "context": context, "batch": batch, "tokens": DECODE_TOKENS}
    row = Row(case=name, title=title, is_rate=True)
    return Case(row=row, request=request, value=lambda answer: batch * DECODE_TOKENS / answer["seconds"])


def _prefill(tokens: int) -> Case:
    row = Row(case=f"prefill-{tokens}", title=f"prefill {tokens}, tok/s", is_rate=True)
    request = {"op": "prefill", "tokens": tokens}
    return Case(row=row, request=request, value=lambda answer: tokens / answer["seconds"])


# Each group runs round by round; sessions are closed after it, so that long contexts do not pile up.
GROUPS: tuple[tuple[Case, ...], ...] = (
    (
        Case(
            row=Row(case="load", title="load to first token, s", is_rate=False),
            request={"op": "load"},
            value=lambda answer: answer["seconds"],
            is_fresh=True,
        ),
    ),
    (
        _decode("decode-16", "decode at 16 tokens, tok/s", 16, 1),
        _decode("decode-batch-4", "decode 4 at once, total, tok/s", 16, 4),
    ),
    (_prefill(128), _prefill(512)),
    (_decode("decode-1024", "decode at 1024 tokens, tok/s", 1024, 1),),
    (_decode("decode-2048", "decode at 2048 tokens, tok/s", 2048, 1),),
    (
        Case(
            row=Row(case="memory", title=f"peak RSS at {MEMORY_CONTEXT} tokens, GB", is_rate=False),
            request={
                "op": "decode",
                "context": MEMORY_CONTEXT - DECODE_TOKENS - SPARE_TOKENS,
                "batch": 1,
                "tokens": DECODE_TOKENS,
            },
            value=lambda answer: answer["peak"] / 1e9,
            is_fresh=True,
            is_single=True,
        ),
    ),
)
CASES = {case.row.case: case for group in GROUPS for case in group}
ROWS = [case.row for case in CASES.values()]


class Worker:
    """An engine's process, stopped between requests. Close it, or use it as a context manager."""

    def __init__(self, name: str, spec: WorkerSpec, threads: int) -> None:
        """Start the process and wait until it has imported the engine; nothing is loaded yet."""
        self._name = name
        self._log = MODELS / f"{name}.log"
        options = json.dumps({"model": str(spec.model), "threads": threads} | spec.settings)
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [spec.python, "-m", f"tests.bench.workers.{spec.module}", options],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.hello = self._answer()

    @property
    def process_id(self) -> int:
        """Of the worker, as the system counts."""
        return self._process.pid

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """
        Send a request and wait for its answer.

        Raises:
            RuntimeError: If the process ended, with the end of its log.
        """
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # it ended; there will be no answer either
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()  # also ends a stopped process; there is nothing that it would have to save
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        """Read one answer, then stop the process: spinning threads would cost the next engine its cores."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            log = self._log.read_text(encoding="utf-8", errors="replace")[-_ANSWER_CHUNK:]
            raise RuntimeError(f"{self._name} ended with status {self._process.wait()}:\n{log}")
        self._process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer


class Comparison:
    """Runs cases on engines and collects samples."""

    def __init__(
        self,
        engines: dict[str, EngineSpec],
        workers: dict[str, WorkerSpec],
        *,
        threads: int,
        rounds: int,
        save: Callable[[Comparison], object],
    ) -> None:
        """
        Prepare.

        Args:
            engines: What to measure, by name; every case takes them in this order.
            workers: Their processes; those that no engine needs are not started.
            threads: Of each engine.
            rounds: Samples of each case and engine.
            save: Called after every sample: a comparison takes long, and an interrupted one is still worth having.
        """
        self._engines = engines
        self._workers = {name: spec for name, spec in workers.items() if name in {e.worker for e in engines.values()}}
        self._threads = threads
        self._rounds = rounds
        self._save = save
        self.samples: dict[str, dict[str, list[float]]] = {}
        self.versions: dict[str, str] = {}
        self.import_s: dict[str, float] = {}

    def run(self, cases: Sequence[str]) -> None:
        """Run the named cases, group by group."""
        with ExitStack() as stack:
            running: dict[str, Worker] = {}
            for group in GROUPS:
                wanted = [case for case in group if case.row.case in cases]
                fresh = [case for case in wanted if case.is_fresh]
                lasting = [case for case in wanted if not case.is_fresh]
                if fresh and running:
                    stack.close()  # they would take the memory that the fresh ones need
                    running = {}
                for case in fresh:
                    self._run_fresh(case)
                if lasting and not running:
                    running = {name: stack.enter_context(self._started(name)) for name in self._workers}
                    for worker, settings in self._one_engine_each(running):
                        worker.ask({"op": "load", "settings": settings})
                if lasting:
                    self._run_lasting(lasting, running)

    def _run_lasting(self, cases: Sequence[Case], running: dict[str, Worker]) -> None:
        for number in range(self._rounds + 1):
            for case in cases:
                for name, engine in self._engines.items():
                    answer = running[engine.worker].ask(case.request | {"settings": engine.settings})
                    self._record(case, name, case.value(answer), number)
        for worker in running.values():
            worker.ask({"op": "release"})

    def _run_fresh(self, case: Case) -> None:
        for number in range(1 if case.is_single else self._rounds + 1):
            for name, engine in self._engines.items():
                with self._started(engine.worker) as worker:
                    if case.request["op"] != "load":
                        worker.ask({"op": "load", "settings": engine.settings})
                    answer = worker.ask(case.request | {"settings": engine.settings})
                    answer |= worker.ask({"op": "memory"})
                self._record(case, name, case.value(answer), number)

    @contextmanager
    def _started(self, name: str) -> Iterator[Worker]:
        with Worker(name, self._workers[name], self._threads) as worker:
            self.versions[name] = worker.hello["version"]
            self.import_s[name] = worker.hello["import_s"]
            yield worker

    def _one_engine_each(self, running: dict[str, Worker]) -> Iterator[tuple[Worker, dict[str, Any]]]:
        for name, worker in running.items():
            yield worker, next(engine.settings for engine in self._engines.values() if engine.worker == name)

    def _record(self, case: Case, engine: str, value: float, number: int) -> None:
        # Round 0 warms page cache and branches, and engines compile code for shapes they see for the first time.
        is_warm_up = number == 0 and not case.is_single
        if not is_warm_up:
            self.samples.setdefault(case.row.case, {}).setdefault(engine, []).append(value)
            self._save(self)
        note = " (warm-up)" if is_warm_up else ""
        print(f"{case.row.case} {number} {engine}: {value:.4g}{note}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, merge with what an earlier run wrote, print tables."""
    arguments = _parser().parse_args()
    threads, model = arguments.threads, arguments.model.resolve()
    ours = {
        f"{EDGEPHI}-{kv}": WorkerSpec(module="edgephi", python=arguments.python, model=model, settings={"kv_dtype": kv})
        for kv in arguments.kv_dtype
    }
    engines = {f"{EDGEPHI} {kv}": EngineSpec(worker=f"{EDGEPHI}-{kv}") for kv in arguments.kv_dtype} | PEERS
    chosen = {
        name: spec
        for name, spec in engines.items()
        if (any(map(name.startswith, arguments.engines)) if arguments.engines else name not in LEFT_OUT)
    }
    if not arguments.report:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that every worker is ended, stopped ones too
        Comparison(
            chosen,
            ours | peer_workers(),
            threads=threads,
            rounds=arguments.rounds,
            save=lambda comparison: _merge(arguments.out, comparison, threads),
        ).run(arguments.cases)
    report = json.loads(arguments.out.read_text(encoding="utf-8"))
    samples = report["samples"]
    print(f"{report['machine']}, {report['threads']} threads; medians (smallest to largest)\n")
    print(medians_table(ROWS, samples))
    print("\nHow many times better edgephi is; above 1 is better in every line\n")
    print(ratios_table(ROWS, samples))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument(
        "--engines",
        nargs="+",
        metavar="PREFIX",
        help=f"of {EDGEPHI}, {', '.join(PEERS)}; all but {', '.join(LEFT_OUT)} if absent",
    )
    parser.add_argument("--kv-dtype", nargs="+", default=["int8"], help="of edgephi's keys and values")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=ROOT / "build/phi3-mini-4k-synth", help="edgephi's model folder")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv/bin/python", help="the interpreter with edgephi")
    parser.add_argument("--out", type=Path, default=TARGET, help="JSON file; cases it has from earlier runs are kept")
    parser.add_argument("--report", action="store_true", help="only print what the file holds")
    return parser


def _merge(path: Path, comparison: Comparison, threads: int) -> None:
    """
    Add what was measured to the file.

    A case that is measured again replaces the old one, because the engines of a case belong to the same minutes. Only
    single samples, which the time of day does not change, are kept engine by engine.
    """
    report: dict[str, Any] = {"samples": {}, "versions": {}, "import_s": {}}
    if path.exists():
        report = json.loads(path.read_text(encoding="utf-8"))
    for case, engines in comparison.samples.items():
        kept = report["samples"].get(case, {}) if CASES[case].is_single else {}
        report["samples"][case] = kept | engines
    report["versions"] |= comparison.versions
    report["import_s"] |= comparison.import_s
    report |= {"machine": _machine(), "threads": threads}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _machine() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
