"""Shared by the tests of edgephi-pocket: the packaged model, read once."""

from __future__ import annotations

import pytest

from edgephi.pocket import model_dir
from edgephi.pocket.reference import Reference


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The packaged model in NumPy."""
    return Reference(model_dir())
