"""
The bound of every field of every request, in one table, and the walk that holds a message against it.

A field that is not in the table cannot be served: the walk fails on it, and a test reads the contract's descriptors
for such fields and its comments for the bounds. What only the model or the conversation decides is checked later.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from edgephi.engine import request as engine
from edgephi.errors import FieldViolation
from edgephi.text.stop_strings import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from edgephi.v1 import generation_pb2

MAX_TEXT_BYTES = 196_608
"""4,096 tokens, the longest context there is, of 48 bytes, the longest token of Phi-3. Longer text fits nowhere."""

MAX_MESSAGES = 1024
MAX_NAME_BYTES = 160
MAX_PAGE_TOKEN_BYTES = 64
MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 60.0
_NANOS = 10**9


@dataclass(frozen=True, slots=True)
class Number:
    """A number from low to high, both included unless ``above_low``; ``high`` None leaves it to the field's type."""

    low: float
    high: float | None = None
    above_low: bool = False
    unit: str = ""

    def __str__(self) -> str:
        low = _number(self.low) + self.unit
        if self.high is None:
            return f"at least {low}"
        high = _number(self.high) + self.unit
        return f"above {low} and at most {high}" if self.above_low else f"{low} to {high}"

    def problem(self, value: float) -> str | None:
        """Return what is wrong with a value; NaN and infinities are out of any bound."""
        is_low = value <= self.low if self.above_low else value < self.low
        if math.isfinite(value) and not is_low and (self.high is None or value <= self.high):
            return None
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        return f"is {shown}{self.unit}; must be {self}"


@dataclass(frozen=True, slots=True)
class Text:
    """A text from low to high, counted in bytes of UTF-8 or in characters (Unicode code points)."""

    low: int
    high: int
    unit: str = "bytes"

    def __str__(self) -> str:
        span = f"{self.low} to {self.high:,}" if self.low else f"at most {self.high:,}"
        return f"{span} {self.unit}"

    def problem(self, value: str) -> str | None:
        """Return what is wrong with a text, its length and never itself."""
        size = len(value.encode()) if self.unit == "bytes" else len(value)
        if self.low <= size <= self.high:
            return None
        return f"has {size} {self.unit}; must have {self}"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the values of an enum but its first, which means that none was given."""

    values: Sequence[str]
    numbers: frozenset[int]

    def __str__(self) -> str:
        return "required"

    def problem(self, value: int) -> str | None:
        """Return what is wrong with a number; proto3 lets any 32-bit one through."""
        if value in self.numbers:
            return None
        return f"is {value}; must be {', '.join(self.values[:-1])} or {self.values[-1]}"


@dataclass(frozen=True, slots=True)
class Seconds:
    """A google.protobuf.Duration from low to high seconds."""

    low: float
    high: float

    def __str__(self) -> str:
        return str(Number(self.low, self.high, unit=" s"))

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with a duration; one whose parts contradict each other is wrong as well."""
        seconds = value.seconds + value.nanos / _NANOS
        if not 0 <= value.nanos < _NANOS:
            return f"has {value.nanos} nanos; must be {self}, with 0 to 999,999,999 nanos"
        return Number(self.low, self.high, unit=" s").problem(seconds)


@dataclass(frozen=True, slots=True)
class Nested:
    """A message whose own fields are in the table."""

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Items:
    """A list of low to high items, each within a bound."""

    low: int
    high: int
    each: Number | Text | Choice | Nested

    def __str__(self) -> str:
        span = f"{self.low} to {self.high:,}" if self.low else f"at most {self.high:,}"
        return f"{span}, each {self.each}" if str(self.each) else span

    def problem(self, value: Sequence[Any]) -> str | None:
        """Return what is wrong with the length of a list; its items are another matter."""
        if self.low <= len(value) <= self.high:
            return None
        return f"has {len(value)} items; send {self.low} to {self.high:,}"


Bound = Number | Text | Choice | Seconds | Nested | Items

_ROLES = ("ROLE_SYSTEM", "ROLE_USER", "ROLE_ASSISTANT")
_PENALTY = Number(-engine.MAX_PENALTY, engine.MAX_PENALTY)
_NAME = Text(0, MAX_NAME_BYTES)

