"""
From the steps a calibration timed to the few numbers that predict any step. Pure arithmetic.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from edgephi.profile.calibration import MeasuredStep
from edgephi.profile.speed import StepTimes


def fit_step_times(
    steps: Sequence[MeasuredStep],
    *,
    threads: int,
    kv_bytes_per_token: int,
    window_tokens: int | None,
    bandwidth_bytes_per_s: float | None,
) -> StepTimes:
    """
    Fit the durations of steps.

    The table of rows is what was measured with an empty context, made to ascend. What a token of context costs is the
    slope through all steps behind a filled one, each beside the step of as many rows with an empty one; relative
    errors count, so that long steps do not outweigh short ones.

    Args:
        steps: Among them one of a single row with an empty context.
        threads: Threads that computed.
        kv_bytes_per_token: Bytes of keys and values of a token.
        window_tokens: Most tokens a row attends to, or None.
        bandwidth_bytes_per_s: How fast these threads read memory, or None.
    """
    measured = {step.sequences * step.rows: step.seconds for step in steps if step.context_tokens == 0}
    base = StepTimes(
        threads=threads,
        rows=ascending(sorted(measured.items())),
        kv_s_per_byte=0.0,
        prefill_s_per_pair=0.0,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        window_tokens=window_tokens,
    )

    def slope(filled: Iterable[MeasuredStep]) -> float | None:
        """Seconds for one token that one row attends to."""
        covariance = variance = 0.0
        for step in filled:
            num_rows = step.sequences * step.rows
            pairs = num_rows * base.seen_tokens(step.context_tokens)
            weight = step.seconds**-2
            covariance += weight * pairs * (step.seconds - measured.get(num_rows, base.rows_s(num_rows)))
            variance += weight * pairs * pairs
        return max(covariance / variance, 0.0) if variance > 0 else None

    decode = slope(step for step in steps if step.context_tokens > 0 and step.rows == 1) or 0.0
    prefill = slope(step for step in steps if step.context_tokens > 0 and step.rows > 1)
    return dataclasses.replace(
        base,
        kv_s_per_byte=decode / kv_bytes_per_token,
        # Rows of a chunk share what they read, so a decode's cost is the most it can be.
        prefill_s_per_pair=decode if prefill is None else prefill,
    )


def ascending(points: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """
    Return the points, which ascend in their first number, so that the second one does not descend either.

    Kernels may take longer for three rows than for four, and planning relies on more rows never taking less. Points
    that contradict it get their common geometric mean, the least wrong for all of them (pool adjacent violators).
    """
    pools: list[tuple[list[int], float]] = []
    for rows, seconds in points:
        pool = [rows], seconds
        while pools and pools[-1][1] > pool[1]:
            before, longer = pools.pop()
            total = len(before) * math.log(longer) + len(pool[0]) * math.log(pool[1])
            pool = [*before, *pool[0]], math.exp(total / (len(before) + len(pool[0])))
        pools.append(pool)
    return tuple((rows, seconds) for pooled, seconds in pools for rows in pooled)
