"""Digests that say whether a cached bundle still belongs to a model and to the compiler that would make it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path

from edgephi.errors import ModelNotFound

_CONFIG_FILES = ("mlc-chat-config.json", "config.json")
_MANIFESTS = ("tensor-cache.json", "ndarray-cache.json")


def model_digest(model_dir: Path) -> str:
    """
    Return 64 hex digits over a model's configuration and its weights' manifest, which holds a checksum of each shard.

    Raises:
        ModelNotFound: If the folder has no manifest.
    """
    files = [model_dir / name for name in (*_CONFIG_FILES, *_MANIFESTS) if (model_dir / name).is_file()]
    if not any(file.name in _MANIFESTS for file in files):
        raise ModelNotFound(
            f"{model_dir} has no {_MANIFESTS[0]}; it must be a folder of MLC-LLM weights. "
            "Convert a Hugging Face checkpoint with `edgephi model convert`"
        )
    return _digest(files)


def compiler_digest() -> str | None:
    """Return 64 hex digits over the compiler's sources and TVM's version; None where no compiler is installed."""
    spec = importlib.util.find_spec("edgephi.compiler")
    if spec is None or spec.origin is None:
        return None
    sources = sorted(Path(spec.origin).parent.rglob("*.py"))
    return _digest(sources, importlib.metadata.version("apache-tvm"))


def _digest(files: list[Path], *extra: str) -> str:
    digest = hashlib.sha256()
    for part in extra:
        digest.update(part.encode() + b"\0")
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
