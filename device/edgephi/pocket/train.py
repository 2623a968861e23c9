"""
Train edgephi-pocket from nothing: ``python -m edgephi.pocket.train``.

Owns the schedule, the checkpoint in Hugging Face's form and its conversion to the packaged MLC folder. Needs the
extra ``train``. Two runs with the same seed, thread count and torch build give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional

from edgephi.artifact.chat_config import write_chat_config
from edgephi.artifact.config import load_config
from edgephi.artifact.convert import convert_checkpoint
from edgephi.pocket import model_dir
from edgephi.pocket import tokenizer as text
from edgephi.pocket.commands import Split, examples
from edgephi.pocket.network import Pocket, PocketConfig

DEFAULT_CHECKPOINT = Path("build/pocket/hf")
_WIDTH_STEP, _ROWS_STEP, _NO_TARGET = 4, 256, -100
_POOL = 16  # batches drawn together and sorted by length, so that a batch wastes little on padding


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """
    How long and how fast to learn.

    Attributes:
        steps: Updates.
        batch: Commands in one update.
        learning_rate: Its peak, after the warm-up.
        warmup_steps: Updates over which it rises from zero.
        rounded_from: Fraction of the steps after which the model behaves as its quantized form.
        seed: Of weights and data.
        threads: CPU threads.
        bf16: Whether matrices are multiplied in bfloat16 before the rounded phase and in it.
    """

    steps: int = 5000
    batch: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    rounded_from: float = 0.66
    seed: int = 7
    threads: int = 2
    bf16: bool = True

    def rate_at(self, step: int) -> float:
        """Return the learning rate: linear warm-up, then half a cosine to one hundredth."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True, slots=True)
class Sample:
    """Token ids of one prompt with its answer; the answer starts at ``answer_at``."""

    tokens: list[int]
    answer_at: int


def samples(tokenizer: Tokenizer, seed: int) -> Iterator[Sample]:
    """
    Yield training samples without end.

    One in 20 carries a system message and one in 12 follows one to three earlier commands; neither changes the answer.
    One in 25 answers without the leading space that the tokenizer prepends, which is how an answer starts when a
    grammar forbids white space.
    """
    rng = Random(seed)  # noqa: S311 - a seeded stream of sentences, no secret
    vocab = tokenizer.get_vocab()
    open_spaced, open_bare = vocab["\u2581{"], vocab["{"]
    stream = examples(seed, Split.TRAIN)
    for example in stream:
        system = rng.choice(text.SYSTEM_PROMPTS) if rng.random() < 0.05 else None
        num_earlier = rng.choice((1, 1, 2, 3)) if rng.random() < 0.08 else 0
        history = [(earlier.text, earlier.answer) for earlier in islice(stream, num_earlier)]
        prompt = text.render_prompt(tokenizer, example.text, system=system, history=history)
        answer = text.encode(tokenizer, example.answer)
        assert answer[0] == open_spaced
        if rng.random() < 0.04:
            answer[0] = open_bare
        yield Sample([*prompt, *answer, text.END_ID], len(prompt))


def batches(tokenizer: Tokenizer, schedule: Schedule) -> Iterator[list[Sample]]:
    """Yield batches of samples of similar length, in random order."""
    rng = Random(schedule.seed)  # noqa: S311 - a seeded stream of sentences, no secret
    stream = samples(tokenizer, schedule.seed)
    while True:
        pool = sorted(islice(stream, _POOL * schedule.batch), key=lambda sample: len(sample.tokens))
        starts = [i * schedule.batch for i in range(_POOL)]
        rng.shuffle(starts)
        for start in starts:
            yield pool[start : start + schedule.batch]


