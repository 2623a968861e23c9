from __future__ import annotations

from dataclasses import replace

import pytest

from edgephi.profile.plan import PlanMemory
from edgephi.profile.speed import StepTimes
from edgephi.profile.verification import MIN_DECODE_S, ExpectedSpeed, Finding, Reading, Verifier, is_miss

MIB = 1 << 20
MEMORY = PlanMemory(
    weights_bytes=2000 * MIB,
    kv_bytes=800 * MIB,
    workspace_bytes=50 * MIB,
    process_bytes=150 * MIB,
    reserve_bytes=90 * MIB,
)
# A step takes 0.1 s, and 0.05 s more for each 1000 tokens of context.
EXPECTED = ExpectedSpeed(
    times=StepTimes(threads=2, rows=((1, 0.1), (4, 0.1)), kv_s_per_byte=0.05 / 1000 / 1024, prefill_s_per_pair=0.0),
    kv_bytes_per_token=1024,
)
START = Reading(
    context_tokens=0,
    cached_pages=0,
    num_pages=100,
    page_tokens=16,
    prefilled_tokens=0,
    drafted_tokens=0,
    decode_tokens=0,
    decode_stream_s=0.0,
    decode_s=0.0,
    peak_resident_bytes=2200 * MIB,
)


def decoded(before: Reading, *, seconds: float, streams: int, tokens_per_s: float, context: int) -> Reading:
    """Return the reading after *streams* answers of *context* tokens each decoded for so long."""
    return replace(
        before,
        context_tokens=streams * context,
        decode_tokens=before.decode_tokens + round(streams * seconds * tokens_per_s),
        decode_stream_s=before.decode_stream_s + streams * seconds,
        decode_s=before.decode_s + seconds,
    )


@pytest.mark.parametrize(("streams", "context", "step_s"), [(1, 0, 0.1), (1, 2000, 0.2), (3, 1000, 0.25)])
def test_speed_is_predicted_for_the_load_there_was(streams: int, context: int, step_s: float) -> None:
    """The prediction is that of as many answers with as long contexts as were decoded."""
    verifier = Verifier(MEMORY, EXPECTED)
    start = replace(START, context_tokens=streams * context)
    verifier.observe(start)
    finding = verifier.observe(
        decoded(start, seconds=MIN_DECODE_S, streams=streams, tokens_per_s=1 / step_s, context=context)
    )
    assert finding.predicted_stream_tokens_per_s == pytest.approx(1 / step_s)
    assert finding.speed_ratio == pytest.approx(1)
    assert not is_miss(finding.speed_ratio)


def test_a_slow_answer_is_a_miss() -> None:
    """Eight tokens a second where ten were predicted is a ratio of 0.8 and a miss."""
    verifier = Verifier(MEMORY, EXPECTED)
    verifier.observe(START)
    finding = verifier.observe(decoded(START, seconds=10, streams=1, tokens_per_s=8, context=0))
    assert finding.speed_ratio == pytest.approx(0.8)
    assert is_miss(finding.speed_ratio)


def test_prompts_and_guesses_are_not_judged() -> None:
    """Time in which a prompt was computed or guesses were checked does not count."""
    verifier = Verifier(MEMORY, EXPECTED)
    verifier.observe(START)
    busy = decoded(START, seconds=10, streams=1, tokens_per_s=1, context=0)
    guessing = decoded(replace(busy, prefilled_tokens=64), seconds=10, streams=1, tokens_per_s=30, context=0)
    assert verifier.observe(replace(busy, prefilled_tokens=64)).speed_ratio is None
    assert verifier.observe(replace(guessing, drafted_tokens=8)).speed_ratio is None


def test_speed_waits_for_enough_decoding() -> None:
    """Less than five seconds of decoding says nothing; several short stretches add up."""
    verifier = Verifier(MEMORY, EXPECTED)
    reading = START
    verifier.observe(reading)
    ratios = []
    for _ in range(3):
        reading = decoded(reading, seconds=2, streams=1, tokens_per_s=10, context=0)
        ratios.append(verifier.observe(reading).speed_ratio)
    assert ratios == [None, None, pytest.approx(1)]


def test_memory_is_predicted_for_the_pages_written() -> None:
    """Pages that were never written are not expected in RAM; those that once were stay expected."""
    verifier = Verifier(MEMORY, None)
    warm = replace(START, prefilled_tokens=1)
    assert verifier.observe(warm).predicted_peak_bytes == 2200 * MIB
    half = replace(warm, context_tokens=25 * 16, cached_pages=25)
    assert verifier.observe(half).predicted_peak_bytes == 2600 * MIB
    after = verifier.observe(replace(warm, peak_resident_bytes=3000 * MIB))
    assert after.predicted_peak_bytes == 2600 * MIB
    assert is_miss(after.memory_ratio)
    assert not is_miss(verifier.observe(replace(warm, peak_resident_bytes=2800 * MIB)).memory_ratio)


def test_memory_is_not_judged_before_the_first_prompt() -> None:
    """Weights that are mapped and not yet read are not expected in RAM."""
    finding = Verifier(MEMORY, None).observe(replace(START, peak_resident_bytes=150 * MIB))
    assert finding.memory_ratio is None


def test_what_was_not_predicted_is_not_judged() -> None:
    """A plan without figures, and a system that tells no memory, leave nothing to miss."""
    assert Verifier(PlanMemory(), None).observe(START) == Finding(measured_peak_bytes=2200 * MIB)
    finding = Verifier(MEMORY, None).observe(replace(START, peak_resident_bytes=None))
    assert (finding.memory_ratio, finding.speed_ratio) == (None, None)
    assert not is_miss(None)
