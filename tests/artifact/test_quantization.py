"""Four-bit groups: packing, rounding, and agreement with MLC-LLM's own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgephi.artifact.bfloat16 import narrow_to_bf16, widen_bf16
from edgephi.artifact.checkpoint import open_checkpoint
from edgephi.artifact.config import load_config
from edgephi.artifact.manifest import read_manifest
from edgephi.artifact.parameters import phi3_parameters
from edgephi.artifact.quantization import (
    QUANTIZATIONS,
    ScaleType,
    dequantize_q4,
    find_quantization,
    pack_codes,
    quantize_q4,
    unpack_codes,
)
from edgephi.artifact.weights import WeightStore
from edgephi.errors import ModelInvalid, UnsupportedModel


@pytest.mark.parametrize("name", ["q4f16_1", "q4f32_1"])
def test_codes_and_scales_are_mlcs(golden: Path, name: str) -> None:
    """Every matrix of the golden checkpoint quantizes to exactly the codes and scales MLC-LLM wrote."""
    folder = golden / name
    dtype = find_quantization(name).scale_dtype
    with open_checkpoint(golden / "hf") as checkpoint, WeightStore(folder, read_manifest(folder)) as theirs:
        for parameter in phi3_parameters(load_config(golden / "hf")):
            if parameter.is_matrix:
                packed, scale = quantize_q4(checkpoint.rows(parameter.hf_name, 0, parameter.shape[0]), dtype)
                expected = theirs.matrix(parameter.prefix)
                np.testing.assert_array_equal(packed, expected.q_weight)
                if scale.dtype == np.float32:  # stored as bfloat16
                    scale = widen_bf16(narrow_to_bf16(scale.astype(np.float32)))
                np.testing.assert_array_equal(scale, expected.scale)


def test_first_code_is_in_the_lowest_bits() -> None:
    """Element k of a group of eight is at bit 4 * k of its word."""
    codes = np.arange(8, dtype=np.uint8).reshape(1, 8)
    assert pack_codes(codes).tolist() == [[0x76543210]]


@settings(max_examples=50, deadline=None)
@given(
    codes=hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 5), st.integers(1, 6).map(lambda words: 8 * words)),
        elements=st.integers(0, 15),
    )
)
def test_packing_round_trips(codes: npt.NDArray[np.uint8]) -> None:
    """Unpacking a packed matrix gives its codes back, also from a transposed view."""
    np.testing.assert_array_equal(unpack_codes(pack_codes(codes)), codes)
    stored_kn = np.ascontiguousarray(pack_codes(codes).T)
    np.testing.assert_array_equal(unpack_codes(stored_kn.T), codes)


@settings(max_examples=50, deadline=None)
@given(
    weight=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.just(64)),
        elements=st.floats(-8, 8, width=16, allow_subnormal=False),
    ),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_error_is_at_most_half_a_step(weight: npt.NDArray[np.float32], dtype: ScaleType) -> None:
    """A dequantized weight is within half its group's scale of the original, and rounding of the scale itself."""
    packed, scale = quantize_q4(weight, dtype)
    assert unpack_codes(packed).max() <= 14
    step = np.repeat(scale.astype(np.float32), 32, axis=1)
    # 7.01: the scale is rounded to its own type (2**-11), and a group of subnormal size to 2**-24 more.
    error = np.abs(dequantize_q4(packed, scale) - weight)
    assert (error <= step * 0.51 + 7.01 * 2.0**-24).all()


def test_group_of_zeros_stays_zero() -> None:
    """A group of zeros has scale 0, and its weights are 0 again."""
    weight = np.zeros((1, 64), np.float16)
    weight[0, 40] = 0.5
    packed, scale = quantize_q4(weight, "float16")
    assert scale[0, 0] == 0
    restored = dequantize_q4(packed, scale)
    assert not restored[0, :32].any()
    assert restored[0, 40] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_weight_that_is_not_finite_is_refused(value: float) -> None:
    """NaN, infinity and what overflows float16 raise ModelInvalid instead of making a silent zero."""
    weight = np.ones((2, 32), np.float32)
    weight[1, 3] = value
    with pytest.raises(ModelInvalid, match="not a finite float16"):
        quantize_q4(weight, "float16")


def test_extent_that_is_no_multiple_of_a_group_is_refused() -> None:
    """A matrix whose k is not a multiple of 32 raises ModelInvalid with its shape."""
    with pytest.raises(ModelInvalid, match="2 x 40"):
        quantize_q4(np.ones((2, 40), np.float32), "float16")


def test_unknown_format_is_named() -> None:
    """An unknown quantization raises UnsupportedModel that lists the known ones."""
    assert [find_quantization(one.name) for one in QUANTIZATIONS] == list(QUANTIZATIONS)
    with pytest.raises(UnsupportedModel, match=r"'q3f16_1'; use one of q4f16_1, q4f32_1, q4f16_0"):
        find_quantization("q3f16_1")


@settings(max_examples=100, deadline=None)
@given(values=hnp.arrays(np.float32, 8, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_bfloat16_is_the_nearest(values: npt.NDArray[np.float32]) -> None:
    """Narrowing picks the nearest bfloat16, stays finite, and keeps what already is one."""
    narrowed = widen_bf16(narrow_to_bf16(values))
    assert np.isfinite(narrowed).all()
    # Eight bits of mantissa: half a step is 2**-9 of the value; at the very top values are cut instead, 2**-8.
    assert (np.abs(narrowed - values) <= np.abs(values) * 2.0**-8 + 2.0**-133).all()
    np.testing.assert_array_equal(narrow_to_bf16(narrowed), narrow_to_bf16(values))


def test_bfloat16_ties_go_to_even() -> None:
    """A value half way between two bfloat16 goes to the even one."""
    values = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)
    assert narrow_to_bf16(values).tolist() == [0x3F80, 0x3F82]
