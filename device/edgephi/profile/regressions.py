"""
Is a calibration as fast as it should be: as an earlier one on the same device, and as the catalogue's board.

Owns the limits and the sentences. A device can lose most of its speed without any error: by a new build, a governor,
a weak power supply or a cooler that came off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgephi.profile.boards.board import Board
from edgephi.profile.calibration import Calibration
from edgephi.profile.machine.probe import DeviceFacts

# Runs on a quiet machine differ by a few percent.
SLOWER_THAN_EARLIER = 0.85
# The catalogue's figures are of other copies of a board, often in other conditions.
SLOWER_THAN_BOARD = 0.6
# Smaller weights stay in some processor's cache: their speed says nothing of its memory.
MIN_MEMORY_BOUND_BYTES = 256 << 20
SLOW_GOVERNORS = frozenset({"powersave", "conservative"})


@dataclass(frozen=True, slots=True)
class _Figure:
    """A speed for people: what of, now, what it is compared with, and the unit."""

    name: str
    now: float
    then: float
    unit: str


def compare_with_earlier(new: Calibration, old: Calibration) -> tuple[str, ...]:
    """Return a sentence for each of decode, prefill and bandwidth that is more than 15 % slower than earlier."""
    warnings = []
    for figure in _figures(new, old):
        if figure.now < SLOWER_THAN_EARLIER * figure.then:
            changed = "the same build" if new.build_key == old.build_key else f"build {_build(old)}, now {_build(new)}"
            warnings.append(
                f"{figure.name} is {_number(figure.now)} {figure.unit}, {figure.then / figure.now:.1f} times slower "
                f"than the {_number(figure.then)} {figure.unit} measured on {old.measured_at[:10]} with {changed}"
            )
    return tuple(warnings)


def compare_with_board(calibration: Calibration, board: Board, facts: DeviceFacts) -> tuple[str, ...]:
    """
    Return a sentence for each of bandwidth and decode that is below 60 % of what the catalogue expects.

    Empty for models whose weights fit into a cache.
    """
    if calibration.step_weight_bytes < MIN_MEMORY_BOUND_BYTES:
        return ()
    expected = board.effective_gbps.value
    figures = [
        _Figure(
            "decoding with an empty context",
            calibration.decode_tokens_per_s(),
            expected * 1e9 / calibration.step_weight_bytes,
            "tok/s",
        )
    ]
    bandwidth = calibration.times.bandwidth_bytes_per_s
    if bandwidth is not None:
        figures.insert(0, _Figure("reading memory", bandwidth / 1e9, expected, "GB/s"))
    hints = "; ".join(slowness_hints(calibration, facts))
    return tuple(
        f"{figure.name} reaches {_number(figure.now)} {figure.unit}, {100 * figure.now / figure.then:.0f} % of the "
        f"{_number(figure.then)} {figure.unit} expected of {board.title} ({board.effective_gbps.evidence.value} "
        f"{expected:g} GB/s); {hints}"
        for figure in figures
        if figure.now < SLOWER_THAN_BOARD * figure.then
    )


def slowness_hints(calibration: Calibration, facts: DeviceFacts) -> tuple[str, ...]:
    """Return what may hold this device back and what to do about it: what is known first, then what to look at."""
    hints = []
    slow = sorted({c.governor for c in facts.cpu.clusters if c.governor in SLOW_GOVERNORS})
    if slow:
        hints.append(f"frequency governor {slow[0]}: sudo cpupower frequency-set -g performance")
    quota, allowed = facts.limits.cpu_cores, len(facts.limits.allowed_cpus)
    if quota is not None and quota < allowed:
        hints.append(f"a CPU quota of {quota:g} of {allowed} cores: raise it")
    total = sum(len(c.cpus) for c in facts.cpu.clusters)
    if 0 < allowed < total:
        hints.append(f"{allowed} of {total} cores may be used: widen the affinity")
    hints += calibration.conditions.noise
    return (*hints, "check cooling, power supply and other programs")


def _figures(new: Calibration, old: Calibration) -> Iterator[_Figure]:
    yield _Figure("decoding with an empty context", new.decode_tokens_per_s(), old.decode_tokens_per_s(), "tok/s")
    then = dict(old.times.rows)
    common = [(rows, seconds) for rows, seconds in new.times.rows if rows in then]
    rows, seconds = common[-1]
    if rows > 1:
        yield _Figure(f"prefill in chunks of {rows}", rows / seconds, rows / then[rows], "tok/s")
    if new.times.bandwidth_bytes_per_s is not None and old.times.bandwidth_bytes_per_s is not None:
        yield _Figure(
            "reading memory", new.times.bandwidth_bytes_per_s / 1e9, old.times.bandwidth_bytes_per_s / 1e9, "GB/s"
        )


def _build(calibration: Calibration) -> str:
    return (
        f"{calibration.build_key[:8]} ({calibration.level}, {calibration.times.threads} threads, "
        f"edgephi {calibration.edgephi_version}, TVM {calibration.tvm_version})"
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
