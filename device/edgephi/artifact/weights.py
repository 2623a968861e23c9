"""
A model's weights, memory-mapped: tensors by name, and quantized matrices by the name of their layer.

Owns the mapped files. Knows the two tensors that make a quantized matrix, but not which layers a model has.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgephi.artifact.bfloat16 import widen_bf16
from edgephi.artifact.manifest import Manifest, ShardRecord, TensorRecord, read_manifest
from edgephi.artifact.quantization import (
    CODES_PER_WORD,
    GROUP_SIZE,
    Bits,
    F32Array,
    FloatArray,
    Layout,
    U8Array,
    U32Array,
    dequantize_q3,
    dequantize_q4,
    unpack_codes,
    unpack_codes_q3,
)
from edgephi.errors import IntegrityError, ModelInvalid

WORDS_PER_GROUP = GROUP_SIZE // CODES_PER_WORD
WORDS_PER_GROUP_Q3 = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedMatrix:
    """
    A linear layer's or the embedding's weights as they are stored.

    Attributes:
        q_weight: uint32. Of 4 bits (n, k // 8) for ``nk``, (k // 8, n) for ``kn``; of 3 bits (n, 3 * k // 32).
        scale: float16 or float32: (n, k // 32) for ``nk``, (k // 32, n) for ``kn``.
        n: Outputs of the layer, or rows of the embedding.
        k: Inputs of the layer, or the embedding's width.
        layout: Which of the two; always ``nk`` with 3 bits.
        bits: Of a code.
        group_size: Weights along k that share a scale.
    """

    q_weight: U32Array
    scale: FloatArray
    n: int
    k: int
    layout: Layout
    bits: Bits = 4
    group_size: int = GROUP_SIZE

    def unpack_codes(self) -> U8Array:
        """
        Return the codes, (n, k) uint8.

        Of 4 bits each is 0 to 14 and a weight is ``(code - 7) * scale``; of 3 bits 0 to 7 and ``(code - 4) * scale``.
        """
        return unpack_codes(self._words_nk()) if self.bits == 4 else unpack_codes_q3(self.q_weight)

    def scales_nk(self) -> FloatArray:
        """Return the scales, (n, k // 32) float16 or float32, whatever the layout."""
        if self.layout == "nk":
            return self.scale
        transposed: FloatArray = self.scale.T.copy()
        return transposed

    def dequantize(self) -> F32Array:
        """Return the weights, (n, k) float32."""
        if self.bits == 3:
            return dequantize_q3(self.q_weight, self.scale)
        return dequantize_q4(self._words_nk(), self.scales_nk())

    def _words_nk(self) -> U32Array:
        return self.q_weight if self.layout == "nk" else np.ascontiguousarray(self.q_weight.T)


class WeightStore:
    """
    Weights of one model folder. Shards are mapped when first needed.

    Whoever opened it closes it. Arrays taken from it stay valid after that: a shard's mapping ends when the store is
    closed and the last array over it is gone.
    """

    def __init__(self, model_dir: Path, manifest: Manifest) -> None:
        self._model_dir = model_dir
        self._records: Mapping[str, tuple[ShardRecord, TensorRecord]] = {
            tensor.name: (shard, tensor) for shard in manifest.shards for tensor in shard.tensors
        }
        self._mapped: dict[str, npt.NDArray[np.uint8]] = {}
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the mapped shards. Calling it again does nothing."""
        self._mapped.clear()
        self._is_closed = True

    def names(self) -> tuple[str, ...]:
        """Return all tensors' names in file order."""
        return tuple(self._records)

    def get(self, name: str) -> npt.NDArray[Any]:
        """
        Return a tensor, read-only; a view of the file where it is stored raw, a float32 copy where as bfloat16.

        Raises:
            ModelInvalid: If there is no tensor of that name.
            IntegrityError: If its shard is missing or has the wrong size.
        """
        if name not in self._records:
            raise ModelInvalid(f"the model has no tensor {name!r}; it has {len(self._records)} others")
        shard, record = self._records[name]
        raw = self._map(shard)[record.offset : record.offset + record.nbytes]
        if record.stored_dtype == "bfloat16":
            widened = widen_bf16(raw.view("<u2").reshape(record.shape))
            widened.flags.writeable = False
            return widened
        dtype = np.dtype(record.stored_dtype).newbyteorder("<")
        return raw.view(dtype).reshape(record.shape)

    def matrix(self, prefix: str) -> QuantizedMatrix:
        """
        Return a linear layer or the embedding by its name, such as ``transformer.h.0.mixer.qkv_proj``.

        Raises:
            ModelInvalid: If it has no ``q_weight`` and ``q_scale``, or their shapes do not fit each other.
            IntegrityError: If a shard is missing or has the wrong size.
        """
        words = self.get(f"{prefix}.q_weight")
        scale = self.get(f"{prefix}.q_scale")
        if words.dtype != np.uint32 or scale.dtype not in (np.float16, np.float32):
            raise ModelInvalid(f"{prefix} has q_weight {words.dtype} and q_scale {scale.dtype}; expected uint32, float")
        if words.ndim == 2 and scale.ndim == 2:
            (rows, columns), groups = words.shape, scale.shape
            if groups[0] == rows and groups[1] * WORDS_PER_GROUP == columns:
                return QuantizedMatrix(q_weight=words, scale=scale, n=rows, k=columns * CODES_PER_WORD, layout="nk")
            if groups[0] == rows and groups[1] * WORDS_PER_GROUP_Q3 == columns:
                k = groups[1] * GROUP_SIZE
                return QuantizedMatrix(q_weight=words, scale=scale, n=rows, k=k, layout="nk", bits=3)
            if groups[1] == columns and groups[0] * WORDS_PER_GROUP == rows:
                return QuantizedMatrix(q_weight=words, scale=scale, n=columns, k=rows * CODES_PER_WORD, layout="kn")
        raise ModelInvalid(
            f"{prefix} has q_weight {list(words.shape)} and q_scale {list(scale.shape)}; "
            f"expected one scale per {WORDS_PER_GROUP} words along k, or per {WORDS_PER_GROUP_Q3} of 3-bit codes"
        )

    def _map(self, shard: ShardRecord) -> npt.NDArray[np.uint8]:
        """Return a shard's bytes, mapping it at first use."""
        if self._is_closed:
            raise ValueError("the weight store is closed; take tensors before leaving its context")
        mapped = self._mapped.get(shard.path)
        if mapped is None:
            mapped = self._mapped[shard.path] = _map_file(self._model_dir / shard.path, shard)
        return mapped


def open_weights(model_dir: Path) -> WeightStore:
    """
    Open a folder of MLC-LLM weights; use it in a ``with`` statement.

    Raises:
        ModelNotFound: If the folder holds no manifest.
        ModelInvalid: If the manifest is malformed.
    """
    return WeightStore(model_dir, read_manifest(model_dir))


def _map_file(path: Path, shard: ShardRecord) -> npt.NDArray[np.uint8]:
    """Map a shard read-only after checking its size, without which reading past its end would kill the process."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size != shard.nbytes:
                raise IntegrityError(
                    f"{shard.path} has {size} bytes; expected {shard.nbytes}; download or convert the model again"
                )
            if size == 0:
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise IntegrityError(f"{shard.path} cannot be read ({error.strerror}); download the model again") from error
