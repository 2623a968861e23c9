"""What a serving process holds in memory, and what loading refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgephi.engine.backend import F32Array
from edgephi.errors import (
    ConfigError,
    EngineFailed,
    InsufficientMemory,
    InvalidRequest,
    ModelNotFound,
    PromptTooLong,
)
from edgephi.runtime import LoadedModel, RuntimeOptions, load_model

Load = Callable[..., LoadedModel]

pytestmark = pytest.mark.tvm

_SERVE = """
import json, sys
from edgephi.runtime import load_model

def mapping(name):
    found, inside = {}, False
    for line in open("/proc/self/smaps"):
        key, _, value = line.partition(":")
        if "-" in line.split()[0]:
            inside = line.rstrip().endswith(name)
        elif inside and value.strip().endswith("kB"):
            found[key] = found.get(key, 0) + int(value.split()[0])
    return found

with load_model(sys.argv[1]) as model:
    model.logits(list(range(3, 40)))
    maps = open("/proc/self/maps").read()
    print(json.dumps({
        "modules": [m for m in ("tvm.relax", "tvm.s_tir", "torch", "grpc", "edgephi.compiler") if m in sys.modules],
        "tvm": "tvm" in sys.modules,
        "compiler_mapped": "libtvm_compiler" in maps,
        "runtime_mapped": "libtvm_runtime" in maps,
        "weights": mapping("/weights.bin"),
        "weights_bytes": model.bundle.weights.nbytes,
    }))
"""


@pytest.fixture(scope="module")
def served(models: dict[str, Path]) -> dict[str, Any]:
    """What a process of its own says of itself after it served the tiny model."""
    run = subprocess.run(
        [sys.executable, "-c", _SERVE, str(models["q4f16_1"])], capture_output=True, text=True, check=True, timeout=120
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_serving_loads_no_compiler(served: dict[str, Any]) -> None:
    """A process that runs a model has TVM's runtime, but neither its compiler nor torch nor ours."""
    assert served["tvm"]
    assert served["runtime_mapped"]
    assert served["modules"] == []
    assert not served["compiler_mapped"]


def test_weights_are_mapped_and_never_copied(served: dict[str, Any]) -> None:
    """weights.bin is in memory as the file's own pages, which processes share; not one page became private."""
    weights = served["weights"]
    assert weights["Size"] * 1024 >= served["weights_bytes"]
    assert weights["Rss"] * 1024 >= served["weights_bytes"] * 0.9
    assert weights["Anonymous"] == 0
    assert weights["Private_Dirty"] == 0


def test_folders_without_a_usable_model_are_refused(golden: Path, tmp_path: Path) -> None:
    """A missing folder, an empty one and a Hugging Face checkpoint each say what to do."""
    with pytest.raises(ModelNotFound, match="nowhere holds neither"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelNotFound, match="name a folder that holds a model"):
        load_model(tmp_path)
    with pytest.raises(ModelNotFound, match="edgephi model convert"):
        load_model(golden / "hf-phi3" / "plain")
    assert not (golden / "hf-phi3" / "plain" / "build").exists()


def test_more_keys_and_values_than_memory_are_refused_with_the_numbers(models: dict[str, Path]) -> None:
    """The message has the weights, the tokens, what they need, what is free and what would fit."""
    with pytest.raises(InsufficientMemory) as raised:
        load_model(models["q4f16_1"], RuntimeOptions(kv_tokens=10**10))
    # Two layers and two heads, each with a key and a value of 96 bytes and a float16 scale each: 784 bytes a token.
    assert "10000000000 tokens" in str(raised.value)
    assert f"{10**10 * 784 / 2**20:.0f} MiB" in str(raised.value)
    assert "ask for at most" in str(raised.value)


