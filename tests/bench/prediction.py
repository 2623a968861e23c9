"""
Does a calibration predict what the engine does? ``python -m tests.bench.prediction --model DIR``.

For each context it calibrates, then measures decoding through the engine at several numbers of streams, and prints
predicted and measured tokens per second of a stream with their ratio. Memory of a shared machine has several speeds,
minutes each, so its bandwidth is printed beside each line: as calibrated, and just before and after the measurement. A
line whose bandwidth has moved, or that was disturbed, is measured again after a new calibration, a few times at most.

Prompts take long: all of a context's streams have prompts of their own, which begin with those of the shorter contexts,
so that the engine finds these in its pages. Speed does not depend on what calibrating leaves in them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgephi.cli.compose import resolve_model
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.request import EngineRequest, RequestId, SamplingParams
from edgephi.profile.calibration import Calibration
from edgephi.runtime import LoadedModel, RuntimeOptions, load_model
from edgephi.runtime.calibrate import calibrate_loaded

CHUNK_TOKENS = 64
NUM_READS = 3
# A line counts if memory was read at about the same speed as when it was calibrated.
MAX_MOVED = 0.12
# Steps on a quiet machine differ little: where their mean is above the median by more, something else ran.
MAX_MEAN_TO_MEDIAN = 1.05
MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One comparison: tokens a second of each stream, bytes a second of memory then and now, and what disturbed it."""

    batch: int
    context_tokens: int
    predicted: float
    measured: float
    calibrated_bandwidth: float
    bandwidth: float
    is_noisy: bool
    mean_to_median: float

    @property
    def trouble(self) -> str | None:
        """Why it compares different things; None where it does not."""
        if abs(self.bandwidth / self.calibrated_bandwidth - 1) > MAX_MOVED:
            return "memory moved"
        if self.mean_to_median > MAX_MEAN_TO_MEDIAN:
            return f"disturbed (mean step {self.mean_to_median:.2f} of the median)"
        return "noisy calibration" if self.is_noisy else None


