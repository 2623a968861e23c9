"""
Whether a plan's predictions come true: memory and decoding speed, predicted and measured of the same load.

Owns the comparison. Has no clock and reads nothing: readings of counters in, findings out.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgephi.profile.plan import PlanMemory
from edgephi.profile.speed import StepTimes

TOLERANCE = 0.1
"""Part of the prediction by which a measurement may differ unremarked."""
MIN_DECODE_S = 5.0
"""Seconds of decoding that a speed is judged by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedSpeed:
    """
    What predicts the speed of any load.

    Attributes:
        times: Durations of the model's steps on this device.
        kv_bytes_per_token: Keys and values of one token of context.
    """

    times: StepTimes
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """
    Counters at one moment. Speeds come from the growth between two readings.

    Attributes:
        context_tokens: Tokens that running answers have in pages.
        cached_pages: Pages kept without use.
        num_pages: Pages in all.
        page_tokens: Tokens a page.
        prefilled_tokens: Prompt tokens computed so far.
        drafted_tokens: Guessed tokens computed so far.
        decode_tokens: Tokens decoded so far.
        decode_stream_s: Seconds that answers spent decoding them, all answers added up.
        decode_s: Seconds in which any answer did.
        peak_resident_bytes: Most memory that ever was in RAM, or None where the system does not tell.
    """

    context_tokens: int
    cached_pages: int
    num_pages: int
    page_tokens: int
    prefilled_tokens: int
    drafted_tokens: int
    decode_tokens: int
    decode_stream_s: float
    decode_s: float
    peak_resident_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Predictions beside measurements of the same load; None where nothing was predicted or measured."""

    predicted_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None
    predicted_stream_tokens_per_s: float | None = None
    measured_stream_tokens_per_s: float | None = None

    @property
    def memory_ratio(self) -> float | None:
        """Measured memory as a part of the prediction."""
        return _ratio(self.measured_peak_bytes, self.predicted_peak_bytes)

    @property
    def speed_ratio(self) -> float | None:
        """Measured speed as a part of the prediction."""
        return _ratio(self.measured_stream_tokens_per_s, self.predicted_stream_tokens_per_s)


def is_miss(ratio: float | None) -> bool:
    """Whether a measurement differs from its prediction by more than ``TOLERANCE``."""
    return ratio is not None and abs(ratio - 1) > TOLERANCE


class Verifier:
    """
    Compares as readings come in. Lives as long as the server it watches.

    Speed counts only where answers were decoded and nothing else was done: no prompt, no guessed tokens.

    Args:
        memory: What was planned.
        expected: What predicts speed, or None where nothing does.
    """

    def __init__(self, memory: PlanMemory, expected: ExpectedSpeed | None) -> None:
        self._memory = memory
        self._expected = expected
        self._last: Reading | None = None
        self._most_pages = 0.0
        self._tokens = 0
        self._stream_s = 0.0
        self._decode_s = 0.0
        self._predicted_tokens = 0.0
        self._finding = Finding()

    @property
    def finding(self) -> Finding:
        """The comparison as of the last reading."""
        return self._finding

    def observe(self, reading: Reading) -> Finding:
        """Take a reading and return the comparison with it."""
        last, self._last = self._last, reading
        written_pages = reading.cached_pages + reading.context_tokens / reading.page_tokens
        self._most_pages = max(self._most_pages, written_pages)
        predicted, measured = self._finding.predicted_stream_tokens_per_s, self._finding.measured_stream_tokens_per_s
        if last is not None and self._expected is not None:
            self._add(last, reading, self._expected)
            if self._decode_s >= MIN_DECODE_S:
                predicted, measured = self._predicted_tokens / self._stream_s, self._tokens / self._stream_s
                self._tokens, self._stream_s, self._decode_s, self._predicted_tokens = 0, 0.0, 0.0, 0.0
        self._finding = Finding(
            predicted_peak_bytes=self._predicted_peak(reading),
            measured_peak_bytes=reading.peak_resident_bytes,
            predicted_stream_tokens_per_s=predicted,
            measured_stream_tokens_per_s=measured,
        )
        return self._finding

    def _predicted_peak(self, reading: Reading) -> int | None:
        """Return what is expected with the pages used so far: the system gives a page when it is first written."""
        memory = self._memory
        # Before the first prompt the weights are only mapped.
        if memory.process_bytes is None or memory.kv_bytes is None or reading.prefilled_tokens == 0:
            return None
        untouched = max(0.0, 1 - self._most_pages / reading.num_pages)
        return memory.peak_bytes - round(memory.kv_bytes * untouched)

    def _add(self, last: Reading, now: Reading, expected: ExpectedSpeed) -> None:
        stream_s, decode_s = now.decode_stream_s - last.decode_stream_s, now.decode_s - last.decode_s
        if now.prefilled_tokens != last.prefilled_tokens or now.drafted_tokens != last.drafted_tokens or decode_s <= 0:
            return
        streams = stream_s / decode_s
        context = (last.context_tokens + now.context_tokens) / 2 / streams
        step_s = expected.times.decode_step_s(
            batch=max(1, round(streams)),
            context_tokens=round(context),
            kv_bytes_per_token=expected.kv_bytes_per_token,
        )
        self._tokens += now.decode_tokens - last.decode_tokens
        self._stream_s += stream_s
        self._decode_s += decode_s
        self._predicted_tokens += stream_s / step_s


def _ratio(measured: float | None, predicted: float | None) -> float | None:
    return None if measured is None or not predicted else measured / predicted
