"""
Folders and files that appear whole or not at all, also when power is cut.

Owns the temporary sibling, the flush to disk and the rename. Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgephi.errors import ConfigError


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """
    Give a temporary sibling of ``out`` to write into; it becomes ``out`` when the block ends without an error.

    On an error the sibling is removed and ``out`` is as it was. Parents are created.

    Args:
        out: The folder to make.
        force: Replace it if it exists.

    Raises:
        ConfigError: If ``out`` exists and ``force`` is false, or the parent cannot be written.
    """
    check_absent(out, force=force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # The dot keeps a leftover of a killed process out of every listing of models.
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"{out.parent} cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield staging
        staging.chmod(0o755)  # mkdtemp's 0700 would hide the model from a service account
        replace_folder(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def check_absent(out: Path, *, force: bool) -> None:
    """
    Refuse to overwrite.

    Raises:
        ConfigError: If ``out`` exists and ``force`` is false.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; choose another folder, or force to replace it")


def replace_folder(staging: Path, out: Path) -> None:
    """Flush every file under ``staging`` to disk, then rename it to ``out``, replacing what was there."""
    for path in sorted(staging.rglob("*")):
        flush(path)
    flush(staging)
    if out.exists():
        # A folder with files in it cannot be renamed over: move the old one aside first.
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
        out.rename(aside / out.name)
        try:
            staging.rename(out)
        except OSError:
            (aside / out.name).rename(out)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    else:
        staging.rename(out)
    flush(out.parent)


def flush(path: Path) -> None:
    """Flush one file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
