"""
What a decoded token costs beside the forward: ``make overhead``.

Times the sampler over Phi-3's vocabulary, a step of the engine with a backend that computes nothing, and a forward of a
model with Phi-3-mini's 32 layers and next to nothing in them: starting 291 kernels, and all else that is no arithmetic.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from edgephi.artifact.synth import synthesize
from edgephi.engine.backend import BackendSpec, F32Array, ForwardBatch
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import EngineEvent, EngineRequest, Finished, RequestId, SamplingParams
from edgephi.engine.sampling import Sampler
from edgephi.runtime import load_model
from edgephi.runtime.model import RuntimeOptions

VOCAB_SIZE = 32_064
PROMPT_TOKENS = 128
OUTPUT_TOKENS = 512
ROUNDS = 7
NUM_LOGIT_ROWS = 8

SAMPLING = {
    "greedy": SamplingParams(temperature=0.0),
    "greedy, logprobs 5": SamplingParams(temperature=0.0, logprobs=5),
    "greedy, penalties": SamplingParams(temperature=0.0, repetition_penalty=1.1, frequency_penalty=0.5),
    "temperature 1": SamplingParams(temperature=1.0, seed=1),
    "top_p 0.95": SamplingParams(temperature=0.7, top_p=0.95, seed=1),
    "top_k 40, top_p 0.95": SamplingParams(temperature=0.7, top_p=0.95, top_k=40, seed=1),
    "min_p 0.05": SamplingParams(temperature=0.7, min_p=0.05, seed=1),
    "all of them": SamplingParams(
        temperature=0.7, top_p=0.95, top_k=40, min_p=0.02, repetition_penalty=1.1, logprobs=5, seed=1
    ),
}


class NullBackend:
    """
    Gives rows of logits at once, in random order out of eight with different best tokens.

    So the answer is full of tokens that were seen before, and guesses of the next one are wrong seven times of eight.
    """

    def __init__(self, row: F32Array) -> None:
        self._logits = np.stack([np.roll(row, shift) for shift in range(NUM_LOGIT_ROWS)] * 16)
        self._order = np.random.default_rng(3)
        self.spec = BackendSpec(
            vocab_size=len(row), page_size=16, num_pages=512, max_batch_tokens=256, max_context_tokens=4096
        )

    def forward(self, batch: ForwardBatch) -> F32Array:
        """Return some of the rows, from a random one on."""
        start = int(self._order.integers(NUM_LOGIT_ROWS))
        return self._logits[start : start + len(batch.logit_rows)]

    def release_pages(self, pages: Sequence[int]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def rows_of_logits() -> dict[str, F32Array]:
    """Return a row as a sure model gives it, and the hardest one for top_p: nearly flat."""
    rng = np.random.default_rng(5)
    sure = rng.normal(0.0, 2.0, VOCAB_SIZE).astype(np.float32)
    sure[rng.integers(0, VOCAB_SIZE, 20)] += np.linspace(8.0, 14.0, 20, dtype=np.float32)
    flat = rng.normal(0.0, 0.1, VOCAB_SIZE).astype(np.float32)
    return {"sure": sure, "flat": flat}


def sampling_us(params: SamplingParams, row: F32Array) -> float:
    """Microseconds a token takes; the median of several rounds."""
    sampler = Sampler(params, range(PROMPT_TOKENS), VOCAB_SIZE)

    def round_() -> None:
        for _ in range(100):
            sampler.sample(row)

    return _median_us(round_, 100)


def engine_step_us(num_running: int, *, max_draft_tokens: int) -> float:
    """Microseconds of a decode step with a forward of the engine alone, greedy, with so many requests."""
    config = EngineConfig(max_running=num_running, max_draft_tokens=max_draft_tokens)
    engine = Engine(NullBackend(rows_of_logits()["sure"]), config)
    ids = np.random.default_rng(2)
    times: list[float] = []
    for index in range(num_running):
        prompt = tuple(ids.integers(0, VOCAB_SIZE, PROMPT_TOKENS).tolist())
        engine.submit(_request(f"r{index}", prompt))
    while engine.stats().tokens_prefilled_total < num_running * PROMPT_TOKENS:
        engine.step()
    while engine.has_work:
        num_forwards = engine.stats().steps_total
        started_at = time.perf_counter()
        engine.step()
        seconds = time.perf_counter() - started_at
        if engine.stats().steps_total > num_forwards:
            times.append(seconds)
    return median(times) * 1e6


def loop_token_us() -> float:
    """Microseconds a token of one request takes through the engine's thread to its sink, greedy."""
    times: list[float] = []

    def sink(event: EngineEvent) -> None:
        times.append(time.perf_counter())
        if isinstance(event, Finished):
            ended.append(True)

    ended: list[bool] = []
    with EngineLoop(Engine(NullBackend(rows_of_logits()["sure"]), EngineConfig(max_running=1))) as loop:
        loop.submit(_request("r", tuple(range(PROMPT_TOKENS))), sink)
        while not ended:
            time.sleep(0.01)
    return float(np.median(np.diff(times))) * 1e6


def main() -> None:
    """Print both tables."""
    rows = rows_of_logits()
    print_ = sys.stdout.write
    print_(f"Sampling one of {VOCAB_SIZE} tokens, microseconds (median of {ROUNDS} rounds)\n\n")
    print_(f"| parameters | {' | '.join(f'{name} row' for name in rows)} |\n|---|{'---|' * len(rows)}\n")
    for name, params in SAMPLING.items():
        cells = " | ".join(f"{sampling_us(params, row):.0f}" for row in rows.values())
        print_(f"| {name} | {cells} |\n")
    print_("\nA greedy decode step outside the backend, microseconds (median)\n\n")
    print_("| requests | without speculation | with |\n|---|---|---|\n")
    for count in (1, 4):
        cells = " | ".join(f"{engine_step_us(count, max_draft_tokens=drafts):.0f}" for drafts in (0, 8))
        print_(f"| {count} | {cells} |\n")
    print_("\nA forward of 32 hollow layers, microseconds (median)\n\n| threads | forward |\n|---|---|\n")
    for threads in range(1, len(os.sched_getaffinity(0)) + 1):
        print_(f"| {threads} | {hollow_forward_us(threads):.0f} |\n")
    print_(f"\nThrough the engine's thread to the sink, one request: {loop_token_us():.0f} microseconds a token.\n")


def hollow_forward_us(threads: int) -> float:
    """Microseconds a forward of one row takes with 32 layers of 64 values; the median of several hundred."""
    with tempfile.TemporaryDirectory() as folder:
        model_path = synthesize("phi3-hollow", Path(folder) / "model")
        with load_model(model_path, RuntimeOptions(threads=threads, kv_tokens=256)) as model:
            row = ForwardBatch(
                tokens=np.array([1], np.int32), positions=np.array([16], np.int32), slots=np.array([16], np.int32),
                row_start=np.array([0, 1], np.int32), block_table=np.array([[0, 1]], np.int32),
                kv_len=np.array([17], np.int32), logit_rows=np.array([0], np.int32),
            )  # fmt: skip
            return median([_median_us(lambda: model.backend.forward(row), 1) for _ in range(100)])


def _request(name: str, prompt: tuple[int, ...]) -> EngineRequest:
    sampling = SamplingParams(temperature=0.0)
    return EngineRequest(request_id=RequestId(name), prompt=prompt, max_tokens=OUTPUT_TOKENS, sampling=sampling)


def _median_us(work: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(ROUNDS):
        started_at = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_at)
    return median(times) / count * 1e6


if __name__ == "__main__":
    main()
