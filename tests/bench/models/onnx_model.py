"""
Write a random Phi-3 for ONNX Runtime GenAI, as its model builder makes one for a CPU.

    python -m tests.bench.models.onnx_model OUT_DIR

The graph is the builder's: packed qkv, rotary embedding inside GroupQueryAttention, separate gate and up projections,
every projection a MatMulNBits of 4 bits, block 32 and accuracy level 4 (int8 activations), a float32 embedding table,
float32 between operators, and the builder's ``prune_lm_head``, which computes logits of the last token only. Two
folders share one file of weights: keys and values in float32 (the builder's default on a CPU), and in int8.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from tests.bench.shapes import GROUP, PHI3_MINI, Shapes, random_codes, random_scales

MICROSOFT = "com.microsoft"
WEIGHTS = "weights.bin"
KV_TYPES = {"float32": TensorProto.FLOAT, "int8": TensorProto.INT8}
# Random activations are normal with a deviation near 1: this scale clips hardly any of them.
KV_SCALE = 4 / 127
_ALIGNMENT = 4096  # so that tensors can be mapped


def write_onnx(folder: Path, shapes: Shapes, seed: int = 0) -> None:
    """Write a folder with one folder for each type of keys and values; it appears when it is complete."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    written: _Graph | None = None
    with (partial / WEIGHTS).open("wb") as file:
        for kv_type in KV_TYPES:
            graph = _Graph(shapes, kv_type, file)
            if written is not None:
                graph.share(written)
            graph.build(np.random.default_rng(seed) if written is None else None)
            written = graph
            target = partial / kv_type
            target.mkdir()
            onnx.save(graph.model(), str(target / "model.onnx"))
            (target / "genai_config.json").write_text(json.dumps(_config(shapes), indent=1), encoding="utf-8")
            os.link(partial / WEIGHTS, target / WEIGHTS)  # external data must lie beside its graph
    (partial / WEIGHTS).unlink()
    partial.rename(folder)


