"""
Reading the small text files of /proc and /sys, any of which may be absent, unreadable or absurd.

Owns no path. Every function answers None, or nothing, where a file says nothing usable.
"""

from __future__ import annotations

import re
from pathlib import Path

MAX_FILE_BYTES = 4 << 20
MAX_CPUS = 4096


def read_text(path: Path) -> str | None:
    """Return a file's text without surrounding white space and NULs, or None; at most the first 4 MiB."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES)
    except OSError:
        return None
    return data.decode("utf-8", errors="replace").strip("\0 \t\r\n") or None


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


def parse_fields(text: str) -> dict[str, str]:
    """Return ``name: value`` lines by name; the first of several wins."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            found.setdefault(name.strip(), value.strip())
    return found


def parse_kib(value: str | None) -> int | None:
    """Return the bytes of a value such as ``16384 kB``, or None."""
    if value is None:
        return None
    number, _, unit = value.partition(" ")
    kib = parse_int(number)
    return kib * 1024 if kib is not None and kib >= 0 and unit.strip() == "kB" else None
