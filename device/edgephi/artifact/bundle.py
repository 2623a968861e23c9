"""
The bundle: what compiling a model leaves in ``build/<level>/``, and what both sides check before using it.

    model.so      the compiled library for one instruction-set level
    weights.bin   a 64-byte header, then the packed weights, each 64-byte aligned, to be memory-mapped
    bundle.json   this module's :class:`Bundle`: shapes, types, versions, sizes and digests

Compiler and runtime meet only here. The *fingerprint* ties the three files to each other and to the model they were
made from: it stands in bundle.json, in the header of weights.bin and in the library's ``_metadata``.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from edgephi.errors import BundleInvalid

BUNDLE_JSON = "bundle.json"
LIBRARY = "model.so"
WEIGHTS = "weights.bin"
FORMAT_VERSION = 2
ALIGNMENT = 64
STREAM_MULTIPLE = 16384
"""What the library's ``stream_read`` takes must have a multiple of this many bytes."""
_MAGIC = b"EDGEPHI\x01"
_HEADER = struct.Struct("<8s32s24x")
HEADER_BYTES = _HEADER.size
_CHUNK_BYTES = 1 << 22
KV_DTYPES = ("int8", "float16", "float32")
"""Element types that cached keys and values may have."""


# A type and not a check, so that whatever reads a bundle refuses another text.
Fingerprint = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class PackedTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter in weights.bin: ``offset`` in bytes from the file's start, a multiple of 64."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int


class FileDigest(msgspec.Struct, frozen=True, kw_only=True):
    """Size and SHA-256 of one file of the bundle."""

    nbytes: int
    sha256: str


class Bundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What a bundle is and needs.

    Attributes:
        format_version: Of this file and of the packed layouts.
        fingerprint: 64 hex digits; see the module.
        model_digest: Of the model it was made from.
        compiler_digest: Of the compiler that made it.
        level: Instruction-set level, such as ``avx512-vnni``.
        arch: ``x86_64`` or ``aarch64``.
        required_features: CPU features as /proc/cpuinfo names them.
        compiler: Versions that made it, for people.
        quantization: MLC-LLM's name, such as ``q4f16_1``.
        activations: ``int8`` or ``float32``.
        kv_dtype: One of :data:`KV_DTYPES`.
        page_size: Tokens a page.
        page_elements: Elements of kv_dtype in a page of one layer and key/value head, keys, values and scales.
        max_batch_tokens: Most rows in one forward.
        num_layers: Of the pages.
        num_kv_heads: Of the pages.
        head_dim: Of the pages.
        vocab_size: Width of the logits.
        context_tokens: Longest sequence.
        library: model.so.
        weights: weights.bin.
        parameters: In the order the library takes them.
    """

    format_version: int
    fingerprint: Fingerprint
    model_digest: str
    compiler_digest: str
    level: str
    arch: str
    required_features: tuple[str, ...]
    compiler: dict[str, str]
    quantization: str
    activations: str
    kv_dtype: str
    page_size: int
    page_elements: int
    max_batch_tokens: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_tokens: int
    library: FileDigest
    weights: FileDigest
    parameters: tuple[PackedTensor, ...]


class BundleOptions(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a user may choose when compiling.

    Attributes:
        level: Instruction-set level.
        activations: ``int8``, or ``float32`` for exact but slow arithmetic.
        kv_dtype: Element type of cached keys and values, one of :data:`KV_DTYPES`.
        max_batch_tokens: Most rows in one forward; workspace memory grows with it.
    """

    level: str
    activations: str = "int8"
    kv_dtype: str = "int8"
    max_batch_tokens: int = 256

    @property
    def folder_name(self) -> str:
        """Name of the folder under ``build``: the level, then whatever is not the default."""
        defaults = BundleOptions(level=self.level)
        parts = [self.level]
        if self.activations != defaults.activations:
            parts.append(f"{self.activations}-activations")
        if self.kv_dtype != defaults.kv_dtype:
            parts.append(f"{self.kv_dtype}-kv")
        if self.max_batch_tokens != defaults.max_batch_tokens:
            parts.append(f"{self.max_batch_tokens}-rows")
        return "_".join(parts)