class _Graph:
    """The nodes of one model, and where its initializers lie in the file of weights."""

    def __init__(self, shapes: Shapes, kv_type: str, file: BinaryIO) -> None:
        self.shapes = shapes
        self.kv_type = kv_type
        self._file = file
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._rng: np.random.Generator | None = None

    def share(self, other: _Graph) -> None:
        """Take the other graph's weights instead of drawing them."""
        self._initializers = {name: t for name, t in other._initializers.items() if t.external_data}

    def build(self, rng: np.random.Generator | None) -> None:
        """Add every node; draw and write weights from *rng* where they are not shared."""
        self._rng = rng
        s = self.shapes
        attention = s.num_heads * s.head_dim
        self._lengths()
        if rng is not None:
            self._write("embedding", rng.standard_normal((s.vocab, s.hidden), np.float32))
            self._write("norm", np.ones(s.hidden, np.float32))
            self._rotary_tables()
        self._node("Gather", ["embedding", "input_ids"], ["embedded"])
        self._node(
            "SimplifiedLayerNormalization",
            ["embedded", "norm"],
            ["normed_0a"],
            axis=-1,
            epsilon=s.norm_eps,
            stash_type=1,
        )
        residual = "embedded"
        for i in range(s.num_layers):
            self._matmul(f"qkv_{i}", f"normed_{i}a", s.hidden, 3 * attention)
            self._attention(i)
            self._matmul(f"output_{i}", f"attended_{i}", attention, s.hidden)
            residual = self._skip_norm(residual, f"output_{i}", f"normed_{i}b")
            self._matmul(f"gate_{i}", f"normed_{i}b", s.hidden, s.intermediate)
            self._matmul(f"up_{i}", f"normed_{i}b", s.hidden, s.intermediate)
            self._node("Sigmoid", [f"gate_{i}"], [f"sigmoid_{i}"])
            self._node("Mul", [f"gate_{i}", f"sigmoid_{i}"], [f"silu_{i}"])
            self._node("Mul", [f"silu_{i}", f"up_{i}"], [f"gated_{i}"])
            self._matmul(f"down_{i}", f"gated_{i}", s.intermediate, s.hidden)
            residual = self._skip_norm(residual, f"down_{i}", f"normed_{i + 1}a")
        self._constant("minus_one", np.array(-1, np.int64))
        self._constant("axis_one", np.array([1], np.int64))
        self._node("Gather", [f"normed_{s.num_layers}a", "minus_one"], ["last"], axis=1)
        self._node("Unsqueeze", ["last", "axis_one"], ["last_row"])
        self._matmul("logits", "last_row", s.hidden, s.vocab)

    def model(self) -> onnx.ModelProto:
        """Return the complete model."""
        s, value, kv = self.shapes, helper.make_tensor_value_info, KV_TYPES[self.kv_type]
        past = ["batch", s.num_heads, "past", s.head_dim]
        present = ["batch", s.num_heads, "total", s.head_dim]
        pairs = [(i, part) for i in range(s.num_layers) for part in ("key", "value")]
        inputs = [
            value("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            value("attention_mask", TensorProto.INT64, ["batch", "total"]),
            *(value(f"past_key_values.{i}.{part}", kv, past) for i, part in pairs),
        ]
        outputs = [
            value("logits", TensorProto.FLOAT, ["batch", 1, s.vocab]),
            *(value(f"present.{i}.{part}", kv, present) for i, part in pairs),
        ]
        graph = helper.make_graph(self._nodes, "phi3", inputs, outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _lengths(self) -> None:
        """What GroupQueryAttention wants to know, from the attention mask."""
        self._constant("one", np.array([1], np.int64))
        self._constant("index_one", np.array(1, np.int64))
        self._node("ReduceSum", ["attention_mask", "one"], ["mask_sum"], keepdims=0)
        self._node("Sub", ["mask_sum", "one"], ["past_len"])
        self._node("Cast", ["past_len"], ["seqlens_k"], to=TensorProto.INT32)
        self._node("Shape", ["attention_mask"], ["mask_shape"])
        self._node("Gather", ["mask_shape", "index_one"], ["total"], axis=0)
        self._node("Cast", ["total"], ["total_len"], to=TensorProto.INT32)
        if self.kv_type == "int8":
            self._constant("kv_scale", np.array([KV_SCALE], np.float32))

    def _rotary_tables(self) -> None:
        s = self.shapes
        frequency = s.rope_theta ** (-np.arange(0, s.head_dim, 2) / s.head_dim)
        angles = np.outer(np.arange(s.context), frequency)
        self._write("cos", np.cos(angles).astype(np.float32))
        self._write("sin", np.sin(angles).astype(np.float32))

    def _attention(self, i: int) -> None:
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        inputs = [f"qkv_{i}", "", "", *past, "seqlens_k", "total_len", "cos", "sin"]
        attributes: dict[str, object] = {
            "num_heads": self.shapes.num_heads,
            "kv_num_heads": self.shapes.num_heads,
            "do_rotary": 1,
            "rotary_interleaved": 0,
        }
        if self.kv_type == "int8":
            inputs += ["", "", "", "kv_scale", "kv_scale"]
            attributes |= {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
        outputs = [f"attended_{i}", f"present.{i}.key", f"present.{i}.value"]
        self._node("GroupQueryAttention", inputs, outputs, MICROSOFT, **attributes)

    def _skip_norm(self, residual: str, update: str, normed: str) -> str:
        """Add the update to the residual stream and normalize; returns the stream's new name."""
        after = f"{update}_sum"
        self._node(
            "SkipSimplifiedLayerNormalization",
            [residual, update, "norm"], [normed, "", "", after], MICROSOFT, epsilon=self.shapes.norm_eps,
        )  # fmt: skip
        return after

    def _matmul(self, name: str, source: str, columns: int, rows: int) -> None:
        if self._rng is not None:
            blocks = random_codes(self._rng, rows, columns).reshape(rows, columns // GROUP, GROUP // 2)
            self._write(f"{name}.codes", blocks)
            self._write(f"{name}.scales", random_scales(self._rng, rows, columns))
        self._node(
            "MatMulNBits",
            [source, f"{name}.codes", f"{name}.scales"], [name], MICROSOFT,
            K=columns, N=rows, bits=4, block_size=GROUP, accuracy_level=4,
        )  # fmt: skip

    def _node(self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: object) -> None:
        self._nodes.append(helper.make_node(op, inputs, outputs, outputs[0], domain=domain, **attributes))

    def _constant(self, name: str, value: npt.NDArray[np.generic]) -> None:
        """Add a small initializer that is stored in the graph."""
        self._initializers[name] = onnx.numpy_helper.from_array(value, name)

    def _write(self, name: str, value: npt.NDArray[np.generic]) -> None:
        """Append a tensor to the file of weights and refer to it."""
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(offset)
        self._file.write(value.data)
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
            dims=value.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, entry in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(value.nbytes))):
            tensor.external_data.add(key=key, value=entry)
        self._initializers[name] = tensor


def _config(shapes: Shapes) -> dict[str, object]:
    """What ONNX Runtime GenAI must know; the fields are the model builder's."""
    decoder = {
        "session_options": {"provider_options": []},
        "filename": "model.onnx",
        "head_size": shapes.head_dim,
        "hidden_size": shapes.hidden,
        "num_attention_heads": shapes.num_heads,
        "num_hidden_layers": shapes.num_layers,
        "num_key_value_heads": shapes.num_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model = {
        "type": "phi3",
        "vocab_size": shapes.vocab,
        "context_length": shapes.context,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "decoder": decoder,
    }
    return {"model": model, "search": {"max_length": shapes.context, "past_present_share_buffer": True}}


if __name__ == "__main__":
    write_onnx(Path(sys.argv[1]), PHI3_MINI)
