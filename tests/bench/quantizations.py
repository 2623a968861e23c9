"""
Formats of weights side by side: ``make quantizations``.

Bytes of Phi-3-mini's shapes, the relative error of rounded weights, and what it does to logits. Weights of a trained
Phi-3 are not in this repository. Instead: Gaussian numbers; the tiny checkpoint of the tests, random too, whose
unrounded weights are known; and the pocket model, which is trained, but known only after rounding to ``q4f16_1``, to
which its training adapted it. So its row for ``q4f16_1`` is zero by construction, and the others show the damage of
rounding twice: more than rounding the trained weights once would do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# Read when NumPy is loaded; these matrices are too small for more.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from tests.bench.precision import log_softmax

from edgephi.artifact.checkpoint import open_checkpoint
from edgephi.artifact.config import load_config
from edgephi.artifact.convert import convert_checkpoint
from edgephi.artifact.parameters import Parameter, phi3_parameters
from edgephi.artifact.quantization import F32Array, dequantize_q3, dequantize_q4, quantize_q3, quantize_q4
from edgephi.artifact.synth import PRESETS
from edgephi.artifact.synth_tokenizer import write_tokenizer
from edgephi.artifact.weights import open_weights
from edgephi.pocket import model_dir
from edgephi.pocket.evaluate import build_test_sets
from edgephi.pocket.reference import Reference
from edgephi.pocket.tokenizer import END_ID, encode, render_prompt

GOLDEN = Path(__file__).parent.parent / "golden" / "mlc-phi3-tiny"
SEARCH = tuple(np.linspace(0.8, 1.1, 7).tolist())

Round = Callable[[F32Array], F32Array]
Matrices = dict[str, F32Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """
    A way to round matrices.

    Attributes:
        name: As the tables have it.
        bits: Of a weight in the decoder layers, its share of a scale included.
        round: From a matrix (n, k) to what the format makes of it.
        outer_bits: Of a weight in the embedding and the output projection; None for the same.
        round_outer: For those two; None for the same.
    """

    name: str
    bits: float
    round: Round
    outer_bits: float | None = None
    round_outer: Round | None = None

    def apply(self, name: str, matrix: F32Array) -> F32Array:
        """Return the rounded matrix of that name."""
        is_outer = not name.startswith("transformer.h.")
        return self.round_outer(matrix) if is_outer and self.round_outer else self.round(matrix)

    def stored_bytes(self, parameter: Parameter) -> float:
        """Return the bytes of one parameter."""
        if not parameter.is_matrix:
            return 2.0 * parameter.num_elements
        is_layer = parameter.prefix.startswith("transformer.h.")
        return parameter.num_elements * (self.bits if is_layer or self.outer_bits is None else self.outer_bits) / 8


def round_groups(
    weight: F32Array, *, group: int, lowest: float, highest: float, search: Sequence[float] = (1.0,)
) -> F32Array:
    """
    Round a matrix (n, k) in groups along k to whole steps (or halves, where *lowest* is one) between two levels.

    The scale, a float16, lets the group's largest weight be *lowest*, times whichever of *search* has the least squared
    error. The last group is filled with zeros, as MLC-LLM does.
    """
    n, k = weight.shape
    groups = np.pad(weight, ((0, 0), (0, -k % group))).reshape(-1, group)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    if highest == -lowest:
        largest = -np.abs(largest)
    offset = lowest - np.floor(lowest)
    best, least = np.zeros_like(groups), np.full((len(groups), 1), np.inf, np.float32)
    for part in search:
        step = (largest * np.float32(part / lowest)).astype(np.float16).astype(np.float32)
        quotient = np.divide(groups, step, out=np.zeros_like(groups), where=step != 0)
        rounded = np.clip(np.rint(quotient - offset) + offset, lowest, highest).astype(np.float32) * step
        error = np.square(rounded - groups).sum(axis=1, keepdims=True)
        np.copyto(best, rounded, where=error < least)
        least = np.minimum(least, error)
    found: F32Array = best.reshape(n, -1)[:, :k]
    return found


def _q4(weight: F32Array) -> F32Array:
    return dequantize_q4(*quantize_q4(weight, "float16"))


def _q3(weight: F32Array) -> F32Array:
    return dequantize_q3(*quantize_q3(weight))


_MLC_Q3 = partial(round_groups, group=40, lowest=-3, highest=3)
FORMATS = (
    Format(name="q4f16_1, group 32", bits=4.5, round=_q4),
    Format(name="the same, group 64", bits=4.25, round=partial(round_groups, group=64, lowest=-7, highest=7)),
    Format(name="the same, group 128", bits=4.125, round=partial(round_groups, group=128, lowest=-7, highest=7)),
    Format(
        name="4 bits, -8 to 7, scale searched, group 32",
        bits=4.5,
        round=partial(round_groups, group=32, lowest=-8, highest=7, search=SEARCH),
    ),
    Format(
        name="the same, group 128",
        bits=4.125,
        round=partial(round_groups, group=128, lowest=-8, highest=7, search=SEARCH),
    ),
    Format(name="MLC-LLM's q3f16_1, group 40", bits=3.6, round=_MLC_Q3),
    Format(name="3 bits, -3 to 3, group 32", bits=3.5, round=partial(round_groups, group=32, lowest=-3, highest=3)),
    Format(
        name="3 bits, -3.5 to 3.5, scale searched",
        bits=3.5,
        round=partial(round_groups, group=32, lowest=-3.5, highest=3.5, search=SEARCH),
    ),
    Format(
        name="3 bits, -4 to 3, scale not searched",
        bits=3.5,
        round=partial(round_groups, group=32, lowest=-4, highest=3),
    ),
    Format(name="3 bits, -4 to 3, scale searched", bits=3.5, round=_q3),
    Format(name="q3f16_g32: that, but 4 bits outside the layers", bits=3.5, round=_q3, outer_bits=4.5, round_outer=_q4),
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.quantizations", description=main.__doc__)
    parser.add_argument("--per-intent", type=int, default=1, help="commands per intent and test set")
    options = parser.parse_args()
    out = sys.stdout

    def write(text: str) -> None:
        out.write(text)
        out.flush()

    with tempfile.TemporaryDirectory() as folder:
        tiny, tiny_weights = tiny_reference(Path(folder) / "tiny")
    pocket = Reference(model_dir())
    pocket_weights = pocket_matrices()
    samples = {"gauss": np.random.default_rng(0).standard_normal((512, 3072)).astype(np.float32)}
    write("| format | bits a weight | GB of Phi-3-mini | GB read a token | error, Gaussian | tiny | pocket |\n")
    write("|---|---|---|---|---|---|---|\n")
    for form in FORMATS:
        whole, step = phi3_mini_bytes(form)
        errors = [relative_error(form, matrices) for matrices in (samples, tiny_weights, pocket_weights)]
        cells = " | ".join(f"{error:.1%}" for error in errors)
        write(f"| {form.name} | {form.bits} | {whole / 1e9:.3f} | {step / 1e9:.3f} | {cells} |\n")
    tokens = np.random.default_rng(0).integers(0, tiny.config.vocab_size, (4, 48)).tolist()
    write("\nLogits of the tiny checkpoint, against its unrounded weights\n\n")
    write_logits(tiny, tiny_weights, [(ids, []) for ids in tokens], write)
    write("\nLogits and answers of edgephi-pocket, against its 4-bit weights as they are\n\n")
    write_logits(pocket, pocket_weights, commands(pocket, options.per_intent), write)


def phi3_mini_bytes(form: Format) -> tuple[float, float]:
    """Return the bytes of all weights and of those a decoded token reads, which is all but the embedding."""
    sizes = {p.prefix: form.stored_bytes(p) for p in phi3_parameters(PRESETS["phi3-mini-4k"])}
    whole = sum(sizes.values())
    return whole, whole - sizes["transformer.embd"]


def relative_error(form: Format, matrices: Matrices) -> float:
    """Return the root mean square of the error over that of the weights, in the decoder layers."""
    layers = {name: matrix for name, matrix in matrices.items() if name not in ("lm_head", "transformer.embd")}
    rounded = [(form.round(matrix), matrix) for matrix in layers.values()]
    error = sum(float(np.square(a - b).sum()) for a, b in rounded)
    return float(np.sqrt(error / sum(float(np.square(b).sum()) for _, b in rounded)))


def write_logits(
    reference: Reference,
    weights: Matrices,
    prompts: Sequence[tuple[list[int], list[int]]],
    write: Callable[[str], object],
) -> None:
    """Write a table of what each format does to the logits of *prompts*: tokens, and the answer's or none."""
    set_matrices(reference, weights)
    wanted = list(answer_logits(reference, prompts))
    joined = np.concatenate(wanted)
    p = log_softmax(joined)
    write("| format | largest logit error | mean | logits' deviation | KL, nats | same top token | exact answers |\n")
    write("|---|---|---|---|---|---|---|\n")
    for form in FORMATS:
        set_matrices(reference, {name: form.apply(name, matrix) for name, matrix in weights.items()})
        found = list(answer_logits(reference, prompts))
        error = np.abs(np.concatenate(found) - joined)
        divergence = (np.exp(p) * (p - log_softmax(np.concatenate(found)))).sum(axis=1).mean()
        same = (np.concatenate(found).argmax(axis=1) == joined.argmax(axis=1)).mean()
        exact = [
            bool((logits.argmax(axis=1) == answer).all())
            for logits, (_, answer) in zip(found, prompts, strict=True)
            if answer
        ]
        cell = f"{np.mean(exact):.1%} of {len(exact)}" if exact else ""
        write(
            f"| {form.name} | {error.max():.2g} | {error.mean():.2g} | {joined.std():.2g} | {divergence:.2g} "
            f"| {same:.1%} | {cell} |\n"
        )


