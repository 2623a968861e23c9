"""
Models of random weights in MLC-LLM's format: for tests, demonstrations and sizing a device without a download.

Owns the presets and the random numbers. What such a model says is noise; its speed and memory are those of a trained
model of the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from edgephi.artifact.chat_config import write_chat_config
from edgephi.artifact.config import (
    PHI3_MINI_4K_WINDOW,
    ModelConfig,
    RopeScaling,
)
from edgephi.artifact.convert import quantized_tensors
from edgephi.artifact.manifest import Progress
from edgephi.artifact.parameters import Parameter, phi3_parameters
from edgephi.artifact.quantization import (
    CODES_PER_WORD,
    GROUP_SIZE,
    FloatArray,
    Quantization,
    U32Array,
    find_quantization,
)
from edgephi.artifact.shards import ShardWriter
from edgephi.artifact.staging import new_folder
from edgephi.artifact.synth_tokenizer import special_ids, write_tokenizer
from edgephi.errors import ConfigError

QUANTIZATION = "q4f16_1"
SYNTHETIC_QUANTIZATIONS = (QUANTIZATION, "q3f16_g32")

# Standard deviation of a code around 7 as drawn here: -7 to 7 with 1/16 each, 0 with 2/16.
_CODE_STD = (2 * sum(code * code for code in range(1, 8)) / 16) ** 0.5
# And of a 3-bit code around 4, all eight equally likely; the scales' random signs make the weights' mean 0.
_CODE_STD_Q3 = (sum((code - 4) ** 2 for code in range(8)) / 8) ** 0.5


def _preset(
    *,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    vocab: int,
    context: int,
    window: int | None = None,
    rope_scaling: RopeScaling | None = None,
) -> ModelConfig:
    """Return a configuration with Phi-3's constants and the given shapes."""
    ids = special_ids(vocab)
    served = min(context, rope_scaling.original_max_position) if rope_scaling else context
    return ModelConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=rope_scaling,
        max_position=context,
        context_window_size=served,
        sliding_window=window,
        prefill_chunk_size=served,
        quantization=QUANTIZATION,
        bos_token_id=ids.bos,
        eos_token_ids=(ids.end_of_text, ids.assistant, ids.end),
        pad_token_id=ids.end_of_text,
    )


# Made-up factors that rise with the wavelength, as trained ones do.
_TINY_LONGROPE = RopeScaling(
    long_factor=tuple(1.0 + index / 4 for index in range(48)),
    short_factor=tuple(1.0 + index / 64 for index in range(48)),
    original_max_position=256,
)

PRESETS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "phi3-mini-4k": _preset(
            layers=32,
            hidden=3072,
            intermediate=8192,
            heads=32,
            vocab=32064,
            context=4096,
            window=PHI3_MINI_4K_WINDOW,
        ),
        "phi3-small": _preset(layers=4, hidden=768, intermediate=2048, heads=8, vocab=4096, context=1024),
        # As many kernels a step as the real model, and next to no arithmetic: what a step costs besides.
        "phi3-hollow": _preset(layers=32, hidden=64, intermediate=64, heads=2, vocab=512, context=256),
        "phi3-tiny": _preset(layers=2, hidden=192, intermediate=512, heads=2, vocab=512, context=256),
        "phi3-tiny-window": _preset(layers=2, hidden=192, intermediate=512, heads=2, vocab=512, context=256, window=48),
        "phi3-tiny-longrope": _preset(
            layers=2, hidden=192, intermediate=512, heads=2, vocab=512, context=1024, rope_scaling=_TINY_LONGROPE
        ),
    }
)
"""Shapes by name: ``phi3-mini-4k`` is the real model's; the others are small, for tests."""


