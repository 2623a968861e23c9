"""
The manifest of a model's weights, ``tensor-cache.json`` (older name ``ndarray-cache.json``), and its verification.

Owns the checks that make it safe to trust: every path inside the folder, every tensor inside its shard. Knows no
tensor's meaning.

    records[]            one per file params_shard_N.bin: dataPath, nbytes, md5sum
      records[]          one per tensor in it: name, shape, dtype, format, byteOffset, nbytes

``format`` is ``raw``, or ``f32-to-bf16``, which means something only for dtype float32: stored as the top 16 bits.
"""

from __future__ import annotations

import hashlib
import math
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgephi.artifact.fields import Fields, read_fields
from edgephi.errors import IntegrityError, ModelInvalid, ModelNotFound

Progress = Callable[[str, int, int], None]
"""Called as ``progress(label, done_bytes, total_bytes)`` while something long runs."""

MANIFEST = "tensor-cache.json"
OLD_MANIFEST = "ndarray-cache.json"
MAX_SHARD_BYTES = 1 << 40
MAX_DIM = 1 << 31
ITEM_BYTES = {"uint8": 1, "int8": 1, "float16": 2, "bfloat16": 2, "uint32": 4, "int32": 4, "float32": 4}
BF16_FORMAT = "f32-to-bf16"
_READ_BYTES = 1 << 20
_MD5 = re.compile(r"[0-9a-f]{32}")
_NOT_IN_PATH = re.compile(r"[\\:\0\ud800-\udfff]")  # JSON can spell half of a surrogate pair, which names no file


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """
    Where one tensor is.

    Attributes:
        name: Such as ``transformer.h.0.mixer.qkv_proj.q_weight``.
        shape: Extents, outermost first; stored row-major, little-endian.
        dtype: Of the tensor once read.
        stored_dtype: Of the bytes on disk; ``bfloat16`` where float32 was cut to its top 16 bits.
        offset: First byte in the shard.
        nbytes: Bytes in the shard.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored_dtype: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """
    One file of weights.

    Attributes:
        path: Relative to the model folder, never leaving it.
        nbytes: Size of the file.
        md5: Lower-case hexadecimal digest; None where the manifest has none.
        tensors: In the order they are listed.
    """

    path: str
    nbytes: int
    md5: str | None
    tensors: tuple[TensorRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """
    All shards of a model.

    Attributes:
        file: Name of the file it was read from.
        shards: In file order.
    """

    file: str
    shards: tuple[ShardRecord, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards together."""
        return sum(shard.nbytes for shard in self.shards)


def read_manifest(model_dir: Path) -> Manifest:
    """
    Read and check a model folder's manifest; the shards themselves are not opened.

    Raises:
        ModelNotFound: If the folder holds no manifest.
        ModelInvalid: If a path leaves the folder, a tensor leaves its shard, a size disagrees with its shape, a name
            appears twice, or a field is malformed.
    """
    for file in (MANIFEST, OLD_MANIFEST):
        if (model_dir / file).is_file():
            root = read_fields(model_dir / file)
            shards = tuple(_shard(fields) for fields in root.children("records"))
            _check_unique(file, (shard.path for shard in shards))
            _check_unique(file, (tensor.name for shard in shards for tensor in shard.tensors))
            return Manifest(file=file, shards=shards)
    raise ModelNotFound(f"{model_dir} holds neither {MANIFEST} nor {OLD_MANIFEST}; name a folder with MLC-LLM weights")


def verify_model(model_dir: Path, progress: Progress | None = None) -> Manifest:
    """
    Check every shard's size and digest against the manifest.

    Args:
        model_dir: The model folder.
        progress: Called after each megabyte read.

    Returns:
        The manifest that was checked.

    Raises:
        IntegrityError: Naming the first shard that differs, what was expected and what was found.
        ModelNotFound: If the folder holds no manifest.
        ModelInvalid: If the manifest is malformed.
    """
    manifest = read_manifest(model_dir)
    done = 0
    for shard in manifest.shards:
        for count in verify_shard_steps(model_dir, shard):
            done += count
            if progress is not None:
                progress(f"verifying {shard.path}", done, manifest.total_bytes)
    return manifest


