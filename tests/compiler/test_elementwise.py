"""Norm, SwiGLU, embedding, gathering and exp, on every level this CPU can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from edgephi.compiler.kernels import vector as v
from edgephi.compiler.kernels.activations import ROOM, Activations, quantize_reference
from edgephi.compiler.kernels.embedding import embed, embed_reference, take_rows
from edgephi.compiler.kernels.norm import rms_norm, rms_norm_reference
from edgephi.compiler.kernels.swiglu import swiglu, swiglu_reference

Build = Callable[..., Any]
Run = Callable[..., None]
F32Array = npt.NDArray[np.float32]

pytestmark = pytest.mark.tvm

TOKENS = (0, 1, 5)
WIDTHS = (32, 96, 192)
EPS = 1e-5


def _exp_kernel() -> PrimFunc:
    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator] # TVM has no types
    def exp_of(x_h: T.handle, y_h: T.handle):  # type: ignore[no-untyped-def] # nor a return type in its language
        T.func_attr({"tirx.noalias": True})
        n = T.int64()
        x = T.match_buffer(x_h, (n, 16), "float32")
        y = T.match_buffer(y_h, (n, 16), "float32")
        for i in T.serial(n):
            y[i, T.ramp(0, 1, 16)] = v.exp(x[i, T.ramp(0, 1, 16)])

    return exp_of


@pytest.fixture(scope="module")
def library(level: str, build: Build) -> Any:
    """All kernels in all their forms, compiled for a level."""
    kernels = {"exp": _exp_kernel(), "take": take_rows(96)}
    for width in WIDTHS:
        for activations in Activations:
            kernels[f"norm_{width}_{activations.value}"] = rms_norm(width, EPS, activations)
            kernels[f"swiglu_{width}_{activations.value}"] = swiglu(width, activations)
        for dtype in ("float16", "float32"):
            kernels[f"embed_{width}_{dtype}"] = embed(20, width, dtype)
    return build(level, kernels)


def test_exp_is_accurate_over_its_range(library: Any, run: Run) -> None:
    """From -87.3 to 88.3 exp differs from the true value by at most 2 parts in 10 ** 7 (measured: 0.9)."""
    x = np.linspace(-87.3, 88.3, 160_000, dtype=np.float32).clip(np.float32(-87.3), np.float32(88.3)).reshape(-1, 16)
    y = np.full(x.shape, np.nan, np.float32)
    run(library["exp"], x, out=(y,))
    true = np.exp(x.astype(np.float64))
    assert (np.abs(y - true) <= 2e-7 * true).all(), np.abs(y / true - 1).max()


def test_exp_outside_its_range_is_that_of_the_nearest_end(library: Any, run: Run) -> None:
    """Infinities and large numbers give the smallest and largest results, never infinity, zero or NaN."""
    x = np.array([[-np.inf, -1e30, -88.0, -87.3, 88.3, 89.0, 1e30, np.inf] * 2], np.float32)
    y = np.full(x.shape, np.nan, np.float32)
    run(library["exp"], x, out=(y,))
    assert len(set(y[0, :4].tolist())) == 1
    assert len(set(y[0, 4:8].tolist())) == 1
    assert 0 < y[0, 0] < 1.3e-38
    assert 2e38 < y[0, 4] < np.finfo(np.float32).max


@pytest.mark.parametrize("width", WIDTHS)
def test_norm_agrees_with_its_twin(width: int, library: Any, run: Run) -> None:
    """
    RMS norm is within 1e-6 of its twin relative to the result's size, also for tiny rows where eps rules.

    The mean of squares is summed in another order: 192 terms all positive, so some 1e-6 at the very most before the
    square root halves it (measured: 1.6e-7).
    """
    rng = np.random.default_rng(width)
    weight = rng.standard_normal(width).astype(np.float32)
    for t in TOKENS:
        x = rng.standard_normal((t, width)).astype(np.float32) * np.array([3, 1e-4, 0, 100, 1], np.float32)[:t, None]
        wanted = rms_norm_reference(x, weight, EPS)
        tolerance = np.float32(1e-6) * np.abs(wanted) + np.float32(1e-30)
        assert (np.abs(_float(library[f"norm_{width}_float32"], run, (x, weight), width) - wanted) <= tolerance).all()
        _check_int8(library[f"norm_{width}_int8"], run, (x, weight), wanted, tolerance)


@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu_agrees_with_its_twin(width: int, library: Any, run: Run) -> None:
    """
    SwiGLU is within 1e-6 of its twin relative to the result's size, or 1e-35 where exp has reached its end.

    Exp, a sum, a quotient and a product: a few roundings of 6e-8 and exp's own 1e-7 (measured: 2.4e-7).
    """
    rng = np.random.default_rng(width)
    for t in TOKENS:
        x = (rng.standard_normal((t, 2 * width)) * 4).astype(np.float32)
        if t:
            x[0, :4] = [80, -80, 0, 1000]
            x[0, width : width + 4] = [1, 1, 5, 2]
        wanted = swiglu_reference(x)
        tolerance = np.float32(1e-6) * np.abs(wanted) + np.float32(1e-35)
        assert (np.abs(_float(library[f"swiglu_{width}_float32"], run, (x,), width) - wanted) <= tolerance).all()
        _check_int8(library[f"swiglu_{width}_int8"], run, (x,), wanted, tolerance)


def test_a_gate_far_below_zero_closes(library: Any, run: Run) -> None:
    """Gates of -100 and -10,000, for which exp overflows float32, let nothing through and make no NaN."""
    x = np.ones((2, 64), np.float32)
    x[:, :32] = [[-100.0], [-10_000.0]]
    out = _float(library["swiglu_32_float32"], run, (x,), 32)
    assert (np.abs(out) < 1e-33).all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_embedding_equals_its_twin(width: int, dtype: str, library: Any, run: Run) -> None:
    """Rows of the table, the first and last and repeated ones too, come out exactly as the twin's."""
    rng = np.random.default_rng(width)
    table = rng.integers(0, 2**32, (20, width // 8), dtype=np.uint32)
    scale = rng.random((20, width // 32)).astype(dtype)
    for ids in ((), (7,), (3, 19, 0, 3)):
        tokens = np.array(ids, np.int32)
        out = np.full((len(ids), width), np.nan, np.float32)
        run(library[f"embed_{width}_{dtype}"], tokens, table, scale, out=(out,))
        np.testing.assert_array_equal(out, embed_reference(tokens, table, scale))


@pytest.mark.parametrize("rows", [(), (4,), (4, 0, 4)])
def test_take_copies_the_rows_named(rows: tuple[int, ...], library: Any, run: Run) -> None:
    """Any number of rows, none included, are copied in the order given."""
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    out = np.full((len(rows), 96), np.nan, np.float32)
    run(library["take"], x, np.array(rows, np.int32), out=(out,))
    np.testing.assert_array_equal(out, x[list(rows)])


def test_the_twin_of_quantization_is_symmetric_and_covers_its_range() -> None:
    """Scales are the least powers of two that keep codes at 127; codes are nearest, and zeros stay zeros."""
    x = np.random.default_rng(3).standard_normal((4, 96)).astype(np.float32)
    x[1, 32:64] = 0
    x[2, :32] = np.linspace(-127, 127, 32, dtype=np.float32) * 2.0**-9
    q, s, z = quantize_reference(x)
    scale = s / ROOM
    assert (np.frexp(scale)[0] == 0.5).all()
    largest = np.abs(q.astype(np.int32)).reshape(4, 3, 32).max(axis=2)
    assert (largest <= 127).all()
    assert ((largest >= 64) == np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1], [1, 1, 1]])).all()
    assert (largest[1, 1], largest[2, 0], scale[2, 0]) == (0, 127, 2.0**-9)
    step = np.repeat(scale, 32, axis=1)
    assert (np.abs(q * step - x) <= 0.5 * step).all()
    np.testing.assert_array_equal(z, -q.astype(np.int32).reshape(4, 3, 32).sum(axis=2))
    np.testing.assert_array_equal(quantize_reference(-x)[0], -q)


def test_what_is_not_a_number_or_too_large_is_not_quantized_to_one(library: Any, run: Run) -> None:
    """Infinities, NaN and sizes whose scale would overflow give a scale that makes every product non-finite."""
    n = 32
    for bad in (np.inf, -np.inf, np.nan, 3e38):
        gate_up = np.ones((1, 2 * n), np.float32)
        gate_up[0, n:] = bad
        q, s, z = np.zeros((1, n), np.int8), np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int32)
        run(library[f"swiglu_{n}_int8"], gate_up, out=(q, s, z))
        assert np.isinf(s).all()


