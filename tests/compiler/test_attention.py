"""Attention over pages against its twin, on every level this CPU can run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgephi.artifact.bundle import KV_DTYPES
from edgephi.compiler.kernels.activations import ROOM, Activations
from edgephi.compiler.kernels.attention import attention, attention_reference
from edgephi.compiler.kernels.kv_pages import PAGE_SIZE, page_elements, read_reference, write_reference
from edgephi.compiler.targets import COMPILE_TARGETS

Build = Callable[..., Any]
Run = Callable[..., None]
F32Array = npt.NDArray[np.float32]

pytestmark = pytest.mark.tvm

NUM_LAYERS = 2
LAYER = 1


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    kv_dtype: str
    window: int | None
    activations: Activations

    @property
    def name(self) -> str:
        return (
            f"attention_{self.heads}_{self.kv_heads}_{self.head_dim}_{self.kv_dtype}_{self.window}_"
            f"{self.activations.value}"
        )


# 1: only itself. 7: inside a page. 16 and 17: exactly a page and just over. 96 is Phi-3's own head, 256 too wide for
# four rows at once.
_FORMS = (
    (2, 2, 96, None),
    (4, 2, 32, None),
    (4, 1, 32, 7),
    (2, 2, 32, 16),
    (2, 1, 32, 17),
    (2, 2, 32, 1),
    (2, 1, 256, None),
)
# Phi-3's own form with both types of pages and activations; the others with both activations and one type of page.
SHAPES = [
    Shape(heads, kv_heads, head_dim, kv_dtype, window, activations)
    for (index, (heads, kv_heads, head_dim, window)), kv_dtype, activations in itertools.product(
        enumerate(_FORMS), ("int8", "float32", "float16"), Activations
    )
    if index == 0 or kv_dtype == "int8" or index % 2 == (kv_dtype == "float16")
]


@pytest.fixture(scope="module")
def library(level: str, build: Build) -> Any:
    """All shapes of the table, compiled for a level."""
    return build(
        level,
        {
            shape.name: attention(
                num_heads=shape.heads,
                num_kv_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                num_layers=NUM_LAYERS,
                kv_dtype=shape.kv_dtype,
                sliding_window=shape.window,
                activations=shape.activations,
                shape=COMPILE_TARGETS[level].kernel,
            )
            for shape in SHAPES
        },
    )


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_attention_agrees_with_its_twin(shape: Shape, library: Any, run: Run) -> None:
    """
    Several sequences, two of which share their first pages, attend as the twin says; other slots hold NaN.

    Sequences: a whole prompt of 40; its last row alone, in the same pages; a chunk of 9 rows from position 30 that
    shares the prompt's first page; one of a single token. All but their slots, and the other layer, hold NaN, which
    would show in the result.

    Results over float pages are within 4e-6 of the twin: outputs are weighted means of values of size 1 to 4, so 4e-6
    is some twenty half units in the last place, for the scores' and exp's rounding (measured: 1.3e-6). Int8 pages are
    compared with the keys and values they hold, so what is left is the queries' and weights' split into two bytes:
    half of 1 / 8128 of the largest query, in a score, and half of 1 / 16256 of the largest weight x value, in each
    of the terms. Int8 results are also at most half a step of their group away.
    """
    rng = np.random.default_rng(shape.heads + shape.head_dim)
    history = {
        "prompt": _random_history(rng, shape, 40),
        "chunk": _random_history(rng, shape, 39),
        "single": _random_history(rng, shape, 1),
    }
    for new, shared in zip(history["chunk"], history["prompt"], strict=True):
        new[:PAGE_SIZE] = shared[:PAGE_SIZE]
    pages_of = {"prompt": [3, 7, 1], "chunk": [3, 4, 8], "single": [5]}
    sequences = (("prompt", 0), ("prompt", 39), ("chunk", 30), ("single", 0))

    pages = _poisoned(10, shape)
    for name, (keys, values) in history.items():
        for token in range(len(keys)):
            place = LAYER, pages_of[name][token // PAGE_SIZE], token % PAGE_SIZE
            write_reference(pages, *place, keys[token], values[token])
            keys[token], values[token] = read_reference(pages, *place, shape.head_dim)

    block_table = np.zeros((len(sequences), 3), np.int32)
    positions, expected, queries = [], [], []
    for index, (name, first) in enumerate(sequences):
        keys, values = history[name]
        block_table[index, : len(pages_of[name])] = pages_of[name]
        position = np.arange(first, len(keys), dtype=np.int32)
        q = rng.standard_normal((len(position), shape.heads, shape.head_dim)).astype(np.float32)
        positions.append(position)
        queries.append(q)
        expected.append(attention_reference(q, keys, values, position, shape.window))
    row_start = np.cumsum([0, *map(len, positions)], dtype=np.int32)
    t, width = int(row_start[-1]), shape.heads * shape.head_dim
    wanted = np.concatenate(expected).reshape(t, width)
    arguments = (np.concatenate(queries).reshape(t, width), np.concatenate(positions), row_start, block_table, pages)
    tolerance = 1e-3 if shape.kv_dtype == "int8" else 4e-6
    out = np.full((t, width), np.nan, np.float32)
    if shape.activations is Activations.FLOAT32:
        run(library[shape.name], *arguments, LAYER, out=(out,))
        assert np.abs(out - wanted).max() <= tolerance
        return
    q8, s = np.zeros((t, width), np.int8), np.full((t, width // 32), np.nan, np.float32)
    z = np.zeros(s.shape, np.int32)
    run(library[shape.name], *arguments, LAYER, out=(q8, s, z, out))
    assert np.abs(out - wanted).max() <= tolerance
    step = np.repeat(s / ROOM, 32, axis=1)
    assert (np.abs(q8 * step - wanted) <= 0.5001 * step + tolerance).all()
    np.testing.assert_array_equal(z, -q8.reshape(t, -1, 32).sum(axis=2, dtype=np.int32))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_large_scores_do_not_overflow(kv_dtype: str, library: Any, run: Run) -> None:
    """Scores of a thousand and more choose the best key, as the running maximum is taken off before exp."""
    shape = next(s for s in SHAPES if (s.head_dim, s.kv_dtype, s.activations) == (96, kv_dtype, Activations.FLOAT32))
    keys = np.zeros((20, 2, 96), np.float32)
    keys[:, :, 0] = np.arange(20)[:, None]
    values = np.arange(20, dtype=np.float32)[:, None, None] * np.ones((1, 2, 96), np.float32)
    pages = _poisoned(2, shape)
    for token in range(20):
        write_reference(pages, LAYER, token // PAGE_SIZE, token % PAGE_SIZE, keys[token], values[token])
    q = np.zeros((2, 192), np.float32)
    q[0, [0, 96]] = 1000  # the last key scores 19,000
    q[1, [0, 96]] = -1000  # the first key scores 0, the last one -19,000
    out = np.full((2, 192), np.nan, np.float32)
    positions, starts = np.array([19, 19], np.int32), np.array([0, 1, 2], np.int32)
    table = np.array([[0, 1], [0, 1]], np.int32)
    run(library[shape.name], q, positions, starts, table, pages, LAYER, out=(out,))
    # An int8 value of 19 is 127 steps of a float16 scale.
    assert out[0] == pytest.approx(19.0, rel=2.0**-11 if kv_dtype == "int8" else 0)
    # What is out of reach still has a weight of exp(-87.3) = 1e-38, the smallest that exp gives.
    assert (np.abs(out[1]) < 1e-34).all()


def _poisoned(num_pages: int, shape: Shape) -> npt.NDArray[Any]:
    """Return pages of which every slot holds NaN: in the int8 form in its scales, beside the largest codes."""
    size = NUM_LAYERS, shape.kv_heads, num_pages, page_elements(shape.kv_dtype, shape.head_dim)
    if shape.kv_dtype != "int8":
        return np.full(size, np.nan, shape.kv_dtype)
    pages = np.full(size, 127, np.int8)
    scales = 2 * PAGE_SIZE * shape.head_dim
    pages[..., scales:] = np.full((4 * PAGE_SIZE) // 2, np.nan, np.float16).view(np.int8)
    return pages


def _random_history(rng: np.random.Generator, shape: Shape, n: int) -> tuple[F32Array, F32Array]:
    """Return keys and values (n, kv_heads, head_dim)."""
    size = (n, shape.kv_heads, shape.head_dim)
    # Keys as small as real ones after the 1 / sqrt(head_dim) that the queries carry, so that many weights matter.
    keys = (rng.standard_normal(size) / np.sqrt(shape.head_dim)).astype(np.float32)
    return keys, rng.standard_normal(size).astype(np.float32)
