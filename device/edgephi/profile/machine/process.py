"""Memory of one process, as the kernel counts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgephi.profile.machine.kernelfile import parse_fields, parse_kib, read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Memory of one process in RAM, now and at most, in bytes; None where it is not told."""

    resident_bytes: int | None
    peak_bytes: int | None


def read_process_memory(process_id: int | None, root: Path = Path("/")) -> ProcessMemory:
    """
    Read the memory of a process, which may have ended: then nothing is told.

    Args:
        process_id: The process; None for this one.
        root: Folder that holds ``proc``.
    """
    folder = "self" if process_id is None else str(process_id)
    status = parse_fields(read_text(root / "proc" / folder / "status") or "")
    return ProcessMemory(resident_bytes=parse_kib(status.get("VmRSS")), peak_bytes=parse_kib(status.get("VmHWM")))
