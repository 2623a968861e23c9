"""
Durations of steps for a model that was not measured itself: from a calibration of another, or from a known board.

Owns the arithmetic from bandwidth, clocks and cores to :class:`StepTimes`. Pure; reads no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from edgephi.profile.boards.board import Board, BoardCluster
from edgephi.profile.calibration import Calibration
from edgephi.profile.model_facts import ModelFacts
from edgephi.profile.plan import KvDtype
from edgephi.profile.planning.kernel_rates import kernel_rate
from edgephi.profile.speed import StepTimes

StepTimesFor = Callable[[ModelFacts, KvDtype], StepTimes]
"""Durations of the steps of a model with one element type of keys and values."""

# Decoding reads weights at this share of what reading alone reaches, where memory limits.
# Source: docs/log.md, "the matrix kernel against arithmetic and memory" and "edgephi beside its peers".
DECODE_SHARE_OF_STREAM = 0.92
# What a cycle of attention does, as a part of what the matrix kernel does: bytes of keys and values for one row, and
# products for many. Source: docs/log.md, "attention over int8 pages": 205 MB of them in 4.0 ms, 256 rows of 1024
# tokens in 228 ms, both on two cores at 4.2 GHz; on other cores the same parts are assumed.
ATTENTION_BYTES_SHARE = 0.30
ATTENTION_PRODUCTS_SHARE = 0.25
# Starting a kernel and waiting for its threads. Source: docs/log.md, "edgephi beside its peers": 0.75 ms for 291
# kernels at 4.2 GHz; twice that many cycles on cores that do less in a cycle are assumed for all.
CYCLES_PER_KERNEL = 22_000
KERNELS_PER_LAYER = 9
KERNELS_BESIDE_LAYERS = 3
# The worst that was published of a ceiling on paper: 3.58 tokens/s of 8.2 (Raspberry Pi 5, phi3:3.8b Q4, Ollama).
# Others reached 0.49 (A16), 0.76 and 0.78 (Orin Nano).
WORST_SHARE_OF_CEILING = 0.44

_BYTES_PER_WEIGHT = 18 / 32
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class TimesRange:
    """The slowest and the fastest durations that are honest to expect of a board."""

    slow: StepTimes
    fast: StepTimes


TimesRangeFor = Callable[[ModelFacts, KvDtype], TimesRange]


def times_from_calibration(calibration: Calibration) -> StepTimesFor:
    """
    Return what a calibration measured, exact for what it measured and scaled by bytes for all else.

    Another quantization of the same model changes the bytes of weights that a step reads, so every step by as many
    seconds as one row takes for that many bytes; products stay. For another model all steps scale with their bytes.
    Keys and values take the same seconds a byte in every element type, and prompt rows the same seconds a token.
    """

    def times(model: ModelFacts, _kv_dtype: KvDtype) -> StepTimes:
        measured = calibration.times
        ratio = model.step_weight_bytes / calibration.step_weight_bytes
        one_row_s = measured.rows[0][1]
        if model.name != calibration.model:
            rows = tuple((count, seconds * ratio) for count, seconds in measured.rows)
            return replace(measured, rows=rows, window_tokens=model.window_tokens)
        return replace(
            measured,
            rows=tuple(
                (count, max(seconds + (ratio - 1) * one_row_s, ratio * one_row_s)) for count, seconds in measured.rows
            ),
        )

    return times


def times_from_board(board: Board, threads: int) -> StepTimesFor:
    """
    Derive durations from what reading reaches on a board and what its cores compute, whichever is slower.

    Args:
        board: The board.
        threads: Threads that compute, on its fastest cores, at least 1.
    """

    def times(model: ModelFacts, _kv_dtype: KvDtype) -> StepTimes:
        cores = _Cores.of(board, threads)
        stream = board.effective_gbps.value * 1e9
        overhead_s = (KERNELS_PER_LAYER * model.num_layers + KERNELS_BESIDE_LAYERS) * CYCLES_PER_KERNEL / cores.hz
        read_s = model.step_weight_bytes / (DECODE_SHARE_OF_STREAM * stream)

        def step_s(rows: int) -> float:
            one_s = model.step_macs_per_token / cores.weights_per_s
            several_s = rows * model.macs_per_token / cores.products_per_s
            return max(read_s, one_s, several_s) + overhead_s

        kv_bytes_per_s = min(
            DECODE_SHARE_OF_STREAM * stream, cores.weights_per_s * _BYTES_PER_WEIGHT * ATTENTION_BYTES_SHARE
        )
        products_per_pair = 2 * model.num_layers * model.num_heads * model.head_dim
        return StepTimes(
            threads=threads,
            rows=tuple((rows, step_s(rows)) for rows in _ROWS),
            kv_s_per_byte=1 / kv_bytes_per_s,
            prefill_s_per_pair=products_per_pair / (cores.products_per_s * ATTENTION_PRODUCTS_SHARE),
            bandwidth_bytes_per_s=stream,
            window_tokens=model.window_tokens,
        )

    return times


def range_from_board(board: Board, threads: int) -> TimesRangeFor:
    """
    Return the bounds of what :func:`times_from_board` estimates.

    The fast end reads at the bandwidth on paper and does nothing else: no software exceeds it. The slow end is the
    estimate, or the worst share of that ceiling that was published for any board if that is slower, and what is
    left of it when the board is hot.
    """
    estimate = times_from_board(board, threads)

    def bounds(model: ModelFacts, kv_dtype: KvDtype) -> TimesRange:
        paper = board.bandwidth_gbps.value * 1e9
        fast = StepTimes(
            threads=threads,
            rows=((1, model.step_weight_bytes / paper), (_ROWS[-1], model.step_weight_bytes / paper)),
            kv_s_per_byte=1 / paper,
            prefill_s_per_pair=0.0,
            bandwidth_bytes_per_s=paper,
            window_tokens=model.window_tokens,
        )
        expected = estimate(model, kv_dtype)
        sustained = 1.0 if board.thermal is None else board.thermal.sustained_fraction.value
        slow = StepTimes(
            threads=threads,
            rows=tuple(
                (rows, max(seconds, fast.rows_s(rows) / WORST_SHARE_OF_CEILING) / sustained)
                for rows, seconds in expected.rows
            ),
            kv_s_per_byte=max(expected.kv_s_per_byte, fast.kv_s_per_byte / WORST_SHARE_OF_CEILING) / sustained,
            prefill_s_per_pair=expected.prefill_s_per_pair / sustained,
            bandwidth_bytes_per_s=expected.bandwidth_bytes_per_s,
            window_tokens=model.window_tokens,
        )
        return TimesRange(slow, fast)

    return bounds


@dataclass(frozen=True, slots=True)
class _Cores:
    """What the threads of a board compute together; equal parts, so as many times the slowest of them."""

    hz: float
    weights_per_s: float
    products_per_s: float

    @classmethod
    def of(cls, board: Board, threads: int) -> _Cores:
        used = _fastest(board.clusters, threads)
        rates = [(kernel_rate(cluster.core, board.isa_level), cluster.max_mhz.value * 1e6) for cluster in used]
        return cls(
            min(hz for _, hz in rates),
            threads * min(rate.weights_per_cycle * hz for rate, hz in rates),
            threads * min(rate.products_per_cycle * hz for rate, hz in rates),
        )


def _fastest(clusters: tuple[BoardCluster, ...], threads: int) -> list[BoardCluster]:
    """Return the first clusters that have *threads* cores together, or all of them."""
    used: list[BoardCluster] = []
    for cluster in clusters:
        if used and sum(other.count for other in used) >= threads:
            break
        used.append(cluster)
    return used