def tensors(batch: list[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Lay a batch out.

    Widths and counts are rounded up, so that few shapes occur and the kernels made for each are used again.

    Returns:
        Tokens (b, t); the flat rows (r,) that predict an answer's token; those tokens (r,), -100 where there is none.
    """
    longest = max(len(sample.tokens) for sample in batch)
    width = -(-longest // _WIDTH_STEP) * _WIDTH_STEP
    tokens = torch.full((len(batch), width), text.ENDOFTEXT_ID)
    rows: list[int] = []
    targets: list[int] = []
    for i, sample in enumerate(batch):
        tokens[i, : len(sample.tokens)] = torch.tensor(sample.tokens)
        rows.extend(range(i * width + sample.answer_at - 1, i * width + len(sample.tokens) - 1))
        targets.extend(sample.tokens[sample.answer_at :])
    missing = -len(rows) % _ROWS_STEP
    return tokens, torch.tensor(rows + [0] * missing), torch.tensor(targets + [_NO_TARGET] * missing)


def train(tokenizer: Tokenizer, config: PocketConfig, schedule: Schedule) -> Pocket:
    """Train a model from random weights and report progress on standard error."""
    torch.manual_seed(schedule.seed)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(schedule.threads)
    model = Pocket(config)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.02}, {"params": gains, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    started, recent = time.monotonic(), 0.0
    for step, batch in enumerate(islice(batches(tokenizer, schedule), schedule.steps)):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        tokens, rows, targets = tensors(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bf16):
            logits = model(tokens, rows, rounded=step >= schedule.rounded_from * schedule.steps)
        loss = functional.cross_entropy(logits.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent += loss.item()
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}/{schedule.steps} loss {recent / 50:.4f} {seconds:.0f} s", file=sys.stderr, flush=True
            )
            recent = 0.0
    return model


def write_checkpoint(model: Pocket, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face folder: configuration, float32 weights, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", hf_config(model.config))
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": text.BOS_ID,
            "do_sample": False,
            "eos_token_id": [text.ENDOFTEXT_ID, text.ASSISTANT_ID, text.END_ID],
            "pad_token_id": text.ENDOFTEXT_ID,
            "temperature": 0.0,
        },
    )
    _write_json(folder / "tokenizer_config.json", text.tokenizer_config())
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def hf_config(config: PocketConfig) -> dict[str, Any]:
    """Return config.json as Hugging Face's Phi3Config reads it."""
    return {
        "architectures": ["Phi3ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": text.BOS_ID,
        "embd_pdrop": 0.0,
        "eos_token_id": text.ENDOFTEXT_ID,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context_tokens,
        "model_type": "phi3",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_heads,
        "original_max_position_embeddings": config.context_tokens,
        "pad_token_id": text.ENDOFTEXT_ID,
        "resid_pdrop": 0.0,
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def convert(checkpoint: Path, out: Path) -> None:
    """Convert to the MLC folder, with this vocabulary's stop tokens in place of Phi-3-mini's."""
    convert_checkpoint(checkpoint, out, force=True)
    stops = (text.EOS_ID, text.ENDOFTEXT_ID, text.ASSISTANT_ID, text.END_ID)
    write_chat_config(out, load_config(out), quantization="q4f16_1", stop_token_ids=stops)


def main() -> None:
    """Train, write the checkpoint, convert it into the package."""
    defaults = Schedule()
    parser = argparse.ArgumentParser(prog="python -m edgephi.pocket.train", description=__doc__)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--rounded-from", type=float, default=defaults.rounded_from, help="fraction of the steps")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=defaults.bf16)
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT, help="Hugging Face folder to write")
    parser.add_argument("--out", type=Path, default=model_dir(), help="MLC folder to write or replace")
    options = parser.parse_args()
    schedule = Schedule(
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.learning_rate,
        seed=options.seed,
        threads=options.threads,
        bf16=options.bf16,
        rounded_from=options.rounded_from,
    )
    tokenizer = text.build_tokenizer()
    model = train(tokenizer, PocketConfig(), schedule)
    write_checkpoint(model, tokenizer, options.checkpoint)
    convert(options.checkpoint, options.out)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
