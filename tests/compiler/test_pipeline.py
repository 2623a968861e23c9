"""From a model folder to a bundle: what is refused, and that failures leave nothing behind."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgephi.artifact.bundle import BundleOptions, verify_bundle
from edgephi.artifact.config import ModelConfig, RopeScaling, load_config
from edgephi.artifact.convert import convert_checkpoint
from edgephi.artifact.weights import open_weights
from edgephi.compiler.__main__ import main
from edgephi.compiler.phi3 import attention_scale, check_shapes, inverse_frequency, linear_shapes
from edgephi.compiler.pipeline import compile_model
from edgephi.errors import CompileFailed, ConfigError, ModelInvalid, ModelNotFound, UnsupportedModel
from edgephi.profile.machine.isa import ISA_LEVELS, best_level, host_arch, host_features

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def level() -> str:
    """The best level of this machine, so that linking needs nothing but its own compiler."""
    return best_level(host_features(), host_arch()).name


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A converted tiny model of its own, to be changed by the test."""
    return convert_checkpoint(GOLDEN / "hf-phi3" / "plain", tmp_path / "model")


@pytest.fixture
def config(model: Path) -> ModelConfig:
    """The configuration of that model."""
    return load_config(model)


def _edit(model: Path, **changes: Any) -> None:
    path = model / "mlc-chat-config.json"
    document = json.loads(path.read_text())
    document["model_config"].update(changes)
    document.update({key: value for key, value in changes.items() if key in document})
    path.write_text(json.dumps(document))


@pytest.mark.tvm
def test_weights_of_other_bits_than_their_format_has_are_refused(model: Path, level: str, tmp_path: Path) -> None:
    """A folder that calls its 4-bit weights q3f16_g32 is refused with both numbers."""
    _edit(model, quantization="q3f16_g32")
    with pytest.raises(ModelInvalid, match=r"qkv_proj\.w has 4 bits; q3f16_g32 has 3"):
        compile_model(model, tmp_path / "out", BundleOptions(level=level))


@pytest.mark.tvm
def test_a_bundle_holds_what_its_description_says(model: Path, level: str, tmp_path: Path) -> None:
    """Digests, features, shapes and every packed norm and frequency are those of the model; progress ends complete."""
    reports: list[tuple[str, int, int]] = []
    options = BundleOptions(level=level, max_batch_tokens=32)
    bundle = compile_model(model, tmp_path / "out", options, lambda *report: reports.append(report))
    assert verify_bundle(tmp_path / "out") == bundle
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bundle.json", "model.so", "weights.bin"]
    assert set(bundle.required_features) == ISA_LEVELS[level].required_features
    assert (bundle.num_layers, bundle.num_kv_heads, bundle.head_dim, bundle.vocab_size) == (2, 2, 32, 144)
    assert (bundle.quantization, bundle.activations, bundle.max_batch_tokens) == ("q4f16_1", "int8", 32)
    label, done, total = reports[-2]
    assert label == "packing weights"
    assert reports[-1] == ("compiling kernels", 0, 0)
    assert total <= done < total + 64 * len(bundle.parameters)
    content = (tmp_path / "out" / "weights.bin").read_bytes()
    with open_weights(model) as store:
        for tensor in bundle.parameters:
            if tensor.name.endswith(("ln.weight", "norm.weight")):
                packed = np.frombuffer(content, np.float32, tensor.nbytes // 4, tensor.offset)
                np.testing.assert_array_equal(packed, store.get(tensor.name).astype(np.float32))
            assert tensor.offset % 64 == 0


@pytest.mark.tvm
def test_a_failure_leaves_what_was_there_and_nothing_else(model: Path, level: str, tmp_path: Path) -> None:
    """
    Weights of the wrong shape, a weight that is missing and an interrupt while packing leave no partial folder.

    The bundle that was there before stays whole.
    """
    out = tmp_path / "bundles" / "best"
    before = compile_model(model, out, BundleOptions(level=level))

    def interrupt(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_model(model, out, BundleOptions(level=level), interrupt)
    _edit(model, intermediate_size=64)
    with pytest.raises(ModelInvalid, match=r"h\.0\.mlp\.gate_up_proj\.w is uint8 \(\d+, .*needs uint8 \(\d+, "):
        compile_model(model, out, BundleOptions(level=level))
    _edit(model, intermediate_size=96, num_hidden_layers=3)
    with pytest.raises(ModelInvalid, match=r"no tensor .*h\.2\.ln\.weight"):
        compile_model(model, out, BundleOptions(level=level))
    assert verify_bundle(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["best"]


@pytest.mark.tvm
def test_a_new_bundle_replaces_the_old_one(model: Path, level: str, tmp_path: Path) -> None:
    """Compiling again to the same place, even over a damaged bundle, ends with one whole bundle."""
    out = tmp_path / "bundles" / "best"
    (out / "rubbish").mkdir(parents=True)
    bundle = compile_model(model, out, BundleOptions(level=level, activations="float32"))
    assert verify_bundle(out) == bundle
    assert not (out / "rubbish").exists()
    assert [path.name for path in out.parent.iterdir()] == ["best"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 80}, "hidden_size is 80.*32"),
        ({"intermediate_size": 100}, "intermediate_size is 100.*32"),
        ({"head_dim": 48}, "head_dim is 48.*32"),
        ({"vocab_size": 1000}, "vocab_size is 1000.*16"),
        ({"num_heads": 5, "num_kv_heads": 2}, "heads is 5.*heads 2"),
    ],
)
def test_shapes_the_kernels_cannot_run_are_refused(config: ModelConfig, changes: dict[str, int], message: str) -> None:
    """The dimension, its value and the multiple it must be are named."""
    with pytest.raises(UnsupportedModel, match=message):
        check_shapes(dataclasses.replace(config, **changes))  # type: ignore[arg-type] # all of these are ints


