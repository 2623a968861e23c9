"""Models cross-compiled here, computed on emulated ARM CPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.arm64.machine import Model, Process
from tests.runtime.test_logits import (
    ids,
    test_a_mixed_batch_gives_each_sequence_its_own_logits,
    test_float_logits_are_those_of_mlc_llm_and_hugging_face,
    test_int8_costs_this_much_accuracy,
    test_prefill_of_n_tokens_is_n_decodes,
)

from edgephi.artifact.bundle import KV_DTYPES
from edgephi.compiler.kernels.activations import Activations
from edgephi.engine.backend import F32Array

__all__ = [
    "ids",
    "test_a_mixed_batch_gives_each_sequence_its_own_logits",
    "test_float_logits_are_those_of_mlc_llm_and_hugging_face",
    "test_int8_costs_this_much_accuracy",
    "test_prefill_of_n_tokens_is_n_decodes",
]

Load = Callable[..., Model]


def test_a_cpu_gets_its_own_level(level: str, start: Callable[[str], Process]) -> None:
    """Each CPU's features, which its kernel tells and not /proc/cpuinfo, choose the level that was meant for it."""
    assert start(level).ask("level") == level


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("activations", [kind.value for kind in Activations])
def test_every_kind_of_model_gives_the_golden_logits(
    activations: str, kv_dtype: str, ids: list[int], golden: Path, load: Load
) -> None:
    """
    With all activations and pages that can be chosen, the logits are Hugging Face's on the same weights.

    Float32 throughout within the order of sums (measured: 3e-5 of logits up to 7.5), float16 pages within their
    rounding (1e-2), int8 pages or activations within what they cost on any CPU (tests/runtime/test_logits.py).
    """
    logits = load("q4f32_1", activations=activations, kv_dtype=kv_dtype).logits(ids)
    with np.load(golden / "mlc-phi3-tiny" / "logits.npz") as stored:
        wanted: F32Array = stored["hf_dequantised_q4f32_1"]
    error = np.abs(logits - wanted)
    exactness = {("float32", "float32"): (2e-4, 2e-5), ("float32", "float16"): (0.02, 0.002)}
    largest, mean = exactness.get((activations, kv_dtype), (1.14, 0.11))
    assert error.max() <= largest
    assert error.mean() <= mean