def answer_logits(reference: Reference, prompts: Sequence[tuple[list[int], list[int]]]) -> Iterator[F32Array]:
    """Yield the logits each answer's tokens are drawn from, or those of all tokens where there is no answer."""
    for prompt, answer in prompts:
        yield reference.logits([*prompt, *answer[:-1]])[len(prompt) - 1 if answer else 0 :]


def commands(pocket: Reference, per_intent: int) -> list[tuple[list[int], list[int]]]:
    """Return prompts and right answers as ids, from the pocket model's test sets."""
    return [
        (render_prompt(pocket.tokenizer, example.text), [*encode(pocket.tokenizer, example.answer), END_ID])
        for examples in build_test_sets(per_intent).values()
        for example in examples
    ]


def tiny_reference(folder: Path) -> tuple[Reference, Matrices]:
    """Return the tiny checkpoint as a reference with float32 arithmetic, and its unrounded matrices."""
    convert_checkpoint(GOLDEN / "hf", folder)
    config = load_config(folder)
    write_tokenizer(folder, config.vocab_size, max_tokens=config.max_position)  # the reference wants one
    reference = Reference(folder, int8=False)
    with open_checkpoint(GOLDEN / "hf") as checkpoint:
        weights = {
            parameter.prefix: checkpoint.rows(parameter.hf_name, 0, parameter.shape[0]).astype(np.float32)
            for parameter in phi3_parameters(config)
            if parameter.is_matrix
        }
    shutil.rmtree(folder)
    return reference, weights


def pocket_matrices() -> Matrices:
    """Return the pocket model's matrices, expanded from 4 bits."""
    with open_weights(model_dir()) as store:
        parameters = phi3_parameters(load_config(model_dir()))
        return {p.prefix: store.matrix(p.prefix).dequantize() for p in parameters if p.is_matrix}


def set_matrices(reference: Reference, weights: Matrices) -> None:
    """Put other matrices in a reference."""
    reference.embedding, reference.head = weights["transformer.embd"], weights["lm_head"]
    for index, layer in enumerate(reference.layers):
        at = f"transformer.h.{index}"
        layer.qkv, layer.out = weights[f"{at}.mixer.qkv_proj"], weights[f"{at}.mixer.out_proj"]
        layer.gate_up, layer.down = weights[f"{at}.mlp.gate_up_proj"], weights[f"{at}.mlp.down_proj"]


if __name__ == "__main__":
    main()
