"""
What int8 activations and int8 keys and values cost: ``make precision``.

Every combination of activations and cached keys and values is compared with float32 throughout, on the same 4-bit
weights: on the pocket model with its own held-out commands (the right answer is given token by token; an answer is
exact where the likeliest token is the right one all the way, which is what greedy decoding would have written), and
on the logits of random tokens, for the pocket model and for whatever model folders are named.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from edgephi.artifact.bundle import KV_DTYPES
from edgephi.engine.backend import F32Array
from edgephi.pocket import model_dir
from edgephi.pocket.evaluate import build_test_sets
from edgephi.pocket.tokenizer import END_ID, encode, render_prompt
from edgephi.runtime import LoadedModel, load_model
from edgephi.runtime.model import RuntimeOptions

EXACT = ("float32", "float32")
COMBINATIONS = tuple(itertools.product(("float32", "int8"), reversed(KV_DTYPES)))
RANDOM_TOKENS = 48


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.precision", description=main.__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="more model folders, compared on random tokens")
    parser.add_argument("--per-intent", type=int, default=10, help="commands per intent and test set")
    options = parser.parse_args()
    write_table("edgephi-pocket, answers to held-out commands", pocket_rows(options.per_intent))
    for model in options.models:
        write_table(f"{model.name}, {RANDOM_TOKENS} random tokens", random_rows(model))


def pocket_rows(per_intent: int) -> Iterator[str]:
    """Yield a row of the table for each combination, over every test set of the pocket model."""
    with load(model_dir(), EXACT) as exact:
        tokenizer = Tokenizer.from_file(str(model_dir() / "tokenizer.json"))
        prompts = []
        for examples in build_test_sets(per_intent).values():
            for example in examples:
                prompt = render_prompt(tokenizer, example.text)
                prompts.append((prompt, [*encode(tokenizer, example.answer), END_ID]))
        wanted = [answer_logits(exact, prompt, answer) for prompt, answer in prompts]
    for combination in COMBINATIONS:
        with load(model_dir(), combination) as model:
            found = [answer_logits(model, prompt, answer) for prompt, answer in prompts]
        right = [
            bool((logits.argmax(axis=1) == answer).all()) for logits, (_, answer) in zip(found, prompts, strict=True)
        ]
        yield row(combination, np.concatenate(wanted), np.concatenate(found), f"{np.mean(right):.1%} of {len(right)}")


def random_rows(folder: Path) -> Iterator[str]:
    """Yield a row of the table for each combination, over random tokens."""
    with load(folder, EXACT) as exact:
        tokens = np.random.default_rng(0).integers(0, exact.bundle.vocab_size, RANDOM_TOKENS).tolist()
        wanted = exact.logits(tokens)
    for combination in COMBINATIONS:
        with load(folder, combination) as model:
            yield row(combination, wanted, model.logits(tokens), "")


def row(combination: tuple[str, str], wanted: F32Array, found: F32Array, exact: str) -> str:
    """Compare logits (n, vocab_size) and return a row of the table."""
    error = np.abs(found - wanted)
    p, q = log_softmax(wanted), log_softmax(found)
    divergence = (np.exp(p) * (p - q)).sum(axis=1)
    same = (wanted.argmax(axis=1) == found.argmax(axis=1)).mean()
    activations, kv_dtype = combination
    return (
        f"| {activations} | {kv_dtype} | {error.max():.3g} | {error.mean():.2g} | {wanted.std():.2g} "
        f"| {divergence.mean():.2g} | {same:.2%} | {exact} |"
    )


def write_table(title: str, rows: Iterator[str]) -> None:
    """Write a table to standard output, each row when it is known."""
    out = sys.stdout
    out.write(f"\n{title}\n\n")
    out.write("| activations | keys and values | largest logit error | mean | logits' deviation | KL, nats | same ")
    out.write("likeliest token | exact answers |\n|---|---|---|---|---|---|---|---|\n")
    for line in rows:
        out.write(line + "\n")
        out.flush()


def answer_logits(model: LoadedModel, prompt: Sequence[int], answer: Sequence[int]) -> F32Array:
    """Return the (len(answer), vocab_size) logits from which the tokens of *answer* would be drawn."""
    return model.logits([*prompt, *answer[:-1]])[len(prompt) - 1 :]


def load(folder: Path, combination: tuple[str, str]) -> LoadedModel:
    """Load a model with activations and keys and values of these types."""
    activations, kv_dtype = combination
    return load_model(folder, RuntimeOptions(activations=activations, kv_dtype=kv_dtype))


def log_softmax(x: F32Array) -> F32Array:
    """Return the logarithms of the rows' distributions."""
    shifted = x - x.max(axis=1, keepdims=True)
    result: F32Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


if __name__ == "__main__":
    main()
