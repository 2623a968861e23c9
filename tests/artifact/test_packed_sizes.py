from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgephi.artifact.bundle import ALIGNMENT, HEADER_BYTES, KV_DTYPES
from edgephi.artifact.config import ModelConfig
from edgephi.artifact.packed_sizes import (
    PAGE_TOKENS,
    bundle_sizes,
    kv_bytes_per_token,
    macs_per_token,
    packed_sizes,
)
from edgephi.artifact.quantization import QUANTIZATIONS, Quantization, find_quantization
from edgephi.artifact.synth import PRESETS, synthesize
from edgephi.compiler.kernels.kv_pages import PAGE_SIZE, page_elements
from edgephi.compiler.phi3 import Parameter, linear_shapes, parameters
from edgephi.compiler.targets import COMPILE_TARGETS
from edgephi.runtime.bundles import ensure_bundle, host_options

MINI = PRESETS["phi3-mini-4k"]


def _nbytes(parameter: Parameter) -> int:
    return int(np.prod(parameter.shape)) * np.dtype(parameter.dtype).itemsize


@pytest.mark.parametrize("level", COMPILE_TARGETS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=lambda q: q.name)
@pytest.mark.parametrize("preset", ["phi3-mini-4k", "phi3-hollow", "phi3-tiny"])
def test_sizes_are_those_of_the_compilers_layout(preset: str, quantization: Quantization, level: str) -> None:
    """On every level, the sizes from a configuration are those of laying out the compiler's packed parameters."""
    config = PRESETS[preset]
    end, embedding = HEADER_BYTES, 0
    for parameter in parameters(config, COMPILE_TARGETS[level].kernel, quantization):
        end += -end % ALIGNMENT + _nbytes(parameter)
        embedding += _nbytes(parameter) if parameter.name.startswith("transformer.embd.") else 0
    sizes = packed_sizes(config, quantization)
    assert (sizes.file_bytes, sizes.step_bytes) == (end, end - HEADER_BYTES - embedding)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("config", [MINI, PRESETS["phi3-tiny"]], ids=["mini", "tiny"])
def test_a_token_takes_its_part_of_a_page(config: ModelConfig, kv_dtype: str) -> None:
    """The bytes of a token are those of a page of the kernels, divided by its tokens."""
    page = page_elements(kv_dtype, config.head_dim) * np.dtype(kv_dtype).itemsize
    pages = config.num_layers * config.num_kv_heads * page
    assert PAGE_TOKENS == PAGE_SIZE
    assert kv_bytes_per_token(config, kv_dtype) * PAGE_TOKENS == pages


def test_phi3_mini_has_its_known_sizes() -> None:
    """Phi-3-mini takes the bytes that its published shapes and the packed layout give."""
    assert packed_sizes(MINI, find_quantization("q4f16_1")).file_bytes == 2_150_043_904
    assert packed_sizes(MINI, find_quantization("q3f16_g32")).file_bytes == 1_697_059_072
    assert [kv_bytes_per_token(MINI, kind) for kind in KV_DTYPES] == [200_704, 393_216, 786_432]


def test_multiplications_are_those_of_the_matrices() -> None:
    """A token is multiplied with every matrix of every layer, and the output projection is left out."""
    shapes = linear_shapes(MINI)
    layer = sum(rows * columns for name, (rows, columns) in shapes.items() if name != "lm_head")
    assert macs_per_token(MINI) == MINI.num_layers * layer


@pytest.mark.tvm
def test_a_compiled_model_has_the_predicted_sizes(tmp_path: Path) -> None:
    """What compiling a model leaves on disk has the sizes that its configuration promised."""
    model = synthesize("phi3-tiny", tmp_path / "model", quantization="q3f16_g32")
    folder, bundle = ensure_bundle(model, host_options())
    predicted = packed_sizes(PRESETS["phi3-tiny"], find_quantization("q3f16_g32"))
    assert bundle_sizes(bundle) == predicted
    assert (folder / "weights.bin").stat().st_size == predicted.file_bytes
