from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.bench import compare
from tests.bench.compare import Worker, WorkerSpec
from tests.bench.shapes import GROUP, random_codes, random_scales

from edgephi.pocket import model_dir

SETTINGS = {"kv_dtype": "float16"}


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """The worker of edgephi with the pocket model, loaded."""
    monkeypatch.setattr(compare, "MODELS", tmp_path)  # its log goes there
    spec = WorkerSpec(module="edgephi", python=Path(sys.executable), model=model_dir(), settings=SETTINGS)
    with Worker("edgephi", spec, threads=1) as worker:
        assert worker.ask({"op": "load", "settings": {}})["seconds"] > 0
        yield worker


@pytest.mark.tvm
def test_a_worker_answers_every_operation(worker: Worker) -> None:
    """Prefill, decoding of one and of four, again after a rewind, memory and release are answered with numbers."""
    decode = {"op": "decode", "settings": {}, "context": 16, "tokens": 4}
    for request in (
        {"op": "prefill", "settings": {}, "tokens": 40},
        decode | {"batch": 1},
        decode | {"batch": 4},
        decode | {"batch": 1},
    ):
        assert worker.ask(request)["seconds"] > 0
    memory = worker.ask({"op": "memory"})
    assert memory["peak"] >= memory["private"] > 0
    assert worker.ask({"op": "release"}) == {}


@pytest.mark.tvm
def test_a_worker_is_stopped_between_requests(worker: Worker) -> None:
    """An idle engine can take no time from the one that is measured: its process does not run."""
    worker.ask({"op": "memory"})

    stat, state = Path(f"/proc/{worker.process_id}/stat"), ""
    deadline = time.monotonic() + 10
    while state != "T" and time.monotonic() < deadline:  # a signal is delivered when its process next runs
        state = stat.read_text("utf-8").rsplit(")", 1)[1].split()[0]

    assert state == "T"


@pytest.mark.tvm
def test_a_failed_worker_tells_why(worker: Worker) -> None:
    """What an engine wrote before it ended is in the error."""
    with pytest.raises(RuntimeError, match="PromptTooLong"):
        worker.ask({"op": "prefill", "settings": {}, "tokens": 100_000})


def test_random_weights_keep_activations_as_large_as_they_were() -> None:
    """A normalized vector is about as large after a random matrix, so no depth overflows or becomes denormal."""
    rng = np.random.default_rng(0)
    rows, columns = 256, 1024
    packed = random_codes(rng, rows, columns)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, columns).astype(np.float32) - 7.5
    weights = codes * np.repeat(random_scales(rng, rows, columns), GROUP, axis=1)

    result = weights @ rng.standard_normal(columns).astype(np.float32)

    assert 0.8 < result.std() < 1.25
