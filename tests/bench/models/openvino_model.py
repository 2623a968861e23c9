"""
Write a random Phi-3 as OpenVINO IR with int4 symmetric weights in groups of 32, as NNCF compresses them.

    python -m tests.bench.models.openvino_model OUT_DIR

The graph has the form that the exporter of Hugging Face models gives and that the CPU plugin fuses: ReadValue, Gather
by beam_idx, Concat and Assign for keys and values around ScaledDotProductAttention; rotary embedding by halves; RMSNorm
of single operators. Logits are those of the last token only, which openvino-genai arranges for by itself.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.op import Parameter
from openvino.op.util import Variable, VariableInfo
from tests.bench.shapes import GROUP, PHI3_MINI, Shapes, random_codes, random_scales

Node = Any  # openvino's operators come from factories without a common static type


def write_openvino(folder: Path, shapes: Shapes, seed: int = 0) -> None:
    """Write ``openvino_model.xml`` and ``.bin``; the folder appears under its name when it is complete."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model = _Builder(shapes, np.random.default_rng(seed)).build()
    ov.save_model(model, partial / "openvino_model.xml", compress_to_fp16=False)
    partial.rename(folder)


class _Builder:
    """Builds the graph; holds what all layers share."""

    def __init__(self, shapes: Shapes, rng: np.random.Generator) -> None:
        self._shapes = shapes
        self._rng = rng
        self._assigns: list[Node] = []

    def build(self) -> ov.Model:
        s = self._shapes
        self._ids = _parameter("input_ids", ov.Type.i64, [-1, -1])
        self._attention_mask = _parameter("attention_mask", ov.Type.i64, [-1, -1])
        self._positions = _parameter("position_ids", ov.Type.i64, [-1, -1])
        self._beams = _parameter("beam_idx", ov.Type.i32, [-1])
        self._mask = self._causal_mask()
        self._cos, self._sin = self._rotary_tables()

        stream = ops.gather(self._weight(s.vocab, s.hidden), ops.convert(self._ids, "i32"), _int(0))
        for layer in range(s.num_layers):
            stream = ops.add(stream, self._attention(layer, self._norm(stream)))
            stream = ops.add(stream, self._mlp(self._norm(stream)))
        last = ops.slice(stream, _ints(-1), _ints(np.iinfo(np.int64).max), _ints(1), _ints(1))
        logits = self._linear(self._norm(last), s.vocab, s.hidden)
        logits.output(0).set_names({"logits"})
        result = ops.result(logits)
        parameters = [self._ids, self._attention_mask, self._positions, self._beams]
        return ov.Model([result], self._assigns, parameters, "phi3")

    def _attention(self, layer: int, x: Node) -> Node:
        s = self._shapes
        width = s.num_heads * s.head_dim
        qkv = self._linear(x, 3 * width, s.hidden)
        q, k, v = ops.variadic_split(qkv, _int(-1), _ints(width, width, width)).outputs()
        q, k, v = (self._heads(part) for part in (q, k, v))
        keys = self._append(f"past_key_values.{layer}.keypresent.{layer}.key", self._rotate(k))
        values = self._append(f"past_key_values.{layer}.valuepresent.{layer}.value", v)
        attended = ops.scaled_dot_product_attention(self._rotate(q), keys, values, self._mask)
        joined = ops.reshape(ops.transpose(attended, _ints(0, 2, 1, 3)), _ints(0, 0, width), special_zero=True)
        return self._linear(joined, s.hidden, width)

    def _mlp(self, x: Node) -> Node:
        s = self._shapes
        gate_up = self._linear(x, 2 * s.intermediate, s.hidden)
        gate, up = ops.variadic_split(gate_up, _int(-1), _ints(s.intermediate, s.intermediate)).outputs()
        return self._linear(ops.multiply(ops.swish(gate), up), s.hidden, s.intermediate)

    def _heads(self, x: Node) -> Node:
        """(batch, tokens, width) to (batch, heads, tokens, head_dim)."""
        shape = _ints(0, 0, self._shapes.num_heads, self._shapes.head_dim)
        return ops.transpose(ops.reshape(x, shape, special_zero=True), _ints(0, 2, 1, 3))

    def _rotate(self, x: Node) -> Node:
        half = self._shapes.head_dim // 2
        # The plugin fuses this form only if the axis counts from the front.
        first, second = ops.variadic_split(x, _int(3), _ints(half, half)).outputs()
        rotated = ops.concat([ops.multiply(second, _float(-1)), first], -1)
        return ops.add(ops.multiply(x, self._cos), ops.multiply(rotated, self._sin))

    def _append(self, name: str, new: Node) -> Node:
        """Join the state's past with *new*, store the result and return it."""
        s = self._shapes
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, s.num_heads, -1, s.head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = name
        variable = Variable(info)
        batch = ops.gather(ops.shape_of(self._ids), _ints(0), _int(0))
        empty = ops.concat([batch, _ints(s.num_heads, 0, s.head_dim)], 0)
        past = ops.read_value(ops.broadcast(_float(0), empty), variable)
        joined = ops.concat([ops.gather(past, self._beams, _int(0)), new], 2)
        self._assigns.append(ops.assign(joined, variable))
        return joined

    def _rotary_tables(self) -> tuple[Node, Node]:
        """Cosines and sines of the batch's positions, (batch, 1, tokens, head_dim)."""
        s = self._shapes
        frequency = (s.rope_theta ** (-np.arange(0, s.head_dim, 2) / s.head_dim)).astype(np.float32)
        positions = ops.convert(ops.unsqueeze(self._positions, _int(1)), "f32")  # (batch, 1, tokens)
        angles = ops.matmul(ops.constant(frequency.reshape(1, -1, 1)), positions, False, False)
        angles = ops.transpose(angles, _ints(0, 2, 1))
        both = ops.concat([angles, angles], -1)
        return ops.unsqueeze(ops.cos(both), _int(1)), ops.unsqueeze(ops.sin(both), _int(1))

    def _causal_mask(self) -> Node:
        """(batch, 1, tokens, total) float32: 0 where a token may look, the lowest number elsewhere."""
        total = ops.gather(ops.shape_of(self._attention_mask), _int(1), _int(0))
        column = ops.range(_int(0), total, _int(1), "i64")  # (total,)
        row = ops.unsqueeze(self._positions, _ints(1, 3))  # (batch, 1, tokens, 1)
        seen = ops.logical_and(
            ops.less_equal(column, row),
            ops.not_equal(ops.unsqueeze(self._attention_mask, _ints(1, 2)), _int(0)),
        )
        return ops.select(seen, _float(0), _float(float(np.finfo(np.float32).min)))

    def _norm(self, x: Node) -> Node:
        mean = ops.reduce_mean(ops.power(x, _float(2)), _ints(-1), keep_dims=True)
        scale = ops.divide(_float(1), ops.sqrt(ops.add(mean, _float(self._shapes.norm_eps))))
        weight = ops.constant(np.ones((1, 1, self._shapes.hidden), np.float32))
        return ops.multiply(weight, ops.multiply(x, scale))

    def _linear(self, x: Node, rows: int, columns: int) -> Node:
        return ops.matmul(x, self._weight(rows, columns), False, True)

    def _weight(self, rows: int, columns: int) -> Node:
        """A matrix of int4 codes with one float16 scale a group, decompressed to float32."""
        groups = columns // GROUP
        packed = random_codes(self._rng, rows, columns).reshape(-1)
        shared = ov.Tensor(packed, ov.Shape([rows, groups, GROUP]), ov.Type.i4)
        codes = ops.constant(shared, shared_memory=False)  # a copy: nobody else keeps packed alive
        scales = random_scales(self._rng, rows, columns).astype(np.float16).reshape(rows, groups, 1)
        grouped = ops.multiply(ops.convert(codes, "f16"), ops.constant(scales))
        return ops.convert(ops.reshape(grouped, _ints(rows, columns), special_zero=False), "f32")


def _parameter(name: str, dtype: ov.Type, shape: list[int]) -> Parameter:
    parameter = Parameter(dtype, ov.PartialShape(shape))
    parameter.set_friendly_name(name)
    parameter.output(0).set_names({name})
    return parameter


def _int(value: int) -> Node:
    return ops.constant(np.array(value, np.int64))


def _ints(*values: int) -> Node:
    return ops.constant(np.array(values, np.int64))


def _float(value: float) -> Node:
    return ops.constant(np.array(value, np.float32))


if __name__ == "__main__":
    write_openvino(Path(sys.argv[1]), PHI3_MINI)