def synthesize(
    preset: str,
    out: Path,
    *,
    quantization: str = QUANTIZATION,
    seed: int = 0,
    progress: Progress | None = None,
    force: bool = False,
) -> Path:
    """
    Make a model folder of random weights with a tokenizer.

    The same preset, quantization and seed give the same bytes on every machine. Norms are 1; matrices have a standard
    deviation of about ``1 / sqrt(hidden_size)``, 0.018 for Phi-3-mini, so that activations stay in float16's range.

    Args:
        preset: A key of ``PRESETS``.
        out: Folder to make.
        quantization: ``q4f16_1`` or ``q3f16_g32``.
        seed: At least 0.
        progress: Called after each tensor with bytes written and in total.
        force: Replace ``out`` if it exists.

    Returns:
        ``out``.

    Raises:
        ConfigError: If the preset or the quantization is unknown, the seed is negative, or ``out`` exists and ``force``
            is false.
    """
    config = PRESETS.get(preset)
    if config is None:
        raise ConfigError(f"preset is {preset!r}; use one of {', '.join(PRESETS)}")
    if quantization not in SYNTHETIC_QUANTIZATIONS:
        raise ConfigError(f"quantization is {quantization!r}; use one of {', '.join(SYNTHETIC_QUANTIZATIONS)}")
    scheme = find_quantization(quantization)
    if seed < 0:
        raise ConfigError(f"seed is {seed}; must be at least 0")
    parameters = phi3_parameters(config)
    total_bytes = sum(stored_bytes(parameter, scheme) for parameter in parameters)
    done_bytes = 0
    with new_folder(out, force=force) as staging:
        writer = ShardWriter(staging)
        for index, parameter in enumerate(parameters):
            for name, tensor in _random_tensors(parameter, config, scheme, np.random.SFC64([seed, index])):
                done_bytes += writer.add(name, tensor)
            if progress is not None:
                progress(f"writing {parameter.prefix}", done_bytes, total_bytes)
        writer.finish(num_source_params=sum(parameter.num_elements for parameter in parameters))
        write_tokenizer(staging, config.vocab_size, max_tokens=config.max_position)
        write_chat_config(staging, config, quantization=quantization, stop_token_ids=config.eos_token_ids)
    return out


def stored_bytes(parameter: Parameter, scheme: Quantization) -> int:
    """Return the bytes of one parameter in a format with float16 scales."""
    if not parameter.is_matrix:
        return 2 * parameter.num_elements
    return parameter.num_elements * scheme.bits(parameter.prefix) // 8 + 2 * (parameter.num_elements // GROUP_SIZE)


def _random_tensors(
    parameter: Parameter, config: ModelConfig, scheme: Quantization, bits: np.random.SFC64
) -> list[tuple[str, npt.NDArray[np.generic]]]:
    """Return the stored tensors of one parameter. Raw generator bits only: NumPy promises those never change."""
    if not parameter.is_matrix:
        return [(f"{parameter.prefix}.weight", np.ones(parameter.shape, np.float16))]
    n, k = parameter.shape
    std = config.hidden_size**-0.5
    packed: U32Array
    if scheme.bits(parameter.prefix) == 3:
        packed = _raw_words(bits, n * k // GROUP_SIZE * 3).reshape(n, -1)
        scale = _random_scales(bits, n, k, std / _CODE_STD_Q3)
        scale = np.where(_raw_words(bits, scale.size).reshape(scale.shape) & np.uint32(1), scale, -scale)
    else:
        packed = _random_codes(bits, n, k)
        scale = _random_scales(bits, n, k, std / _CODE_STD)
    return list(quantized_tensors(parameter, packed, scale, scheme))


def _random_scales(bits: np.random.SFC64, n: int, k: int, mean: float) -> FloatArray:
    """Return (n, k // 32) scales within 25 % of *mean*, from 24-bit fractions so that only the last step rounds."""
    fraction = (_raw_words(bits, n * (k // GROUP_SIZE)) >> np.uint32(8)).astype(np.float64) / (1 << 24)
    return (mean * (0.75 + 0.5 * fraction)).astype(np.float16).reshape(n, k // GROUP_SIZE)


def _random_codes(bits: np.random.SFC64, n: int, k: int) -> U32Array:
    """Return (n, k // 8) words of codes 0 to 14, symmetric around 7."""
    words = _raw_words(bits, n * k // CODES_PER_WORD)
    # 15 is not a code. Its nibbles, the only ones with all four bits set, become 7, which stands for 0.
    full = words & (words >> np.uint32(1))
    full &= full >> np.uint32(2)
    full &= np.uint32(0x11111111)
    full <<= np.uint32(3)
    words ^= full
    return words.reshape(n, k // CODES_PER_WORD)


def _raw_words(bits: np.random.SFC64, count: int) -> U32Array:
    raw = np.asarray(bits.random_raw((count + 1) // 2), np.uint64).astype("<u8", copy=False)
    return raw.view("<u4")[:count]
