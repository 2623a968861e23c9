"""Which metrics and labels a PromQL expression asks for; enough of the language for the dashboard and the alerts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_OPERATORS = {"and", "or", "unless", "bool", "offset"}


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric with the labels it is selected by."""

    name: str
    labels: frozenset[str]


def selectors(expression: str) -> Iterator[Selector]:
    """Yield every metric of an expression: each name that is neither a function nor an operator."""
    text = _GROUPING.sub(" ", _plain(expression))
    for match in re.finditer(r"(?<![\w.])([a-zA-Z_:][\w:]*)\s*(\(?)(\{[^}]*\})?", text):
        name, call, braces = match.groups()
        if not call and name not in _OPERATORS:
            yield Selector(name, frozenset(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", braces or "")))


def grouping_labels(expression: str) -> set[str]:
    """Return the labels that an expression groups by."""
    return {label for labels in _GROUPING.findall(_plain(expression)) for label in re.findall(r"\w+", labels)}


_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def _plain(expression: str) -> str:
    """Return an expression without the contents of strings and ranges."""
    return re.sub(r"\[[^\]]*\]", "", re.sub(r'"[^"]*"', '""', expression))
