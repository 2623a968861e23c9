"""
Where models live on this machine, and which are there.

Owns the models folder and the meaning of a model's name. Knows nothing of downloads or of models that need no folder.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from edgephi.artifact.config import HF_CONFIG, MLC_CONFIG, load_config
from edgephi.artifact.manifest import read_manifest
from edgephi.errors import ConfigError, ModelInvalid, ModelNotFound

MODELS_ENV = "EDGEPHI_MODELS"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledModel:
    """
    One model in the models folder.

    Attributes:
        name: Of its folder; what a person types.
        path: The folder.
        quantization: MLC-LLM's name, such as ``q4f16_1``.
        size_bytes: Of its weights.
        context_tokens: Longest sequence it serves.
    """

    name: str
    path: Path
    quantization: str
    size_bytes: int
    context_tokens: int


def models_dir() -> Path:
    """
    Return the folder models are installed in: ``$EDGEPHI_MODELS``, else the user's data folder. It may not exist yet.

    Raises:
        ConfigError: If ``EDGEPHI_MODELS`` is not an absolute path.
    """
    configured = os.environ.get(MODELS_ENV)
    if not configured:
        return Path(platformdirs.user_data_dir("edgephi", appauthor=False)) / "models"
    path = Path(configured).expanduser()
    if not path.is_absolute():
        raise ConfigError(f"{MODELS_ENV} is {configured!r}; expected an absolute path")
    return path


def is_model_name(name: str) -> bool:
    """Return whether ``name`` can name an installed model: letters, digits, ``.``, ``_``, ``-``; no path."""
    return _NAME.fullmatch(name) is not None


def list_models() -> tuple[InstalledModel, ...]:
    """Return the models in the models folder by name; a folder that holds no readable model is left out."""
    root = models_dir()
    if not root.is_dir():
        return ()
    found: list[InstalledModel] = []
    for path in sorted(root.iterdir()):
        if not is_model_name(path.name) or not (path / MLC_CONFIG).is_file():
            continue
        try:
            config, manifest = load_config(path), read_manifest(path)
        except (ModelInvalid, ModelNotFound):
            continue
        found.append(
            InstalledModel(
                name=path.name,
                path=path,
                quantization=config.quantization or "",
                size_bytes=manifest.total_bytes,
                context_tokens=config.context_window_size,
            )
        )
    return tuple(found)


def find_model(name_or_path: str) -> Path:
    """
    Return a model's folder, given an installed model's name or a path.

    An installed name wins over a folder of that name in the working directory; write ``./name`` for the latter.

    Raises:
        ModelNotFound: Listing what is installed.
        ConfigError: If ``EDGEPHI_MODELS`` is not an absolute path.
    """
    if is_model_name(name_or_path):
        installed = models_dir() / name_or_path
        if _holds_model(installed):
            return installed
    path = Path(name_or_path).expanduser()
    if name_or_path and _holds_model(path):
        return path
    names = ", ".join(model.name for model in list_models()) or "none"
    raise ModelNotFound(f"no model {name_or_path!r}: not installed, and not a folder with a model; installed: {names}")


def _holds_model(path: Path) -> bool:
    return (path / MLC_CONFIG).is_file() or (path / HF_CONFIG).is_file()
