"""
Phi-3 as a Relax graph: one function ``forward`` over ragged rows and paged keys and values.

Owns the order of the operations and of the packed parameters. The kernels are in ``compiler.kernels``; nothing
here knows about files.

Source: Abdin et al., Phi-3 Technical Report, arXiv 2404.14219; the layer is a Llama-2 layer with fused projections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax, tirx
from tvm.ir import Expr, StringImm
from tvm.tirx import PrimFunc

from edgephi.artifact.config import ModelConfig
from edgephi.artifact.quantization import Quantization
from edgephi.compiler.kernels.activations import GROUP, Activations
from edgephi.compiler.kernels.attention import attention
from edgephi.compiler.kernels.embedding import embed, take_rows
from edgephi.compiler.kernels.kv_pages import page_elements
from edgephi.compiler.kernels.matmul_q4 import matmul_q4, packed_shape, room_shape
from edgephi.compiler.kernels.norm import rms_norm
from edgephi.compiler.kernels.rope import rope_angles, rope_append
from edgephi.compiler.kernels.stream import STREAM_PARTS, stream_read
from edgephi.compiler.kernels.swiglu import swiglu
from edgephi.compiler.targets import CompileTarget, KernelShape
from edgephi.errors import UnsupportedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """
    What is fixed when the graph is compiled, besides the model.

    Attributes:
        activations: What enters the matrix kernels.
        kv_dtype: ``int8``, ``float16`` or ``float32``, the element type of the pages.
        quantization: The weights' format.
        max_batch_tokens: Most rows in one forward; workspace is planned for it.
    """

    activations: Activations
    kv_dtype: str
    quantization: Quantization
    max_batch_tokens: int


@dataclass(frozen=True, slots=True)
class Parameter:
    """One packed parameter: its name, shape and dtype, in the order ``forward`` takes them."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return (rows, columns) of each matrix of a layer by its MLC name, and of ``lm_head``."""
    hidden, inner = config.hidden_size, config.num_heads * config.head_dim
    return {
        "mixer.qkv_proj": (inner + 2 * config.num_kv_heads * config.head_dim, hidden),
        "mixer.out_proj": (hidden, inner),
        "mlp.gate_up_proj": (2 * config.intermediate_size, hidden),
        "mlp.down_proj": (hidden, config.intermediate_size),
        "lm_head": (config.vocab_size, hidden),
    }


