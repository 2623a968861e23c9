from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgephi.text.detokenizer import StreamingDetokenizer
from edgephi.text.tokenizer import Tokenizer


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Every piece the detokenizer returns for an answer."""
    detokenizer = StreamingDetokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@given(ids=st.lists(st.one_of(st.integers(0, 500), st.integers(3, 258))))
@settings(deadline=None, max_examples=300)
def test_the_pieces_join_to_the_whole_decode(tokenizer: Tokenizer, ids: list[int]) -> None:
    """For any ids, broken UTF-8 among them, the streamed pieces equal the decode of all."""
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@given(text=st.text())
@settings(deadline=None)
def test_real_text_streams_without_half_characters(tokenizer: Tokenizer, text: str) -> None:
    """For the ids of a text, the pieces join to that text, and no replacement character appears on the way."""
    text = text.replace("▁", "").replace("\ufffd", "")

    pieces = stream(tokenizer, tokenizer.encode(text))

    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_a_character_is_emitted_when_its_last_byte_is_there(
    tokenizer: Tokenizer, tokenizer_json: dict[str, Any]
) -> None:
    """A three-byte character comes out whole with its third byte; until then it is held."""
    vocab = tokenizer_json["model"]["vocab"]
    detokenizer = StreamingDetokenizer(tokenizer)

    assert detokenizer.push(vocab["<0xE6>"]) == ""
    assert detokenizer.push(vocab["<0xBC>"]) == ""
    assert detokenizer.has_partial_character
    assert detokenizer.push(vocab["<0xA2>"]) == "漢"
    assert not detokenizer.has_partial_character


def test_an_answer_cut_within_a_character_ends_in_a_replacement(
    tokenizer: Tokenizer, tokenizer_json: dict[str, Any]
) -> None:
    """Flushing half a character gives U+FFFD."""
    detokenizer = StreamingDetokenizer(tokenizer)

    assert detokenizer.push(tokenizer_json["model"]["vocab"]["<0xC3>"]) == ""
    assert detokenizer.flush() == "\ufffd"


@pytest.mark.parametrize(("continues_text", "expected"), [(False, "robot robot"), (True, " robot robot")])
def test_only_the_first_space_is_stripped(
    tokenizer: Tokenizer, tokenizer_json: dict[str, Any], continues_text: bool, expected: str
) -> None:
    """The space the normalizer puts before a text is removed once, and kept where the answer continues a text."""
    robot = tokenizer_json["model"]["vocab"]["▁robot"]
    detokenizer = StreamingDetokenizer(tokenizer, continues_text=continues_text)

    assert detokenizer.push(tokenizer.special_id("<s>")) == ""
    assert detokenizer.push(robot) + detokenizer.push(robot) == expected
