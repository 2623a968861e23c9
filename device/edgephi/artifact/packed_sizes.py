"""
How large a compiled model is and how much memory a token of its context takes, from the configuration alone.

Owns the arithmetic of the packed layouts, which the compiler owns; that both agree is tested on every level. It lets
people plan for a device before there is a model or a compiler on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgephi.artifact.bundle import ALIGNMENT, HEADER_BYTES, Bundle
from edgephi.artifact.config import ModelConfig
from edgephi.artifact.parameters import phi3_parameters
from edgephi.artifact.quantization import CODES_PER_WORD, GROUP_SIZE, Quantization

PAGE_TOKENS = 16
"""Tokens in a page of keys and values."""

# Each key and each value of a token and head has a float16 scale where it is stored as int8.
_INT8_SCALES_BYTES = 4


@dataclass(frozen=True, slots=True)
class PackedSizes:
    """
    Sizes of packed weights in bytes.

    Attributes:
        file_bytes: Of weights.bin, which is mapped as a whole.
        step_bytes: Of the part that every step reads: all but the embedding table, of which it takes single rows.
    """

    file_bytes: int
    step_bytes: int


def packed_sizes(config: ModelConfig, quantization: Quantization) -> PackedSizes:
    """Return the sizes that packing a model of this configuration would give; they are the same on every level."""
    end, embedding = HEADER_BYTES, 0
    for is_embedding, nbytes in _packed_tensors(config, quantization):
        end += -end % ALIGNMENT + nbytes
        embedding += nbytes if is_embedding else 0
    return PackedSizes(end, end - HEADER_BYTES - embedding)


def bundle_sizes(bundle: Bundle) -> PackedSizes:
    """Return the sizes of weights that are packed already."""
    embedding = sum(tensor.nbytes for tensor in bundle.parameters if tensor.name.startswith("transformer.embd."))
    return PackedSizes(bundle.weights.nbytes, bundle.weights.nbytes - HEADER_BYTES - embedding)


def kv_bytes_per_token(config: ModelConfig, kv_dtype: str) -> int:
    """
    Return the bytes of keys and values that one token of context takes.

    Args:
        config: The model.
        kv_dtype: One of ``artifact.bundle.KV_DTYPES``.
    """
    scales = _INT8_SCALES_BYTES if kv_dtype == "int8" else 0
    per_head = 2 * config.head_dim * np.dtype(kv_dtype).itemsize + scales
    return config.num_layers * config.num_kv_heads * per_head


def macs_per_token(config: ModelConfig) -> int:
    """Return the multiplications of one token with the matrices of all layers, the output projection not included."""
    return sum(
        parameter.num_elements
        for parameter in phi3_parameters(config)
        if parameter.is_matrix and parameter.prefix.startswith("transformer.h.")
    )


def _packed_tensors(config: ModelConfig, quantization: Quantization) -> Iterator[tuple[bool, int]]:
    """Yield whether it is of the embedding and the bytes, of each packed tensor."""
    scale_bytes = np.dtype(quantization.scale_dtype).itemsize
    yield False, 4 * (config.head_dim // 2)  # the rotary frequencies
    # Only the last is not followed by padding; of the others the order changes no sum.
    for parameter in sorted(phi3_parameters(config), key=lambda parameter: parameter.prefix == "lm_head"):
        if not parameter.is_matrix:
            yield False, 4 * math.prod(parameter.shape)  # norms are widened to float32
            continue
        groups = parameter.num_elements // GROUP_SIZE
        if parameter.is_embedding:
            yield True, 4 * (parameter.num_elements // CODES_PER_WORD)
            yield True, groups * scale_bytes
        else:
            code_bytes = GROUP_SIZE * quantization.bits(parameter.prefix) // 8
            yield False, groups * (code_bytes + scale_bytes)
