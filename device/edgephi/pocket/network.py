"""
The Phi-3 architecture in torch, small, with the rounding of 4-bit weights and 8-bit activations inside.

Owns the forward pass that training differentiates. Imported by training alone: serving never loads torch.

Source: Phi-3 as in Hugging Face transformers, models/phi3 (fused qkv and gate_up projections, rotate-half RoPE).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUP = 32  # values that share one scale, for weights and activations alike


@dataclass(frozen=True, slots=True, kw_only=True)
class PocketConfig:
    """
    Sizes of the model.

    Attributes:
        vocab_size: Rows of the embedding and of the output matrix.
        hidden_size: Width, a multiple of 64.
        intermediate_size: Width inside the feed-forward layer, a multiple of 64.
        num_layers: Decoder layers.
        num_heads: Attention heads, each with its own key and value head.
        context_tokens: Longest sequence the configuration declares.
    """

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 4
    context_tokens: int = 512
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads


def round_weights(weight: Tensor) -> Tensor:
    """
    Round to what 4 bits can hold, and let the gradient through unchanged.

    Args:
        weight: (n, k) float32, k a multiple of 32.

    Returns:
        (n, k) ``(clip(round(w / s + 7), 0, 14) - 7) * s`` with ``s = max |w| / 7`` of each 32 along k, in float16.

    Source: MLC-LLM q4f16_1, quantization/group_quantization.py.
    """
    with torch.no_grad():
        groups = weight.view(weight.shape[0], -1, GROUP)
        scale = (groups.abs().amax(-1, keepdim=True) / 7).half().float().clamp_min(1e-7)
        rounded = ((groups / scale + 7).round_().clamp_(0, 14) - 7) * scale
        error = rounded.view_as(weight) - weight
    return weight + error


def round_activations(values: Tensor) -> Tensor:
    """
    Round to 8 bits with one scale per 32 values along the last axis, and let the gradient through unchanged.

    Args:
        values: (..., k), k a multiple of 32.
    """
    with torch.no_grad():
        groups = values.float().unflatten(-1, (-1, GROUP))
        scale = (groups.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-8)
        error = ((groups / scale).round_() * scale - groups).flatten(-2).to(values.dtype)
    return values + error


class Linear(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """A matrix without bias that can behave as its 4-bit form with 8-bit inputs."""

    def __init__(self, in_features: int, out_features: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features).normal_(0, std))

    def forward(self, x: Tensor, *, rounded: bool) -> Tensor:
        """Multiply (..., in) to (..., out)."""
        if rounded:
            return functional.linear(round_activations(x), round_weights(self.weight))
        return functional.linear(x, self.weight)


class Norm(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """Root-mean-square normalization with a learned gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axis."""
        return functional.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """Causal self-attention over one projection that holds queries, keys and values."""

    def __init__(self, config: PocketConfig, out_std: float) -> None:
        super().__init__()
        self.config = config
        self.qkv_proj = Linear(config.hidden_size, 3 * config.hidden_size, 0.04)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, out_std)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, *, rounded: bool) -> Tensor:
        """Mix (b, t, hidden) along t; padding is on the right, so the causal mask is enough."""
        b, t, _ = x.shape
        qkv = self.qkv_proj(x, rounded=rounded).view(b, t, 3, self.config.num_heads, self.config.head_dim)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = functional.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        result: Tensor = self.o_proj(out.transpose(1, 2).reshape(b, t, -1), rounded=rounded)
        return result


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (b, heads, t, d) by its positions; halves, not neighbours, are paired."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class FeedForward(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """SwiGLU over one projection that holds the gate and then the values."""

    def __init__(self, config: PocketConfig, out_std: float) -> None:
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, 0.04)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, out_std)

    def forward(self, x: Tensor, *, rounded: bool) -> Tensor:
        """Map (..., hidden) to (..., hidden)."""
        gate, up = self.gate_up_proj(x, rounded=rounded).chunk(2, -1)
        result: Tensor = self.down_proj(functional.silu(gate) * up, rounded=rounded)
        return result


class Layer(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """One decoder layer."""

    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        out_std = 0.04 / (2 * config.num_layers) ** 0.5
        self.input_layernorm = Norm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, out_std)
        self.post_attention_layernorm = Norm(config.hidden_size, config.norm_eps)
        self.mlp = FeedForward(config, out_std)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, *, rounded: bool) -> Tensor:
        """Map (b, t, hidden) to (b, t, hidden)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, rounded=rounded)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x), rounded=rounded)
        return result


class Pocket(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """The whole model. Parameter names under ``model.`` and ``lm_head`` are Hugging Face's."""

    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict(
            {
                "embed_tokens": Linear(config.hidden_size, config.vocab_size, 0.1),
                "layers": nn.ModuleList(Layer(config) for _ in range(config.num_layers)),
                "norm": Norm(config.hidden_size, config.norm_eps),
            }
        )
        self.lm_head = Linear(config.hidden_size, config.vocab_size, 0.02)

    def forward(self, tokens: Tensor, rows: Tensor, *, rounded: bool) -> Tensor:
        """
        Compute logits at some positions.

        Args:
            tokens: (b, t) int64 token ids, padded on the right.
            rows: (r,) int64 indices into the b * t flattened positions.
            rounded: Whether to behave as the quantized model.

        Returns:
            (r, vocab) logits.
        """
        parts: Any = self.model
        table = parts["embed_tokens"].weight
        x = functional.embedding(tokens, round_weights(table) if rounded else table)
        cos, sin = rope_tables(tokens.shape[1], self.config)
        for layer in parts["layers"]:
            x = layer(x, cos, sin, rounded=rounded)
        x = parts["norm"](x.flatten(0, 1)[rows])
        result: Tensor = self.lm_head(x, rounded=rounded)
        return result


def rope_tables(num_positions: int, config: PocketConfig) -> tuple[Tensor, Tensor]:
    """Return (t, head_dim) cosines and sines."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    angles = torch.outer(torch.arange(num_positions).float(), config.rope_theta**-exponents)
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()