def _float(kernel: Any, run: Run, inputs: tuple[F32Array, ...], width: int) -> F32Array:
    out = np.full((len(inputs[0]), width), np.nan, np.float32)
    run(kernel, *inputs, out=(out,))
    return out


def _check_int8(kernel: Any, run: Run, inputs: tuple[F32Array, ...], wanted: F32Array, tolerance: F32Array) -> None:
    """Check q, s and z against the float result: right scale, nearest code, and z as documented."""
    t, width = wanted.shape
    q, s = np.zeros((t, width), np.int8), np.full((t, width // 32), np.nan, np.float32)
    z = np.zeros(s.shape, np.int32)
    run(kernel, *inputs, out=(q, s, z))
    scale = s / ROOM
    largest = np.abs(wanted).reshape(*s.shape, 32).max(axis=2) if t else s
    assert (np.frexp(scale)[0] == 0.5).all()
    # Rounding before the quantization may carry a group across a power of two.
    least = np.maximum(largest / 127, np.finfo(np.float32).tiny)
    assert (scale >= least * (1 - 2e-6)).all()
    assert (scale < 2 * least * (1 + 2e-6)).all()
    step = np.repeat(scale, 32, axis=1)
    assert (np.abs(q * step - wanted) <= 0.5001 * step + tolerance).all()
    np.testing.assert_array_equal(z, -q.reshape(*s.shape, 32).sum(axis=2, dtype=np.int32))
