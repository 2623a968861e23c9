"""
Speed and memory against context, as bars in a terminal and as a figure in a file.

Owns how a curve is drawn. Does not know where its numbers come from.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgephi.cli.curve import Curve
from edgephi.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_SUFFIXES = (".svg", ".png")

# A figure's size in inches, and its dots per inch as PNG.
_FIGURE_SIZE = (7.5, 6.0)
_DPI = 144


@dataclass(frozen=True, slots=True)
class Glyphs:
    """
    The characters bars are made of.

    Attributes:
        sure: What is certain, or simply there.
        likely: From the low end of an estimate to the estimate.
        possible: From the estimate to its high end.
        limit: A floor or a budget.
        chosen: The line of the plan.
    """

    sure: str
    likely: str
    possible: str
    limit: str
    chosen: str


# All of these are in the fonts of the Linux console as well.
UNICODE = Glyphs(sure="█", likely="▓", possible="░", limit="│", chosen="►")
ASCII = Glyphs(sure="#", likely="=", possible="-", limit="|", chosen=">")


def glyphs_for(encoding: str | None, environment: Mapping[str, str]) -> Glyphs:
    """
    Return what a terminal can show.

    Args:
        encoding: Of standard output.
        environment: Its locale may ask for plain ASCII, which Python itself overrides with UTF-8.
    """
    locale = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := environment.get(name))), "")
    is_utf8 = (encoding or "").lower().replace("-", "").startswith("utf")
    return UNICODE if is_utf8 and locale not in ("C", "POSIX") else ASCII


def plot_lines(curve: Curve, *, width: int, glyphs: Glyphs) -> list[str]:
    """
    Draw a curve as one line per context: speed on the left with the floor, memory on the right with the budget.

    Args:
        curve: What to draw.
        width: Most columns of a line, at least 60.
        glyphs: Characters to draw with.
    """
    bars = width - 35
    speed_width = bars * 3 // 5
    memory_width = bars - speed_width
    fastest = max(max(point.high_tokens_per_s for point in curve.points), curve.floor_tokens_per_s * 1.05)
    largest = max(max(point.memory_bytes for point in curve.points), curve.budget_bytes)
    floor_at = _column(curve.floor_tokens_per_s, fastest, speed_width)
    budget_at = _column(curve.budget_bytes, largest, memory_width)
    floor = f"floor {curve.floor_tokens_per_s:g}"
    budget = f"budget {curve.budget_bytes / 1e9:.2f}"
    floor, budget = _over(floor, floor_at, speed_width), _over(budget, budget_at, memory_width)
    lines = [f"  context   tok/s each {floor}     GB   {budget}".rstrip()]
    for point in curve.points:
        is_chosen = point.context_tokens == curve.chosen_tokens
        spans = [
            (glyphs.sure, point.low_tokens_per_s),
            (glyphs.likely, point.tokens_per_s),
            (glyphs.possible, point.high_tokens_per_s),
        ]
        speed = _bar(spans, fastest, speed_width, floor_at, glyphs.limit)
        memory = _bar([(glyphs.sure, point.memory_bytes)], largest, memory_width, budget_at, glyphs.limit)
        mark = glyphs.chosen if is_chosen else " "
        is_fast = point.tokens_per_s >= curve.floor_tokens_per_s
        fits = point.memory_bytes <= curve.budget_bytes
        parts = (
            (f"{mark} {point.context_tokens:>7}   {format_speed(point.tokens_per_s):>6}     ", None),
            (speed, "green" if is_fast else "yellow"),
            (f"  {point.memory_bytes / 1e9:>5.2f}   ", None),
            (memory.rstrip(), "cyan" if fits else "red"),
        )
        lines.append("".join(click.style(text, fg=color, bold=is_chosen or None) for text, color in parts))
    return lines


def format_speed(tokens_per_s: float) -> str:
    """Return a speed with no more digits than mean something."""
    return f"{tokens_per_s:.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.1f}"


def check_plot_file(path: Path) -> None:
    """
    Check that a figure could be written, before work is done for it.

    Raises:
        ConfigError: If its suffix is none of ``PLOT_SUFFIXES``, its folder does not exist, or Matplotlib is missing.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise ConfigError(f"--plot is {str(path)!r}; its name must end with {' or '.join(PLOT_SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot is {str(path)!r}; the folder {path.parent} does not exist")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs Matplotlib; install it with: pip install 'edgephi[plot]'")


