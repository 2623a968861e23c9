"""The server of tests/server, for tests of the client."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def _load_server_fixtures() -> ModuleType:
    # Test folders are no packages, so the sibling's fixtures are loaded from their file.
    path = Path(__file__).parents[1] / "server" / "conftest.py"
    spec = importlib.util.spec_from_file_location("server_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


_server_fixtures = _load_server_fixtures()
tokenizer_json = _server_fixtures.tokenizer_json
model_dir = _server_fixtures.model_dir
tokenizer = _server_fixtures.tokenizer
device = _server_fixtures.device
serve = _server_fixtures.serve
pki = _server_fixtures.pki
serve_in_thread = _server_fixtures.serve_in_thread
