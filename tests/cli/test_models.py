from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def installed(tiny: Path, tmp_path: Path) -> Path:
    """Return the folder of a model installed as ``my-model``, not compiled."""
    target = tmp_path / "models" / "my-model"
    shutil.copytree(tiny, target, ignore=shutil.ignore_patterns("build"))
    return target


def test_list_names_installed_models(invoke: Any, installed: Path) -> None:
    """List has a row for each installed model and JSON with sizes in bytes."""
    rows = {row["name"]: row for row in json.loads(invoke("model", "list", "--json").stdout)}
    assert rows["my-model"]["context_tokens"] == 256
    assert rows["my-model"]["compiled_for"] == []
    assert rows["my-model"]["size_bytes"] == sum(file.stat().st_size for file in installed.glob("params_shard_*"))
    assert any(line.startswith("my-model ") for line in invoke("model", "list").stdout.splitlines())


def test_show_describes_a_model(invoke: Any, installed: Path) -> None:
    """Show tells the shape of an installed model by its name."""
    value = json.loads(invoke("model", "show", "my-model", "--json").stdout)
    assert (value["num_layers"], value["hidden_size"], value["vocab_size"]) == (2, 192, 512)
    assert value["path"] == str(installed)
    assert "nothing yet" in invoke("model", "show", "my-model").stdout


def test_verify_notices_a_changed_byte(invoke: Any, installed: Path) -> None:
    """Verify passes an intact model and fails, naming the file, when one bit differs."""
    assert invoke("model", "verify", "my-model").stdout.startswith("intact: ")
    assert json.loads(invoke("model", "verify", "my-model", "--json").stdout)["compiled_for"] == []
    shard = next(installed.glob("params_shard_*"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    result = invoke("model", "verify", "my-model")
    assert result.exit_code == 1
    assert shard.name in result.stderr


def test_synth_refuses_to_overwrite_without_force(invoke: Any, tmp_path: Path) -> None:
    """Synth makes a folder, refuses to replace it, and replaces it with --force."""
    out = tmp_path / "made"
    assert json.loads(invoke("model", "synth", "phi3-tiny", out, "--json").stdout) == {"path": str(out)}
    before = out.stat().st_ino
    refused = invoke("model", "synth", "phi3-tiny", out)
    assert refused.exit_code == 1
    assert "force" in refused.stderr
    assert out.stat().st_ino == before
    assert invoke("model", "synth", "phi3-tiny", out, "--force").exit_code == 0
    assert out.stat().st_ino != before


def test_synth_lists_the_presets(invoke: Any, tmp_path: Path) -> None:
    """An unknown preset is refused with the list of those that exist."""
    result = invoke("model", "synth", "phi9", tmp_path / "x")
    assert result.exit_code == 1
    assert "phi3-tiny" in result.stderr


def test_convert_refuses_what_is_no_checkpoint(invoke: Any, tmp_path: Path) -> None:
    """Convert of an empty folder fails in one line and installs nothing."""
    (tmp_path / "empty").mkdir()
    result = invoke("model", "convert", tmp_path / "empty")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert not (tmp_path / "models" / "empty").exists()


def test_pull_names_the_models_it_knows(invoke: Any) -> None:
    """Pull of an unknown short name lists the known ones and touches no network."""
    result = invoke("model", "pull", "phi9")
    assert result.exit_code == 1
    assert "phi3-mini-4k" in result.stderr


def test_compile_lists_the_levels(invoke: Any) -> None:
    """Compile for an unknown level lists those that exist."""
    result = invoke("model", "compile", "--target", "z80")
    assert result.exit_code == 1
    assert "armv8.2-dotprod" in result.stderr


@pytest.mark.tvm
def test_compile_once_and_again_with_force(invoke: Any, tiny: Path) -> None:
    """Compile leaves an up-to-date bundle alone, and makes it again with --force; verify then covers it."""
    first = json.loads(invoke("model", "compile", tiny, "--json").stdout)
    library = Path(first["path"]) / "model.so"
    made_at = library.stat().st_mtime_ns
    again = json.loads(invoke("model", "compile", tiny, "--json").stdout)
    assert again["was_current"] is True
    assert library.stat().st_mtime_ns == made_at
    assert "--force does it again" in invoke("model", "compile", tiny).stdout
    forced = json.loads(invoke("model", "compile", tiny, "--force", "--json").stdout)
    assert forced["was_current"] is False
    assert library.stat().st_mtime_ns != made_at
    assert json.loads(invoke("model", "verify", tiny, "--json").stdout)["compiled_for"] == [first["level"]]
