"""
Write the checkpoints and logits of this folder with Hugging Face transformers.

    make golden

Each case is a tiny random Phi3ForCausalLM, saved in float16. Its weights go through edgephi's converter and back,
dequantized, into the float32 model whose logits are stored: so the logits test the forward, not the quantization,
which tests/golden/mlc-phi3-tiny holds to MLC-LLM's. Run it on purpose only, and review the diff.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Phi3Config, Phi3ForCausalLM
from transformers.masking_utils import sliding_window_overlay

from edgephi.artifact.config import load_config
from edgephi.artifact.convert import convert_checkpoint
from edgephi.artifact.parameters import phi3_parameters
from edgephi.artifact.weights import open_weights

HERE = Path(__file__).parent
NUM_TOKENS = 56
QUANTIZATION = "q4f16_1"
ORIGINAL_CONTEXT = 64

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_key_value_heads": 1},
    "window": {"sliding_window": 21},
    "longrope": {
        "max_position_embeddings": 256,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": ORIGINAL_CONTEXT,
            "short_factor": [1.0 + index / 32 for index in range(16)],
            "long_factor": [1.0 + index / 4 for index in range(16)],
        },
    },
}


def main() -> None:
    """Write every case."""
    _check_window_rule()
    for seed, (name, changes) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        model = _random_model(changes)
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model.half().save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        (folder / "model.safetensors").chmod(0o644)  # safetensors writes files only the owner can read
        model = Phi3ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        _replace_by_dequantized(model, folder)
        ids = torch.randint(3, model.config.vocab_size, (1, NUM_TOKENS))
        with torch.no_grad():
            logits = model(ids).logits[0]
        np.savez(folder / "logits.npz", ids=ids[0].numpy(), logits=logits.numpy())
        print(name, tuple(logits.shape), "largest logit", float(logits.abs().max()))


def _random_model(changes: dict[str, Any]) -> Phi3ForCausalLM:
    values: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 144,
        "max_position_embeddings": ORIGINAL_CONTEXT,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
        "sliding_window": None,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    model = Phi3ForCausalLM(Phi3Config(**(values | changes)))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            # Transformers starts norms at 1, which would hide a norm that is skipped or swapped.
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model


def _replace_by_dequantized(model: Phi3ForCausalLM, folder: Path) -> None:
    parameters = dict(model.named_parameters())
    with tempfile.TemporaryDirectory() as work:
        converted = convert_checkpoint(folder, Path(work) / "converted", quantization=QUANTIZATION)
        with open_weights(converted) as store, torch.no_grad():
            for wanted in phi3_parameters(load_config(converted)):
                if wanted.is_matrix:
                    values = store.matrix(wanted.prefix).dequantize()
                else:
                    values = store.get(f"{wanted.prefix}.weight").astype(np.float32)
                parameters.pop(wanted.hf_name).copy_(torch.from_numpy(values.copy()))
    assert not parameters, sorted(parameters)


def _check_window_rule() -> None:
    """Hold transformers to the rule our kernel follows: position i sees j where i - window < j <= i."""
    sees = sliding_window_overlay(21)
    assert bool(sees(0, 0, torch.tensor(40), torch.tensor(20)))
    assert not bool(sees(0, 0, torch.tensor(40), torch.tensor(19)))


if __name__ == "__main__":
    main()
