"""
Writing weights as MLC-LLM does: shards of at most 32 MiB and the manifest that lists them.

Owns the packing rule and the manifest's exact form. Knows no tensor's meaning.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgephi.artifact.bfloat16 import narrow_to_bf16
from edgephi.artifact.manifest import BF16_FORMAT, MANIFEST

SHARD_CAP_BYTES = 32 << 20
BF16_MANIFEST = "tensor-cache-b16.json"


class ShardWriter:
    """
    Packs tensors into ``params_shard_N.bin`` in the order they are added.

    A tensor that would fill the open shard to its cap closes it; one of at least half the cap then gets a file of
    its own, and the open shard stays open. Memory: one shard, and the tensor being added. Whoever creates it calls
    ``finish`` once; until then there is no manifest.

    Args:
        out: Existing folder to write into.
        cap_bytes: Where a shard is closed.
    """

    def __init__(self, out: Path, *, cap_bytes: int = SHARD_CAP_BYTES) -> None:
        self._out = out
        self._cap_bytes = cap_bytes
        self._shards: list[dict[str, Any]] = []
        self._open_data = bytearray()
        self._open_records: list[dict[str, Any]] = []
        self._names: set[str] = set()
        self._memory_bytes = 0
        self._has_float32 = False

    def add(self, name: str, tensor: npt.NDArray[Any]) -> int:
        """
        Add a tensor; float32 is stored as bfloat16, all else as it is.

        Returns:
            Bytes it takes on disk.
        """
        assert name not in self._names, name
        self._names.add(name)
        self._memory_bytes += tensor.nbytes
        dtype = tensor.dtype.name
        if dtype == "float32":
            self._has_float32 = True
            tensor = narrow_to_bf16(tensor)
        data = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")).tobytes()
        record: dict[str, Any] = {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": dtype,
            "format": BF16_FORMAT,
            "nbytes": len(data),
        }
        if len(self._open_data) + len(data) >= self._cap_bytes:
            if len(data) * 2 >= self._cap_bytes:
                record["byteOffset"] = 0
                self._write(data, [record])
                return len(data)
            self._close_open()
        record["byteOffset"] = len(self._open_data)
        self._open_records.append(record)
        self._open_data += data
        return len(data)

    def finish(self, *, num_source_params: int) -> None:
        """
        Write the last shard and the manifest, and its bfloat16 form where a tensor was float32.

        Args:
            num_source_params: Weights before quantization, for the manifest's bits per parameter.
        """
        self._close_open()
        metadata = {
            "ParamSize": len(self._names),
            "ParamBytes": float(self._memory_bytes),
            "BitsPerParam": self._memory_bytes * 8.0 / num_source_params,
        }
        self._write_manifest(MANIFEST, metadata)
        if self._has_float32:
            for shard in self._shards:
                for record in shard["records"]:
                    if record["dtype"] == "float32":
                        record.update(dtype="bfloat16", format="raw")
            self._write_manifest(BF16_MANIFEST, metadata)

    def _close_open(self) -> None:
        if self._open_records:
            self._write(bytes(self._open_data), self._open_records)
            self._open_data = bytearray()
            self._open_records = []

    def _write(self, data: bytes, records: list[dict[str, Any]]) -> None:
        path = f"params_shard_{len(self._shards)}.bin"
        (self._out / path).write_bytes(data)
        self._shards.append(
            {
                "dataPath": path,
                "format": "raw-shard",
                "nbytes": len(data),
                "records": records,
                "md5sum": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            }
        )

    def _write_manifest(self, file: str, metadata: dict[str, Any]) -> None:
        text = json.dumps({"metadata": metadata, "records": self._shards}, indent=4)
        (self._out / file).write_text(text, encoding="utf-8")