REQUEST_BOUNDS: Mapping[str, Bound] = MappingProxyType(
    {
        "ChatRequest.model": _NAME,
        "ChatRequest.messages": Items(1, MAX_MESSAGES, Nested()),
        "ChatRequest.sampling": Nested(),
        "CompleteRequest.model": _NAME,
        "CompleteRequest.prompt": Text(1, MAX_TEXT_BYTES),
        "CompleteRequest.sampling": Nested(),
        "CountTokensRequest.model": _NAME,
        "CountTokensRequest.chat": Nested(),
        "CountTokensRequest.prompt": Text(1, MAX_TEXT_BYTES),
        "Messages.messages": Items(1, MAX_MESSAGES, Nested()),
        "Message.role": Choice(_ROLES, frozenset(generation_pb2.Role.Value(name) for name in _ROLES)),
        "Message.content": Text(0, MAX_TEXT_BYTES),
        "SamplingParams.temperature": Number(0.0, engine.MAX_TEMPERATURE),
        "SamplingParams.top_p": Number(0.0, 1.0, above_low=True),
        "SamplingParams.top_k": Number(1, engine.MAX_TOP_K),
        "SamplingParams.min_p": Number(0.0, 1.0),
        "SamplingParams.repetition_penalty": Number(engine.MIN_REPETITION_PENALTY, engine.MAX_REPETITION_PENALTY),
        "SamplingParams.presence_penalty": _PENALTY,
        "SamplingParams.frequency_penalty": _PENALTY,
        "SamplingParams.seed": Number(0, engine.MAX_SEED),
        "SamplingParams.max_tokens": Number(1),
        "SamplingParams.stop": Items(0, MAX_STOP_STRINGS, Text(1, MAX_STOP_CHARACTERS, "characters")),
        "SamplingParams.logprobs": Number(0, engine.MAX_LOGPROBS),
        "ListModelsRequest.page_size": Number(0),
        "ListModelsRequest.page_token": Text(0, MAX_PAGE_TOKEN_BYTES),
        "GetModelRequest.name": Text(1, MAX_NAME_BYTES),
        "WatchStateRequest.interval": Seconds(MIN_INTERVAL_S, MAX_INTERVAL_S),
    }
)
"""Bounds by ``Message.field``. Presence is the contract's: an optional field that is absent is never out of bounds."""


def violations(message: Message, prefix: str = "") -> list[FieldViolation]:
    """
    Return every field of a request that is out of its bound, those of nested messages included.

    Args:
        message: A request, or a part of one.
        prefix: Path of the part within the request, with a dot at its end.
    """
    found: list[FieldViolation] = []
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        found += _field_violations(
            REQUEST_BOUNDS[f"{message.DESCRIPTOR.name}.{field.name}"], getattr(message, field.name), prefix + field.name
        )
    return found


def unbounded_fields(requests: Sequence[Descriptor], bounds: Mapping[str, Bound] = REQUEST_BOUNDS) -> list[str]:
    """Return the fields of some requests that a table of bounds does not name."""
    return sorted({field_key(field) for field in request_fields(requests)} - bounds.keys())


def request_fields(requests: Sequence[Descriptor]) -> Iterator[FieldDescriptor]:
    """Yield every field of our own that some requests hold, at any depth, once."""
    waiting, seen = list(requests), set()
    while waiting:
        descriptor = waiting.pop()
        if descriptor.full_name in seen:
            continue
        seen.add(descriptor.full_name)
        for field in descriptor.fields:
            yield field
            kind = field.message_type
            if kind is not None and kind.file.package == descriptor.file.package:
                waiting.append(kind)


def _field_violations(bound: Bound, value: Any, path: str) -> list[FieldViolation]:
    if isinstance(bound, Nested):
        return violations(value, f"{path}.")
    problem = bound.problem(value)
    if problem is not None:
        return [FieldViolation(path, problem)]
    if isinstance(bound, Items):
        return [v for index, item in enumerate(value) for v in _field_violations(bound.each, item, f"{path}[{index}]")]
    return []


def field_key(field: FieldDescriptor) -> str:
    """Return a field's name in the table of bounds: ``Message.field``."""
    message = field.containing_type
    assert message is not None, "only extensions belong to no message, and the contract has none"
    return f"{message.name}.{field.name}"


def _number(value: float) -> str:
    power = int(value) + 1
    if power > 2**31 and power.bit_count() == 1:
        return f"2^{power.bit_length() - 1} - 1"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
