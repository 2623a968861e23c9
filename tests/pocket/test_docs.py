from __future__ import annotations

from pathlib import Path

import pytest

from edgephi.pocket.reference import Reference
from edgephi.pocket.schema import schema_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "pocket-model.md"


def test_the_documented_table_is_the_schema() -> None:
    """The table of intents in the documentation is exactly the one the schema writes."""
    assert schema_table() in DOCUMENT.read_text(encoding="utf-8")


def _shown() -> list[tuple[str, str]]:
    blocks = DOCUMENT.read_text(encoding="utf-8").split("```")
    pairs = [line.split("{", 1) for line in blocks[1].strip().splitlines()]
    return [(text.strip(), "{" + answer) for text, answer in pairs]


@pytest.mark.parametrize(("text", "answer"), _shown())
def test_the_documented_commands_work(reference: Reference, text: str, answer: str) -> None:
    """Every command the documentation shows is answered as it shows it."""
    assert reference.answer(text) == answer
