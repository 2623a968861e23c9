"""
The tokenizer of a model folder, built so that user text can never become a control token.

Owns reading ``tokenizer.json`` (the Hugging Face format) and the bytes of every piece. Knows no chat
template and no engine. Llama-style files only, which is what Phi-3-mini has: BPE with byte fallback and
"▁" for a space.

Every added token counts as a control token, whether or not the file calls it special: Phi-3's ``</s>`` is
an added token that is *not* special, so the library's ``encode_special_tokens`` switch would let it
through. Instead of filtering the result, the encoder is built from a copy of the file without any of them:
no added tokens, no vocabulary entry and no merge that spells one. It holds no control id to return.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tokenizers

from edgephi.errors import FieldViolation, InvalidRequest, ModelInvalid, UnsupportedModel

TOKENIZER_FILE = "tokenizer.json"
_SPACE_MARK = "▁"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_BYTE_PIECES = tuple(f"<0x{value:02X}>" for value in range(256))
_LONG_TEXT_CHARACTERS = 4096
_DECODER_STEPS = frozenset({"Replace", "ByteFallback", "Fuse", "Strip"})

_Count = Annotated[int, msgspec.Meta(ge=0)]


class Tokenizer:
    """
    Turns text into token ids and back. Immutable after construction, so threads may share it; nothing to close.

    Attributes:
        vocab_size: Highest token id + 1. A model may have more rows of logits (Phi-3: 32,064 against 32,011);
            the ids above have no text.
        control_ids: Ids of every added token: turn markers, begin and end of text, padding, unknown.
        num_stripped_spaces: Spaces the file's decoder removes from the start of a text (Phi-3: 1), the mirror
            of the one the normalizer puts there.
        max_token_bytes: Bytes of the longest piece, so that a text of n bytes has at least n / max_token_bytes tokens.
    """

    def __init__(self, content: bytes, *, source: str) -> None:
        """
        Build from the content of a tokenizer.json.

        Args:
            content: The file's bytes.
            source: What to call it in errors.

        Raises:
            ModelInvalid: If it is not a readable tokenizer.
            UnsupportedModel: If it is a tokenizer of another style.
        """
        raw, parsed = _parse(content, source)
        self._source = source
        self._control_by_name = {token.content: token.id for token in parsed.added_tokens}
        self.num_stripped_spaces = _check_style(parsed, source)
        self._encoder = _build_encoder(raw, parsed, source)
        self.control_ids = frozenset(self._control_by_name.values())
        self._bytes_by_id = {
            token_id: _piece_bytes(piece)
            for piece, token_id in parsed.model.vocab.items()
            if token_id not in self.control_ids
        }
        self.max_token_bytes = max(map(len, self._bytes_by_id.values()))
        self.vocab_size = max((*self._bytes_by_id, *self.control_ids)) + 1

    @classmethod
    def from_model_dir(cls, path: Path) -> Tokenizer:
        """
        Read ``tokenizer.json`` of a model folder.

        Raises:
            ModelInvalid: If the file is missing or damaged.
            UnsupportedModel: If it is a tokenizer of another style.
        """
        file = path / TOKENIZER_FILE
        try:
            content = file.read_bytes()
        except OSError as error:
            message = f"{file}: cannot be read ({error.strerror}); download the model again, its folder must hold it"
            raise ModelInvalid(message) from error
        return cls(content, source=str(file))

    def encode(self, text: str, *, field: str = "text") -> list[int]:
        """
        Encode user text as plain text: no control token is recognised in it and none is added.

        Args:
            text: Any text; "<|end|>" in it is seven ordinary characters.
            field: Path to name in an error.

        Returns:
            Token ids, none of them in ``control_ids``; empty for an empty text.

        Raises:
            InvalidRequest: If the text has a lone surrogate, which no UTF-8 can carry.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            description = f"character {error.start} is a lone surrogate; send text that is valid Unicode"
            raise InvalidRequest(FieldViolation(field, description)) from error
        if len(text) < _LONG_TEXT_CHARACTERS:
            encoding = self._encoder.encode(text, add_special_tokens=False)
        else:
            # The library encodes one text with the interpreter locked and lists of texts without.
            encoding = self._encoder.encode_batch_fast([text], add_special_tokens=False)[0]
        ids: list[int] = encoding.ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """
        Decode a whole text: its pieces' bytes joined, read as UTF-8, less the leading space.

        Control tokens and ids without a piece give nothing. Bytes that are no UTF-8 become U+FFFD, one for each
        maximal ill-formed part, as Unicode recommends. The library's own decoder differs here only: one bad
        byte turns the whole run of byte pieces around it into U+FFFD, which cannot be streamed.
        """
        text = b"".join(map(self.token_bytes, ids)).decode(errors="replace")
        num_spaces = len(text) - len(text.lstrip(" "))
        return text[min(num_spaces, self.num_stripped_spaces) :]

    def token_bytes(self, token_id: int) -> bytes:
        """Return the raw UTF-8 bytes of a piece, perhaps part of a character; empty for control and unknown ids."""
        return self._bytes_by_id.get(token_id, b"")

    def special_id(self, name: str) -> int:
        """
        Return the id of a control token such as ``<|end|>``.

        Raises:
            ModelInvalid: If the tokenizer has no such control token.
        """
        try:
            return self._control_by_name[name]
        except KeyError:
            known = " ".join(sorted(self._control_by_name)) or "none"
            message = f"{self._source}: no control token {name!r} (it has: {known}); use a Phi-3 model folder"
            raise ModelInvalid(message) from None


