"""
What planning needs to know of a model: how many bytes it holds and reads, and how much it computes.

Owns no file format: whoever knows a bundle or a configuration fills this in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgephi.profile.plan import KvDtype


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """
    Sizes of a model in one quantization.

    Attributes:
        name: For people, such as ``phi3-mini-4k``.
        quantization: Format of the weights, such as ``q4f16_1``.
        weights_bytes: Packed weights, mapped as a whole.
        step_weight_bytes: Part of them that every step reads: all but the embedding table.
        kv_bytes_per_token: Keys and values of one token of context, by element type, scales included.
        context_tokens: Longest context the model is served with.
        page_tokens: Tokens per page of keys and values.
        max_batch_tokens: Most rows in one step.
        macs_per_token: Multiplications of a token with all matrices, the output projection not included.
        vocab_size: Width of a row of logits.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward layer; its kernel's output is twice as wide.
        num_heads: Query heads.
        head_dim: Elements of a head.
        num_layers: Decoder layers.
        window_tokens: Most tokens a row attends to (sliding-window attention); None for all of them.
    """

    name: str
    quantization: str
    weights_bytes: int
    step_weight_bytes: int
    kv_bytes_per_token: Mapping[KvDtype, int]
    context_tokens: int
    page_tokens: int
    max_batch_tokens: int
    macs_per_token: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    head_dim: int
    num_layers: int
    window_tokens: int | None = None

    @property
    def step_macs_per_token(self) -> int:
        """Multiplications of a token whose logits are wanted: all matrices and the output projection."""
        return self.macs_per_token + self.vocab_size * self.hidden_size
