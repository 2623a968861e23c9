"""
Files that only their owner may read, and that appear whole or not at all.

Owns modes, the temporary sibling and the rename. Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgephi.errors import ConfigError

PRIVATE = 0o600
PUBLIC = 0o644

FileState = tuple[int, int, int] | None
"""What changes when a file does: its number, size and time of change; None where there is no file."""


def write_file(path: Path, data: bytes, *, mode: int = PRIVATE) -> None:
    """
    Write a file beside its place and rename it there, flushed to disk; folders that are missing are made private.

    What root writes gets the owner of what it replaces, or else of its folder, so that a service account can read what
    an administrator wrote for it.

    Raises:
        ConfigError: If it cannot be written.
    """
    try:
        make_folder(path.parent)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        staging = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                _give(staging, like=path if path.exists() else path.parent)
                file.flush()
                os.fsync(file.fileno())
            staging.rename(path)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); choose another folder") from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing; only their owner, that of the one above, may enter."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            _give(folder, like=folder.parent)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Let one process at a time into the block, of those that ask for the same folder; it is made if missing."""
    import fcntl

    try:
        make_folder(folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used ({error.strerror}); choose another folder") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def state_of(path: Path) -> FileState:
    """Return what tells a changed file from an unchanged one; cheap."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _give(path: Path, *, like: Path) -> None:
    if os.geteuid() == 0:
        owner = like.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
