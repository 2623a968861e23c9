"""A small tokenizer with the structure of Phi-3's: Llama-style BPE with byte fallback and the same control tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, trainers

from edgephi.text.tokenizer import Tokenizer

CORPUS = (
    "The robot moves to the left and stops at the door. The robot sees a red box on the table.",
    "Stop! What is the temperature of the hub? The hub reports 21.5 degrees; the door is open.",
    "Die Tür ist offen. Où est le robot? Der Roboter fährt zur Tür, il ouvre la porte.",
    "def move(speed: float) -> None:\n    robot.speed = speed\n\nend user system assistant <s> </s> <|end|>",
)
# As Phi-3's file has them: </s> is an added token but not special, and <s> does not strip what follows.
ADDED_TOKENS = (
    ("<unk>", False, True),
    ("<s>", False, True),
    ("</s>", True, False),
    ("<|endoftext|>", False, True),
    ("<|assistant|>", True, True),
    ("<|system|>", True, True),
    ("<|end|>", True, True),
    ("<|user|>", True, True),
)


@pytest.fixture(scope="session")
def tokenizer_json() -> dict[str, Any]:
    """The parsed content of a tokenizer.json; change a copy only."""
    names = [name for name, _, _ in ADDED_TOKENS]
    byte_pieces = [f"<0x{value:02X}>" for value in range(256)]
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, special_tokens=[*names[:3], *byte_pieces], max_token_length=8
    )
    # Word by word: as in Llama's vocabulary, no piece spans two words.
    trained.train_from_iterator((word for text in CORPUS for word in text.split()), trainer)
    content: dict[str, Any] = json.loads(trained.to_str())
    first_free_id = len(content["model"]["vocab"])
    content["added_tokens"] = [
        {
            "id": index if index < 3 else first_free_id + index - 3,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": strips_right,
            "normalized": False,
            "special": is_special,
        }
        for index, (name, strips_right, is_special) in enumerate(ADDED_TOKENS)
    ]
    return content


@pytest.fixture(scope="session")
def model_dir(tokenizer_json: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that holds a tokenizer.json."""
    path = tmp_path_factory.mktemp("model")
    (path / "tokenizer.json").write_text(json.dumps(tokenizer_json))
    return path


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Tokenizer:
    """The tokenizer under test."""
    return Tokenizer.from_model_dir(model_dir)


@pytest.fixture(scope="session")
def reference(model_dir: Path) -> Any:
    """The library's own tokenizer over the same file, which recognises control tokens in text."""
    return tokenizers.Tokenizer.from_file(str(model_dir / "tokenizer.json"))
