"""The manifest's checks and the verification of shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgephi.artifact.manifest import read_manifest, verify_model
from edgephi.errors import IntegrityError, ModelInvalid, ModelNotFound


@pytest.fixture
def model(golden: Path, tmp_path: Path) -> Path:
    """Return a copy of the golden q4f32_1 weights that a test may damage."""
    return Path(shutil.copytree(golden / "q4f32_1", tmp_path / "model"))


def edit(model: Path, change: Callable[[Any], None]) -> None:
    """Change a model's manifest in place."""
    path = model / "tensor-cache.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_golden_manifest_is_read(golden: Path) -> None:
    """MLC-LLM's manifest gives every tensor with its types: float32 scales are bfloat16 on disk."""
    manifest = read_manifest(golden / "q4f32_1")
    assert manifest.total_bytes == 610176
    (shard,) = manifest.shards
    assert len(shard.tensors) == 25
    words, scale = shard.tensors[:2]
    assert (words.name, words.dtype, words.stored_dtype) == ("lm_head.q_weight", "uint32", "uint32")
    assert (scale.shape, scale.dtype, scale.stored_dtype) == ((512, 6), "float32", "bfloat16")


def test_older_name_is_read(model: Path) -> None:
    """A manifest named ndarray-cache.json is as good."""
    (model / "tensor-cache.json").rename(model / "ndarray-cache.json")
    assert verify_model(model).file == "ndarray-cache.json"


def test_bfloat16_manifest_describes_the_same_bytes(model: Path) -> None:
    """The b16 form of a manifest reads to the same tensors."""
    expected = read_manifest(model)
    (model / "tensor-cache-b16.json").replace(model / "tensor-cache.json")
    assert read_manifest(model) == expected


def test_progress_counts_every_byte(golden: Path) -> None:
    """Verification reports bytes that only grow and end at the total."""
    seen: list[tuple[int, int]] = []
    verify_model(golden / "q4f16_1", lambda label, done, total: seen.append((done, total)))
    assert seen[-1] == (610176, 610176)
    assert seen == sorted(seen)


def test_changed_byte_is_found(model: Path) -> None:
    """One flipped bit raises IntegrityError with the file and both digests."""
    shard = model / "params_shard_0.bin"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"params_shard_0\.bin has md5 [0-9a-f]{32}; expected 74dfbf3b"):
        verify_model(model)


def test_truncated_shard_is_found(model: Path) -> None:
    """A short file raises IntegrityError with both sizes."""
    shard = model / "params_shard_0.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="has 610175 bytes; expected 610176"):
        verify_model(model)


def test_missing_shard_is_found(model: Path) -> None:
    """An absent file raises IntegrityError that names it."""
    (model / "params_shard_0.bin").unlink()
    with pytest.raises(IntegrityError, match=r"params_shard_0\.bin is missing"):
        verify_model(model)


def test_folder_without_manifest_is_not_found(tmp_path: Path) -> None:
    """A folder with neither name of the manifest raises ModelNotFound."""
    with pytest.raises(ModelNotFound, match=r"tensor-cache\.json nor ndarray-cache\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("path", ["../x.bin", "/etc/passwd", "a/../../x", "..\\x", "C:x", "", "a\0b"])
def test_path_that_leaves_the_folder_is_refused(model: Path, path: str) -> None:
    """A shard outside the model's folder raises ModelInvalid before any file is opened."""

    def change(document: Any) -> None:
        document["records"][0]["dataPath"] = path

    edit(model, change)
    with pytest.raises(ModelInvalid, match=r"records\[0\]\.dataPath .*expected a path inside the model folder"):
        read_manifest(model)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("byteOffset", -4, r"byteOffset is -4; expected an integer from 0 to 610176"),
        ("byteOffset", 610176, r"nbytes is 49152; expected an integer from 0 to 0"),
        ("nbytes", 49148, r"nbytes is 49148; expected 49152 for shape \[512, 24\] of uint32"),
        ("nbytes", 2**70, "nbytes is 1180591620717411303424"),
        ("shape", [512, 23], r"expected 47104 for shape \[512, 23\]"),
        ("shape", "512", "shape is"),
        ("dtype", "int3", 'dtype is "int3"; expected one of uint8'),
        ("format", "zip", 'format is "zip"; expected "raw"'),
        ("name", 7, "name is 7; expected a string"),
        ("name", "lm_head.q_scale", "lists 'lm_head.q_scale' twice"),
    ],
)
def test_bad_record_is_named(model: Path, key: str, value: object, message: str) -> None:
    """A record that disagrees with its shard or itself raises ModelInvalid with the place and the value."""

    def change(document: Any) -> None:
        document["records"][0]["records"][0][key] = value

    edit(model, change)
    with pytest.raises(ModelInvalid, match=message):
        read_manifest(model)


def test_malformed_digest_is_refused(model: Path) -> None:
    """A digest that can match nothing raises ModelInvalid instead of blaming the shard."""

    def change(document: Any) -> None:
        document["records"][0]["md5sum"] = "abc"

    edit(model, change)
    with pytest.raises(ModelInvalid, match="expected 32 hexadecimal digits"):
        read_manifest(model)
