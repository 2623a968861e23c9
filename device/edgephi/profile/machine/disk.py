"""
Room on a disk.

Owns the question for a folder that need not exist yet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """
    The disk that a folder is on, or would be.

    Attributes:
        folder: The folder that was asked about.
        total_bytes: Size of the file system.
        free_bytes: What this user may still write.
        is_read_only: Nothing can be written there.
    """

    folder: Path
    total_bytes: int
    free_bytes: int
    is_read_only: bool


def read_disk(folder: Path) -> DiskFacts | None:
    """Return the disk of a folder, or of the nearest one above it that exists; None where none can be asked."""
    for path in (folder, *folder.parents):
        try:
            found = os.statvfs(path)
        except (OSError, ValueError):
            continue
        size = found.f_frsize
        return DiskFacts(folder, found.f_blocks * size, found.f_bavail * size, bool(found.f_flag & os.ST_RDONLY))
    return None
