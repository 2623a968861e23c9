"""What is generated for observability is fresh, and the document names every event."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_EVENT = re.compile(r"[a-z]+\.[a-z_]+")
_LEVELS = {"debug", "info", "warning", "error", "exception"}


@pytest.mark.parametrize("script", ["deploy/grafana/generate.py", "docs/generate.py"])
def test_what_is_generated_is_fresh(root: Path, script: str) -> None:
    """`make observability` would change nothing."""
    checked = subprocess.run([sys.executable, root / script, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_document_names_every_event(root: Path) -> None:
    """Each event that is logged stands in docs/observability.md, and the document names no other."""
    text = (root / "docs/observability.md").read_text(encoding="utf-8")
    log = text.partition("\n## Log\n")[2].partition("\n## Traces\n")[0]
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", log))
    logged = {
        event for folder in ("service", "device") for path in (root / folder).rglob("*.py") for event in _events(path)
    }
    assert logged == named


def _events(path: Path) -> Iterator[str]:
    """Yield the first argument of every call of a logger in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args and _is_logger(node.func):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and _EVENT.fullmatch(first.value):
                yield first.value


def _is_logger(function: ast.expr) -> bool:
    # Where the level is chosen: ``write(...)`` and ``(log.warning if bad else log.info)(...)``.
    if isinstance(function, ast.IfExp):
        return _is_logger(function.body)
    return function.attr in _LEVELS if isinstance(function, ast.Attribute) else getattr(function, "id", "") == "write"
