"""The arithmetic between seconds and tokens, and a calibration carried over to another format."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.profile.planning_cases import phi3

from edgephi.profile.calibration import Calibration, Conditions
from edgephi.profile.plan import KvDtype
from edgephi.profile.planning.estimates import times_from_calibration
from edgephi.profile.speed import StepTimes

Q4, Q3 = phi3("q4f16_1"), phi3("q3f16_g32")
# Of the order that two Zen 5 cores measured (docs/log.md).
MEASURED = StepTimes(
    threads=2, rows=((1, 0.028), (4, 0.038), (64, 0.31), (256, 1.2)), kv_s_per_byte=2e-11, prefill_s_per_pair=9e-7,
    bandwidth_bytes_per_s=82e9, window_tokens=2047,
)  # fmt: skip

_POINTS = st.lists(
    st.tuples(st.integers(1, 256), st.floats(1e-4, 10)), min_size=1, max_size=6, unique_by=lambda p: p[0]
)
_TIMES = st.builds(
    StepTimes,
    threads=st.just(2),
    rows=_POINTS.map(lambda points: tuple(sorted(points))),
    kv_s_per_byte=st.floats(0, 1e-9),
    prefill_s_per_pair=st.floats(0, 1e-5),
    window_tokens=st.none() | st.integers(1, 4096),
)


@given(times=_TIMES, rows=st.integers(1, 300))
def test_more_rows_never_take_less(times: StepTimes, rows: int) -> None:
    """Even where the measured times do not grow, as noise makes them."""
    assert times.rows_s(rows + 1) >= times.rows_s(rows) > 0


@given(times=_TIMES, batch=st.integers(1, 16), context=st.integers(0, 5000), chunk=st.integers(1, 256))
def test_speed_falls_with_batch_context_and_chunk(times: StepTimes, batch: int, context: int, chunk: int) -> None:
    """Each stream gets no faster with more of them, with longer ones, or with more of a prompt beside it."""

    def decode(batch: int, context: int) -> float:
        return times.decode_tokens_per_s(batch=batch, context_tokens=context, kv_bytes_per_token=200_704)

    def mixed_s(chunk: int) -> float:
        return times.mixed_step_s(batch=batch, chunk_tokens=chunk, context_tokens=context, kv_bytes_per_token=200_704)

    assert decode(batch + 1, context) <= decode(batch, context)
    assert decode(batch, context + 1) <= decode(batch, context)
    assert mixed_s(chunk + 1) >= mixed_s(chunk)


def test_a_prompt_takes_the_sum_of_its_chunks() -> None:
    """100 tokens in chunks of 64: 64 rows, then 36 behind 64 tokens."""
    expected = MEASURED.rows_s(64) + MEASURED.rows_s(36) + 36 * 64 * MEASURED.prefill_s_per_pair
    assert MEASURED.prefill_s(prompt_tokens=100, chunk_tokens=64) == pytest.approx(expected)


def calibration() -> Calibration:
    """Return a measurement of Phi-3-mini in 4 bits."""
    return Calibration(
        device_key="d", build_key="b", model_key="m", measured_at="2026-11-24T00:00:00.000000Z", device="a machine",
        model=Q4.name, quantization=Q4.quantization, level="avx512-vnni", kv_dtype=KvDtype.INT8,
        step_weight_bytes=Q4.step_weight_bytes, kv_bytes_per_token=200_704, requested_threads=None, tvm_version="0",
        edgephi_version="0", bandwidth=((1, 43e9), (2, 82e9)), steps=(), times=MEASURED,
        conditions=Conditions(cpu_share=1.0, other_cores=None, bandwidth_spread=0.0), load_s=0.1, total_s=10.0,
    )  # fmt: skip


def test_what_was_measured_stays_as_it_was() -> None:
    """For the calibrated format a calibration is taken to the last digit."""
    assert times_from_calibration(calibration())(Q4, KvDtype.INT8) == MEASURED


def test_three_bits_decode_as_much_faster_as_they_are_smaller() -> None:
    """One row scales with the bytes of the weights; the products of a chunk stay what they were."""
    times = times_from_calibration(calibration())(Q3, KvDtype.INT8)
    share = Q3.step_weight_bytes / Q4.step_weight_bytes
    assert times.rows_s(1) == pytest.approx(share * 0.028)
    assert times.rows_s(256) - times.rows_s(1) == pytest.approx(1.2 - 0.028)


def test_another_model_scales_with_its_bytes() -> None:
    """A model of half the bytes takes half of every step."""
    small = dataclasses.replace(Q4, name="other", step_weight_bytes=Q4.step_weight_bytes // 2, window_tokens=None)
    times = times_from_calibration(calibration())(small, KvDtype.INT8)
    assert times.rows_s(256) == pytest.approx(0.6)
    assert times.window_tokens is None
