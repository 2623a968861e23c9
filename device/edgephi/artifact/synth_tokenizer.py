"""
A tokenizer of Phi-3's exact shape with made-up pieces, for models of random weights.

Owns the pieces and their merges: letters, common English words letter by letter, then syllables. Nothing is taken
from a published vocabulary except the special tokens' names and their order.

    0..2     <unk> <s> </s>
    3..258   <0x00> to <0xFF>, for text that no piece covers
    259..    pieces, up to vocab_size - 64
    +0..+10  <|endoftext|> <|assistant|> <|placeholder1..4|> <|system|> <|end|> <|placeholder5..6|> <|user|>
    rest     unused
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgephi.errors import ConfigError

NUM_RESERVED = 64  # Phi-3: 32,064 rows of embedding, 32,000 base entries
NUM_CONTROL = 3
NUM_BYTES = 256
SPACE = "▁"

# (name, strips whitespace to its right). Source: microsoft/Phi-3-mini-4k-instruct, tokenizer.json.
ADDED_TOKENS: tuple[tuple[str, bool], ...] = (
    ("<|endoftext|>", False),
    ("<|assistant|>", True),
    ("<|placeholder1|>", True),
    ("<|placeholder2|>", True),
    ("<|placeholder3|>", True),
    ("<|placeholder4|>", True),
    ("<|system|>", True),
    ("<|end|>", True),
    ("<|placeholder5|>", True),
    ("<|placeholder6|>", True),
    ("<|user|>", True),
)
_WORDS = (
    "the of and to in is a that it for on with as was be by are this at from or an have not you which one all can "
    "there will if more when what about out up into time robot arm move left right open close stop start sensor "
    "temperature light door answer question model token hello name json true false null number value please"
)
_CONSONANTS = "tnsrlhdcmpfgwbvkyjxzq"
_VOWELS = "eaiou"


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """
    Where the tokens that matter to a chat are in a synthetic vocabulary.

    Attributes:
        bos: ``<s>``.
        end_of_text: ``<|endoftext|>``, also the padding.
        assistant: ``<|assistant|>``.
        end: ``<|end|>``.
    """

    bos: int
    end_of_text: int
    assistant: int
    end: int


def special_ids(vocab_size: int) -> SpecialIds:
    """Return the special tokens' ids in a vocabulary of that many rows; Phi-3's own for 32,064."""
    base = vocab_size - NUM_RESERVED
    names = [name for name, _ in ADDED_TOKENS]
    return SpecialIds(
        bos=1,
        end_of_text=base + names.index("<|endoftext|>"),
        assistant=base + names.index("<|assistant|>"),
        end=base + names.index("<|end|>"),
    )


def write_tokenizer(model_dir: Path, vocab_size: int, *, max_tokens: int) -> None:
    """
    Write ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
        model_dir: Existing folder.
        vocab_size: Rows of the embedding; the last 64 are for the special tokens.
        max_tokens: Longest sequence of the model, for ``tokenizer_config.json``.

    Raises:
        ConfigError: If the vocabulary is too small for the byte tokens, the letters and the special tokens.
    """
    base = vocab_size - NUM_RESERVED
    pieces, merges = _pieces(base - NUM_CONTROL - NUM_BYTES)
    control = ["<unk>", "<s>", "</s>"]
    names = [*control, *(f"<0x{byte:02X}>" for byte in range(NUM_BYTES)), *pieces]
    added = [_added(index, name, is_stripping=False) for index, name in enumerate(control)]
    added += [_added(base + index, name, is_stripping=strips) for index, (name, strips) in enumerate(ADDED_TOKENS)]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {name: index for index, name in enumerate(names)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        },
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "legacy": False,
        "model_max_length": max_tokens,
        "tokenizer_class": "LlamaTokenizer",
    }
    _write(model_dir / "tokenizer.json", tokenizer)
    _write(model_dir / "tokenizer_config.json", config)


def _pieces(count: int) -> tuple[list[str], list[tuple[str, str]]]:
    """
    Return ``count`` pieces and the merges that make them, most preferred first.

    Every piece of two or more characters joins two pieces listed before it, so byte-pair encoding can reach it.
    """
    letters = [SPACE, *(chr(code) for code in range(0x21, 0x7F))]
    if count < len(letters):
        low = len(letters) + NUM_CONTROL + NUM_BYTES + NUM_RESERVED
        raise ConfigError(f"vocab_size is {count + low - len(letters)}; a synthetic tokenizer needs at least {low}")
    known = dict.fromkeys(letters)
    merges: list[tuple[str, str]] = []
    for left, right in _candidates():
        if len(known) == count:
            break
        piece = left + right
        if piece not in known and left in known and right in known:
            known[piece] = None
            merges.append((left, right))
    if len(known) < count:
        raise ConfigError(f"a synthetic tokenizer has at most {len(known)} pieces; {count} were asked for")
    return list(known), merges


def _candidates() -> Iterator[tuple[str, str]]:
    """Yield pairs to merge: words letter by letter, then syllables, then pairs of syllables."""
    for word in _WORDS.split():
        spelled = SPACE + word
        for end in range(1, len(spelled)):
            yield spelled[:end], spelled[end]
    open_syllables = [consonant + vowel for consonant, vowel in itertools.product(_CONSONANTS, _VOWELS)]
    for syllable in open_syllables:
        yield syllable[0], syllable[1]
        yield SPACE, syllable
    closed = list(itertools.product(open_syllables, _CONSONANTS))
    for syllable, consonant in closed:
        yield syllable, consonant
        yield SPACE + syllable, consonant
    for first, second in itertools.product(open_syllables, open_syllables):
        yield first, second
        yield SPACE + first, second
    for first, (second, consonant) in itertools.product(open_syllables, closed):
        yield first, second + consonant


def _added(token_id: int, name: str, *, is_stripping: bool) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": is_stripping,
        "normalized": False,
        "special": True,
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2), encoding="utf-8")
