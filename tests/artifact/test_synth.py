"""Models of random weights and their tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edgephi.artifact.config import load_config
from edgephi.artifact.manifest import verify_model
from edgephi.artifact.parameters import phi3_parameters
from edgephi.artifact.quantization import find_quantization
from edgephi.artifact.synth import PRESETS, stored_bytes, synthesize
from edgephi.artifact.synth_tokenizer import special_ids, write_tokenizer
from edgephi.artifact.weights import open_weights
from edgephi.errors import ConfigError

SMALL = [name for name in PRESETS if name.startswith("phi3-tiny")]


@pytest.fixture(scope="module")
def full_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tokenizer of the full-size preset."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, 32064, max_tokens=4096)
    return folder


@pytest.mark.parametrize("preset", SMALL)
def test_written_configuration_is_the_preset(tmp_path: Path, preset: str) -> None:
    """A synthetic folder verifies and reads to exactly its preset, window and longrope factors included."""
    out = synthesize(preset, tmp_path / preset)
    verify_model(out)
    assert load_config(out) == PRESETS[preset]


def test_full_size_preset_is_phi3_mini() -> None:
    """The phi3-mini-4k preset has the parameters, the window and the tokens of the published model."""
    config = PRESETS["phi3-mini-4k"]
    assert sum(parameter.num_elements for parameter in phi3_parameters(config)) == 3_821_079_552
    assert (config.head_dim, config.sliding_window, config.context_window_size) == (96, 2047, 4096)
    assert config.eos_token_ids == (32000, 32001, 32007)


def test_same_seed_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    """The same seed gives the same files; another seed gives other weights."""
    again = synthesize("phi3-tiny", tmp_path / "again")
    for path in sorted(tiny_model.iterdir()):
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    other = synthesize("phi3-tiny", tmp_path / "other", seed=1)
    assert (other / "params_shard_0.bin").read_bytes() != (again / "params_shard_0.bin").read_bytes()


def test_bytes_are_the_same_on_every_machine(tiny_model: Path) -> None:
    """The digest of the tiny model's weights is the one written here, so a change of the generator is seen."""
    manifest = verify_model(tiny_model)
    assert [shard.md5 for shard in manifest.shards] == ["1e5ddf919c0afa5d5b79c63a983627e5"]


def test_weights_are_sane(tiny_model: Path) -> None:
    """Codes are 0 to 14, centred; weights have the stated spread; norms are 1."""
    with open_weights(tiny_model) as weights:
        matrix = weights.matrix("transformer.h.1.mlp.gate_up_proj")
        codes, values = matrix.unpack_codes(), matrix.dequantize()
        assert (weights.get("transformer.norm.weight") == 1).all()
    assert codes.min() == 0
    assert codes.max() == 14
    assert float(codes.mean()) == pytest.approx(7, abs=0.05)
    assert float(np.std(values)) == pytest.approx(192**-0.5, rel=0.05)


def test_three_bit_model_is_as_large_as_it_says(tmp_path: Path) -> None:
    """
    Codes of a 3-bit model are 0 to 7, its weights have the stated spread and mean 0, and progress counts its bytes.

    The full-size model of that format would have 1,696,659,456 bytes, below 1.8 GB, and the 4-bit one 2,149,644,288.
    """
    seen: list[tuple[int, int]] = []
    out = synthesize(
        "phi3-tiny",
        tmp_path / "out",
        quantization="q3f16_g32",
        progress=lambda _, done, total: seen.append((done, total)),
    )
    manifest = verify_model(out)
    assert seen[-1] == (manifest.total_bytes, manifest.total_bytes)
    assert load_config(out).quantization == "q3f16_g32"
    with open_weights(out) as weights:
        matrix = weights.matrix("transformer.h.1.mlp.gate_up_proj")
        codes, values = matrix.unpack_codes(), matrix.dequantize()
        assert weights.matrix("lm_head").bits == weights.matrix("transformer.embd").bits == 4
    assert np.unique(codes).tolist() == list(range(8))
    assert float(np.std(values)) == pytest.approx(192**-0.5, rel=0.05)
    assert float(np.mean(values)) == pytest.approx(0, abs=0.01 * 192**-0.5)
    full = phi3_parameters(PRESETS["phi3-mini-4k"])
    sizes = [sum(stored_bytes(p, find_quantization(name)) for p in full) for name in ("q3f16_g32", "q4f16_1")]
    assert sizes == [1_696_659_456, 2_149_644_288]


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    """An unknown preset or quantization, a negative seed and an existing folder raise ConfigError."""
    with pytest.raises(ConfigError, match="preset is 'phi4'; use one of phi3-mini-4k"):
        synthesize("phi4", tmp_path / "out")
    with pytest.raises(ConfigError, match="quantization is 'q4f16_0'; use one of q4f16_1, q3f16_g32"):
        synthesize("phi3-tiny", tmp_path / "out", quantization="q4f16_0")
    with pytest.raises(ConfigError, match="seed is -1"):
        synthesize("phi3-tiny", tmp_path / "out", seed=-1)
    with pytest.raises(ConfigError, match="exists"):
        synthesize("phi3-tiny", tmp_path)


def test_special_tokens_have_phi3s_ids(full_tokenizer: Path) -> None:
    """The full vocabulary has Phi-3's ids for the chat tokens, and 32,011 tokens in all."""
    tokenizer = Tokenizer.from_file(str(full_tokenizer / "tokenizer.json"))
    expected = {
        "<unk>": 0,
        "<s>": 1,
        "</s>": 2,
        "<0x00>": 3,
        "<0xFF>": 258,
        "<|endoftext|>": 32000,
        "<|assistant|>": 32001,
        "<|placeholder1|>": 32002,
        "<|system|>": 32006,
        "<|end|>": 32007,
        "<|user|>": 32010,
    }
    assert {name: tokenizer.token_to_id(name) for name in expected} == expected
    assert tokenizer.get_vocab_size() == 32011
    assert special_ids(32064).end == 32007


def test_every_piece_can_be_reached(full_tokenizer: Path) -> None:
    """Each piece of several characters is the join of two pieces, once, so encoding can produce it."""
    model = json.loads((full_tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocab, merges = model["vocab"], [merge.split(" ") for merge in model["merges"]]
    assert sorted(vocab.values()) == list(range(32000))
    joined = [left + right for left, right in merges]
    assert len(set(joined)) == len(joined)
    assert all(left in vocab and right in vocab for left, right in merges)
    pieces = {piece for piece, index in vocab.items() if index > 258 and len(piece) > 1}
    assert set(joined) == pieces


def test_common_words_are_one_token(full_tokenizer: Path) -> None:
    """Plain English is shorter in tokens than in letters."""
    tokenizer = Tokenizer.from_file(str(full_tokenizer / "tokenizer.json"))
    assert tokenizer.encode("the robot").tokens == ["▁the", "▁robot"]


@settings(max_examples=80, deadline=None)
@given(text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=40))
def test_any_text_round_trips(tiny_model: Path, text: str) -> None:
    """Text of any script comes back from the small tokenizer, byte tokens covering what no piece does."""
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(token < 512 for token in ids)


def test_vocabulary_that_is_too_small_is_refused(tmp_path: Path) -> None:
    """A vocabulary without room for bytes, letters and special tokens raises ConfigError with the least size."""
    with pytest.raises(ConfigError, match="vocab_size is 400; a synthetic tokenizer needs at least 418"):
        write_tokenizer(tmp_path, 400, max_tokens=256)