class Bench:
    """A loaded model with an engine that keeps the pages of all prompts."""

    def __init__(self, model: LoadedModel, *, batches: list[int], tokens: int, budget_s: float) -> None:
        self._model = model
        self._batches = batches
        self._tokens = tokens
        self._budget_s = budget_s
        config = EngineConfig(
            max_running=max(batches), prefill_chunk_tokens=CHUNK_TOKENS, mixed_chunk_tokens=CHUNK_TOKENS
        )
        self._engine = Engine(model.backend, config)
        spec = self._engine.spec
        ids = np.random.default_rng(1).integers(0, spec.vocab_size, (max(batches), spec.max_context_tokens))
        self._prompts = [tuple(row) for row in ids.tolist()]
        self._num_requests = 0

    def calibrate(self) -> Calibration:
        """Measure steps, in the same process and the same pages."""
        return calibrate_loaded(self._model, name="", time_budget_s=self._budget_s)

    def prefill_s(self, context_tokens: int) -> float:
        """Compute the prompts of this length, except what shorter ones left; return the seconds."""
        started_at = time.perf_counter()
        for prompt in self._prompts:
            self._submit(prompt[:context_tokens], 1)
            while self._engine.has_work:
                self._engine.step()
        return time.perf_counter() - started_at

    def decode(self, calibration: Calibration, batch: int, context_tokens: int) -> Line:
        """Let *batch* streams decode behind *context_tokens* each, and compare."""
        before = self._bandwidth()
        # The first of them begin while the last ones still compute the ends of their prompts.
        for prompt in self._prompts[:batch]:
            self._submit(prompt[:context_tokens], self._tokens + 2 * batch)
        while self._engine.has_work and not self._all_decode(batch):
            pass
        times = []
        for _ in range(self._tokens):
            started_at = time.perf_counter()
            self._engine.step()
            times.append(time.perf_counter() - started_at)
        while self._engine.has_work:
            self._engine.step()
        return Line(
            batch=batch,
            context_tokens=context_tokens,
            predicted=calibration.decode_tokens_per_s(batch=batch, context_tokens=context_tokens + self._tokens // 2),
            measured=1 / statistics.mean(times),
            calibrated_bandwidth=dict(calibration.bandwidth)[self._model.threads],
            bandwidth=(before + self._bandwidth()) / 2,
            is_noisy=calibration.conditions.is_noisy,
            mean_to_median=statistics.mean(times) / statistics.median(times),
        )

    def _all_decode(self, batch: int) -> bool:
        """Whether a step draws a token for each of *batch* streams."""
        before = self._engine.stats().tokens_generated_total
        self._engine.step()
        return self._engine.stats().tokens_generated_total - before == batch

    def _submit(self, prompt: tuple[int, ...], max_tokens: int) -> None:
        self._num_requests += 1
        self._engine.submit(
            EngineRequest(
                request_id=RequestId(f"r{self._num_requests}"),
                prompt=prompt,
                max_tokens=max_tokens,
                sampling=SamplingParams(temperature=0.0),
            )
        )

    def _bandwidth(self) -> float:
        speeds = []
        for _ in range(NUM_READS):
            started_at = time.perf_counter()
            nbytes = self._model.backend.read_weights()
            speeds.append(nbytes / (time.perf_counter() - started_at))
        return statistics.median(speeds)


def main() -> None:
    """Print a line for each context and batch, then how far predictions are off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", required=True, help="folder or name of a model")
    parser.add_argument("--kv-dtype", default="int8")
    parser.add_argument("--contexts", type=int, nargs="+", default=[16, 512, 1024, 2048, 3072, 4000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--tokens", type=int, default=24, help="decoded by each stream in a measurement")
    parser.add_argument("--time-budget", type=float, default=15.0, help="seconds of each calibration")
    options = parser.parse_args()
    path: Path = resolve_model(options.model).path
    contexts = sorted(options.contexts)
    # Room for all prompts at their longest, and for the answers.
    kv_tokens = (contexts[-1] + options.tokens + 32) * (max(options.batches) + 1)
    with load_model(path, RuntimeOptions(kv_dtype=options.kv_dtype, kv_tokens=kv_tokens)) as model:
        bench = Bench(model, batches=options.batches, tokens=options.tokens, budget_s=options.time_budget)
        run(bench, contexts, options.batches, max(options.batches))


def run(bench: Bench, contexts: list[int], batches: list[int], num_prompts: int) -> None:
    """Measure and print everything."""
    _print("context  streams  predicted  measured  ratio   GB/s calibrated  now")
    kept: list[Line] = []
    previous = 0
    for context in contexts:
        seconds = bench.prefill_s(context)
        calibration = bench.calibrate()
        expected = num_prompts * (_prefill_s(calibration, context) - _prefill_s(calibration, previous))
        _print(f"{context:7}  prompts: {expected:.1f} s predicted, {seconds:.1f} s measured, {expected / seconds:.3f}")
        previous = context
        for batch in batches:
            for attempt in range(1, MAX_ATTEMPTS + 1):
                line = bench.decode(calibration, batch, context)
                is_last = attempt == MAX_ATTEMPTS or line.trouble is None
                _print(_text(line) + (f"  {line.trouble}" if line.trouble else "") + ("" if is_last else ", again"))
                if is_last:
                    break
                calibration = bench.calibrate()
            kept.append(line)
    for title, lines in (("all", kept), ("undisturbed", [line for line in kept if line.trouble is None])):
        ratios = [line.predicted / line.measured for line in lines]
        if ratios:
            within = sum(abs(ratio - 1) <= 0.15 for ratio in ratios)
            _print(f"{title}: {within} of {len(ratios)} within 15 %, ratios {min(ratios):.3f} to {max(ratios):.3f}")


def _prefill_s(calibration: Calibration, tokens: int) -> float:
    return calibration.times.prefill_s(prompt_tokens=tokens, chunk_tokens=CHUNK_TOKENS) if tokens else 0.0


def _text(line: Line) -> str:
    return (
        f"{line.context_tokens:7}  {line.batch:7}  {line.predicted:9.2f}  {line.measured:8.2f}  "
        f"{line.predicted / line.measured:.3f}  {line.calibrated_bandwidth / 1e9:16.1f}  {line.bandwidth / 1e9:.1f}"
    )


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