def parameters(config: ModelConfig, shape: KernelShape, quantization: Quantization) -> tuple[Parameter, ...]:
    """Return the packed parameters for kernels of *shape*, in the order of ``forward``'s last argument."""
    shapes = linear_shapes(config)
    hidden, vocab = config.hidden_size, config.vocab_size
    scale_dtype = quantization.scale_dtype

    def linear(name: str, kind: str) -> Parameter:
        packed = packed_shape(*shapes[kind], shape, scale_dtype, quantization.bits(name))
        return Parameter(f"{name}.w", packed, "uint8")

    found = [
        Parameter("transformer.embd.q_weight", (vocab, hidden // 8), "uint32"),
        Parameter("transformer.embd.q_scale", (vocab, hidden // GROUP), scale_dtype),
        Parameter("rope.inverse_frequency", (config.head_dim // 2,), "float32"),
    ]
    for layer in range(config.num_layers):
        prefix = f"transformer.h.{layer}"
        found += [
            Parameter(f"{prefix}.ln.weight", (hidden,), "float32"),
            linear(f"{prefix}.mixer.qkv_proj", "mixer.qkv_proj"),
            linear(f"{prefix}.mixer.out_proj", "mixer.out_proj"),
            Parameter(f"{prefix}.post_attention_layernorm.weight", (hidden,), "float32"),
            linear(f"{prefix}.mlp.gate_up_proj", "mlp.gate_up_proj"),
            linear(f"{prefix}.mlp.down_proj", "mlp.down_proj"),
        ]
    found += [Parameter("transformer.norm.weight", (hidden,), "float32"), linear("lm_head", "lm_head")]
    return tuple(found)


def inverse_frequency(config: ModelConfig) -> npt.NDArray[np.float32]:
    """
    Return the (head_dim // 2,) float32 rotary frequencies, in radians a position.

    With LongRoPE these are the short factors': ``ModelConfig.context_window_size`` never exceeds the original context.

    Source: Su et al., RoFormer, 2021; Ding et al., LongRoPE, 2024.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequency = config.rope_theta**-exponent
    if config.rope_scaling is not None:
        frequency = frequency / np.asarray(config.rope_scaling.short_factor, dtype=np.float64)
    return frequency.astype(np.float32)


def attention_scale(config: ModelConfig) -> float:
    """Return what LongRoPE multiplies cosines and sines by: sqrt(1 + ln(max / original) / ln(original)); 1 without."""
    if config.rope_scaling is None:
        return 1.0
    original = config.rope_scaling.original_max_position
    stretch = config.max_position / original
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0


def check_shapes(config: ModelConfig) -> None:
    """
    Check what the kernels need of a model's shape.

    Raises:
        UnsupportedModel: Naming the dimension, its value and the multiple it must be.
    """
    for name, value, multiple in (
        ("hidden_size", config.hidden_size, 32),
        ("intermediate_size", config.intermediate_size, 32),
        ("head_dim", config.head_dim, 32),
        ("vocab_size", config.vocab_size, 16),
    ):
        if value % multiple:
            raise UnsupportedModel(f"{name} is {value}; the kernels need a multiple of {multiple}")
    if config.num_heads % config.num_kv_heads:
        raise UnsupportedModel(
            f"num_attention_heads is {config.num_heads}, not a multiple of num_key_value_heads {config.num_kv_heads}"
        )


def build_module(config: ModelConfig, target: CompileTarget, options: GraphOptions, metadata: str) -> tvm.IRModule:
    """
    Build the module with ``forward``, ``stream_read`` and ``_metadata``.

    ``forward(tokens, positions, slots, row_start, block_table, logit_rows, pages, parameters) -> logits``: arguments
    as :class:`edgephi.engine.backend.ForwardBatch` says, *pages* changed in place, *parameters* the tuple of
    :func:`parameters`; logits (r, vocab_size) float32. ``stream_read(data) -> sums`` is ``kernels.stream``'s.

    Args:
        config: The model.
        target: Chooses the kernels' shape.
        options: Types and bounds.
        metadata: What ``_metadata()`` returns.

    Raises:
        UnsupportedModel: If the kernels cannot run a model of this shape.
    """
    check_shapes(config)
    return _Builder(config, target, options).build(metadata)


class _Builder:
    """Builds one module; used once."""

    def __init__(self, config: ModelConfig, target: CompileTarget, options: GraphOptions) -> None:
        self._config = config
        self._target = target
        self._options = options
        self._bb = relax.BlockBuilder()
        self._kernels: dict[str, Expr] = {}

    def build(self, metadata: str) -> tvm.IRModule:
        bb, config = self._bb, self._config
        t, b, p, r, n = (tirx.Var(name, "int64") for name in ("t", "b", "p", "r", "num_pages"))
        tokens, positions, slots = (
            relax.Var(name, relax.TensorType([t], "int32")) for name in ("tokens", "positions", "slots")
        )
        row_start = relax.Var("row_start", relax.TensorType([b + 1], "int32"))
        block_table = relax.Var("block_table", relax.TensorType([b, p], "int32"))
        logit_rows = relax.Var("logit_rows", relax.TensorType([r], "int32"))
        kv_dtype = self._options.kv_dtype
        elements = page_elements(kv_dtype, config.head_dim)
        pages_type = relax.TensorType([config.num_layers, config.num_kv_heads, n, elements], kv_dtype)
        pages = relax.Var("pages", pages_type)
        specs = parameters(config, self._target.kernel, self._options.quantization)
        packed = relax.Var(
            "parameters", relax.TupleType([relax.TensorType(list(spec.shape), spec.dtype) for spec in specs])
        )
        bounds = {"t": self._options.max_batch_tokens, "r": self._options.max_batch_tokens}
        with bb.function(
            "forward",
            [tokens, positions, slots, row_start, block_table, logit_rows, pages, packed],
            attrs={"tir_var_upper_bound": bounds},
        ):
            weights = {spec.name: bb.emit(relax.TupleGetItem(packed, i)) for i, spec in enumerate(specs)}
            x = self._embed(tokens, weights, t)
            cos, sin = self._angles(positions, weights["rope.inverse_frequency"], t)
            for layer in range(config.num_layers):
                at = f"transformer.h.{layer}"
                normed = self._norm(x, weights[f"{at}.ln.weight"], t)
                qkv = self._linear(normed, weights, f"{at}.mixer.qkv_proj", t)
                q, pages = self._append(qkv, cos, sin, slots, pages, pages_type, layer, t)
                mixed = self._attend(q, positions, row_start, block_table, pages, layer, t)
                x = self._linear(mixed, weights, f"{at}.mixer.out_proj", t, residual=x)
                normed = self._norm(x, weights[f"{at}.post_attention_layernorm.weight"], t)
                gate_up = self._linear(normed, weights, f"{at}.mlp.gate_up_proj", t)
                inner = self._swiglu(gate_up, t)
                x = self._linear(inner, weights, f"{at}.mlp.down_proj", t, residual=x)
            last = self._call(
                "take", partial(take_rows, config.hidden_size), [x, logit_rows], [_f32(r, config.hidden_size)]
            )
            normed = self._norm(last, weights["transformer.norm.weight"], r)
            bb.emit_func_output(self._linear(normed, weights, "lm_head", r))
        data = relax.Var("data", relax.TensorType([n], "uint8"))
        with bb.function("stream_read", [data]):
            sums = relax.TensorType([STREAM_PARTS, 16], "int32")
            bb.emit_func_output(self._call("read_stream", stream_read, [data], [sums]))
        with bb.function("_metadata", []):
            bb.emit_func_output(StringImm(metadata))
        return bb.finalize()

    def _kernel(self, name: str, build: Callable[[], PrimFunc]) -> Expr:
        """Build and add a kernel under *name* the first time it is used."""
        if name not in self._kernels:
            self._kernels[name] = self._bb.add_func(build().without_attr("global_symbol"), name)
        return self._kernels[name]

    def _call(
        self, name: str, kernel: Callable[[], PrimFunc], args: Sequence[Expr], out: list[relax.TensorType]
    ) -> Expr:
        return self._bb.emit(relax.call_tir(self._kernel(name, kernel), list(args), out if len(out) > 1 else out[0]))

    def _activation_types(self, rows: Expr, width: int) -> list[relax.TensorType]:
        if self._options.activations is Activations.FLOAT32:
            return [_f32(rows, width)]
        groups = width // GROUP
        return [
            relax.TensorType([rows, width], "int8"),
            _f32(rows, groups),
            relax.TensorType([rows, groups], "int32"),
        ]

    def _activations(self, call: Expr) -> list[Expr]:
        """Return the tensors a producer of activations made: one, or the three of the int8 form."""
        if self._options.activations is Activations.FLOAT32:
            return [call]
        return [self._bb.emit(relax.TupleGetItem(call, i)) for i in range(3)]

    def _embed(self, tokens: Expr, weights: dict[str, Expr], t: Expr) -> Expr:
        config = self._config
        kernel = partial(embed, config.vocab_size, config.hidden_size, self._options.quantization.scale_dtype)
        args = [tokens, weights["transformer.embd.q_weight"], weights["transformer.embd.q_scale"]]
        return self._call("embed", kernel, args, [_f32(t, config.hidden_size)])

    def _angles(self, positions: Expr, inverse_frequency: Expr, t: Expr) -> tuple[Expr, Expr]:
        half = self._config.head_dim // 2
        kernel = partial(rope_angles, half, attention_scale(self._config))
        both = self._call("rope_angles", kernel, [positions, inverse_frequency], [_f32(t, half), _f32(t, half)])
        return self._bb.emit(relax.TupleGetItem(both, 0)), self._bb.emit(relax.TupleGetItem(both, 1))

    def _norm(self, x: Expr, weight: Expr, rows: Expr) -> list[Expr]:
        hidden = self._config.hidden_size
        kernel = partial(rms_norm, hidden, self._config.rms_norm_eps, self._options.activations)
        return self._activations(self._call("rms_norm", kernel, [x, weight], self._activation_types(rows, hidden)))

    def _linear(
        self, x: list[Expr], weights: dict[str, Expr], name: str, rows: Expr, residual: Expr | None = None
    ) -> Expr:
        kind = name.split(".", 3)[-1]
        n, k = linear_shapes(self._config)[kind]
        quantization = self._options.quantization
        kernel = partial(
            matmul_q4, n, k, self._target.kernel, quantization.scale_dtype, self._options.activations,
            residual=residual is not None, bits=quantization.bits(name),
        )  # fmt: skip
        args = [*x, weights[f"{name}.w"], *([] if residual is None else [residual])]
        out = [_f32(rows, n)]
        room = room_shape(rows, k, self._target.kernel, self._options.activations)
        if room is not None:
            out.append(relax.TensorType(list(room), "int8"))
        result = self._call(f"matmul_{kind.replace('.', '_')}", kernel, args, out)
        return result if room is None else self._bb.emit(relax.TupleGetItem(result, 0))

    def _append(
        self, qkv: Expr, cos: Expr, sin: Expr, slots: Expr, pages: Expr, pages_type: Expr, layer: int, t: Expr
    ) -> tuple[Expr, Expr]:
        config = self._config
        kernel = partial(
            rope_append, num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
            num_layers=config.num_layers, kv_dtype=self._options.kv_dtype,
        )  # fmt: skip
        both = self._bb.emit(
            relax.op.call_tir_inplace(
                self._kernel("rope_append", kernel),
                [qkv, cos, sin, slots, pages, relax.prim_value(layer)],
                [4, -1],
                [pages_type, _f32(t, config.num_heads * config.head_dim)],
            )
        )
        return self._bb.emit(relax.TupleGetItem(both, 1)), self._bb.emit(relax.TupleGetItem(both, 0))

    def _attend(
        self, q: Expr, positions: Expr, row_start: Expr, block_table: Expr, pages: Expr, layer: int, t: Expr
    ) -> list[Expr]:
        config = self._config
        kernel = partial(
            attention, num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
            num_layers=config.num_layers, kv_dtype=self._options.kv_dtype, sliding_window=config.sliding_window,
            activations=self._options.activations, shape=self._target.kernel,
        )  # fmt: skip
        args = [q, positions, row_start, block_table, pages, relax.prim_value(layer)]
        width = config.num_heads * config.head_dim
        out = self._activation_types(t, width)
        if len(out) > 1:
            out.append(_f32(t, width))  # room for the result before it is quantized
        return self._activations(self._call("attention", kernel, args, out))

    def _swiglu(self, gate_up: Expr, t: Expr) -> list[Expr]:
        n = self._config.intermediate_size
        kernel = partial(swiglu, n, self._options.activations)
        return self._activations(self._call("swiglu", kernel, [gate_up], self._activation_types(t, n)))


def _f32(rows: Expr, width: int) -> relax.TensorType:
    return relax.TensorType([rows, width], "float32")
