from __future__ import annotations

import io
import itertools
import json
import logging
import threading
import time
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from edgephi.cli.logs import LogFormat, configure_logs
from edgephi.cli.output import ProgressLine, format_bytes, print_table, printable


class _Stream(io.StringIO):
    """Standard error that may be a terminal."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_090_000_000, "2.1 GB"), (610_304, "610 kB")],
)
def test_sizes_have_decimal_units(count: int | None, text: str) -> None:
    """Sizes are written with the decimal units that disks are sold by."""
    assert format_bytes(count) == text


@given(st.integers(min_value=0, max_value=10**15))
def test_sizes_are_short(count: int) -> None:
    """No size up to a petabyte needs more than twelve characters."""
    assert len(format_bytes(count)) <= 12


@given(st.text())
def test_printable_text_cannot_command_a_terminal(text: str) -> None:
    """Nothing but newline and tab is left of the control characters, and nothing else is changed."""
    shown = printable(text)
    assert len(shown) == len(text)
    for before, after in zip(text, shown, strict=True):
        is_control = unicodedata.category(before) == "Cc" and before not in "\n\t"
        assert after == ("\ufffd" if is_control else before)


def test_table_aligns_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns start at the same place in every row, and numbers end at the same place."""
    print_table(("NAME", "SIZE"), [("a", "5 B"), ("long-name", "120 kB")])
    assert capsys.readouterr().out.splitlines() == ["NAME          SIZE", "a              5 B", "long-name   120 kB"]


def test_progress_is_drawn_on_a_terminal_only_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn in the first second, then a line with running seconds that is removed at the end."""
    stream = _Stream(is_terminal=True)
    monkeypatch.setattr("sys.stderr", stream)
    times = iter([0.0, 0.5, 2.0, 3.0])
    progress = ProgressLine(clock=lambda: next(times))
    progress("packing", 1, 4)
    progress.tick()
    assert stream.getvalue() == ""
    progress.tick()
    assert stream.getvalue().endswith("packing  25 % (2 s)")
    progress("linking", 0, 0)
    progress.tick()
    assert stream.getvalue().endswith("linking (3 s)")
    progress.close()
    removed = stream.getvalue()
    assert removed.endswith("\r\x1b[K")
    progress.close()
    assert stream.getvalue() == removed


def test_progress_moves_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its block the line is drawn although nothing calls it, and nothing is drawn after the block."""
    stream = _Stream(is_terminal=True)
    monkeypatch.setattr("sys.stderr", stream)
    times = itertools.count(0.0, 2.0)
    with ProgressLine("compiling", clock=lambda: next(times)):
        deadline = time.monotonic() + 10
        while "compiling" not in stream.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert stream.getvalue().endswith("\r\x1b[K")
    assert "edgephi-progress" not in {thread.name for thread in threading.enumerate()}


def test_progress_is_silent_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where standard error is no terminal, nothing is drawn however long it takes."""
    stream = _Stream(is_terminal=False)
    monkeypatch.setattr("sys.stderr", stream)
    times = iter([0.0, 50.0])
    with ProgressLine(clock=lambda: next(times)) as progress:
        progress("packing", 2, 4)
        progress.tick()
    assert stream.getvalue() == ""


def _fail_with_a_prompt() -> None:
    prompt = "secret words"
    raise ValueError(f"failed on {len(prompt)} characters")


@pytest.mark.usefixtures("_logging_as_it_was")
@pytest.mark.parametrize("log_format", [LogFormat.JSON, LogFormat.CONSOLE])
def test_tracebacks_hold_no_local_variables(log_format: LogFormat) -> None:
    """A logged exception tells where and why, and not what the variables held: one may be a prompt."""
    stream = io.StringIO()
    configure_logs(log_format, stream=stream)
    try:
        _fail_with_a_prompt()
    except ValueError as error:
        structlog.get_logger("test").error("it.failed", exc_info=error)
        logging.getLogger("other.library").exception("it failed too")
    text = stream.getvalue()
    assert text.count("failed on 12 characters") == 2
    assert "secret words" not in text


@pytest.mark.usefixtures("_logging_as_it_was")
def test_json_lines_begin_with_time_level_event() -> None:
    """Lines of structlog and of the standard library look alike: time, level and event first."""
    stream = io.StringIO()
    configure_logs(LogFormat.AUTO, stream=stream)
    structlog.get_logger("test").info("a.thing", size=3)
    logging.getLogger("other.library").warning("a %s", "thing")
    lines: list[dict[str, Any]] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [list(line)[:3] for line in lines] == [["timestamp", "level", "event"]] * 2
    assert [line["event"] for line in lines] == ["a.thing", "a thing"]
