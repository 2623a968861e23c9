"""
What commands print: JSON, tables, sizes, and progress of long work.

Results go to standard output; progress and remarks go to standard error, and progress only to a terminal.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Self

import click

PROGRESS_AFTER_S = 1.0
PROGRESS_EVERY_S = 0.2

Clock = Callable[[], float]


def print_json(value: Any) -> None:
    """Write one JSON document on one line to standard output."""
    click.echo(json.dumps(value, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows in columns; columns whose cells all start with a digit are aligned to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_number = [bool(rows) and all(cell[:1].isdigit() for cell in column[1:]) for column in columns]
    for row in (header, *rows):
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        )
        click.echo("   ".join(cells).rstrip())


def format_bytes(count: int | None) -> str:
    """Return a size with a decimal unit, as disks and downloads are labelled; ``-`` for None."""
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def printable(text: str) -> str:
    """Replace control characters, so that a text from a model cannot command the terminal; newline and tab stay."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


class ProgressLine:
    """
    One line on a terminal that shows that work goes on and how far it is; silent elsewhere and in the first second.

    Lives for its ``with`` block, or until :meth:`close`, which removes the line. Call it to say what is done; a thread
    of its own keeps the seconds running, because a compiler is silent for longer than a person's patience.
    """

    def __init__(self, label: str = "loading", *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._is_terminal = sys.stderr.isatty()
        self._started_at = clock()
        self._state = (label, 0, 0)
        self._is_drawn = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, label: str, done: int, total: int) -> None:
        """Say what is being done and how much of it is; ``total`` 0 where it is not known. Any thread."""
        self._state = (label, done, total)

    def tick(self) -> None:
        """Draw the line as it is now, if it is time to."""
        elapsed_s = self._clock() - self._started_at
        if not self._is_terminal or elapsed_s < PROGRESS_AFTER_S:
            return
        label, done, total = self._state
        share = f" {100 * done / total:3.0f} %" if total else ""
        click.echo(f"\r\x1b[K{label}{share} ({elapsed_s:.0f} s)", err=True, nl=False)
        self._is_drawn = True

    def close(self) -> None:
        """Stop drawing and remove the line. Calling it again does nothing."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._is_drawn:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._is_drawn = False

    def __enter__(self) -> Self:
        if self._is_terminal:
            self._thread = threading.Thread(target=self._run, name="edgephi-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing.wait(PROGRESS_EVERY_S):
            self.tick()
