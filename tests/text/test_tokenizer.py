from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgephi.errors import InvalidRequest, ModelInvalid, UnsupportedModel
from edgephi.text.tokenizer import Tokenizer

CONTROL_TEXTS = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
FRAGMENTS = (
    *CONTROL_TEXTS,
    "<0x41>",
    "<0x0A>",
    "<",
    "|",
    ">",
    "<|",
    "|>",
    "/s>",
    "s",
    "▁",
    " ",
    "\n",
    "é",
    "漢",
    "\x00",
)

hostile_texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=8))).map("".join)


@given(text=hostile_texts)
@settings(deadline=None)
def test_user_text_never_becomes_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    """Whatever mix of control-token texts and fragments a user sends, no control id comes out."""
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode(text))


@given(text=hostile_texts)
@settings(deadline=None)
def test_encoding_loses_nothing(tokenizer: Tokenizer, text: str) -> None:
    """Decoding an encoded text gives it back, except that the space mark itself reads as a space."""
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


@given(text=st.text())
@settings(deadline=None)
def test_ordinary_text_encodes_as_the_library_does(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    """Text without control tokens gets the ids that the library gives for the unchanged file."""
    if not any(name in text for name in CONTROL_TEXTS):
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids


def test_the_library_switch_alone_would_not_do(tokenizer: Tokenizer, model_dir: Path, reference: Any) -> None:
    """encode_special_tokens lets the added token </s> through because the file does not call it special."""
    switched = type(reference).from_file(str(model_dir / "tokenizer.json"))
    switched.encode_special_tokens = True

    assert tokenizer.special_id("</s>") in switched.encode("a</s>b", add_special_tokens=False).ids
    assert tokenizer.special_id("</s>") not in tokenizer.encode("a</s>b")


@pytest.mark.parametrize("merges_as_strings", [False, True])
def test_merges_that_spell_a_control_token_are_dropped(tokenizer_json: dict[str, Any], merges_as_strings: bool) -> None:
    """A file whose merges build </s> out of plain characters still cannot produce its id from user text."""
    hostile = copy.deepcopy(tokenizer_json)
    free_id = max(token["id"] for token in hostile["added_tokens"]) + 1
    hostile["model"]["vocab"] |= {"</": free_id, "</s": free_id + 1}
    merges = [["<", "/"], ["</", "s"], ["</s", ">"], *hostile["model"]["merges"]]
    hostile["model"]["merges"] = [" ".join(pair) for pair in merges] if merges_as_strings else merges

    ids = Tokenizer(json.dumps(hostile).encode(), source="hostile").encode("a</s>b")

    assert free_id + 1 in ids
    assert 2 not in ids


@given(ids=st.lists(st.integers(0, 600)), text=st.text())
@settings(deadline=None)
def test_decode_agrees_with_the_library_on_well_formed_text(
    tokenizer: Tokenizer, reference: Any, ids: list[int], text: str
) -> None:
    """Decoding equals the library's wherever the bytes are UTF-8; control tokens and unknown ids give nothing."""
    ids = [*tokenizer.encode(text), *ids]
    decoded = tokenizer.decode(ids)

    if "\ufffd" not in decoded:
        assert decoded == reference.decode([i for i in ids if i not in tokenizer.control_ids])


def test_bad_bytes_do_not_spoil_their_neighbours(tokenizer: Tokenizer, tokenizer_json: dict[str, Any]) -> None:
    """A stray byte beside a whole character becomes one U+FFFD and leaves the character."""
    vocab = tokenizer_json["model"]["vocab"]

    assert tokenizer.decode([vocab["<0xC3>"], vocab["<0xC3>"], vocab["<0xA9>"]]) == "\ufffdé"


def test_token_bytes(tokenizer: Tokenizer, tokenizer_json: dict[str, Any]) -> None:
    """A piece's bytes have spaces for marks, the byte of a byte piece, and nothing for control and unknown ids."""
    vocab = tokenizer_json["model"]["vocab"]

    assert tokenizer.token_bytes(vocab["▁robot"]) == b" robot"
    assert tokenizer.token_bytes(vocab["<0xE6>"]) == b"\xe6"
    assert [tokenizer.token_bytes(i) for i in tokenizer.control_ids] == [b""] * len(CONTROL_TEXTS)
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""


def test_vocab_size_covers_every_id(tokenizer: Tokenizer, reference: Any) -> None:
    """The vocabulary ends after the highest added token."""
    assert tokenizer.vocab_size == reference.get_vocab_size(with_added_tokens=True)
    assert tokenizer.vocab_size == tokenizer.special_id("<|user|>") + 1


def test_special_id_names_what_is_missing(tokenizer: Tokenizer) -> None:
    """Asking for an absent control token, or for an ordinary piece, says which ones there are."""
    assert tokenizer.special_id("<s>") == 1
    with pytest.raises(ModelInvalid, match=r"no control token '<\|tool\|>'.*<\|user\|>"):
        tokenizer.special_id("<|tool|>")
    with pytest.raises(ModelInvalid):
        tokenizer.special_id("▁robot")


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    """Text that no UTF-8 can carry names its field and the character's index."""
    with pytest.raises(InvalidRequest, match=r"prompt: character 2 is a lone surrogate"):
        tokenizer.encode("ab\ud800", field="prompt")


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    """A folder without tokenizer.json names the file."""
    with pytest.raises(ModelInvalid, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.from_model_dir(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"model": {"type": "BPE", "vocab": {"a": -1}}}']
)
def test_a_damaged_file_is_a_model_error(content: bytes) -> None:
    """What is not JSON, or not a tokenizer, raises ModelInvalid with the source."""
    with pytest.raises(ModelInvalid, match=r"^here: not a tokenizer\.json"):
        Tokenizer(content, source="here")


def test_faults_only_the_library_sees_are_model_errors(tokenizer_json: dict[str, Any]) -> None:
    """A merge of pieces that are not in the vocabulary raises ModelInvalid, not the library's bare Exception."""
    damaged = copy.deepcopy(tokenizer_json)
    damaged["model"]["merges"].append(["no", "such"])

    with pytest.raises(ModelInvalid, match="not a usable tokenizer"):
        Tokenizer(json.dumps(damaged).encode(), source="here")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.type", "WordPiece"),
        ("model.byte_fallback", False),
        ("decoder", None),
        ("decoder", {"type": "ByteLevel"}),
        ("decoder.decoders.2", {"type": "ByteFallback"}),
        ("decoder.decoders.0.content", "_"),
        ("decoder.decoders.3.stop", 1),
        ("decoder.decoders.3.content", "x"),
    ],
)
def test_other_styles_are_refused(tokenizer_json: dict[str, Any], path: str, value: object) -> None:
    """A tokenizer whose text we would decode wrongly is refused at load, not misread later."""
    changed = copy.deepcopy(tokenizer_json)
    *parents, last = path.split(".")
    target: Any = changed
    for key in parents:
        target = target[int(key)] if key.isdigit() else target[key]
    target[int(last) if last.isdigit() else last] = value

    with pytest.raises(UnsupportedModel, match=r"^here: "):
        Tokenizer(json.dumps(changed).encode(), source="here")


def test_missing_byte_pieces_are_refused(tokenizer_json: dict[str, Any]) -> None:
    """Without all 256 byte pieces some text would become the unknown token, a control id."""
    changed = copy.deepcopy(tokenizer_json)
    del changed["model"]["vocab"]["<0xFF>"]

    with pytest.raises(UnsupportedModel, match="1 of 256 byte pieces missing"):
        Tokenizer(json.dumps(changed).encode(), source="here")
