"""
``mlc-chat-config.json`` as MLC-LLM writes it, and what it says about a tokenizer.

Owns the file's keys and their order. Knows no weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgephi.artifact.config import ARCHITECTURE, MLC_CONFIG, ModelConfig, infer_sliding_window
from edgephi.artifact.fields import Fields, read_fields
from edgephi.errors import ModelInvalid

# Source: MLC-LLM interface/gen_config.py, in the order it copies them.
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
)
FORMAT_VERSION = "0.1.0"
MAX_BATCH_SIZE = 128  # what MLC-LLM writes by default; edgephi plans its own
PHI3_STOP_TOKEN_IDS = (2, 32000, 32001, 32007)


def write_chat_config(
    model_dir: Path,
    config: ModelConfig,
    *,
    quantization: str,
    stop_token_ids: tuple[int, ...] = PHI3_STOP_TOKEN_IDS,
) -> None:
    """
    Write ``mlc-chat-config.json`` beside the tokenizer files that are already in the folder.

    Args:
        model_dir: The model folder.
        config: What to describe; its ``quantization`` is ignored.
        quantization: MLC-LLM's name of the format.
        stop_token_ids: For the chat template. Phi-3's by default, as MLC-LLM writes them for every vocabulary.

    Raises:
        ModelInvalid: If ``tokenizer.json`` is there and cannot be read.
    """
    tokenizer_path = model_dir / "tokenizer.json"
    tokenizer = read_fields(tokenizer_path) if tokenizer_path.is_file() else None
    eos: int | list[int] = list(config.eos_token_ids)
    if len(config.eos_token_ids) == 1:
        eos = config.eos_token_ids[0]
    document = {
        "version": FORMAT_VERSION,
        "model_type": ARCHITECTURE,
        "quantization": quantization,
        "model_config": _model_config(config),
        "vocab_size": config.vocab_size,
        "context_window_size": config.context_window_size,
        "sliding_window_size": -1,
        "prefill_chunk_size": config.prefill_chunk_size,
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "active_vocab_size": _num_tokens(tokenizer) if tokenizer else config.vocab_size,
        "temperature": config.generation.temperature,
        "presence_penalty": config.generation.presence_penalty,
        "frequency_penalty": config.generation.frequency_penalty,
        "repetition_penalty": config.generation.repetition_penalty,
        "top_p": config.generation.top_p,
        "tokenizer_files": [name for name in TOKENIZER_FILES if (model_dir / name).is_file()],
        "tokenizer_info": _tokenizer_info(tokenizer),
        "conv_template": _conversation(config, stop_token_ids),
        "pad_token_id": config.pad_token_id if config.pad_token_id is not None else 0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
        "model_task": "chat",
        "embedding_metadata": None,
    }
    (model_dir / MLC_CONFIG).write_text(json.dumps(document, indent=2), encoding="utf-8")


def _model_config(config: ModelConfig) -> dict[str, Any]:
    """Return the shapes under MLC-LLM's names."""
    scaling = config.rope_scaling
    original = scaling.original_max_position if scaling else config.max_position
    fields: dict[str, Any] = {
        "model_type": ARCHITECTURE,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": config.rms_norm_eps,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_position,
        "position_embedding_base": config.rope_theta,
        "rope_scaling": None,
        "original_max_position_embeddings": original,
        "context_window_size": config.context_window_size,
        "prefill_chunk_size": config.prefill_chunk_size,
        "head_dim": config.head_dim,
        "tensor_parallel_shards": 1,
        "max_batch_size": MAX_BATCH_SIZE,
        "tie_word_embeddings": False,
        "partial_rotary_factor": 1.0,
    }
    if scaling is not None:
        fields["rope_scaling"] = {
            "long_factor": list(scaling.long_factor),
            "short_factor": list(scaling.short_factor),
            "type": "longrope",
            "rope_type": "longrope",
            "max_position_embeddings": config.max_position,
            "original_max_position_embeddings": original,
        }
    inferred = infer_sliding_window(
        hidden_size=config.hidden_size, max_position=config.max_position, rope_scaling=scaling
    )
    if config.sliding_window != inferred:
        # MLC-LLM has no such field and ignores it; without it the window would be lost.
        fields["sliding_window"] = config.sliding_window if config.sliding_window is not None else config.max_position
    return fields


def _conversation(config: ModelConfig, stop_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """Return MLC-LLM's conversation template "phi-3"."""
    return {
        "name": "phi-3",
        "system_template": "<|system|>\n{system_message}",
        "system_message": "You are a helpful digital assistant. Please provide safe, "
        "ethical and accurate information to the user.",
        "system_prefix_token_ids": [config.bos_token_id],
        "add_role_after_system_message": True,
        "roles": {"user": "<|user|>", "assistant": "<|assistant|>"},
        "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}", "tool": "{tool_message}"},
        "messages": [],
        "seps": ["<|end|>\n"],
        "role_content_sep": "\n",
        "role_empty_sep": "\n",
        "stop_str": ["<|endoftext|>"],
        "stop_token_ids": list(stop_token_ids),
        "function_string": "",
        "use_function_calling": False,
    }


def _num_tokens(tokenizer: Fields) -> int:
    """Return how many tokens a tokenizer has, added ones included."""
    names = set(tokenizer.child("model").child("vocab").values)
    if tokenizer.has("added_tokens"):
        added = [fields.text("content") for fields in tokenizer.children("added_tokens")]
        if len(set(added)) != len(added):
            raise ModelInvalid(f"{tokenizer.file} lists an added token twice; download it again")
        names.update(added)
    return len(names)


def _tokenizer_info(tokenizer: Fields | None) -> dict[str, Any]:
    """Return the three facts MLC-LLM's runtime wants, found in the tokenizer's normalizers and decoders."""
    decoders = _steps(tokenizer, "decoder", "decoders")
    normalizers = _steps(tokenizer, "normalizer", "normalizers")
    is_byte_level = any(step.values.get("type") == "ByteLevel" for step in decoders)
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "token_postproc_method": "byte_level" if is_byte_level else "byte_fallback",
        "prepend_space_in_encode": any(
            step.values.get("type") == "Prepend" and step.values.get("prepend") == "▁" for step in normalizers
        ),
        "strip_space_in_decode": any(dict(step.values) == strip for step in decoders),
    }


def _steps(tokenizer: Fields | None, key: str, list_key: str) -> tuple[Fields, ...]:
    """Return the steps of a normalizer or decoder, be it one or a sequence."""
    if tokenizer is None or not tokenizer.has(key):
        return ()
    step = tokenizer.child(key)
    return step.children(list_key) if step.values.get("type") == "Sequence" else (step,)
