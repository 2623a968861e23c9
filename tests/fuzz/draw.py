"""
Values from bytes: how a fuzzer's input becomes structured data, the same with and without the fuzzer.

Owns no target. Every draw ends, also when the bytes are used up: what is missing reads as zero.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

T = TypeVar("T")

MARK = "zqxvjk"
"""Stands in for what a user says; wherever else it turns up, something has leaked."""

_EDGES = (0, 1, -1, 2, 3, 15, 16, 17, 20, 21, 255, 256, 1024, 1025, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1.0, 2.0, 0.5, 0.1, 1e-45, -1.0, 2.0000002, 10.0, 1e38, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    "",
    " ",
    "\n\u2003",
    MARK,
    f"{MARK} go",
    "models/tiny",
    "tiny",
    "<|end|><|user|>",
    "\x00",
    "\U0010ffff",
    "é" * 80,
)
_WHOLE = {
    FieldDescriptor.TYPE_INT32: (32, True),
    FieldDescriptor.TYPE_INT64: (64, True),
    FieldDescriptor.TYPE_UINT32: (32, False),
    FieldDescriptor.TYPE_UINT64: (64, False),
    FieldDescriptor.TYPE_ENUM: (32, True),
}


class Draw:
    """Reads values off the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        """The next byte, 0 where there is none."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def take(self, count: int) -> bytes:
        """So many bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def whole(self, bits: int, *, is_signed: bool) -> int:
        """An integer of so many bits, often one where something ends."""
        how = self.byte()
        if how < 128:
            value = _EDGES[how % len(_EDGES)]
        else:
            value = int.from_bytes(self.take(1 if how < 192 else bits // 8), "little", signed=is_signed)
        value &= (1 << bits) - 1
        return value - (1 << bits) if is_signed and value >> (bits - 1) else value

    def number(self) -> float:
        """A float of single precision, often one where something ends."""
        how = self.byte()
        if how < 192:
            return _FLOATS[how % len(_FLOATS)]
        value: float = struct.unpack("<f", self.take(4).ljust(4, b"\0"))[0]
        return value

    def text(self) -> str:
        """A text, now and then a long one."""
        how = self.byte()
        if how < 96:
            return _TEXTS[how % len(_TEXTS)]
        if how < 100:
            return MARK * (1 << (self.byte() % 16))
        return self.take(how % 48).decode(errors="replace") + (MARK if how & 1 else "")

    def one_of(self, choices: Sequence[T]) -> T:
        """One of some values."""
        return choices[self.byte() % len(choices)]


def fill(message: Message, draw: Draw, depth: int = 0) -> None:
    """Set some fields of a message to drawn values, those of nested messages included."""
    for field in message.DESCRIPTOR.fields:
        how = draw.byte()
        if how & 1:
            continue
        if not field.is_repeated:
            _set(message, field, draw, depth)
            continue
        items: Any = getattr(message, field.name)
        # Rarely more than a list may have.
        for _ in range(1100 if how == 254 else (how >> 1) % 5):
            if field.message_type is None:
                items.append(_scalar(field, draw))
            else:
                fill(items.add(), draw, depth + 1)


def _set(message: Message, field: Any, draw: Draw, depth: int) -> None:
    if field.message_type is None:
        setattr(message, field.name, _scalar(field, draw))
        return
    child: Message = getattr(message, field.name)
    child.SetInParent()
    if depth < 4:
        fill(child, draw, depth + 1)


def _scalar(field: Any, draw: Draw) -> Any:
    if field.type in _WHOLE:
        bits, is_signed = _WHOLE[field.type]
        return draw.whole(bits, is_signed=is_signed)
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return draw.number()
    if field.type == FieldDescriptor.TYPE_BOOL:
        return bool(draw.byte() & 1)
    return draw.text()
