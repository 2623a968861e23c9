from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from edgephi.engine.core import Engine, EngineConfig
from edgephi.errors import ConfigError, PromptTooLong
from edgephi.runtime.bench import BenchOptions, Spread, measure_engine, read_memory_use
from edgephi.runtime.fake import FakeBackend


def _engine() -> Engine:
    backend = FakeBackend(vocab_size=64, page_size=8, num_pages=32, max_batch_tokens=16, max_context_tokens=128)
    return Engine(backend, EngineConfig(max_running=1, max_waiting=0, prefill_chunk_tokens=16))


def test_runs_are_timed_by_steps() -> None:
    """With a clock that ticks once per reading, a run's times are its prefill and decode steps."""
    engine = _engine()
    clock = itertools.count()
    runs = measure_engine(engine, BenchOptions(prompt_tokens=40, output_tokens=9, repeat=3), clock=lambda: next(clock))
    # 40 prompt tokens in chunks of 16 take 3 steps, and the third gives the first of 9 tokens.
    assert [(run.time_to_first_token_s, run.decode_s) for run in runs] == [(3, 8)] * 3
    assert engine.stats().cached_tokens_total == 0


def test_too_long_a_run_is_refused_before_any_step() -> None:
    """A prompt and output beyond the context are refused before anything is computed."""
    engine = _engine()
    with pytest.raises(PromptTooLong):
        measure_engine(engine, BenchOptions(prompt_tokens=120, output_tokens=9))
    assert engine.stats().steps_total == 0


@pytest.mark.parametrize("values", [{"prompt_tokens": 0}, {"output_tokens": 1}, {"repeat": 0}, {"seed": -1}], ids=str)
def test_options_have_bounds(values: dict[str, int]) -> None:
    """An option out of bounds is refused with its name and value."""
    ((name, value),) = values.items()
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        BenchOptions(**values)


def test_spread_is_median_and_extremes() -> None:
    """A spread is the median, the smallest and the largest of the runs."""
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0)


def test_memory_use_is_read_in_bytes(tmp_path: Path) -> None:
    """The kernel's kB become bytes; what it does not tell is None."""
    status = tmp_path / "proc/self/status"
    status.parent.mkdir(parents=True)
    status.write_text("Name:\tx\nVmHWM:\t    2048 kB\nRssAnon:\t    1024 kB\n")
    memory = read_memory_use(tmp_path)
    assert memory.peak_resident_bytes == 2 << 20
    assert memory.private_resident_bytes == 1 << 20
    assert memory.file_resident_bytes is None


@pytest.mark.tvm
def test_bench_reports_units_in_names(invoke: Any, tiny: Path) -> None:
    """Bench measures a compiled model; its JSON names carry units and its text names every number."""
    arguments = ("bench", "--model", tiny, "--prompt-tokens", "8", "--output-tokens", "4", "--repeat", "2")
    report = json.loads(invoke(*arguments, "--json").stdout)
    for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "time_to_first_token_s"):
        spread = report[name]
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert report["memory"]["peak_resident_bytes"] >= report["memory"]["private_resident_bytes"] > 0
    assert (report["model"], report["quantization"], report["repeat"]) == ("tiny", "q4f16_1", 2)
    text = invoke(*arguments).stdout
    assert all(word in text for word in ("load", "prefill", "decode", "first token", "memory", "random"))
