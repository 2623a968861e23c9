"""From a Hugging Face checkpoint to MLC-LLM's files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgephi.artifact.bfloat16 import narrow_to_bf16, widen_bf16
from edgephi.artifact.checkpoint import open_checkpoint
from edgephi.artifact.config import load_config
from edgephi.artifact.convert import convert_checkpoint
from edgephi.artifact.manifest import verify_model
from edgephi.artifact.parameters import phi3_parameters
from edgephi.artifact.quantization import dequantize_q3, quantize_q3
from edgephi.artifact.weights import open_weights
from edgephi.errors import ConfigError, ModelInvalid, ModelNotFound, UnsupportedModel

TYPE_NAMES = {"float16": "F16", "uint16": "BF16", "float32": "F32"}


def read_tensors(source: Path) -> dict[str, npt.NDArray[Any]]:
    """Return all tensors of a checkpoint."""
    with open_checkpoint(source) as checkpoint:
        return {name: checkpoint.rows(name, 0, checkpoint.shape(name)[0]) for name in checkpoint.names()}


def write_safetensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a safetensors file; uint16 arrays are taken for bfloat16 bits."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": TYPE_NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensor.tobytes() for tensor in tensors.values()))


def copy_source(golden: Path, folder: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> Path:
    """Return a checkpoint folder with the golden configuration and the given tensors in one file."""
    folder.mkdir()
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(golden / "hf" / name, folder / name)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize("name", ["q4f16_1", "q4f32_1"])
def test_weight_files_are_mlcs_byte_for_byte(golden: Path, converted: dict[str, Path], name: str) -> None:
    """Shards and manifests are identical to those of MLC-LLM's own converter."""
    expected = sorted(path.name for path in (golden / name).iterdir())
    found = sorted(path.name for path in converted[name].iterdir())
    assert found == sorted([*expected, "mlc-chat-config.json"])
    for file in expected:
        assert (converted[name] / file).read_bytes() == (golden / name / file).read_bytes(), file


def test_three_bit_folder_holds_what_the_quantizer_makes(golden: Path, converted: dict[str, Path]) -> None:
    """Layers of a q3f16_g32 folder are the checkpoint's in 3 bits, embedding and output projection MLC-LLM's 4 bits."""
    with (
        open_weights(converted["q3f16_g32"]) as three,
        open_weights(golden / "q4f16_1") as four,
        open_checkpoint(golden / "hf") as checkpoint,
    ):
        for parameter in phi3_parameters(load_config(golden / "hf")):
            if not parameter.is_matrix:
                continue
            found = three.matrix(parameter.prefix)
            assert (found.n, found.k) == parameter.shape
            if parameter.prefix in ("lm_head", "transformer.embd"):
                np.testing.assert_array_equal(found.q_weight, four.matrix(parameter.prefix).q_weight)
                np.testing.assert_array_equal(found.scale, four.matrix(parameter.prefix).scale)
                continue
            weight = checkpoint.rows(parameter.hf_name, 0, parameter.shape[0]).astype(np.float32)
            assert found.bits == 3
            np.testing.assert_array_equal(found.dequantize(), dequantize_q3(*quantize_q3(weight)))
            np.testing.assert_array_equal(
                found.dequantize(),
                (found.unpack_codes() - np.float32(4)) * np.repeat(found.scales_nk().astype(np.float32), 32, axis=1),
            )
            assert np.std(found.dequantize() - weight) < 0.2 * np.std(weight)


def test_configuration_survives(golden: Path, converted: dict[str, Path]) -> None:
    """The written mlc-chat-config.json reads to the checkpoint's own configuration, plus the quantization."""
    source = load_config(golden / "hf")
    for name, folder in converted.items():
        config = load_config(folder)
        assert config.quantization == name
        for field in type(config).__dataclass_fields__:
            if field != "quantization":
                assert getattr(config, field) == getattr(source, field), field


def test_chat_config_has_every_key_in_mlcs_order(converted: dict[str, Path]) -> None:
    """MLC-LLM finds all the keys it writes itself, in its order, and its phi-3 conversation."""
    document = json.loads((converted["q4f16_1"] / "mlc-chat-config.json").read_text(encoding="utf-8"))
    assert " ".join(document) == (
        "version model_type quantization model_config vocab_size context_window_size sliding_window_size "
        "prefill_chunk_size attention_sink_size tensor_parallel_shards pipeline_parallel_stages active_vocab_size "
        "temperature presence_penalty frequency_penalty repetition_penalty top_p tokenizer_files tokenizer_info "
        "conv_template pad_token_id bos_token_id eos_token_id model_task embedding_metadata"
    )
    template = document["conv_template"]
    assert template["name"] == "phi-3"
    assert template["seps"] == ["<|end|>\n"]
    assert template["system_prefix_token_ids"] == [1]
    assert document["model_config"]["head_dim"] == 96
    assert document["model_config"]["position_embedding_base"] == 10000.0


