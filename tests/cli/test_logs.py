"""The log: one line an event, whatever a client put into it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # missing in the stubs

from edgephi.cli import logs
from edgephi.cli.logs import LogFormat, LogLevel, configure_logs

FORGED = "2026-01-01T00:00:00Z [error    ] server.stopped"
ENDS_OF_LINES = ("\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029")
CURSOR_MOVES = ("\x1b[2K\x1b[1A", "\x9b2K", "\x08" * 40, "\x7f", "\u202e", "\x00")
Write = Callable[..., str]


@pytest.fixture
def log_of() -> Iterator[Write]:
    """Return a function that lets a function write to a log of a format and returns what was written."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(form: LogFormat, write: Callable[[], Any], *, level: LogLevel = LogLevel.INFO) -> str:
        stream = io.StringIO()
        configure_logs(form, level=level, stream=stream)
        write()
        return stream.getvalue()

    yield run
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def hostile(text: str) -> list[Callable[[], Any]]:
    """Return every way in which a text of a client could reach the log."""

    def fail() -> None:
        raise ValueError(text)

    def structured(logger: Any) -> None:
        try:
            fail()
        except ValueError as error:
            logger.error("request.failed", exc_info=error)  # noqa: TRY400 - as the server does it

    return [
        lambda: structlog.get_logger().info("request.finished", request_id=text),
        lambda: structlog.get_logger().info("request.finished", nested={"a": [text, (text,)], text: 1}),
        lambda: structlog.get_logger().info(text),
        lambda: logging.getLogger("grpc").warning("refused %s", text),
        lambda: structured(structlog.get_logger()),
        lambda: structured(logging.getLogger("edgephi.engine")),
    ]


@pytest.mark.parametrize("form", [LogFormat.JSON, LogFormat.CONSOLE], ids=lambda form: form.value)
@pytest.mark.parametrize("end", ENDS_OF_LINES, ids=repr)
def test_no_text_can_forge_a_line(log_of: Write, form: LogFormat, end: str) -> None:
    """A text with the end of a line in it, in a value, an event or an exception, begins no line of its own."""
    for write in hostile(f"a{end}{FORGED}"):
        written = log_of(form, write)
        assert FORGED in written
        assert not [
            line for line in written.splitlines() if line.startswith(FORGED[:10]) and "server.stopped" in line[:60]
        ]


@pytest.mark.parametrize("form", [LogFormat.JSON, LogFormat.CONSOLE], ids=lambda form: form.value)
def test_no_text_can_move_the_cursor(log_of: Write, form: LogFormat) -> None:
    """No control character but the ends of lines reaches a terminal, and half a character is no reason to fail."""
    for move in (*CURSOR_MOVES, "\ud800"):
        for write in hostile(f"a{move}b"):
            written = log_of(form, write)
            assert written.isprintable() or written.replace("\n", "").isprintable(), (move, written)


def test_a_text_is_the_same_after_reading(log_of: Write) -> None:
    """As JSON a line holds exactly what was logged, one object a line."""
    text = "a\nb\x1b\u2028ü日本"
    lines = log_of(
        LogFormat.JSON, lambda: structlog.get_logger().info("request.finished", request_id=text)
    ).splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [text]


def test_without_the_protection_a_line_is_forged(log_of: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: with nothing escaped and nothing indented the console has the forged line."""
    monkeypatch.setattr(logs, "_escape_event", lambda _logger, _name, event: event)
    monkeypatch.setattr(logs, "_indented_traceback", structlog.dev.plain_traceback)
    writes = hostile(f"a\n{FORGED}")
    forged = [FORGED in log_of(LogFormat.CONSOLE, write).splitlines() for write in writes]
    assert forged == [False, False, True, True, True, True]  # structlog itself quotes values, and nothing else


@pytest.mark.parametrize(("level", "count"), [(LogLevel.DEBUG, 4), (LogLevel.INFO, 2), (LogLevel.ERROR, 0)])
def test_the_level_bounds_both_kinds_of_lines(log_of: Write, level: LogLevel, count: int) -> None:
    """Lines below the level are left out, from structlog and from the standard library alike."""

    def write() -> None:
        for logger in (structlog.get_logger(), logging.getLogger("edgephi")):
            logger.debug("a.b")
            logger.info("a.b")

    assert len(log_of(LogFormat.JSON, write, level=level).splitlines()) == count


@pytest.mark.parametrize("level", [LogLevel.INFO, LogLevel.DEBUG])
def test_a_client_that_is_gone_is_no_error(log_of: Write, level: LogLevel) -> None:
    """What gRPC says when it cannot tell a status to a client that left is for debugging; its other errors are told."""

    def write() -> None:
        for error in (cygrpc.ExecuteBatchError("gone"), ValueError("bug")):
            try:
                raise error
            except type(error):
                logging.getLogger("grpc._cython.cygrpc").exception("raised in core")

    written = [json.loads(line) for line in log_of(LogFormat.JSON, write, level=level).splitlines()]
    told = [("debug", "ExecuteBatchError")] if level is LogLevel.DEBUG else []
    assert [(line["level"], line["exception"][0]["exc_type"]) for line in written] == [*told, ("error", "ValueError")]
