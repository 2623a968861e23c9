"""
edgephi-pocket in NumPy, from the packaged 4-bit weights: slow, plain, and what the engine is held against.

Owns a greedy answer for one command at a time. Knows no pages, no batches, no server.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgephi.artifact.config import ModelConfig, load_config
from edgephi.artifact.weights import WeightStore, open_weights
from edgephi.pocket.tokenizer import render_prompt

F32Array = npt.NDArray[np.float32]

GROUP = 32
MAX_ANSWER_TOKENS = 64


class Reference:
    """
    The model with its weights expanded to float32. It holds no files open.

    ``embedding``, ``head`` and the matrices of ``layers`` may be replaced, to see what other weights do.

    Args:
        model_dir: An MLC folder with its tokenizer.json.
        int8: Whether the input of each matrix is rounded to 8 bits per 32 values, as the engine's kernels do.
    """

    def __init__(self, model_dir: Path, *, int8: bool = True) -> None:
        self.config = load_config(model_dir)
        self.tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        self._int8 = int8
        with open_weights(model_dir) as store:
            self.embedding = store.matrix("transformer.embd").dequantize()
            self.head = store.matrix("lm_head").dequantize()
            self._norm = store.get("transformer.norm.weight").astype(np.float32)
            self.layers = [_Layer(store, i) for i in range(self.config.num_layers)]

    def answer(self, text: str, *, system: str | None = None) -> str:
        """Answer one command greedily, as text."""
        prompt = render_prompt(self.tokenizer, text, system=system)
        answer: str = self.tokenizer.decode(self.generate(prompt))
        return answer

    def generate(self, prompt: list[int]) -> list[int]:
        """
        Continue a prompt greedily up to a stop token, which is not returned, or 64 tokens.

        Raises:
            ValueError: If the prompt leaves no room in the context.
        """
        room = self.config.context_window_size - len(prompt)
        if room < 1:
            raise ValueError(f"prompt is {len(prompt)} tokens; at most {self.config.context_window_size - 1} fit")
        cache = self.new_cache()
        out: list[int] = []
        tokens = prompt
        while len(out) < min(room, MAX_ANSWER_TOKENS):
            best = int(self.logits(tokens, cache)[-1].argmax())
            if best in self.config.eos_token_ids:
                break
            out.append(best)
            tokens = [best]
        return out

    def new_cache(self) -> list[_Cache]:
        """Return an empty cache for one sequence."""
        return [_Cache.empty(self.config) for _ in self.layers]

    def logits(self, tokens: list[int], cache: list[_Cache] | None = None) -> F32Array:
        """
        Compute (t, vocab) float32 logits of ``tokens``, which follow what the cache holds.

        Args:
            tokens: Ids, at least one.
            cache: Keys and values so far, one per layer, extended in place; None for none.
        """
        cache = self.new_cache() if cache is None else cache
        cos, sin = _rope(cache[0].length, len(tokens), self.config)
        x = self.embedding[tokens]
        for layer, kept in zip(self.layers, cache, strict=True):
            x = x + self._attend(layer, kept, self._normed(x, layer.ln1), cos, sin)
            gate, up = np.split(self._multiply(self._normed(x, layer.ln2), layer.gate_up), 2, axis=-1)
            x = x + self._multiply(gate / (1 + np.exp(-gate)) * up, layer.down)
        return self._multiply(self._normed(x, self._norm), self.head)

    def _normed(self, x: F32Array, gain: F32Array) -> F32Array:
        normed: F32Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.config.rms_norm_eps) * gain
        return normed

    def _multiply(self, x: F32Array, weight: F32Array) -> F32Array:
        """Return (t, n) of (t, k) and (n, k)."""
        if self._int8:
            groups = x.reshape(x.shape[0], -1, GROUP)
            # Scales are powers of two, as the kernels' are.
            least = np.maximum(np.abs(groups).max(-1, keepdims=True) / np.float32(127), np.float32(1e-8))
            scale = np.exp2(np.ceil(np.log2(least)))
            x = (np.rint(groups / scale) * scale).reshape(x.shape)
        product: F32Array = x @ weight.T
        return product

    def _attend(self, layer: _Layer, kept: _Cache, x: F32Array, cos: F32Array, sin: F32Array) -> F32Array:
        heads, width = self.config.num_heads, self.config.head_dim
        t = x.shape[0]
        qkv = self._multiply(x, layer.qkv).reshape(t, 3, heads, width)
        q, k, v = _turn(qkv[:, 0], cos, sin), _turn(qkv[:, 1], cos, sin), qkv[:, 2]
        kept.keys, kept.values = np.concatenate((kept.keys, k)), np.concatenate((kept.values, v))
        scores = np.einsum("thd,shd->hts", q, kept.keys) / np.sqrt(np.float32(width))
        past = kept.length - t
        scores[:, np.arange(t)[:, None] + past < np.arange(kept.length)[None, :]] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hts,shd->thd", weights, kept.values).reshape(t, heads * width)
        return self._multiply(mixed.astype(np.float32), layer.out)


class _Layer:
    """Weights of one decoder layer, float32."""

    def __init__(self, store: WeightStore, index: int) -> None:
        prefix = f"transformer.h.{index}"
        self.qkv = store.matrix(f"{prefix}.mixer.qkv_proj").dequantize()
        self.out = store.matrix(f"{prefix}.mixer.out_proj").dequantize()
        self.gate_up = store.matrix(f"{prefix}.mlp.gate_up_proj").dequantize()
        self.down = store.matrix(f"{prefix}.mlp.down_proj").dequantize()
        self.ln1: F32Array = store.get(f"{prefix}.ln.weight").astype(np.float32)
        self.ln2: F32Array = store.get(f"{prefix}.post_attention_layernorm.weight").astype(np.float32)


class _Cache:
    """Keys and values of one layer, each (s, heads, head_dim) float32."""

    def __init__(self, keys: F32Array, values: F32Array) -> None:
        self.keys, self.values = keys, values

    @classmethod
    def empty(cls, config: ModelConfig) -> _Cache:
        """Return a cache of no tokens."""
        nothing = np.empty((0, config.num_heads, config.head_dim), np.float32)
        return cls(nothing, nothing)

    @property
    def length(self) -> int:
        """Tokens held."""
        return len(self.keys)


def _rope(start: int, count: int, config: ModelConfig) -> tuple[F32Array, F32Array]:
    """Return (t, 1, head_dim) cosines and sines of positions from ``start``."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    angles = np.outer(np.arange(start, start + count, dtype=np.float32), np.float32(config.rope_theta) ** -exponents)
    angles = np.concatenate((angles, angles), -1)[:, None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _turn(x: F32Array, cos: F32Array, sin: F32Array) -> F32Array:
    first, second = np.split(x, 2, axis=-1)
    turned: F32Array = x * cos + np.concatenate((-second, first), -1) * sin
    return turned