def test_window_that_mlc_has_no_field_for_survives(golden: Path, tmp_path: Path) -> None:
    """A sliding window other than the one that can be inferred is kept through a conversion."""
    source = Path(shutil.copytree(golden / "hf", tmp_path / "hf"))
    document = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps(document | {"sliding_window": 100}), encoding="utf-8")
    assert load_config(convert_checkpoint(source, tmp_path / "out")).sliding_window == 100


def test_shards_with_an_index_give_the_same_bytes(golden: Path, tmp_path: Path) -> None:
    """A checkpoint split over two files with an index converts to the same shard as the single file."""
    tensors = read_tensors(golden / "hf")
    names = list(tensors)
    source = copy_source(golden, tmp_path / "split", {})
    (source / "model.safetensors").unlink()
    files = {"model-1.safetensors": names[:6], "model-2.safetensors": names[6:]}
    weight_map: dict[str, str] = {}
    for file, part in files.items():
        write_safetensors(source / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    out = convert_checkpoint(source, tmp_path / "out")
    assert (out / "params_shard_0.bin").read_bytes() == (golden / "q4f16_1/params_shard_0.bin").read_bytes()


def test_float32_source_of_the_same_values_gives_the_same_bytes(golden: Path, tmp_path: Path) -> None:
    """Widening a float16 checkpoint to float32 changes nothing in the result."""
    tensors = {name: tensor.astype(np.float32) for name, tensor in read_tensors(golden / "hf").items()}
    out = convert_checkpoint(copy_source(golden, tmp_path / "f32", tensors), tmp_path / "out")
    assert (out / "params_shard_0.bin").read_bytes() == (golden / "q4f16_1/params_shard_0.bin").read_bytes()


def test_bfloat16_source_is_the_widened_one(golden: Path, tmp_path: Path) -> None:
    """A bfloat16 checkpoint converts like the float32 checkpoint with the same values."""
    bits = {name: narrow_to_bf16(tensor.astype(np.float32)) for name, tensor in read_tensors(golden / "hf").items()}
    widened = {name: widen_bf16(tensor) for name, tensor in bits.items()}
    narrow = convert_checkpoint(copy_source(golden, tmp_path / "bf16", bits), tmp_path / "out_bf16")
    wide = convert_checkpoint(copy_source(golden, tmp_path / "f32", widened), tmp_path / "out_f32")
    assert (narrow / "params_shard_0.bin").read_bytes() == (wide / "params_shard_0.bin").read_bytes()


def test_tokenizer_files_are_copied_and_described(golden: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The tokenizer goes along, and MLC-LLM is told how it treats spaces and how many tokens it has."""
    source = Path(shutil.copytree(golden / "hf", tmp_path / "hf"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_model / name, source / name)
    out = convert_checkpoint(source, tmp_path / "out")
    document = json.loads((out / "mlc-chat-config.json").read_text(encoding="utf-8"))
    assert document["tokenizer_files"] == ["tokenizer.json", "tokenizer_config.json"]
    assert document["tokenizer_info"] == {
        "token_postproc_method": "byte_fallback",
        "prepend_space_in_encode": True,
        "strip_space_in_decode": True,
    }
    assert document["active_vocab_size"] == 448 + 11
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_context_can_be_shortened_only(golden: Path, tmp_path: Path) -> None:
    """A shorter context is written; a longer one than the model's raises ConfigError and writes nothing."""
    out = convert_checkpoint(golden / "hf", tmp_path / "short", context_window_size=128)
    assert load_config(out).context_window_size == 128
    assert load_config(out).prefill_chunk_size == 128
    with pytest.raises(ConfigError, match="context_window_size is 512; must be 1 to 256"):
        convert_checkpoint(golden / "hf", tmp_path / "long", context_window_size=512)
    assert not (tmp_path / "long").exists()


def test_progress_ends_at_the_total(golden: Path, tmp_path: Path) -> None:
    """Progress counts the checkpoint's bytes up to their sum."""
    seen: list[tuple[int, int]] = []
    convert_checkpoint(golden / "hf", tmp_path / "out", progress=lambda label, done, total: seen.append((done, total)))
    assert len(seen) == 15
    assert seen[-1][0] == seen[-1][1] == sum(tensor.nbytes for tensor in read_tensors(golden / "hf").values())


def test_existing_folder_is_kept_unless_forced(golden: Path, tmp_path: Path) -> None:
    """An existing folder raises ConfigError untouched; force replaces it whole."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="exists; choose another folder"):
        convert_checkpoint(golden / "hf", out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    convert_checkpoint(golden / "hf", out, force=True)
    assert not (out / "mine.txt").exists()
    verify_model(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failure_half_way_leaves_nothing(golden: Path, tmp_path: Path) -> None:
    """A damaged tensor near the end raises ModelInvalid with its name; no folder, no leftover, the old one kept."""
    tensors = {name: tensor.copy() for name, tensor in read_tensors(golden / "hf").items()}
    tensors["model.layers.1.self_attn.qkv_proj.weight"][3, 7] = np.nan
    source = copy_source(golden, tmp_path / "hf", tensors)
    out = tmp_path / "models" / "out"
    with pytest.raises(ModelInvalid, match=r"model\.layers\.1\.self_attn\.qkv_proj\.weight: a weight is not a finite"):
        convert_checkpoint(source, out)
    assert list(out.parent.iterdir()) == []
    convert_checkpoint(golden / "hf", out)
    with pytest.raises(ModelInvalid):
        convert_checkpoint(source, out, force=True)
    verify_model(out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_tensors_are_held_against_the_configuration(golden: Path, tmp_path: Path) -> None:
    """A missing, an extra and a misshapen tensor each raise ModelInvalid with the name."""
    tensors = read_tensors(golden / "hf")
    missing = {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}
    with pytest.raises(ModelInvalid, match=r"lacks 1 tensors, first 'model\.norm\.weight'"):
        convert_checkpoint(copy_source(golden, tmp_path / "a", missing), tmp_path / "out")
    extra = tensors | {"model.layers.0.bias": np.zeros(3, np.float16)}
    with pytest.raises(ModelInvalid, match=r"'model\.layers\.0\.bias' that is not part"):
        convert_checkpoint(copy_source(golden, tmp_path / "b", extra), tmp_path / "out")
    misshapen = tensors | {"model.norm.weight": np.zeros(3, np.float16)}
    with pytest.raises(ModelInvalid, match=r"model\.norm\.weight has shape \[3\]; config\.json makes it \[192\]"):
        convert_checkpoint(copy_source(golden, tmp_path / "c", misshapen), tmp_path / "out")


def test_rotary_constants_of_old_checkpoints_are_ignored(golden: Path, tmp_path: Path) -> None:
    """inv_freq tensors, which are no weights, do not stop a conversion or change its bytes."""
    tensors = read_tensors(golden / "hf") | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(48, np.float32)}
    out = convert_checkpoint(copy_source(golden, tmp_path / "hf", tensors), tmp_path / "out")
    assert (out / "tensor-cache.json").read_bytes() == (golden / "q4f16_1/tensor-cache.json").read_bytes()


def test_unknown_quantization_is_refused_first(golden: Path, tmp_path: Path) -> None:
    """An unknown format raises UnsupportedModel before anything is written."""
    with pytest.raises(UnsupportedModel, match="q8f16_1"):
        convert_checkpoint(golden / "hf", tmp_path / "out", quantization="q8f16_1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has 0 bytes"),
        (b"\xff" * 8 + b"{}", "announces a header of"),
        (b"\x02\0\0\0\0\0\0\0[]", "a header that is not an object"),
        (b"\x02\0\0\0\0\0\0\0{x", "a header that is not JSON"),
        (b'\x0e\0\0\0\0\0\0\0{"a": {"b":1}}', "a.dtype is missing"),
    ],
)
def test_damaged_header_is_named(golden: Path, tmp_path: Path, data: bytes, message: str) -> None:
    """A safetensors file that cannot be read raises ModelInvalid that names the file."""
    source = copy_source(golden, tmp_path / "hf", {})
    (source / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelInvalid, match=message):
        open_checkpoint(source)


def test_tensor_beyond_the_file_is_refused(golden: Path, tmp_path: Path) -> None:
    """Offsets past the end of a truncated checkpoint raise ModelInvalid when it is opened."""
    source = Path(shutil.copytree(golden / "hf", tmp_path / "hf"))
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ModelInvalid, match="data_offsets"):
        open_checkpoint(source)


def test_folder_without_checkpoint_is_not_found(golden: Path, tmp_path: Path) -> None:
    """A folder with a configuration and no weights raises ModelNotFound."""
    shutil.copyfile(golden / "hf" / "config.json", tmp_path / "config.json")
    with pytest.raises(ModelNotFound, match=r"neither model\.safetensors nor"):
        convert_checkpoint(tmp_path, tmp_path / "out")


def test_index_cannot_leave_its_folder(golden: Path, tmp_path: Path) -> None:
    """An index that names a file elsewhere raises ModelInvalid."""
    source = copy_source(golden, tmp_path / "hf", {})
    (source / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelInvalid, match=r"expected the name of a \.safetensors file beside the index"):
        open_checkpoint(source)
