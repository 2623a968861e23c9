"""
How fast a model is on this machine, measured through the engine as a request would go.

Owns the measurement and the names of its numbers. Prompts are random token ids: speed does not depend on what they
mean. Knows no text and no server.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgephi.artifact.manifest import Progress
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.request import (
    EngineRequest,
    Finished,
    FinishReason,
    RequestId,
    SamplingParams,
    TokenSampled,
)
from edgephi.errors import ConfigError, EngineFailed
from edgephi.profile.machine.kernelfile import parse_fields, parse_kib, read_text
from edgephi.runtime.bundles import current_bundle, ensure_bundle
from edgephi.runtime.model import RuntimeOptions, kv_bytes_per_token, load_model

WARM_UP_PROMPT_TOKENS = 16
WARM_UP_OUTPUT_TOKENS = 4

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """
    What to measure.

    Attributes:
        prompt_tokens: Length of each prompt, at least 1.
        output_tokens: Tokens to generate, at least 2: a decoding speed needs two.
        repeat: Runs after one short warm-up, at least 1.
        prefill_chunk_tokens: Most prompt tokens in one step.
        seed: Of the random prompts.
    """

    prompt_tokens: int = 128
    output_tokens: int = 64
    repeat: int = 3
    prefill_chunk_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, low in (
            ("prompt_tokens", self.prompt_tokens, 1),
            ("output_tokens", self.output_tokens, 2),
            ("repeat", self.repeat, 1),
            ("prefill_chunk_tokens", self.prefill_chunk_tokens, 1),
            ("seed", self.seed, 0),
        ):
            if value < low:
                raise ConfigError(f"{name} is {value}; must be at least {low}")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of several runs."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimes:
    """
    One run: seconds from submission to the first token, and from there to the last.

    Attributes:
        stream_bytes_per_s: How fast memory was read just before and after it; None where that was not measured.
    """

    time_to_first_token_s: float
    decode_s: float
    stream_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """
    Memory of this process in bytes; None where the kernel does not tell.

    Attributes:
        peak_resident_bytes: Most that was ever in RAM (VmHWM).
        private_resident_bytes: In RAM and this process's own (RssAnon).
        file_resident_bytes: In RAM and backed by files, so shared and reclaimable: mapped weights, libraries (RssFile).
    """

    peak_resident_bytes: int | None
    private_resident_bytes: int | None
    file_resident_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """
    What was measured, and on what.

    Attributes:
        compile_s: Seconds to compile the model first; None where it was compiled already.
        load_s: Seconds to load the compiled model.
        prefill_tokens_per_s: Prompt tokens per second up to the first token.
        decode_tokens_per_s: Tokens per second after the first.
        time_to_first_token_s: Seconds from submission to the first token.
        stream_bytes_per_s: How fast the same threads read the weights and do nothing else, before and after each run.
        decode_bytes_per_token: Weights, and the keys and values in the middle of the answer, that a token must read.
        decode_share_of_stream: Bytes that decoding read per second, as a part of ``stream_bytes_per_s`` of the run.
    """

    quantization: str
    level: str
    threads: int
    tvm_version: str
    prompt_tokens: int
    output_tokens: int
    repeat: int
    compile_s: float | None
    load_s: float
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    time_to_first_token_s: Spread
    stream_bytes_per_s: Spread
    decode_bytes_per_token: int
    decode_share_of_stream: Spread
    memory: MemoryUse


def measure_model(
    path: Path,
    runtime: RuntimeOptions,
    options: BenchOptions,
    *,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> BenchReport:
    """
    Load a model, run it alone and report its speed and this process's memory.

    Args:
        path: An MLC-LLM folder; compiled first where that was not done.
        runtime: How to load it.
        options: What to measure.
        progress: Called while compiling, and with runs done and in all while measuring.
        clock: Seconds.

    Raises:
        PromptTooLong: If prompt and output exceed the model's context.
        EngineFailed: If a run failed.
        EdgephiError: As ``load_model`` does.
    """
    bundle_options = runtime.bundle_options()
    compile_s: float | None = None
    if current_bundle(path, bundle_options) is None:
        started_at = clock()
        ensure_bundle(path, bundle_options, progress)
        compile_s = clock() - started_at
    started_at = clock()
    with load_model(path, runtime) as model:
        load_s = clock() - started_at
        config = EngineConfig(max_running=1, max_waiting=0, prefill_chunk_tokens=options.prefill_chunk_tokens)
        engine = Engine(model.backend, config)
        runs = measure_engine(engine, options, progress=progress, clock=clock, read_stream=model.backend.read_weights)
        context = options.prompt_tokens + options.output_tokens // 2
        bytes_per_token = model.backend.step_weight_bytes + context * kv_bytes_per_token(model.bundle)
        stream = [run.stream_bytes_per_s for run in runs if run.stream_bytes_per_s is not None]
        decode = [(options.output_tokens - 1) / run.decode_s for run in runs]
        return BenchReport(
            quantization=model.bundle.quantization,
            level=model.bundle.level,
            threads=model.threads,
            tvm_version=importlib.metadata.version("apache-tvm"),
            prompt_tokens=options.prompt_tokens,
            output_tokens=options.output_tokens,
            repeat=options.repeat,
            compile_s=compile_s,
            load_s=load_s,
            prefill_tokens_per_s=Spread.of([options.prompt_tokens / run.time_to_first_token_s for run in runs]),
            decode_tokens_per_s=Spread.of(decode),
            time_to_first_token_s=Spread.of([run.time_to_first_token_s for run in runs]),
            stream_bytes_per_s=Spread.of(stream),
            decode_bytes_per_token=bytes_per_token,
            decode_share_of_stream=Spread.of(
                [speed * bytes_per_token / read for speed, read in zip(decode, stream, strict=True)]
            ),
            memory=read_memory_use(),
        )


def measure_engine(
    engine: Engine,
    options: BenchOptions,
    *,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
    read_stream: Callable[[], int] | None = None,
) -> list[RunTimes]:
    """
    Time ``options.repeat`` requests that run alone on an idle engine, after one short one that is not counted.

    Every prompt is different, so none is taken from the cache of an earlier one. *read_stream*, where given, reads
    memory as fast as it can and returns how many bytes; it is timed before and after each run, because other users of
    a machine take bandwidth one minute and not the next.

    Raises:
        PromptTooLong: If prompt and output exceed the context.
        EngineFailed: If a run ended early.
    """
    rng = np.random.default_rng(options.seed)
    # Also checks that it fits, before anything is computed.
    engine.validate(_request("check", _random_ids(engine, rng, options.prompt_tokens), options.output_tokens))
    warm_up = min(WARM_UP_PROMPT_TOKENS, options.prompt_tokens), min(WARM_UP_OUTPUT_TOKENS, options.output_tokens)
    _run(engine, _request("warm-up", _random_ids(engine, rng, warm_up[0]), warm_up[1]), clock)
    runs: list[RunTimes] = []
    for index in range(options.repeat):
        prompt = _random_ids(engine, rng, options.prompt_tokens)
        before = _stream_speed(read_stream, clock)
        run = _run(engine, _request(f"run-{index}", prompt, options.output_tokens), clock)
        after = _stream_speed(read_stream, clock)
        if before is not None and after is not None:
            run = dataclasses.replace(run, stream_bytes_per_s=(before + after) / 2)
        runs.append(run)
        if progress is not None:
            progress("measuring", index + 1, options.repeat)
    return runs


def _stream_speed(read_stream: Callable[[], int] | None, clock: Clock) -> float | None:
    """Return bytes per second, or None where there is nothing to read."""
    if read_stream is None:
        return None
    started_at = clock()
    nbytes = read_stream()
    return nbytes / max(clock() - started_at, 1e-9)


def read_memory_use(root: Path = Path("/")) -> MemoryUse:
    """Read this process's memory from ``proc/self/status`` under *root*."""
    fields = parse_fields(read_text(root / "proc/self/status") or "")
    return MemoryUse(
        peak_resident_bytes=parse_kib(fields.get("VmHWM")),
        private_resident_bytes=parse_kib(fields.get("RssAnon")),
        file_resident_bytes=parse_kib(fields.get("RssFile")),
    )


def _random_ids(engine: Engine, rng: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(rng.integers(0, engine.spec.vocab_size, count).tolist())


def _request(name: str, prompt: tuple[int, ...], output_tokens: int) -> EngineRequest:
    # Greedy and without stop tokens, so that exactly output_tokens are generated.
    sampling = SamplingParams(temperature=0.0)
    return EngineRequest(request_id=RequestId(name), prompt=prompt, max_tokens=output_tokens, sampling=sampling)


def _run(engine: Engine, request: EngineRequest, clock: Clock) -> RunTimes:
    """Step the engine until the request ends. The first and last token are timed when their step returns."""
    started_at = clock()
    engine.submit(request)
    first_at: float | None = None
    while engine.has_work:
        events = engine.step()
        now = clock()
        for event in events:
            if isinstance(event, Finished):
                if event.reason is not FinishReason.LENGTH or first_at is None:
                    raise EngineFailed(event.error or f"a run ended early with {event.reason.value}")
                return RunTimes(time_to_first_token_s=first_at - started_at, decode_s=max(now - first_at, 1e-9))
            if isinstance(event, TokenSampled) and first_at is None:
                first_at = now
    raise EngineFailed("a run ended without its last event")
