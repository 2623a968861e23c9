"""
From a Hugging Face checkpoint to an MLC-LLM model folder, byte for byte as MLC-LLM's own converter writes it where
that has the format.

Owns the loop over tensors. Knows no format: those are in checkpoint.py, quantization.py, shards.py, chat_config.py.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgephi.artifact.chat_config import TOKENIZER_FILES, write_chat_config
from edgephi.artifact.checkpoint import Checkpoint, open_checkpoint
from edgephi.artifact.config import MAX_PREFILL_CHUNK, ModelConfig, load_config
from edgephi.artifact.manifest import Progress
from edgephi.artifact.parameters import Parameter, phi3_parameters
from edgephi.artifact.quantization import (
    FloatArray,
    Quantization,
    U32Array,
    find_quantization,
    quantize_q3,
    quantize_q4,
)
from edgephi.artifact.shards import ShardWriter
from edgephi.artifact.staging import check_absent, new_folder
from edgephi.errors import ConfigError, ModelInvalid

# Rows quantized at a time are chosen so that the temporaries stay in a core's cache.
_CHUNK_ELEMENTS = 1 << 18
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"  # a constant that old checkpoints carry


def convert_checkpoint(
    source: Path,
    out: Path,
    *,
    quantization: str = "q4f16_1",
    context_window_size: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> Path:
    """
    Convert a Phi-3 checkpoint into a folder that edgephi loads, and MLC-LLM too if it has 4 bits.

    Tensors are read, quantized and written one at a time; memory stays near twice the largest one's packed size plus
    one shard. The folder appears when it is complete; an error or a kill leaves none.

    Args:
        source: Folder with config.json, model.safetensors (or its index and shards) in float16, bfloat16 or float32,
            and the tokenizer's files.
        out: Folder to make.
        quantization: ``q4f16_1``, ``q4f32_1`` or ``q4f16_0``, or ``q3f16_g32``, which MLC-LLM does not read.
        context_window_size: Longest sequence to serve, in tokens; None for the model's own.
        progress: Called after each tensor with source bytes converted and in total.
        force: Replace ``out`` if it exists.

    Returns:
        ``out``.

    Raises:
        ConfigError: If ``out`` exists and ``force`` is false, or the context is longer than the model's.
        ModelNotFound: If ``source`` holds no checkpoint.
        UnsupportedModel: If the architecture or the quantization is not run.
        ModelInvalid: If the checkpoint is damaged or its tensors are not those of its configuration.
    """
    check_absent(out, force=force)
    scheme = find_quantization(quantization)
    config = _with_context(load_config(source), context_window_size)
    with open_checkpoint(source) as checkpoint, new_folder(out, force=force) as staging:
        parameters = _match(checkpoint, config)
        writer = ShardWriter(staging)
        total_bytes = sum(checkpoint.num_bytes(parameter.hf_name) for parameter in parameters)
        done_bytes = 0
        for parameter in parameters:
            for name, tensor in _converted(checkpoint, parameter, scheme):
                writer.add(name, tensor)
            done_bytes += checkpoint.num_bytes(parameter.hf_name)
            if progress is not None:
                progress(f"converting {parameter.prefix}", done_bytes, total_bytes)
        writer.finish(num_source_params=sum(parameter.num_elements for parameter in parameters))
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, staging / name)
        write_chat_config(staging, config, quantization=scheme.name)
    return out


def quantized_tensors(
    parameter: Parameter, packed: U32Array, scale: FloatArray, scheme: Quantization
) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """Yield the names and arrays under which a quantized matrix is stored, given as (n, words) and (n, k // 32)."""
    if scheme.layout == "kn" and not parameter.is_embedding:
        packed, scale = packed.T, scale.T
    yield f"{parameter.prefix}.q_weight", packed
    yield f"{parameter.prefix}.q_scale", scale


def _with_context(config: ModelConfig, context: int | None) -> ModelConfig:
    """Return the configuration with the context the caller asked for."""
    if context is None:
        return config
    if not 1 <= context <= config.context_window_size:
        raise ConfigError(f"context_window_size is {context}; must be 1 to {config.context_window_size} for this model")
    return dataclasses.replace(config, context_window_size=context, prefill_chunk_size=min(context, MAX_PREFILL_CHUNK))


def _match(checkpoint: Checkpoint, config: ModelConfig) -> tuple[Parameter, ...]:
    """Return the model's parameters in the checkpoint's order, after holding the two against each other."""
    wanted = {parameter.hf_name: parameter for parameter in phi3_parameters(config)}
    found: list[Parameter] = []
    for name in checkpoint.names():
        if name.endswith(_IGNORED_SUFFIX):
            continue
        if name not in wanted:
            raise ModelInvalid(f"the checkpoint has a tensor {name!r} that is not part of a phi3 model")
        parameter = wanted.pop(name)
        if checkpoint.shape(name) != parameter.shape:
            raise ModelInvalid(
                f"{name} has shape {list(checkpoint.shape(name))}; config.json makes it {list(parameter.shape)}"
            )
        found.append(parameter)
    if wanted:
        raise ModelInvalid(f"the checkpoint lacks {len(wanted)} tensors, first {min(wanted)!r}; download it again")
    return tuple(found)


def _converted(
    checkpoint: Checkpoint, parameter: Parameter, scheme: Quantization
) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """Yield the tensors one parameter becomes: itself for a norm, codes and scales for a matrix."""
    dtype = np.dtype(scheme.scale_dtype)
    rows = parameter.shape[0]
    if not parameter.is_matrix:
        with np.errstate(over="ignore", under="ignore"):
            values = checkpoint.rows(parameter.hf_name, 0, rows).astype(dtype)
        if not np.isfinite(values).all():
            raise ModelInvalid(f"{parameter.hf_name} is not finite in {dtype}; the checkpoint is damaged")
        yield f"{parameter.prefix}.weight", values
        return
    step = max(1, _CHUNK_ELEMENTS // parameter.shape[1])
    quantize: Callable[[npt.NDArray[np.floating]], tuple[U32Array, FloatArray]]
    quantize = partial(quantize_q4, scale_dtype=scheme.scale_dtype)
    if scheme.bits(parameter.prefix) == 3:
        quantize = quantize_q3
    try:
        parts = [quantize(checkpoint.rows(parameter.hf_name, start, start + step)) for start in range(0, rows, step)]
    except ModelInvalid as error:
        raise ModelInvalid(f"{parameter.hf_name}: {error}") from None
    packed = np.concatenate([part[0] for part in parts])
    scale = np.concatenate([part[1] for part in parts])
    yield from quantized_tensors(parameter, packed, scale, scheme)
