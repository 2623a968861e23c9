"""
A YAML file as fields that are taken one by one, each checked, each error with its file, line and field.

Only plain YAML is read: no aliases, which make a small file huge, no tags, no second document. A plain number is a
number and everything else is text, so that a name such as ``no`` stays one. Knows nothing of what the fields mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml

from edgephi.errors import ConfigError

MAX_FILE_BYTES = 64 << 10
MAX_DEPTH = 8
MAX_ITEMS = 64
MAX_TEXT = 500

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")

# The same parser in C where PyYAML has it: several times faster on a small board.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class _Scalar:
    line: int
    text: str
    is_plain: bool


@dataclass(frozen=True, slots=True)
class _Sequence:
    line: int
    items: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Mapping:
    line: int
    items: Mapping[str, _Node]
    lines: Mapping[str, int]


_Node = _Scalar | _Sequence | _Mapping


def read_fields(path: Path, *, can_be_empty: bool = False) -> Fields:
    """
    Read a file of at most 64 KiB whose document is a mapping, or nothing but comments where that is allowed.

    Raises:
        ConfigError: If the file cannot be read, or is not such a document.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; expected a readable file") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes, the most such a file may have")
    try:
        root = _Builder(path, yaml.parse(data.decode("utf-8-sig"), Loader=_LOADER)).document()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text, at byte {error.start}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f"{mark.line + 1}:"
        raise ConfigError(f"{path}:{line} not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {str(error).partition(chr(10))[0]}") from error
    if can_be_empty and root == _Scalar(1, "", is_plain=True):
        root = _Mapping(1, {}, {})
    return Fields(path, root, "")


