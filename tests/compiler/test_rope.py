"""Rotary embedding and the append to pages, on every level this CPU can run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgephi.artifact.bundle import KV_DTYPES
from edgephi.compiler.kernels.kv_pages import PAGE_SIZE, page_elements, read_reference, write_reference
from edgephi.compiler.kernels.rope import rope_angles, rope_append, rope_reference

Build = Callable[..., Any]
Run = Callable[..., None]

pytestmark = pytest.mark.tvm

NUM_LAYERS = 2
SHAPES = list(itertools.product(((2, 2, 96), (4, 1, 32)), KV_DTYPES))
SCALES = (1.0, 1.19)


def _name(heads: int, kv_heads: int, head_dim: int, kv_dtype: str) -> str:
    return f"append_{heads}_{kv_heads}_{head_dim}_{kv_dtype}"


@pytest.fixture(scope="module")
def library(level: str, build: Build) -> Any:
    """Both kernels in all their forms, compiled for a level."""
    kernels = {f"angles_{index}": rope_angles(48, scale) for index, scale in enumerate(SCALES)}
    for (heads, kv_heads, head_dim), kv_dtype in SHAPES:
        kernels[_name(heads, kv_heads, head_dim, kv_dtype)] = rope_append(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            num_layers=NUM_LAYERS,
            kv_dtype=kv_dtype,
        )
    return build(level, kernels)


@pytest.mark.parametrize(("index", "scale"), list(enumerate(SCALES)))
def test_angles_are_exact_to_float32(index: int, scale: float, library: Any, run: Run) -> None:
    """
    Cosines and sines of positions up to 131,071 are right for the float32 product of position and frequency.

    The product is rounded to float32 as Hugging Face does; from there on only sin, cos and the scale round, so the
    bound is two units in the last place of a value up to 1.19.
    """
    positions = np.array([0, 1, 2, 100, 2047, 4095, 131_071], np.int32)
    frequency = (10000.0 ** (-np.arange(48) / 48)).astype(np.float32)
    cos, sin = (np.full((len(positions), 48), np.nan, np.float32) for _ in range(2))
    run(library[f"angles_{index}"], positions, frequency, out=(cos, sin))
    angle = (positions[:, None].astype(np.float32) * frequency).astype(np.float64)
    np.testing.assert_allclose(cos, np.cos(angle) * scale, rtol=0, atol=2.4e-7)
    np.testing.assert_allclose(sin, np.sin(angle) * scale, rtol=0, atol=2.4e-7)


@pytest.mark.parametrize(("shape", "kv_dtype"), SHAPES)
def test_append_rotates_and_stores(shape: tuple[int, int, int], kv_dtype: str, library: Any, run: Run) -> None:
    """
    Queries come back rotated and scaled, keys and values lie in their slots of their layer, and nothing else changes.

    A rotation is two products and a sum of numbers up to 4, so float32 results are within 1e-6 of the twin; float16
    pages hold them to one unit in the last place of float16, int8 pages to half a step of 1 / 127 of the head's
    largest, and a little for the scale's own rounding.
    """
    heads, kv_heads, head_dim = shape
    rng = np.random.default_rng(1)
    slots = np.array([5 * 16 + 3, 5 * 16 + 4, 0, 2 * 16 + 15], np.int32)
    positions = np.array([3, 4, 0, 31], np.int32)
    qkv = rng.standard_normal((4, (heads + 2 * kv_heads) * head_dim)).astype(np.float32)
    frequency = (10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    angle = positions[:, None].astype(np.float32) * frequency
    pages = np.full((NUM_LAYERS, kv_heads, 6, page_elements(kv_dtype, head_dim)), 77, kv_dtype)
    q = np.full((4, heads * head_dim), np.nan, np.float32)

    # The pages are changed in place, so they are passed as an output; the layer's number stands between.
    import tvm

    held = tvm.runtime.tensor(pages)
    kernel = library[_name(heads, kv_heads, head_dim, kv_dtype)]
    run(lambda *a: kernel(*a[:4], held, 1, a[4]), qkv, np.cos(angle), np.sin(angle), slots, out=(q,))
    pages = held.numpy()

    rows = qkv.reshape(4, heads + 2 * kv_heads, head_dim)
    wanted_q = rope_reference(rows[:, :heads], positions, frequency) / math.sqrt(head_dim)
    assert np.abs(q.reshape(4, heads, head_dim) - wanted_q).max() <= 1e-6
    wanted_k = rope_reference(rows[:, heads : heads + kv_heads], positions, frequency)
    wanted_v = rows[:, heads + kv_heads :]
    for row, slot in enumerate(slots.tolist()):
        page, offset = divmod(slot, PAGE_SIZE)
        keys, values = read_reference(pages, 1, page, offset, head_dim)
        for found, wanted in ((keys, wanted_k[row]), (values, wanted_v[row])):
            tolerance = {"float32": 1e-6, "float16": 2.0**-11 * np.abs(wanted) + 1e-6}.get(kv_dtype)
            if tolerance is None:
                tolerance = np.abs(wanted).max(axis=1, keepdims=True) * (0.5 / 127 + 2.0**-11)
            assert (np.abs(found - wanted) <= tolerance).all()
        # What the kernel should have left alone is found by overwriting what it should have written.
        write_reference(pages, 1, page, offset, *np.full((2, kv_heads, head_dim), 3.0, np.float32))
    untouched = np.full(pages.shape, 77, kv_dtype)
    for slot in slots.tolist():
        page, offset = divmod(slot, PAGE_SIZE)
        write_reference(untouched, 1, page, offset, *np.full((2, kv_heads, head_dim), 3.0, np.float32))
    np.testing.assert_array_equal(pages, untouched)
