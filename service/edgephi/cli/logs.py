"""
The program's log: one event per line on standard error, as JSON or for a person.

Owns the configuration of structlog and of the standard library's logging, which gRPC and the engine use, and the rule
that nothing a client sent can begin a line or move the cursor. Prompts and answers are never logged; that is kept by
those who log.
"""

from __future__ import annotations

import enum
import logging
import re
import sys
import textwrap
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, TextIO

# Control characters of both ranges, which move a terminal's cursor; Unicode's own ends of lines; marks that turn the
# direction of text around; halves of characters, which cannot be written.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


class LogFormat(enum.Enum):
    """How a line looks."""

    AUTO = "auto"  # console on a terminal, JSON elsewhere
    JSON = "json"
    CONSOLE = "console"


class LogLevel(enum.Enum):
    """The least severe lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def configure_logs(log_format: LogFormat, *, level: LogLevel = LogLevel.INFO, stream: TextIO | None = None) -> None:
    """
    Send all logs of this process to standard error.

    Args:
        log_format: How a line looks.
        level: The least severe lines that are written.
        stream: Where to write instead.
    """
    import structlog

    number = logging.getLevelNamesMapping()[level.value.upper()]
    out = sys.stderr if stream is None else stream
    is_console = log_format is LogFormat.CONSOLE or (log_format is LogFormat.AUTO and out.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks without local variables: one of those may hold a prompt.
    finish: list[structlog.typing.Processor] = (
        [_escape_event, structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=_indented_traceback)]
        if is_console
        else [
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            _event_first,
            structlog.processors.JSONRenderer(),  # as ASCII, so that nothing in a text can be more than its text
        ]
    )
    structlog.configure(
        processors=[*shared, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.addFilter(_is_of_concern)
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[strip, *finish], foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)


def _is_of_concern(record: logging.LogRecord) -> bool:
    """Let gRPC's errors pass, but not that a client was gone before it could be told its status, unless debugging."""
    error = None if record.exc_info is None else record.exc_info[0]
    if record.name.startswith("grpc") and error is not None and error.__name__ == "ExecuteBatchError":
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logging.getLogger().isEnabledFor(logging.DEBUG)
    return True


def _escape_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Write control characters and separators of lines in every text as Python would."""
    return {_escape(key): value if key == "exc_info" else _escaped(value) for key, value in event.items()}


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return _escape(value)
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list | tuple) else value


def _escape(text: str) -> str:
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _indented_traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """Write a traceback so that no line of it, such as one of the error's message, begins like an event's."""
    import traceback

    for line in traceback.format_exception(*exc_info):
        lines = "\n".join(_escape(part) for part in line.split("\n"))
        out.write(textwrap.indent(lines, "    "))


def _event_first(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put what a reader looks for first at the start of the line."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return {**first, **event}
