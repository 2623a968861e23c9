"""Keep the tests out of the user's own folders: compiled models go to ``build/``, where the next run finds them."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import settings

# How long an example takes says something of the machine, not of the code.
settings.register_profile("edgephi", deadline=None)
settings.load_profile("edgephi")

_BUILD = Path(__file__).resolve().parents[1] / "build"

# At import, before any test or child process asks where the cache is.
os.environ["XDG_CACHE_HOME"] = str(_BUILD / "test-cache")
# Serving sets this for itself; tests of kernels may import TVM first.
os.environ["TVM_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
os.environ["EDGEPHI_MODELS"] = str(_BUILD / "test-models")
# An empty file: nobody's own configuration counts in tests.
os.environ["EDGEPHI_CONFIG"] = os.devnull
