"""
What a server says of the model it serves.

Owns the form of a model's name. Reads no file: whoever loads the model fills this in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgephi.errors import ConfigError

COLLECTION = "models/"
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,126}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """
    One served model; numbers are None where they are not known.

    Attributes:
        model_id: Last part of the resource name: lower-case letters, digits, ``.``, ``_`` and ``-``, at most 127.
        display_name: Name for people.
        architecture: As the model's configuration names it, such as ``phi3``.
        quantization: As MLC-LLM names it, such as ``q4f16_1``.
        context_tokens: Most tokens of prompt and answer together as it is served.
        num_parameters: Before quantization.
        max_context_tokens: Most tokens the model was made for.
        sliding_window_tokens: Attention window, None for no window.
        vocab_size: Tokens in the vocabulary.
        size_bytes: Weights on disk.
        digest: SHA-256 that identifies the weights, hexadecimal.

    Raises:
        ConfigError: If ``model_id`` is not of that form.
    """

    model_id: str
    display_name: str
    architecture: str
    quantization: str
    context_tokens: int
    num_parameters: int | None = None
    max_context_tokens: int | None = None
    sliding_window_tokens: int | None = None
    vocab_size: int | None = None
    size_bytes: int | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if _ID.fullmatch(self.model_id) is None:
            raise ConfigError(
                f"model id {self.model_id!r} must be 1 to 127 lower-case letters, digits, '.', '_' or '-', "
                "and begin with a letter or a digit"
            )

    @property
    def name(self) -> str:
        """Resource name, ``models/{model_id}``."""
        return COLLECTION + self.model_id
