"""
How long a step takes: a model of few numbers, measured by calibration or derived from a catalogue.

Owns the arithmetic between seconds and tokens. Does not know where the numbers come from.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """
    Durations of one step of one model with one element type of keys and values.

        seconds = rows(number of rows) + kv bytes the decodes read * kv_s_per_byte
                                       + prompt rows * tokens before the chunk * prefill_s_per_pair

    Both of the latter end at the window: a row sees no more tokens, however many there are.

    Attributes:
        threads: Threads that compute.
        rows: (rows in a step, its seconds with an empty context), ascending, the first for one row. Between two
            entries it is interpolated, beyond the last continued with the last slope.
        kv_s_per_byte: Seconds to attend to one byte of keys and values in a decode.
        prefill_s_per_pair: Seconds to attend from one prompt row to one token before it.
        bandwidth_bytes_per_s: How fast the same threads read memory and do nothing else; None where not known.
        window_tokens: Most tokens a row attends to (sliding-window attention; 2047 for Phi-3-mini-4k); None for all.
    """

    threads: int
    rows: tuple[tuple[int, float], ...]
    kv_s_per_byte: float
    prefill_s_per_pair: float
    bandwidth_bytes_per_s: float | None = None
    window_tokens: int | None = None

    def rows_s(self, num_rows: int) -> float:
        """Return the seconds of a step of *num_rows* rows, at least 1, with an empty context; more rows never less."""
        points = self.rows
        if num_rows <= points[0][0] or len(points) == 1:
            return points[0][1] * max(1.0, num_rows / points[0][0])
        index = next((i for i, (rows, _) in enumerate(points) if rows >= num_rows), len(points) - 1)
        (low, low_s), (high, high_s) = points[index - 1], points[index]
        # Measured times are noisy, and planning relies on a larger step taking no less.
        least = max(seconds for rows, seconds in points if rows <= num_rows)
        return max(low_s + (high_s - low_s) * (num_rows - low) / (high - low), least)

    def seen_tokens(self, context_tokens: int) -> int:
        """Return how many of *context_tokens* a row behind them attends to."""
        return context_tokens if self.window_tokens is None else min(context_tokens, self.window_tokens)

    def decode_step_s(self, *, batch: int, context_tokens: int, kv_bytes_per_token: int) -> float:
        """Return the seconds of a step in which *batch* sequences of *context_tokens* each decode one token."""
        return self.rows_s(batch) + batch * self.seen_tokens(context_tokens) * kv_bytes_per_token * self.kv_s_per_byte

    def decode_tokens_per_s(self, *, batch: int, context_tokens: int, kv_bytes_per_token: int) -> float:
        """Return the tokens a second of each of *batch* streams."""
        return 1 / self.decode_step_s(batch=batch, context_tokens=context_tokens, kv_bytes_per_token=kv_bytes_per_token)

    def mixed_step_s(self, *, batch: int, chunk_tokens: int, context_tokens: int, kv_bytes_per_token: int) -> float:
        """Return the seconds of a step with *batch* decodes and a chunk of a prompt, all behind *context_tokens*."""
        seen_tokens = self.seen_tokens(context_tokens)
        return (
            self.rows_s(batch + chunk_tokens)
            + batch * seen_tokens * kv_bytes_per_token * self.kv_s_per_byte
            + chunk_tokens * seen_tokens * self.prefill_s_per_pair
        )

    def prefill_s(self, *, prompt_tokens: int, chunk_tokens: int) -> float:
        """Return the seconds to compute a prompt alone, in chunks."""
        total, start = 0.0, 0
        while start < prompt_tokens:
            rows = min(chunk_tokens, prompt_tokens - start)
            total += self.rows_s(rows) + rows * self.seen_tokens(start) * self.prefill_s_per_pair
            start += rows
        return total