def write_plot(curve: Curve, path: Path) -> None:
    """
    Write a curve as an SVG or PNG file: speed above, memory below, over the same contexts. Needs no display.

    Raises:
        ConfigError: As :func:`check_plot_file`.
        OSError: If the file cannot be written.
    """
    check_plot_file(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The same curve gives the same file, and text in it stays text.
    with mpl.rc_context({"svg.hashsalt": "edgephi", "svg.fonttype": "none"}):
        figure = Figure(figsize=_FIGURE_SIZE, layout="constrained")
        speed, memory = figure.subplots(2, 1, sharex=True)
        _draw_speed(speed, curve)
        _draw_memory(memory, curve)
        longest = curve.points[-1].context_tokens
        memory.set_xlim(0, longest)
        memory.set_xticks([longest * part // 8 for part in range(9)])
        figure.suptitle(curve.title)
        is_svg = path.suffix.lower() == ".svg"
        figure.savefig(path, dpi=_DPI, metadata={"Date": None} if is_svg else None)


def _draw_speed(axes: Axes, curve: Curve) -> None:
    contexts = [point.context_tokens for point in curve.points]
    speeds = [point.tokens_per_s for point in curve.points]
    chosen = next(point for point in curve.points if point.context_tokens == curve.chosen_tokens)
    low = [point.low_tokens_per_s for point in curve.points]
    high = [point.high_tokens_per_s for point in curve.points]
    axes.fill_between(contexts, low, high, alpha=0.2, color="tab:blue", label="range")
    axes.plot(contexts, speeds, color="tab:blue", label="expected")
    axes.axhline(curve.floor_tokens_per_s, color="tab:red", linestyle="--", label=f"floor {curve.floor_tokens_per_s:g}")
    plan = f"plan: {format_speed(chosen.tokens_per_s)} at {chosen.context_tokens} tokens"
    axes.plot([chosen.context_tokens], [chosen.tokens_per_s], "o", color="black", label=plan, clip_on=False)
    axes.set_ylabel("tok/s of each request")
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", fontsize="small")
    axes.grid(visible=True, alpha=0.3)


def _draw_memory(axes: Axes, curve: Curve) -> None:
    contexts = [point.context_tokens for point in curve.points]
    memory = [point.memory_bytes / 1e9 for point in curve.points]
    chosen = next(point for point in curve.points if point.context_tokens == curve.chosen_tokens)
    budget = curve.budget_bytes / 1e9
    axes.plot(contexts, memory, color="tab:green", label="memory")
    axes.axhline(budget, color="tab:red", linestyle="--", label=f"budget {budget:.2f} GB")
    plan = f"plan: {chosen.memory_bytes / 1e9:.2f} GB"
    axes.plot([chosen.context_tokens], [chosen.memory_bytes / 1e9], "o", color="black", label=plan, clip_on=False)
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("memory, GB")
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", fontsize="small")
    axes.grid(visible=True, alpha=0.3)


def _column(value: float, largest: float, width: int) -> int:
    """Return where on a bar of *width* columns *value* lies, from 0 to ``width - 1``."""
    return max(0, min(width - 1, round(value / largest * width) - 1))


def _bar(spans: Sequence[tuple[str, float]], largest: float, width: int, limit_at: int, limit: str) -> str:
    """Return a bar of exactly *width* columns: each span's glyph up to its value, and the limit's mark over it."""
    cells = [" "] * width
    start = 0
    for glyph, value in spans:
        end = max(start, min(width, round(value / largest * width)))
        cells[start:end] = glyph * (end - start)
        start = end
    cells[limit_at] = limit
    return "".join(cells)


def _over(label: str, at: int, width: int) -> str:
    """Return *label* over column *at* of a bar, within *width* columns."""
    start = max(0, min(width - len(label), at - len(label) + 1))
    return (" " * start + label).ljust(width)
