"""Which models are installed, and what a name means."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgephi.artifact.store import find_model, list_models, models_dir
from edgephi.errors import ConfigError, ModelNotFound


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty models folder that EDGEPHI_MODELS names."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("EDGEPHI_MODELS", str(folder))
    return folder


def test_environment_names_the_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EDGEPHI_MODELS wins; without it models live in the user's data folder; a relative path is refused."""
    assert models_dir() == models
    monkeypatch.setenv("EDGEPHI_MODELS", "relative/path")
    with pytest.raises(ConfigError, match="EDGEPHI_MODELS is 'relative/path'; expected an absolute path"):
        models_dir()
    monkeypatch.delenv("EDGEPHI_MODELS")
    monkeypatch.setenv("XDG_DATA_HOME", str(models))
    assert models_dir().parts[-2:] == ("edgephi", "models")


def test_installed_model_is_listed_and_found(models: Path, tiny_model: Path) -> None:
    """A model folder is listed with its facts and found by name and by path."""
    shutil.copytree(tiny_model, models / "tiny")
    (found,) = list_models()
    assert (found.name, found.path, found.quantization) == ("tiny", models / "tiny", "q4f16_1")
    assert (found.size_bytes, found.context_tokens) == (610176, 256)
    assert find_model("tiny") == models / "tiny"
    assert find_model(str(tiny_model)) == tiny_model


def test_what_is_no_model_is_left_out(models: Path, tiny_model: Path) -> None:
    """Unfinished downloads, damaged models, empty folders and stray files are not listed."""
    shutil.copytree(tiny_model, models / ".tiny.download")
    shutil.copytree(tiny_model, models / "broken")
    (models / "broken" / "tensor-cache.json").write_text("{", encoding="utf-8")
    (models / "empty").mkdir()
    (models / "notes.txt").write_text("x", encoding="utf-8")
    assert list_models() == ()


@pytest.mark.parametrize("name", ["nosuch", "", "../tiny", "/nowhere", ".tiny.download"])
def test_unknown_model_lists_what_is_installed(models: Path, tiny_model: Path, name: str) -> None:
    """A name that is neither installed nor a model folder raises ModelNotFound with the installed names."""
    shutil.copytree(tiny_model, models / "tiny")
    with pytest.raises(ModelNotFound, match="installed: tiny"):
        find_model(name)


def test_missing_models_folder_means_none(models: Path) -> None:
    """Without a models folder nothing is installed, and the message says so."""
    models.rmdir()
    assert list_models() == ()
    with pytest.raises(ModelNotFound, match="installed: none"):
        find_model("tiny")


def test_installed_name_wins_over_a_folder(models: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name means the installed model even where the working directory has a folder of that name."""
    shutil.copytree(tiny_model, models / "tiny")
    here = models.parent
    shutil.copytree(tiny_model, here / "tiny")
    monkeypatch.chdir(here)
    assert find_model("tiny") == models / "tiny"
    assert find_model("./tiny") == Path("tiny")