def test_options_out_of_bounds_are_refused(models: dict[str, Path]) -> None:
    """Zero tokens or threads are refused by name before anything is read."""
    with pytest.raises(ConfigError, match="kv_tokens is 0; must be at least 1"):
        load_model(models["q4f16_1"], RuntimeOptions(kv_tokens=0))
    with pytest.raises(ConfigError, match="threads is -1; must be 1 to"):
        load_model(models["q4f16_1"], RuntimeOptions(threads=-1))


def test_bad_token_ids_are_refused(load: Load) -> None:
    """No ids, ids outside the vocabulary, and what is no id at all are refused with the offending value."""
    model = load("q4f16_1")
    for bad, message in (
        ([], "non-empty"),
        ([3, 512], "holds 512; ids must be 0 to 511"),
        ([-1], "holds -1"),
        ([1.5], "non-empty sequence of token ids"),
        ([[1, 2]], "non-empty sequence of token ids"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            model.logits(bad)  # type: ignore[arg-type] # on purpose
    assert model.logits(np.array([3, 511])).shape == (2, 512)  # type: ignore[arg-type] # arrays work as well


def test_few_pages_are_rounded_up_and_limit_the_sequence(models: dict[str, Path]) -> None:
    """17 tokens of keys and values are two pages of 16, and no sequence longer than them is taken."""
    with load_model(models["q4f16_1"], RuntimeOptions(kv_tokens=17)) as model:
        assert model.backend.spec.num_pages == 2
        assert model.logits(range(3, 35)).shape == (32, 512)
        with pytest.raises(PromptTooLong, match="33 prompt tokens"):
            model.logits(range(3, 36))


@pytest.mark.parametrize("threads", sorted({1, len(os.sched_getaffinity(0))}))
def test_the_number_of_threads_changes_no_logit(threads: int, models: dict[str, Path], load: Load) -> None:
    """One thread and all of them compute the same numbers, also when another thread than the loading one calls."""
    wanted = load("hf-plain").logits(range(3, 40))

    # Here, for a test process that also compiles must load the compiler first.
    from edgephi.runtime.tvm_runtime import tvm_ffi

    def compute() -> tuple[F32Array, int]:
        return model.logits(range(3, 40)), int(tvm_ffi.get_global_func("runtime.NumThreads")())

    with load_model(models["hf-plain"], RuntimeOptions(threads=threads)) as model, ThreadPoolExecutor(1) as executor:
        assert model.threads == threads
        for logits, num_threads in (compute(), executor.submit(compute).result()):
            assert num_threads == threads
            np.testing.assert_array_equal(logits, wanted)


def test_a_small_model_computes_on_one_thread(load: Load) -> None:
    """Without a number, a model of a few hundred kilobytes takes one thread, however many cores there are."""
    assert load("q4f16_1").threads == 1


def test_more_threads_than_cores_are_refused(models: dict[str, Path]) -> None:
    """Asking for more threads than cores names both numbers."""
    cores = len(os.sched_getaffinity(0))

    with pytest.raises(ConfigError, match=f"threads is {cores + 1}; must be 1 to {cores}"):
        load_model(models["q4f16_1"], RuntimeOptions(threads=cores + 1))


def test_a_closed_model_refuses_work(models: dict[str, Path]) -> None:
    """Closing twice is fine; computing afterwards raises EngineFailed and does not crash."""
    model = load_model(models["hf-plain"])
    kept = model.logits([3, 4])
    copy = kept.copy()
    model.close()
    model.close()
    np.testing.assert_array_equal(kept, copy)
    with pytest.raises(EngineFailed, match="closed"):
        model.logits([3, 4])


def test_closing_gives_the_weights_back(models: dict[str, Path], tmp_path: Path) -> None:
    """After closing, weights.bin is no longer mapped, even while logits computed from it are kept."""
    folder = shutil.copytree(models["hf-plain"], tmp_path / "model")
    model = load_model(folder)
    kept = model.logits([3, 4])

    def mapped() -> list[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return [line for line in lines if str(folder) in line and line.endswith("weights.bin")]

    assert mapped()
    model.close()
    assert not mapped()
    assert np.isfinite(kept).all()
