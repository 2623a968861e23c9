"""The small tokenizer of tests/text, for tests that need text and engine together."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def _load_text_fixtures() -> ModuleType:
    # Test folders are no packages, so the sibling's fixtures are loaded from their file.
    path = Path(__file__).parents[1] / "text" / "conftest.py"
    spec = importlib.util.spec_from_file_location("text_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_text_fixtures = _load_text_fixtures()
tokenizer_json = _text_fixtures.tokenizer_json
model_dir = _text_fixtures.model_dir
tokenizer = _text_fixtures.tokenizer
