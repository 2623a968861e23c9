"""
The tensors of a Phi-3: their names in a Hugging Face checkpoint and in an MLC-LLM folder, and their shapes.

Owns the name map. Knows no file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgephi.artifact.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Parameter:
    """
    One weight tensor before quantization.

    Attributes:
        hf_name: In a Hugging Face checkpoint, such as ``model.layers.0.self_attn.qkv_proj.weight``.
        prefix: MLC-LLM's name without ``.weight``, such as ``transformer.h.0.mixer.qkv_proj``.
        shape: (n, k) of a matrix, (n,) of a norm.
        is_embedding: A table of rows, not a linear layer: MLC-LLM stores it (n, k // 8) in every layout.
    """

    hf_name: str
    prefix: str
    shape: tuple[int, ...]
    is_embedding: bool = False

    @property
    def is_matrix(self) -> bool:
        """Whether it is quantized; norms are not."""
        return len(self.shape) == 2

    @property
    def num_elements(self) -> int:
        """Weights in the tensor."""
        return math.prod(self.shape)


def phi3_parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """
    Return all parameters of a Phi-3, sorted by their Hugging Face name, as a checkpoint and its conversion have them.

    Source: MLC-LLM, model/phi3/phi3_loader.py.
    """
    hidden, mlp = config.hidden_size, config.intermediate_size
    found = [
        Parameter("lm_head.weight", "lm_head", (config.vocab_size, hidden)),
        Parameter("model.embed_tokens.weight", "transformer.embd", (config.vocab_size, hidden), is_embedding=True),
        Parameter("model.norm.weight", "transformer.norm", (hidden,)),
    ]
    for index in range(config.num_layers):
        hf, mlc = f"model.layers.{index}", f"transformer.h.{index}"
        found += [
            Parameter(f"{hf}.input_layernorm.weight", f"{mlc}.ln", (hidden,)),
            Parameter(f"{hf}.mlp.down_proj.weight", f"{mlc}.mlp.down_proj", (hidden, mlp)),
            Parameter(f"{hf}.mlp.gate_up_proj.weight", f"{mlc}.mlp.gate_up_proj", (2 * mlp, hidden)),
            Parameter(f"{hf}.post_attention_layernorm.weight", f"{mlc}.post_attention_layernorm", (hidden,)),
            Parameter(f"{hf}.self_attn.o_proj.weight", f"{mlc}.mixer.out_proj", (hidden, hidden)),
            Parameter(f"{hf}.self_attn.qkv_proj.weight", f"{mlc}.mixer.qkv_proj", (config.qkv_size, hidden)),
        ]
    return tuple(sorted(found, key=lambda parameter: parameter.hf_name))
