"""What load_config makes of both file formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgephi.artifact.config import load_config
from edgephi.artifact.fields import Fields
from edgephi.errors import ModelInvalid, ModelNotFound, UnsupportedModel

FACTORS = [1.0 + index / 10 for index in range(48)]


def hf_config(**changes: Any) -> dict[str, Any]:
    """Return Phi-3-mini-4k's config.json with changes; a change to None removes the key."""
    values: dict[str, Any] = {
        "model_type": "phi3",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "sliding_window": 2047,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
        "tie_word_embeddings": False,
    } | changes
    return {key: value for key, value in values.items() if value is not None}


def mlc_config(model: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return Phi-3-mini-4k's mlc-chat-config.json with changes to the root and to model_config."""
    root: dict[str, Any] = {
        "version": "0.1.0",
        "model_type": "phi3",
        "quantization": "q4f16_1",
        "model_config": {
            "hidden_size": 3072,
            "vocab_size": 32064,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "intermediate_size": 8192,
            "rms_norm_eps": 1e-05,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "position_embedding_base": 10000.0,
            "rope_scaling": None,
            "original_max_position_embeddings": 4096,
            "context_window_size": 4096,
            "prefill_chunk_size": 4096,
            "head_dim": 96,
        }
        | (model or {}),
        "context_window_size": 4096,
        "sliding_window_size": -1,
        "prefill_chunk_size": 1024,
        "temperature": 0.7,
        "top_p": 0.95,
        "conv_template": {"stop_token_ids": [2, 32000, 32001, 32007]},
        "pad_token_id": 32000,
        "bos_token_id": 1,
        "eos_token_id": [32000, 32001, 32007],
    }
    return root | changes


def write(folder: Path, name: str, document: Any) -> Path:
    """Write a JSON file and return its folder."""
    (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return folder


def write_hf(folder: Path, **changes: Any) -> Path:
    """Write a Hugging Face configuration and return its folder."""
    return write(folder, "config.json", hf_config(**changes))


def write_mlc(folder: Path, model: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write an MLC-LLM configuration and return its folder."""
    return write(folder, "mlc-chat-config.json", mlc_config(model, **changes))


def test_mlc_file_of_mini_4k_is_read_with_its_window(tmp_path: Path) -> None:
    """The 4k model gets its sliding window of 2047 although MLC-LLM's file has no field for it."""
    config = load_config(write_mlc(tmp_path))
    assert config.sliding_window == 2047
    assert (config.hidden_size, config.num_layers, config.head_dim, config.qkv_size) == (3072, 32, 96, 9216)
    assert config.quantization == "q4f16_1"
    assert config.prefill_chunk_size == 1024
    assert config.eos_token_ids == (32000, 32001, 32007, 2)
    assert config.generation.temperature == 0.7
    assert config.generation.top_p == 0.95


def test_hugging_face_files_of_mini_4k_agree_with_mlcs(tmp_path: Path) -> None:
    """Both formats of the same model give the same shapes, positions and window."""
    hf_dir, mlc_dir = tmp_path / "hf", tmp_path / "mlc"
    hf_dir.mkdir()
    mlc_dir.mkdir()
    hf, mlc = load_config(write_hf(hf_dir)), load_config(write_mlc(mlc_dir))
    names = ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "rope_theta", "rope_scaling", "sliding_window")
    for name in (*names, "max_position", "context_window_size", "vocab_size", "rms_norm_eps", "bos_token_id"):
        assert getattr(hf, name) == getattr(mlc, name), name
    assert hf.quantization is None


def test_generation_config_wins_over_config(tmp_path: Path) -> None:
    """Token ids and sampling defaults come from generation_config.json where it is there."""
    write_hf(tmp_path)
    write(tmp_path, "generation_config.json", {"eos_token_id": [32000, 32001, 32007], "temperature": 0.5})
    config = load_config(tmp_path)
    assert config.eos_token_ids == (32000, 32001, 32007)
    assert config.generation.temperature == 0.5
    assert config.bos_token_id == 1


@pytest.mark.parametrize("kind", ["su", "longrope"])
def test_longrope_caps_the_context_and_keeps_the_maximum(tmp_path: Path, kind: str) -> None:
    """A 128k model serves its original context, keeps max_position, and has no window that is never reached."""
    scaling = {"type": kind, "long_factor": FACTORS, "short_factor": FACTORS}
    config = load_config(
        write_hf(tmp_path, rope_scaling=scaling, max_position_embeddings=131072, sliding_window=262144)
    )
    assert config.rope_scaling is not None
    assert config.rope_scaling.long_factor == tuple(FACTORS)
    assert config.rope_scaling.original_max_position == 4096
    assert (config.context_window_size, config.max_position, config.sliding_window) == (4096, 131072, None)


def test_rope_parameters_of_transformers_5_are_read(tmp_path: Path) -> None:
    """The base and the factors are found in rope_parameters, where transformers 5 puts them."""
    parameters = {
        "rope_type": "longrope",
        "rope_theta": 50000.0,
        "long_factor": FACTORS,
        "short_factor": FACTORS,
        "original_max_position_embeddings": 2048,
    }
    config = load_config(write_hf(tmp_path, rope_theta=None, rope_parameters=parameters))
    assert config.rope_theta == 50000.0
    assert config.rope_scaling is not None
    assert config.context_window_size == 2048


def test_golden_checkpoint_is_read(golden: Path) -> None:
    """The checkpoint saved by transformers 5 is read with its default rope and without a window."""
    config = load_config(golden / "hf")
    assert (config.hidden_size, config.num_layers, config.vocab_size, config.max_position) == (192, 2, 512, 256)
    assert config.rope_scaling is None
    assert config.sliding_window is None
    assert config.eos_token_ids == (2,)


def test_mlc_longrope_file_is_read(tmp_path: Path) -> None:
    """MLC-LLM's renaming of the factors' type is understood, and its context is capped."""
    scaling = {"type": "longrope", "rope_type": "longrope", "long_factor": FACTORS, "short_factor": FACTORS}
    model = {"rope_scaling": scaling, "max_position_embeddings": 131072}
    config = load_config(write_mlc(tmp_path, model, context_window_size=131072, prefill_chunk_size=8192))
    assert (config.context_window_size, config.max_position, config.prefill_chunk_size) == (4096, 131072, 4096)
    assert config.sliding_window is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"partial_rotary_factor": 0.75}, "partial_rotary_factor is 0.75"),
        ({"hidden_size": 3080}, "hidden_size is 3080; must be a multiple of 32"),
        ({"num_attention_heads": 31, "num_key_value_heads": 31}, "31 heads of 99"),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5; must divide the 32 heads"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling type is 'yarn'"),
    ],
)
def test_variant_that_is_not_run_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A model of another kind is refused with the key, its value and the limit."""
    with pytest.raises(UnsupportedModel, match=message):
        load_config(write_hf(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "config.json: hidden_size is missing; expected an integer"),
        ({"hidden_size": "3072"}, 'hidden_size is "3072"'),
        ({"hidden_size": True}, "hidden_size is true"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected an integer from 1 to 1024"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
        ({"eos_token_id": 32064}, "eos_token_id is 32064; expected integers from 0 to 32063"),
        ({"eos_token_id": None}, "eos_token_id is null|eos_token_id is missing"),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": FACTORS}}, "48 numbers above 0"),
        ({"tie_word_embeddings": "no"}, 'tie_word_embeddings is "no"; expected true or false'),
    ],
)
def test_bad_value_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A damaged field is refused with the file, the key, its value and what was expected."""
    with pytest.raises(ModelInvalid, match=message):
        load_config(write_hf(tmp_path, **changes))


def test_folder_without_a_model_is_not_found(tmp_path: Path) -> None:
    """A folder with neither configuration raises ModelNotFound with its path."""
    with pytest.raises(ModelNotFound, match=str(tmp_path)):
        load_config(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": ' + "[" * 100_000, "\ufeff{}"])
def test_file_that_is_no_json_object_is_invalid(tmp_path: Path, text: str) -> None:
    """Anything but one JSON object raises ModelInvalid that names the file."""
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelInvalid, match=r"config\.json"):
        load_config(tmp_path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(key=st.sampled_from(sorted(hf_config())), value=JSON_VALUES)
def test_any_value_gives_a_config_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    """Whatever a field holds, the outcome is a configuration or ModelInvalid, never another exception."""
    folder = tmp_path_factory.mktemp("any")
    write(folder, "config.json", hf_config() | {key: value})
    try:
        config = load_config(folder)
    except ModelInvalid:
        return
    assert config.num_heads * config.head_dim == config.hidden_size
    assert all(0 <= token < config.vocab_size for token in config.eos_token_ids)


def test_null_counts_as_absent() -> None:
    """A field that is null takes its default."""
    assert Fields({"a": None}, file="f.json").integer("a", low=0, high=9, default=4) == 4