def fingerprint(model_digest: str, options: BundleOptions, compiler_digest: str) -> str:
    """
    Return the 64 hex digits that tie a bundle's files together.

    Args:
        model_digest: Changes when the model's weights or configuration do.
        options: What was asked of the compiler.
        compiler_digest: Changes when the code or the version of the compiler does.
    """
    text = json.dumps([FORMAT_VERSION, model_digest, msgspec.to_builtins(options), compiler_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> FileDigest:
    """Read a file and return its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileDigest(nbytes=size, sha256=digest.hexdigest())


def weights_header(fingerprint_hex: str) -> bytes:
    """Return the 64 bytes that start weights.bin."""
    return _HEADER.pack(_MAGIC, bytes.fromhex(fingerprint_hex))


def write_bundle(folder: Path, bundle: Bundle) -> None:
    """Write bundle.json, the last file of a bundle."""
    (folder / BUNDLE_JSON).write_bytes(msgspec.json.format(msgspec.json.encode(bundle), indent=1))


def read_bundle(folder: Path) -> Bundle:
    """
    Read bundle.json and check what needs no more than a look: the format, the files' sizes and weights.bin's header.

    Raises:
        BundleInvalid: If there is none, it cannot be read, or its files do not belong together.
    """
    path = folder / BUNDLE_JSON
    try:
        bundle = msgspec.json.decode(path.read_bytes(), type=Bundle)
    except FileNotFoundError:
        raise BundleInvalid(f"{path} does not exist; compile the model with `edgephi model compile`") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    except msgspec.DecodeError as error:
        raise BundleInvalid(f"{path} is not a bundle this version reads ({error}); compile the model again") from error
    if bundle.format_version != FORMAT_VERSION:
        raise BundleInvalid(
            f"{path} has format {bundle.format_version}, this version reads {FORMAT_VERSION}; compile the model again"
        )
    for name, expected in ((LIBRARY, bundle.library), (WEIGHTS, bundle.weights)):
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected.nbytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise BundleInvalid(f"{file} {found}, {BUNDLE_JSON} says {expected.nbytes}; compile the model again")
    try:
        with (folder / WEIGHTS).open("rb") as stream:
            header = stream.read(HEADER_BYTES)
    except OSError as error:
        raise _unreadable(folder / WEIGHTS, error) from error
    check_weights_header(folder, header, bundle)
    _check_parameters(path, bundle.parameters, bundle.weights.nbytes)
    return bundle


def check_weights_header(folder: Path, header: bytes, bundle: Bundle) -> None:
    """
    Check the first bytes of weights.bin.

    Raises:
        BundleInvalid: If they are of no weights.bin, or of one that was packed for another library.
    """
    if not header.startswith(_MAGIC):
        raise BundleInvalid(f"{folder / WEIGHTS} does not start as packed weights do; compile the model again")
    if header != weights_header(bundle.fingerprint):
        raise BundleInvalid(
            f"{folder / WEIGHTS} was not packed for {folder / LIBRARY} (fingerprint differs); compile the model again"
        )


def verify_bundle(folder: Path) -> Bundle:
    """
    Check every byte of a bundle against its digests.

    Raises:
        BundleInvalid: Naming the file that differs.
    """
    bundle = read_bundle(folder)
    for name, expected in ((LIBRARY, bundle.library), (WEIGHTS, bundle.weights)):
        check_digest(folder / name, expected)
    return bundle


def check_digest(path: Path, expected: FileDigest) -> None:
    """
    Compare a file's bytes with its digest.

    Raises:
        BundleInvalid: If they differ, or the file cannot be read.
    """
    try:
        found = file_digest(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != expected:
        raise BundleInvalid(
            f"{path} is damaged: sha256 {found.sha256}, expected {expected.sha256}; compile the model again"
        )


def _unreadable(path: Path, error: OSError) -> BundleInvalid:
    return BundleInvalid(f"{path} cannot be read ({error.strerror}); permit it, or compile the model again")


def _check_parameters(path: Path, parameters: Iterable[PackedTensor], file_bytes: int) -> None:
    end = HEADER_BYTES
    for tensor in parameters:
        try:
            dtype = np.dtype(tensor.dtype)
        except (TypeError, ValueError, SyntaxError):  # what NumPy raises depends on the text
            dtype = np.dtype(np.void)
        if dtype.kind not in "fiu":
            raise BundleInvalid(
                f"{path}: parameter {tensor.name} has an unknown type {tensor.dtype!r}; compile the model again"
            )
        wanted = math.prod(tensor.shape) * dtype.itemsize
        fits = tensor.offset % ALIGNMENT == 0 and end <= tensor.offset <= file_bytes - tensor.nbytes
        if not fits or tensor.nbytes != wanted or min(tensor.shape, default=1) < 1:
            raise BundleInvalid(
                f"{path}: parameter {tensor.name} at {tensor.offset} with {tensor.nbytes} bytes for {tensor.dtype} "
                f"{list(tensor.shape)} does not fit a file of {file_bytes} bytes; compile the model again"
            )
        end = tensor.offset + tensor.nbytes
