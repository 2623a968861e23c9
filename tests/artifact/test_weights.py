"""Reading tensors and quantized matrices from mapped shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgephi.artifact.weights import open_weights
from edgephi.errors import IntegrityError, ModelInvalid

QKV = "transformer.h.0.mixer.qkv_proj"


def test_raw_tensor_is_a_read_only_view(golden: Path) -> None:
    """A tensor stored raw is not copied and cannot be written to."""
    with open_weights(golden / "q4f16_1") as weights:
        first, again = weights.get("lm_head.q_weight"), weights.get("lm_head.q_weight")
        assert np.shares_memory(first, again)
        assert not first.flags.writeable
        assert (first.dtype, first.shape) == (np.dtype(np.uint32), (512, 24))


def test_bfloat16_tensor_is_widened(golden: Path) -> None:
    """A float32 tensor stored as bfloat16 reads as float32 whose lower 16 bits are zero."""
    with open_weights(golden / "q4f32_1") as weights:
        scale = weights.get("lm_head.q_scale")
    assert scale.dtype == np.float32
    assert not (scale.view(np.uint32) & 0xFFFF).any()


def test_names_are_in_file_order(golden: Path) -> None:
    """All names are listed in the order of the file."""
    with open_weights(golden / "q4f16_1") as weights:
        names = weights.names()
    assert len(names) == 25
    assert names[0] == "lm_head.q_weight"
    assert names[-1] == "transformer.norm.weight"


def test_arrays_outlive_the_store(golden: Path) -> None:
    """An array taken before closing stays readable; the store itself refuses."""
    with open_weights(golden / "q4f16_1") as weights:
        words = weights.get("lm_head.q_weight")
    assert int(words[0, 0]) >= 0
    with pytest.raises(ValueError, match="closed"):
        weights.get("lm_head.q_weight")


def test_both_layouts_hold_the_same_matrix(converted: dict[str, Path]) -> None:
    """NK and KN files of one model give the same codes and scales by row of the output."""
    with open_weights(converted["q4f16_1"]) as nk_weights, open_weights(converted["q4f16_0"]) as kn_weights:
        nk, kn = nk_weights.matrix(QKV), kn_weights.matrix(QKV)
        assert (nk.layout, kn.layout) == ("nk", "kn")
        assert kn.q_weight.shape == (192 // 8, 576)
        assert kn.scale.shape == (192 // 32, 576)
        assert (nk.n, nk.k) == (kn.n, kn.k) == (576, 192)
        np.testing.assert_array_equal(nk.unpack_codes(), kn.unpack_codes())
        np.testing.assert_array_equal(nk.scales_nk(), kn.scales_nk())
        np.testing.assert_array_equal(nk.dequantize(), kn.dequantize())
        assert kn_weights.matrix("transformer.embd").layout == "nk"


def test_missing_tensor_is_named(golden: Path) -> None:
    """An unknown name raises ModelInvalid with the name."""
    with (
        open_weights(golden / "q4f16_1") as weights,
        pytest.raises(ModelInvalid, match=r"no tensor 'lm_heat\.q"),
    ):
        weights.matrix("lm_heat")


def test_truncated_shard_is_refused_before_mapping(golden: Path, tmp_path: Path) -> None:
    """A short shard raises IntegrityError instead of killing the process when its end is read."""
    model = Path(shutil.copytree(golden / "q4f16_1", tmp_path / "model"))
    shard = model / "params_shard_0.bin"
    shard.write_bytes(shard.read_bytes()[:4096])
    with open_weights(model) as weights, pytest.raises(IntegrityError, match="has 4096 bytes; expected 610176"):
        weights.get("lm_head.q_weight")