def test_refusals_before_anything_is_made(model: Path, level: str, tmp_path: Path) -> None:
    """Unknown levels, options, quantizations and folders without weights are refused, and no folder appears."""
    out = tmp_path / "bundles" / "best"
    with pytest.raises(CompileFailed, match="'sparc'"):
        compile_model(model, out, BundleOptions(level="sparc"))
    with pytest.raises(ConfigError, match=r"activations is 'int4'.*int8, float32"):
        compile_model(model, out, BundleOptions(level=level, activations="int4"))
    with pytest.raises(ConfigError, match=r"kv_dtype is 'int4'.*int8, float16, float32"):
        compile_model(model, out, BundleOptions(level=level, kv_dtype="int4"))
    with pytest.raises(ConfigError, match="max_batch_tokens is 0"):
        compile_model(model, out, BundleOptions(level=level, max_batch_tokens=0))
    _edit(model, vocab_size=150)
    with pytest.raises(UnsupportedModel, match="vocab_size is 150"):
        compile_model(model, out, BundleOptions(level=level))
    _edit(model, quantization="q3f16_1", vocab_size=144)
    with pytest.raises(UnsupportedModel, match=r"q3f16_1.*q4f16_1"):
        compile_model(model, out, BundleOptions(level=level))
    with pytest.raises(UnsupportedModel, match="quantization none"):
        compile_model(GOLDEN / "hf-phi3" / "plain", out, BundleOptions(level=level))
    shutil.rmtree(model)
    with pytest.raises(ModelNotFound):
        compile_model(model, out, BundleOptions(level=level))
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_the_command_reports_an_error_as_its_last_line(model: Path, tmp_path: Path) -> None:
    """The compiler's command ends with status 1 and the error's class and message as JSON."""
    reader = io.StringIO()
    assert main([str(model), str(tmp_path / "out"), '{"level": "sparc"}'], reader) == 1
    first, last = (json.loads(line) for line in reader.getvalue().splitlines())
    assert first == ["loading the compiler", 0, 0]
    assert last["error"] == "CompileFailed"
    assert "'sparc'" in last["message"]


def test_stray_output_is_kept_from_the_reader() -> None:
    """What a library prints on file descriptor 1 goes to standard error, not between the lines of progress."""
    code = """
import os
from edgephi.compiler.__main__ import take_stdout
with take_stdout() as reader:
    os.write(1, b"stray\\n")
    reader.write("progress\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("progress\n", "stray\n")


def test_rotary_frequencies_follow_the_published_formulas(config: ModelConfig) -> None:
    """Plain frequencies are powers of theta; LongRoPE divides them by its short factors and scales the angles."""
    plain = inverse_frequency(config)
    np.testing.assert_allclose(plain, 10000.0 ** (-np.arange(16) / 16), rtol=1e-7)
    assert attention_scale(config) == 1.0
    short = tuple(1.0 + index / 10 for index in range(16))
    scaling = RopeScaling(long_factor=(2.0,) * 16, short_factor=short, original_max_position=4096)
    # Phi-3-mini-128k: 131,072 positions from 4,096, for which Hugging Face computes 1.19024.
    longrope = dataclasses.replace(config, rope_scaling=scaling, max_position=131_072)
    np.testing.assert_allclose(inverse_frequency(longrope), plain / np.array(short), rtol=1e-6)
    assert attention_scale(longrope) == pytest.approx(1.1902380714)
    assert attention_scale(dataclasses.replace(longrope, max_position=4096)) == 1.0


def test_grouped_heads_make_the_fused_projection_smaller(config: ModelConfig) -> None:
    """Rows of the fused projection are the query heads and twice the key/value heads."""
    assert linear_shapes(config)["mixer.qkv_proj"] == (192, 64)
    assert linear_shapes(dataclasses.replace(config, num_kv_heads=1))["mixer.qkv_proj"] == (128, 64)
