"""
The machine's memory: RAM, and what only looks like it.

Owns swap and zram as facts, so that nobody counts them as memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgephi.profile.machine.kernelfile import parse_fields, parse_int, parse_kib, read_text, sane_bytes


@dataclass(frozen=True, slots=True)
class SwapDevice:
    """
    Where the kernel may put pages that it takes from RAM.

    Attributes:
        name: The device or file.
        is_zram: It is compressed RAM rather than a disk.
        size_bytes: What it can hold.
        used_bytes: What it holds.
        ram_bytes: RAM that its compressed contents take, for zram; None where not told.
    """

    name: str
    is_zram: bool
    size_bytes: int
    used_bytes: int
    ram_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """
    Memory in bytes; None where not told.

    Attributes:
        total_bytes: What the kernel manages.
        available_bytes: What can be had without swapping.
        process_bytes: RAM that only this process uses and that no file backs.
        swap_total_bytes: Swap space of all kinds; it is no memory to plan with.
        swap_free_bytes: What of it is unused.
        swaps: Where it is.
        huge_pages: ``always``, ``madvise`` or ``never``: when the kernel uses large pages by itself.
    """

    total_bytes: int | None
    available_bytes: int | None
    process_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_free_bytes: int | None = None
    swaps: tuple[SwapDevice, ...] = ()
    huge_pages: str | None = None


def read_memory(root: Path) -> MemoryFacts:
    """Read the machine's memory and this process's part of it."""
    fields = parse_fields(read_text(root / "proc/meminfo") or "")
    total, available = parse_kib(fields.get("MemTotal")), parse_kib(fields.get("MemAvailable"))
    if total is not None and available is not None and available > total:
        available = None  # one of the two is wrong, and nothing says which
    modes = re.search(
        r"\[(always|madvise|never)\]", read_text(root / "sys/kernel/mm/transparent_hugepage/enabled") or ""
    )
    return MemoryFacts(
        total_bytes=total or None,
        available_bytes=available,
        process_bytes=_process_bytes(root),
        swap_total_bytes=parse_kib(fields.get("SwapTotal")),
        swap_free_bytes=parse_kib(fields.get("SwapFree")),
        swaps=_swaps(root),
        huge_pages=modes[1] if modes else None,
    )


def _process_bytes(root: Path) -> int | None:
    fields = parse_fields(read_text(root / "proc/self/status") or "")
    anonymous, shared = parse_kib(fields.get("RssAnon")), parse_kib(fields.get("RssShmem"))
    return anonymous + (shared or 0) if anonymous is not None else None


def _swaps(root: Path) -> tuple[SwapDevice, ...]:
    found: list[SwapDevice] = []
    for line in (read_text(root / "proc/swaps") or "").splitlines()[1:]:
        words = line.split()
        if len(words) != 5:
            continue
        size, used = (parse_kib(f"{word} kB") for word in words[2:4])
        if size is not None and used is not None and used <= size:
            name = PurePosixPath(words[0]).name
            is_zram = re.fullmatch(r"zram[0-9]{1,3}", name) is not None
            ram = _zram_bytes(root / "sys/block" / name) if is_zram else None
            found.append(SwapDevice(words[0], is_zram, size, used, ram))
    return tuple(found)


def _zram_bytes(folder: Path) -> int | None:
    """Return mem_used_total, the third number of mm_stat."""
    words = (read_text(folder / "mm_stat") or "").split()
    return sane_bytes(parse_int(words[2])) if len(words) >= 3 else None