def verify_shard_steps(model_dir: Path, shard: ShardRecord) -> Iterator[int]:
    """
    Check one shard, yielding the bytes read at each step so that the caller can report them.

    Raises:
        IntegrityError: If the file is missing, or its size or digest differs.
    """
    path = model_dir / shard.path
    try:
        found_file = path.stat()
    except OSError:
        raise IntegrityError(f"{shard.path} is missing; download or convert the model again") from None
    if not stat.S_ISREG(found_file.st_mode):
        # Before it is opened: a named pipe would keep us waiting for ever.
        raise IntegrityError(f"{shard.path} is not a file; download or convert the model again")
    if found_file.st_size != shard.nbytes:
        raise IntegrityError(
            f"{shard.path} has {found_file.st_size} bytes; expected {shard.nbytes}; download or convert the model again"
        )
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            yield len(block)
    found = digest.hexdigest()
    if shard.md5 is not None and found != shard.md5:
        raise IntegrityError(f"{shard.path} has md5 {found}; expected {shard.md5}; download or convert the model again")


def _shard(fields: Fields) -> ShardRecord:
    """Read one shard's record."""
    path = fields.text("dataPath")
    parts = PurePosixPath(path).parts
    # Lexical on purpose: download caches keep shards as links to files elsewhere, which is the user's own choice.
    if not parts or path.startswith("/") or ".." in parts or _NOT_IN_PATH.search(path):
        raise fields.invalid("dataPath", "a path inside the model folder")
    if fields.text("format", default="raw-shard") != "raw-shard":
        raise fields.invalid("format", '"raw-shard"')
    nbytes = fields.integer("nbytes", low=0, high=MAX_SHARD_BYTES)
    md5 = fields.text("md5sum").lower() if fields.has("md5sum") else None
    if md5 is not None and not _MD5.fullmatch(md5):
        raise fields.invalid("md5sum", "32 hexadecimal digits")
    tensors = tuple(_tensor(child, nbytes) for child in fields.children("records"))
    return ShardRecord(path=path, nbytes=nbytes, md5=md5, tensors=tensors)


def _tensor(fields: Fields, shard_bytes: int) -> TensorRecord:
    """Read one tensor's record and hold it against its shard."""
    shape = fields.integers("shape", low=0, high=MAX_DIM) if fields.values.get("shape") != [] else ()
    dtype = fields.text("dtype")
    if dtype not in ITEM_BYTES:
        raise fields.invalid("dtype", f"one of {', '.join(ITEM_BYTES)}")
    encoding = fields.text("format", default="raw")
    if encoding not in ("raw", BF16_FORMAT):
        raise fields.invalid("format", f'"raw" or "{BF16_FORMAT}"')
    is_cut = encoding == BF16_FORMAT and dtype == "float32"
    stored = "bfloat16" if is_cut else dtype
    offset = fields.integer("byteOffset", low=0, high=shard_bytes)
    nbytes = fields.integer("nbytes", low=0, high=shard_bytes - offset)
    expected = math.prod(shape) * ITEM_BYTES[stored]
    if nbytes != expected:
        raise fields.invalid("nbytes", f"{expected} for shape {list(shape)} of {stored}")
    # A reader sees bfloat16 as the float32 it was cut from: NumPy has no such type.
    read_dtype = "float32" if stored == "bfloat16" else dtype
    return TensorRecord(
        name=fields.text("name"), shape=shape, dtype=read_dtype, stored_dtype=stored, offset=offset, nbytes=nbytes
    )


def _check_unique(file: str, names: Iterator[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ModelInvalid(f"{file} lists {name!r} twice")
        seen.add(name)
