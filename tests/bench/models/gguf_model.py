"""
Write a random Phi-3 as GGUF with every matrix in Q4_0: what llama.cpp's ``quantize --pure`` would make.

    python -m tests.bench.models.gguf_model OUT.gguf
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from tests.bench.shapes import GROUP, PHI3_MINI, Shapes, random_codes, random_scales

Tensor = npt.NDArray[np.generic]


def write_gguf(path: Path, shapes: Shapes, seed: int = 0) -> None:
    """Write the model; the file appears under its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "phi3", use_temp_file=False)
    writer.add_context_length(shapes.context)
    writer.add_embedding_length(shapes.hidden)
    writer.add_block_count(shapes.num_layers)
    writer.add_feed_forward_length(shapes.intermediate)
    writer.add_head_count(shapes.num_heads)
    writer.add_head_count_kv(shapes.num_heads)
    writer.add_layer_norm_rms_eps(shapes.norm_eps)
    writer.add_rope_dimension_count(shapes.head_dim)
    writer.add_rope_freq_base(shapes.rope_theta)
    writer.add_vocab_size(shapes.vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    for name, rows, columns in _tensors(shapes):
        if rows is None:
            writer.add_tensor_info(name, (columns,), np.dtype(np.float32), columns * 4)
        else:
            row_bytes = columns // GROUP * 18
            writer.add_tensor_info(
                name, (rows, row_bytes), np.dtype(np.uint8), rows * row_bytes, gguf.GGMLQuantizationType.Q4_0
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # Tensor by tensor, so that the model is never in memory as a whole.
    rng = np.random.default_rng(seed)
    for _, rows, columns in _tensors(shapes):
        data = np.ones(columns, np.float32) if rows is None else _q4_0(rng, rows, columns)
        writer.write_tensor_data(data)
    writer.close()
    partial.rename(path)


def _tensors(shapes: Shapes) -> Iterator[tuple[str, int | None, int]]:
    """Name, rows and columns of each tensor in order; a vector has no rows."""
    attention = shapes.num_heads * shapes.head_dim
    yield "token_embd.weight", shapes.vocab, shapes.hidden
    for layer in range(shapes.num_layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", None, shapes.hidden
        yield f"{block}.attn_qkv.weight", 3 * attention, shapes.hidden
        yield f"{block}.attn_output.weight", shapes.hidden, attention
        yield f"{block}.ffn_norm.weight", None, shapes.hidden
        yield f"{block}.ffn_up.weight", 2 * shapes.intermediate, shapes.hidden
        yield f"{block}.ffn_down.weight", shapes.hidden, shapes.intermediate
    yield "output_norm.weight", None, shapes.hidden
    yield "output.weight", shapes.vocab, shapes.hidden


def _q4_0(rng: np.random.Generator, rows: int, columns: int) -> Tensor:
    """A matrix of blocks: a float16 scale, then 32 codes in 16 bytes. Source: ggml-common.h, block_q4_0."""
    blocks = np.empty((rows, columns // GROUP, 18), np.uint8)
    blocks[:, :, :2] = random_scales(rng, rows, columns).astype(np.float16)[:, :, None].view(np.uint8)
    blocks[:, :, 2:] = random_codes(rng, rows, columns).reshape(rows, columns // GROUP, 16)
    return blocks.reshape(rows, -1)


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), PHI3_MINI)
