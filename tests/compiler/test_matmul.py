"""The matrix kernels against their twin, on every level this CPU can run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgephi.artifact.quantization import Bits
from edgephi.compiler.kernels.activations import ROOM, Activations, quantize_reference
from edgephi.compiler.kernels.matmul_i8mm import pairs_reference, pairs_shape
from edgephi.compiler.kernels.matmul_q4 import (
    block_rows,
    matmul_q4,
    matmul_q4_reference,
    pack,
    packed_shape,
    room_shape,
)
from edgephi.compiler.targets import COMPILE_TARGETS, Dot
from edgephi.errors import UnsupportedModel

Build = Callable[..., Any]
Run = Callable[..., None]
F32Array = npt.NDArray[np.float32]
Case = tuple[int, int, str, Activations, bool, Bits]  # n, k, scale dtype, activations, residual, bits of a code

ROWS = (16, 32, 48, 64, 192)
COLUMNS = (32, 96)
TOKENS = (0, 1, 2, 3, 4, 5, 7, 10, 21)
SCALES = ("float16", "float32")
BITS: tuple[Bits, ...] = (4, 3)
LANE_LEVELS = [name for name, target in COMPILE_TARGETS.items() if target.kernel.dot is not Dot.SMMLA]


def _cases() -> list[Case]:
    """
    Every shape with both activations, scale and residual alternating; all four of those at 64 rows.

    Three bits at three block sizes, with the float16 scales of their format.
    """
    found: list[Case] = [
        (n, 96, "float16", activations, residual, 3)
        for n, residual in ((16, False), (96, True), (64, False), (64, True))
        for activations in Activations
    ]
    for (i, n), (j, k), activations in itertools.product(enumerate(ROWS), enumerate(COLUMNS), Activations):
        if n == 64:
            found += [(n, k, scale, activations, residual, 4) for scale in SCALES for residual in (False, True)]
        else:
            found.append((n, k, SCALES[(i + j) % 2], activations, bool(i // 2 + j) % 2 == 1, 4))
    return found


def _name(case: Case) -> str:
    n, k, scale, activations, residual, bits = case
    return f"matmul_q{bits}_{n}_{k}_{scale}_{activations.value}{'_residual' if residual else ''}"


@pytest.fixture(scope="module")
def library(level: str, build: Build) -> Any:
    """All cases, compiled for a level."""
    shape = COMPILE_TARGETS[level].kernel
    return build(level, {_name(c): matmul_q4(*c[:2], shape, *c[2:4], residual=c[4], bits=c[5]) for c in _cases()})


@pytest.mark.tvm
@pytest.mark.parametrize("case", _cases(), ids=_name)
def test_matmul_agrees_with_its_twin(case: Case, level: str, library: Any, run: Run) -> None:
    """
    A kernel's result differs from the twin's by no more than float32 rounding, for every number of rows.

    The int8 kernel adds exactly inside a group of 32, then one rounding for each of the k / 32 groups, and takes off
    the zero point, which makes the terms up to 22 scale |x| large instead of 8. The float kernel rounds k times. So
    the bound is that many half units in the last place (2 ** -24) of the sum of the terms' sizes, and a few more for
    the scales and the twin itself. Measured: at most 0.3 of the bound, 5e-7; one wrong code is off by 1e-3 and more.
    """
    n, k, scale_dtype, activations, residual, bits = case
    rng = np.random.default_rng(n * k)
    codes = rng.integers(0, 1 << bits, (n, k), dtype=np.uint8)
    scales = (rng.random((n, k // 32)) * 0.01 + 0.001).astype(scale_dtype)
    for t in TOKENS:
        x = rng.standard_normal((t, k)).astype(np.float32)
        addend = rng.standard_normal((t, n)).astype(np.float32)
        out = _multiply(
            library[_name(case)], level, run, x, codes, scales, activations, addend if residual else None, bits
        )
        if activations is Activations.INT8:
            x = _dequantized(x)
        expected = matmul_q4_reference(x, codes, scales, bits) + (addend if residual else 0)
        sizes = np.abs(x) @ np.repeat(22 * scales.astype(np.float32), 32, axis=1).T
        roundings = (k if activations is Activations.FLOAT32 else k // 32) + 8
        tolerance = 2.0**-24 * (roundings * sizes + 2 * np.abs(expected))
        assert (np.abs(out - expected) <= tolerance).all(), (t, np.abs(out - expected).max())


@pytest.mark.tvm
def test_the_largest_sums_do_not_overflow(level: str, library: Any, run: Run) -> None:
    """Codes of 15 and activations of 127 or -127 throughout, the largest sums there are, come out right."""
    n, k = 64, 96
    codes = np.full((n, k), 15, np.uint8)
    scales = np.ones((n, k // 32), np.float16)
    x = np.array([[127.0] * k, [-127.0] * k, [127.0, -127.0] * (k // 2)], np.float32)
    kernel = library[_name((n, k, "float16", Activations.INT8, False, 4))]
    out = _multiply(kernel, level, run, x, codes, scales, Activations.INT8)
    # Whole numbers below 2 ** 24, so exact.
    assert out.tolist() == [[8.0 * 127 * k] * n, [-8.0 * 127 * k] * n, [0.0] * n]


@pytest.mark.tvm
def test_companions_change_no_bit(level: str, library: Any, run: Run) -> None:
    """A token's results are the same bits alone and among others, so in every tile: prefill is decode."""
    n, k = 64, 96
    rng = np.random.default_rng(6)
    x = rng.standard_normal((7, k)).astype(np.float32)
    for case in (case for case in _cases() if case[:2] == (n, k) and not case[4]):
        _, _, scale_dtype, activations, _, bits = case
        codes = rng.integers(0, 1 << bits, (n, k), dtype=np.uint8)
        scales = (rng.random((n, k // 32)) * 0.01 + 0.001).astype(scale_dtype)
        kernel = library[_name(case)]
        together = _multiply(kernel, level, run, x, codes, scales, activations, bits=bits)
        alone = [_multiply(kernel, level, run, row[None], codes, scales, activations, bits=bits)[0] for row in x]
        np.testing.assert_array_equal(together, alone)


@pytest.mark.tvm
def test_zero_activations_give_the_residual(level: str, library: Any, run: Run) -> None:
    """A row of zeros, whose int8 scale is zero, multiplies to exactly zero and leaves the residual."""
    n, k = 64, 96
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 16, (n, k), dtype=np.uint8)
    residual = rng.standard_normal((3, n)).astype(np.float32)
    scales = np.ones((n, k // 32), np.float16)
    for activations in Activations:
        for bits in BITS:
            kernel = library[_name((n, k, "float16", activations, True, bits))]
            zeros = np.zeros((3, k), np.float32)
            out = _multiply(kernel, level, run, zeros, codes >> np.uint8(4 - bits), scales, activations, residual, bits)
            np.testing.assert_array_equal(out, residual)


@given(
    data=st.data(),
    n=st.sampled_from(ROWS),
    k=st.sampled_from(COLUMNS),
    level_name=st.sampled_from(LANE_LEVELS),
)
def test_packing_keeps_every_code_and_scale(data: st.DataObject, n: int, k: int, level_name: str) -> None:
    """Reading packed bytes back as the module draws them gives the matrix that was packed."""
    shape = COMPILE_TARGETS[level_name].kernel
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    codes = rng.integers(0, 16, (n, k), dtype=np.uint8)
    scales = rng.random((n, k // 32)).astype(data.draw(st.sampled_from(SCALES)))
    packed, rows, width = pack(codes, scales, shape), block_rows(n, shape), scales.itemsize
    assert rows <= shape.block_rows
    assert packed.shape == packed_shape(n, k, shape, scales.dtype.name) == (n // rows, k // 32, rows * (16 + width))
    unpacked = np.full((n, k), 255, np.uint8)
    for block, group, quad, row, j in np.ndindex(n // rows, k // 32, 4, rows, 4):
        column = group * 32 + quad * 8 + j
        byte = packed[block, group, (quad * rows + row) * 4 + j]
        unpacked[block * rows + row, column] = byte & 15
        unpacked[block * rows + row, column + 4] = byte >> 4
    np.testing.assert_array_equal(unpacked, codes)
    for block, group, row in np.ndindex(n // rows, k // 32, rows):
        start = 16 * rows + row * width
        stored = packed[block, group, start : start + width].view(scales.dtype)
        assert stored == scales[block * rows + row, group]


@given(data=st.data(), n=st.sampled_from(ROWS), level_name=st.sampled_from(LANE_LEVELS))
def test_packing_keeps_every_three_bit_code_and_scale(data: st.DataObject, n: int, level_name: str) -> None:
    """Reading packed bytes of 3-bit codes back as the module draws them gives the matrix that was packed."""
    k, shape = 96, COMPILE_TARGETS[level_name].kernel
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    codes = rng.integers(0, 8, (n, k), dtype=np.uint8)
    scales = rng.standard_normal((n, k // 32)).astype(np.float16)
    packed, rows = pack(codes, scales, shape, 3), block_rows(n, shape)
    assert packed.shape == packed_shape(n, k, shape, "float16", 3) == (n // rows, k // 32, rows * 14)
    unpacked = np.full((n, k), 255, np.uint8)
    for block, group, row, j in np.ndindex(n // rows, k // 32, rows, 4):
        planes = [int(packed[block, group, (plane * rows + row) * 4 + j]) for plane in range(3)]
        for plane, byte in enumerate(planes):
            unpacked[block * rows + row, group * 32 + plane * 8 + j] = byte & 7
            unpacked[block * rows + row, group * 32 + plane * 8 + 4 + j] = byte >> 3 & 7
        for half in range(2):
            code = planes[half] >> 6 | (planes[2] >> (6 + half) & 1) << 2
            unpacked[block * rows + row, group * 32 + 24 + 4 * half + j] = code
    np.testing.assert_array_equal(unpacked, codes)
    for block, group, row in np.ndindex(n // rows, k // 32, rows):
        stored = packed[block, group, 12 * rows + 2 * row : 12 * rows + 2 * row + 2].view(np.float16)
        assert stored == scales[block * rows + row, group]


@given(
    data=st.data(), n=st.sampled_from(ROWS), k=st.sampled_from(COLUMNS), bits=st.sampled_from(BITS),
    level_name=st.sampled_from([name for name in COMPILE_TARGETS if name not in LANE_LEVELS]),
)  # fmt: skip
def test_packing_in_pairs_keeps_every_code_and_scale(
    data: st.DataObject, n: int, k: int, bits: Bits, level_name: str
) -> None:
    """Reading bytes packed for smmla back as its module draws them gives the matrix that was packed."""
    shape = COMPILE_TARGETS[level_name].kernel
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    codes = rng.integers(0, 1 << bits, (n, k), dtype=np.uint8)
    scales = rng.standard_normal((n, k // 32)).astype(data.draw(st.sampled_from(SCALES)))
    packed, rows, width = pack(codes, scales, shape, bits), block_rows(n, shape), scales.itemsize
    groups = k // 32
    assert packed.shape == packed_shape(n, k, shape, scales.dtype.name, bits)
    assert packed.shape == (n // rows, groups, rows * (4 * bits + width))
    unpacked = np.full((n, k), 255, np.uint8)
    for block, group, quad, register, i in np.ndindex(n // rows, groups, rows // 4, 8, 16):
        planes = [int(packed[block, group, (quad * bits + plane) * 16 + i]) for plane in range(bits)]
        if bits == 4:
            stored = planes[register // 2] >> 4 * (register % 2) & 15
        elif register < 6:
            stored = planes[register // 2] >> 5 * (register % 2) & 7
        else:
            stored = planes[register - 6] >> 3 & 3 | (planes[2] >> (register - 3) & 1) << 2
        signed = stored - (1 << bits if stored >> (bits - 1) else 0)
        row = block * rows + quad * 4 + register // 4 * 2 + i // 8
        unpacked[row, group * 32 + register % 4 * 8 + i % 8] = 7 - signed if bits == 4 else 4 + signed
    np.testing.assert_array_equal(unpacked, codes)
    of_scales = packed[:, :, 4 * bits * rows :].copy().view(scales.dtype)
    np.testing.assert_array_equal(of_scales.transpose(0, 2, 1).reshape(n, groups), scales)


@pytest.mark.parametrize("bits", BITS)
def test_the_twin_of_pairs_lays_out_two_tokens_at_a_time(bits: Bits) -> None:
    """A pair's eighths alternate between its tokens, scales follow, and a last token is its own partner."""
    rng = np.random.default_rng(9)
    for t in (0, 1, 2, 5):
        q, s, _ = quantize_reference(rng.standard_normal((t, 96)).astype(np.float32))
        pairs = pairs_reference(q, s, bits)
        assert pairs.shape == pairs_shape(t, 96)
        for pair, group, token in np.ndindex(len(pairs), 3, 2):
            at = min(2 * pair + token, t - 1)
            found = [pairs[pair, group, 16 * eighth + 8 * token :][:8] for eighth in range(4)]
            np.testing.assert_array_equal(np.concatenate(found), q[at, group * 32 : group * 32 + 32])
            of_token = pairs[pair, group, 64 + 8 * token : 72 + 8 * token].view(np.float32)
            assert of_token.tolist() == [s[at, group] / (-16 if bits == 4 else 32)] * 2


@pytest.mark.tvm
def test_pairs_agree_with_their_twin(level: str, library: Any, run: Run) -> None:
    """The room behind the result holds the activations in pairs, bit for bit, where a level's kernel has it."""
    n, k = 64, 96
    for bits in BITS:
        kernel = library[_name((n, k, "float16", Activations.INT8, False, bits))]
        w = pack(np.zeros((n, k), np.uint8), np.ones((n, 3), np.float16), COMPILE_TARGETS[level].kernel, bits)
        for t in TOKENS:
            room = room_shape(t, k, COMPILE_TARGETS[level].kernel, Activations.INT8)
            assert (room is None) == (level in LANE_LEVELS)
            if room is not None:
                inputs = quantize_reference(np.random.default_rng(t).standard_normal((t, k)).astype(np.float32))
                pairs = np.zeros(room, np.int8)
                run(kernel, *inputs, w, out=(np.zeros((t, n), np.float32), pairs))
                np.testing.assert_array_equal(pairs, pairs_reference(*inputs[:2], bits))


def test_shapes_the_kernels_cannot_run_are_refused_with_their_number() -> None:
    """Rows that are no multiple of 16 and columns that are no multiple of 32 are named."""
    shape = COMPILE_TARGETS["x86-64-v2"].kernel
    with pytest.raises(UnsupportedModel, match=r"40 rows.*multiple of 16"):
        matmul_q4(40, 64, shape, "float16", Activations.INT8, residual=False)
    with pytest.raises(UnsupportedModel, match=r"48 columns.*multiple of 32"):
        matmul_q4(64, 48, shape, "float16", Activations.FLOAT32, residual=False)


def _dequantized(x: F32Array) -> F32Array:
    q, s, _ = quantize_reference(x)
    values: F32Array = (q.reshape(*s.shape, 32) * (s / ROOM)[..., None]).reshape(x.shape).astype(np.float32)
    return values


def _multiply(
    kernel: Any,
    level: str,
    run: Run,
    x: F32Array,
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.floating],
    activations: Activations,
    residual: F32Array | None = None,
    bits: Bits = 4,
) -> F32Array:
    """Run a kernel on activations (t, k) and a matrix (n, k); (t, n)."""
    shape = COMPILE_TARGETS[level].kernel
    w = pack(codes, scales, shape, bits)
    inputs = (x,) if activations is Activations.FLOAT32 else quantize_reference(x)
    out = np.full((len(x), len(codes)), np.nan, np.float32)
    last = () if residual is None else (residual,)
    room = room_shape(len(x), x.shape[1], shape, activations)
    run(kernel, *inputs, w, *last, out=(out,) if room is None else (out, np.zeros(room, np.int8)))
    return out