class Fields:
    """A mapping of a file. Take every field that is known, then call :meth:`done`, which refuses the others."""

    def __init__(self, path: Path, node: _Node, prefix: str) -> None:
        self._path = path
        self._prefix = prefix
        if not isinstance(node, _Mapping):
            self._refuse(node, prefix or "the file", "fields")
        self._node = node
        self._known: list[str] = []

    @property
    def names(self) -> tuple[str, ...]:
        """Every field of the mapping, in the order of the file."""
        return tuple(self._node.items)

    def done(self) -> None:
        """Refuse fields that nobody asked for."""
        for name, line in self._node.lines.items():
            if name not in self._known:
                allowed = ", ".join(self._known)
                self.fail(line, self._prefix or "the file", f"unknown field {name[:40]!r}; expected one of {allowed}")

    def has(self, name: str) -> bool:
        """Return whether the field is there; asking makes it known."""
        self._known.append(name)
        return name in self._node.items

    def line(self, name: str) -> int:
        """Return the line of a field that is there, counted from 1."""
        return self._node.lines[name]

    def label(self, name: str) -> str:
        """Return a field's whole name, such as ``clusters[0].count``."""
        return f"{self._prefix}.{name}" if self._prefix else name

    def text(self, name: str, *, pattern: str | None = None, rule: str | None = None) -> str:
        """Return a text of 1 to 500 printable characters that matches *pattern*, which *rule* says in words."""
        node = self._take(name)
        expected = rule or f"1 to {MAX_TEXT} printable characters"
        if not isinstance(node, _Scalar):
            self._refuse(node, self.label(name), expected)
        value = " ".join(node.text.split())  # a long text may be folded over several lines
        is_number = node.is_plain and _NUMBER.fullmatch(value) is not None
        is_fit = pattern is None or re.fullmatch(pattern, value) is not None
        if is_number or not is_fit or not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
            self._refuse(node, self.label(name), expected)
        return value

    def scalar(self, name: str) -> str:
        """Return a number or a text of 1 to 500 printable characters as it stands in the file."""
        node = self._take(name)
        if not isinstance(node, _Scalar) or not 1 <= len(node.text) <= MAX_TEXT or not node.text.isprintable():
            self._refuse(node, self.label(name), f"one value of 1 to {MAX_TEXT} printable characters")
        return node.text

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """Return one of several texts."""
        return self.text(name, pattern="|".join(map(re.escape, allowed)), rule=f"one of {', '.join(allowed)}")

    def number(self, name: str, low: float, high: float, *, is_whole: bool = False) -> float:
        """Return a number within bounds."""
        node = self._take(name)
        expected = f"{'a whole' if is_whole else 'a'} number from {low:g} to {high:g}"
        if not isinstance(node, _Scalar) or not node.is_plain or _NUMBER.fullmatch(node.text) is None:
            self._refuse(node, self.label(name), expected)
        value = float(node.text)
        if not low <= value <= high or (is_whole and not value.is_integer()):
            self._refuse(node, self.label(name), expected)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of 1 to 64 texts of 3 to 100 printable characters."""
        found: list[str] = []
        for label, item in self._items(name, "texts"):
            if not isinstance(item, _Scalar) or not 3 <= len(item.text) <= 100 or not item.text.isprintable():
                self._refuse(item, label, "3 to 100 printable characters")
            found.append(item.text)
        return tuple(found)

    def fields(self, name: str) -> Fields:
        """Return a mapping."""
        return Fields(self._path, self._take(name), self.label(name))

    def lists(self, name: str) -> tuple[Fields, ...]:
        """Return a list of 1 to 64 mappings."""
        return tuple(Fields(self._path, item, label) for label, item in self._items(name, "groups of fields"))

    def fail(self, line: int, label: str, message: str) -> NoReturn:
        """Raise ConfigError about a field."""
        raise ConfigError(f"{self._path}:{line}: {label}: {message}")

    def _take(self, name: str) -> _Node:
        if not self.has(name):
            self.fail(self._node.line, self.label(name), "missing; it is required")
        return self._node.items[name]

    def _items(self, name: str, what: str) -> list[tuple[str, _Node]]:
        node = self._take(name)
        if not isinstance(node, _Sequence) or not 1 <= len(node.items) <= MAX_ITEMS:
            self._refuse(node, self.label(name), f"a list of 1 to {MAX_ITEMS} {what}")
        return [(f"{self.label(name)}[{index}]", item) for index, item in enumerate(node.items)]

    def _refuse(self, node: _Node, label: str, expected: str) -> NoReturn:
        self.fail(node.line, label, f"found {_described(node)}; expected {expected}")


class _Builder:
    """Turns the parser's events into nodes, as deep as a sound file may be and no deeper."""

    def __init__(self, path: Path, events: Iterator[yaml.Event]) -> None:
        self._path = path
        self._events = events

    def document(self) -> _Node:
        """Return the only document's node."""
        root: _Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                self._refuse(event, "a second document; expected one")
            if isinstance(event, yaml.NodeEvent):
                root = self._node(event, 1)
        return root if root is not None else _Scalar(1, "", is_plain=True)

    def _node(self, event: yaml.NodeEvent, depth: int) -> _Node:
        line = _line(event)
        if event.anchor is not None:  # an alias has one too
            self._refuse(event, "an anchor or alias; write the value out")
        if depth > MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            self._refuse(event, f"the tag {event.tag[:40]!r}; expected none")
        if isinstance(event, yaml.ScalarEvent):
            return _Scalar(line, event.value, is_plain=event.style in (None, ""))
        if isinstance(event, yaml.SequenceStartEvent):
            return _Sequence(line, tuple(self._node(child, depth + 1) for child in self._children()))
        items: dict[str, _Node] = {}
        lines: dict[str, int] = {}
        for key in self._children():
            name = self._node(key, depth + 1)
            if not isinstance(name, _Scalar):
                self._refuse(key, "a key that is not text")
            if name.text in items:
                self._refuse(key, f"the field {name.text[:40]!r} again; line {lines[name.text]} has it already")
            lines[name.text] = name.line
            items[name.text] = self._node(next(self._children()), depth + 1)
        return _Mapping(line, items, lines)

    def _children(self) -> Iterator[yaml.NodeEvent]:
        for event in self._events:
            if not isinstance(event, yaml.NodeEvent):
                return
            yield event

    def _refuse(self, event: yaml.Event, found: str) -> NoReturn:
        raise ConfigError(f"{self._path}:{_line(event)}: found {found}")


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None  # the parser gives every event one
    return event.start_mark.line + 1


def _described(node: _Node) -> str:
    if isinstance(node, _Mapping):
        return "fields"
    if isinstance(node, _Sequence):
        return f"a list of {len(node.items)}"
    text = node.text if len(node.text) <= 40 else f"{node.text[:37]}..."
    return repr(text) if text else "nothing"