class _AddedToken(msgspec.Struct):
    id: _Count
    content: str


class _Model(msgspec.Struct):
    type: str
    vocab: dict[str, _Count]
    merges: list[str | tuple[str, str]]
    byte_fallback: bool = False


class _DecoderStep(msgspec.Struct):
    """One step of a decoder, or a Sequence of them."""

    type: str
    decoders: list[_DecoderStep] = []
    pattern: Any = None
    content: str = " "
    start: _Count = 0
    stop: _Count = 0


class _File(msgspec.Struct):
    """What is read of a tokenizer.json; the library checks the rest."""

    model: _Model
    added_tokens: list[_AddedToken]
    decoder: _DecoderStep | None = None


class _ModelType(msgspec.Struct):
    type: str = "BPE"


class _FileType(msgspec.Struct):
    model: _ModelType


def _parse(content: bytes, source: str) -> tuple[dict[str, Any], _File]:
    try:
        raw = msgspec.json.decode(content, type=dict[str, Any])
        # The type comes first: other models' vocabularies have another shape, which is no damage.
        model_type = msgspec.convert(raw, _FileType).model.type
        if model_type != "BPE":
            raise UnsupportedModel(f"{source}: model type {model_type!r}; only 'BPE' is supported")
        raw["model"]["type"] = model_type
        return raw, msgspec.convert(raw, _File)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        message = f"{source}: not a tokenizer.json ({error}); download the model again"
        raise ModelInvalid(message) from error


def _check_style(parsed: _File, source: str) -> int:
    """Return how many leading spaces the decoder strips; refuse what is not Llama-style."""
    steps = [] if parsed.decoder is None else parsed.decoder.decoders or [parsed.decoder]
    by_type = {step.type: step for step in steps}
    if not {"Replace", "ByteFallback"} <= by_type.keys() <= _DECODER_STEPS or len(by_type) < len(steps):
        names = ", ".join(step.type for step in steps) or "none"
        wanted = ", ".join(sorted(_DECODER_STEPS))
        raise UnsupportedModel(f"{source}: decoder steps are {names}; only {wanted}, each once, are supported")
    replace, strip = by_type["Replace"], by_type.get("Strip", _DecoderStep(type="Strip"))
    if replace.pattern != {"String": _SPACE_MARK} or replace.content != " ":
        raise UnsupportedModel(f"{source}: decoder replaces {replace.pattern}; only {_SPACE_MARK!r} by a space will do")
    if strip.content != " " or strip.stop != 0:
        message = f"{source}: decoder strips {strip.content!r}, {strip.stop} at the end; only leading spaces will do"
        raise UnsupportedModel(message)
    controls = {token.content for token in parsed.added_tokens}
    missing = [piece for piece in _BYTE_PIECES if piece not in parsed.model.vocab or piece in controls]
    if missing or not parsed.model.byte_fallback:
        what = f"{len(missing)} of 256 byte pieces missing, byte_fallback {parsed.model.byte_fallback}"
        raise UnsupportedModel(f"{source}: {what}; without byte fallback some text would become an unknown token")
    return strip.start


def _build_encoder(raw: dict[str, Any], parsed: _File, source: str) -> Any:
    """Build the library's tokenizer from the file less every trace of its control tokens."""
    names = {token.content for token in parsed.added_tokens}
    ids = {token.id for token in parsed.added_tokens}
    vocab = {piece: i for piece, i in parsed.model.vocab.items() if piece not in names and i not in ids}
    dropped = parsed.model.vocab.keys() - vocab.keys()
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else merge for merge in parsed.model.merges]
    merges = [pair for pair in pairs if dropped.isdisjoint((*pair, "".join(pair)))]
    # No unknown token either: with all 256 byte pieces it is never needed.
    model = {**raw["model"], "vocab": vocab, "merges": merges, "unk_token": None}
    plain = {**raw, "model": model, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # the library raises bare Exception for every fault of a file
        raise ModelInvalid(f"{source}: not a usable tokenizer ({error}); download the model again") from error


def _piece_bytes(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace(_SPACE_MARK, " ").encode()
