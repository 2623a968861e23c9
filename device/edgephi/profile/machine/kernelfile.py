"""
Reading the small text files of /proc and /sys, any of which may be absent, unreadable or absurd.

Owns no path. Every function answers None, or nothing, where a file says nothing usable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

MAX_FILE_BYTES = 4 << 20
MAX_CPUS = 4096
# Larger numbers of bytes are absurd: what version 1 of control groups writes for "no limit", or a broken file.
MAX_MEMORY_BYTES = 1 << 50
MAX_NAME = 128


def read_text(path: Path) -> str | None:
    """Return a file's text without surrounding white space and NULs, or None; at most the first 4 MiB."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES)
    except (OSError, ValueError):  # ValueError: a name that was read elsewhere and holds a NUL
        return None
    return data.decode("utf-8", errors="replace").strip("\0 \t\r\n") or None


def read_name(path: Path) -> str | None:
    """Return the one line of printable UTF-8 a file holds, such as the name of a board, or None."""
    text = read_text(path)
    return text if text is not None and is_name(text) else None


def is_name(text: str) -> bool:
    """Return whether a text that was read can be shown to people as a name; U+FFFD stands for broken UTF-8."""
    return len(text) <= MAX_NAME and text.isprintable() and "\ufffd" not in text


def list_folder(path: Path, prefix: str = "") -> tuple[Path, ...]:
    """Return what lies in a folder and starts with ``prefix``, ``cpu2`` before ``cpu10``; empty where unreadable."""
    try:
        found = [entry for entry in path.iterdir() if entry.name.startswith(prefix)]
    except (OSError, ValueError):
        return ()
    return tuple(sorted(found, key=lambda entry: (len(entry.name), entry.name)))


def is_there(path: Path) -> bool:
    """Return whether a file or folder exists and may be looked at."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_counts(path: Path) -> Mapping[str, int]:
    """Return the ``name number`` lines of a file by name; lines with anything but a number from 0 are left out."""
    found: dict[str, int] = {}
    for line in (read_text(path) or "").splitlines():
        name, _, value = line.partition(" ")
        number = parse_int(value)
        if number is not None and number >= 0:
            found.setdefault(name, number)
    return found


def read_int(path: Path) -> int | None:
    """Return the single decimal integer a file holds, or None."""
    text = read_text(path)
    return parse_int(text) if text is not None else None


def parse_int(text: str) -> int | None:
    """Return the decimal integer of at most 20 digits that ``text`` is, or None."""
    text = text.strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else None


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Return the CPUs of a kernel list such as ``0-3,6``, ascending; empty where any part is malformed."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        if match is None:
            return ()
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= MAX_CPUS or first > last:
            return ()
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def parse_hex(text: str) -> int | None:
    """Return the hexadecimal number of at most 16 digits that ``text`` is, with or without ``0x``, or None."""
    match = re.fullmatch(r"\s*(?:0[xX])?([0-9a-fA-F]{1,16})\s*", text)
    return int(match[1], 16) if match else None


def sane_bytes(number: int | None) -> int | None:
    """Return a number of bytes that a machine can have, from 0 up, or None."""
    return number if number is not None and 0 <= number < MAX_MEMORY_BYTES else None


def parse_fields(text: str) -> dict[str, str]:
    """Return ``name: value`` lines by name; the first of several wins."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            found.setdefault(name.strip(), value.strip())
    return found


def parse_kib(value: str | None) -> int | None:
    """Return the bytes of a value such as ``16384 kB``, or None where it is malformed or absurd."""
    if value is None:
        return None
    number, _, unit = value.partition(" ")
    kib = parse_int(number)
    return sane_bytes(kib * 1024) if kib is not None and unit.strip() == "kB" else None
