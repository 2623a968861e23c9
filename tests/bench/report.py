"""
From samples to tables: medians, and how edgephi compares with each peer. Pure; knows no process and no file.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Samples = Mapping[str, Mapping[str, Sequence[float]]]  # by case and engine, one for each round
EDGEPHI = "edgephi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """
    How one case is printed.

    Attributes:
        case: Its name among the samples.
        title: What a reader sees.
        is_rate: Whether more is better (tokens per second); otherwise less is (seconds, gigabytes).
    """

    case: str
    title: str
    is_rate: bool


def family(engine: str) -> str:
    """The engine without its settings: ``llama.cpp`` of ``llama.cpp fa q8_0``."""
    return engine.split(" ", 1)[0]


def advantage(ours: Sequence[float], theirs: Sequence[float], *, is_rate: bool) -> float:
    """
    How many times better we are: the median over the rounds both took part in.

    Two samples of one round were taken within seconds of each other, so a busy minute of the machine slows both and
    leaves their ratio alone.
    """
    pairs = zip(ours, theirs, strict=False)
    return statistics.median([mine / other if is_rate else other / mine for mine, other in pairs])


def best(engines: Mapping[str, Sequence[float]], *, is_rate: bool) -> str | None:
    """The engine with the best median; None without engines."""
    if not engines:
        return None
    return (max if is_rate else min)(engines, key=lambda engine: statistics.median(engines[engine]))


def medians_table(rows: Sequence[Row], samples: Samples) -> str:
    """Return a Markdown table: a line for each case, a column for each engine, medians with smallest and largest."""
    engines = list(dict.fromkeys(engine for row in rows for engine in samples.get(row.case, {})))
    lines = [_line(["", *engines]), _line(["---"] * (len(engines) + 1))]
    for row in rows:
        values = samples.get(row.case, {})
        if values:
            lines.append(_line([row.title, *(_spread(values.get(engine, ())) for engine in engines)]))
    return "\n".join(lines)


def ratios_table(rows: Sequence[Row], samples: Samples) -> str:
    """
    Return a Markdown table: a line for each case and each of edgephi's engines, a column for each family of peers.

    A family is represented by its best engine in that case. Above 1 means that edgephi is better, in every line.
    """
    names = [name for row in rows for name in samples.get(row.case, {})]
    families = [name for name in dict.fromkeys(map(family, names)) if name != EDGEPHI]
    lines = [_line(["", "", *families, "best peer"]), _line(["---"] * (len(families) + 3))]
    for row in rows:
        values = samples.get(row.case, {})
        peers = {name: taken for name, taken in values.items() if family(name) != EDGEPHI}
        for ours in (name for name in values if family(name) == EDGEPHI):
            cells = []
            for name in families:
                rival = best({k: v for k, v in peers.items() if family(k) == name}, is_rate=row.is_rate)
                cells.append(_ratio(row, values[ours], peers, rival))
            rival = best(peers, is_rate=row.is_rate)
            cells.append(f"{_ratio(row, values[ours], peers, rival)} ({rival})" if rival else "")
            lines.append(_line([row.title, ours, *cells]))
    return "\n".join(lines)


def _ratio(row: Row, ours: Sequence[float], peers: Mapping[str, Sequence[float]], rival: str | None) -> str:
    return f"{advantage(ours, peers[rival], is_rate=row.is_rate):.2f}" if rival else ""


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    median = f"{statistics.median(values):.3g}"
    return median if len(values) == 1 else f"{median} ({min(values):.3g} to {max(values):.3g})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
