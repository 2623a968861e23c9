"""
A Hugging Face checkpoint, read tensor by tensor: one safetensors file, or several with an index.

Owns the mapped files and the checks of their headers. Reads bfloat16, for which the safetensors library needs a
framework beside NumPy. Knows no model.

    0         8              8 + h                    end
    | h: u64  | JSON header  | tensors, row-major ... |
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgephi.artifact.bfloat16 import widen_bf16
from edgephi.artifact.fields import MAX_JSON_BYTES, Fields, read_fields
from edgephi.errors import ModelInvalid, ModelNotFound

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_DIM = 1 << 31
_ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4}


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor is: its file's bytes, type, shape and first byte."""

    data: npt.NDArray[np.uint8]
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Checkpoint:
    """The tensors of a checkpoint. Whoever opened it closes it; arrays taken from it stay valid."""

    def __init__(self, entries: dict[str, _Entry]) -> None:
        self._entries = entries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the mapped files. Calling it again does nothing."""
        self._entries = {}

    def names(self) -> tuple[str, ...]:
        """Return all names: sorted for a single file, in the index's order, file by file, for several."""
        return tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's extents."""
        return self._entries[name].shape

    def num_bytes(self, name: str) -> int:
        """Return a tensor's size in the file, in bytes."""
        return self._entries[name].stop - self._entries[name].start

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.floating]:
        """Return rows of a tensor, (stop - start, ...) float16 or float32; bfloat16 is widened to float32."""
        entry = self._entries[name]
        row_bytes = math.prod(entry.shape[1:]) * _ITEM_BYTES[entry.dtype]
        stop = min(stop, entry.shape[0])
        raw = entry.data[entry.start + start * row_bytes : entry.start + stop * row_bytes]
        shape = (stop - start, *entry.shape[1:])
        if entry.dtype == "BF16":
            return widen_bf16(raw.view("<u2").reshape(shape))
        values: npt.NDArray[np.floating] = raw.view("<f2" if entry.dtype == "F16" else "<f4").reshape(shape)
        return values


def open_checkpoint(source: Path) -> Checkpoint:
    """
    Open a checkpoint folder; use it in a ``with`` statement.

    Raises:
        ModelNotFound: If the folder holds no safetensors checkpoint.
        ModelInvalid: If a header, the index or a tensor's type cannot be read.
    """
    if (source / SINGLE_FILE).is_file():
        entries = _read_header(source / SINGLE_FILE)
        return Checkpoint(dict(sorted(entries.items())))
    if not (source / INDEX_FILE).is_file():
        raise ModelNotFound(f"{source} holds neither {SINGLE_FILE} nor {INDEX_FILE}; name a Hugging Face checkpoint")
    index = read_fields(source / INDEX_FILE).child("weight_map")
    by_file: dict[str, list[str]] = {}
    for name in index.values:
        by_file.setdefault(_file_name(index, name), []).append(name)
    found: dict[str, _Entry] = {}
    for file, names in by_file.items():
        entries = _read_header(source / file)
        for name in names:
            if name not in entries:
                raise ModelInvalid(f"{INDEX_FILE} places {name} in {file}, which does not hold it; download it again")
            found[name] = entries[name]
    return Checkpoint(found)


def _file_name(index: Fields, name: str) -> str:
    file = index.text(name)
    if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
        raise index.invalid(name, "the name of a .safetensors file beside the index")
    return file


def _read_header(path: Path) -> dict[str, _Entry]:
    """Map a file and read where its tensors are."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 8:
                raise ModelInvalid(f"{path.name} has {size} bytes; a safetensors file has more; download it again")
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise ModelInvalid(f"{path.name} cannot be read ({error.strerror}); download it again") from error
    header_bytes = int.from_bytes(data[:8].tobytes(), "little")
    if header_bytes > min(size - 8, MAX_JSON_BYTES):
        raise ModelInvalid(f"{path.name} announces a header of {header_bytes} bytes in {size}; download it again")
    try:
        header: Any = json.loads(data[8 : 8 + header_bytes].tobytes())
    except (ValueError, RecursionError) as error:
        raise ModelInvalid(f"{path.name} has a header that is not JSON ({error}); download it again") from error
    if not isinstance(header, dict):
        raise ModelInvalid(f"{path.name} has a header that is not an object; download it again")
    root = Fields(header, file=path.name)
    body = data[8 + header_bytes :]
    return {name: _entry(root.child(name), body) for name in header if name != "__metadata__"}


def _entry(fields: Fields, body: npt.NDArray[np.uint8]) -> _Entry:
    """Read one tensor's place and hold it against the file."""
    dtype = fields.text("dtype")
    if dtype not in _ITEM_BYTES:
        raise fields.invalid("dtype", f"one of {', '.join(_ITEM_BYTES)}; quantized checkpoints cannot be converted")
    shape = fields.integers("shape", low=0, high=MAX_DIM) if fields.values.get("shape") != [] else ()
    offsets = fields.integers("data_offsets", low=0, high=body.size)
    nbytes = math.prod(shape) * _ITEM_BYTES[dtype]
    if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise fields.invalid("data_offsets", f"{nbytes} bytes for shape {list(shape)} of {dtype}")
    return _Entry(body, dtype, shape, offsets[0], offsets[1])
