"""
Token ids to text, one id at a time.

Owns the bytes of a character that is not complete yet and the leading space of the text. Knows no stop
strings and no engine.
"""

from __future__ import annotations

import codecs

from edgephi.text.tokenizer import Tokenizer


class StreamingDetokenizer:
    """
    Decodes one answer incrementally; make one per answer, nothing to close.

    The pieces returned by ``push`` and ``flush``, joined, equal ``Tokenizer.decode`` of all the ids. No piece
    ends within a character.

    Args:
        tokenizer: Gives the bytes of each id.
        continues_text: True when the prompt ended in text rather than in a control token: then the first
            space separates the answer from the prompt and stays.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues_text: bool = False) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_spaces_to_strip = 0 if continues_text else tokenizer.num_stripped_spaces

    @property
    def has_partial_character(self) -> bool:
        """Whether bytes are held that need the next token to become text."""
        return bool(self._decoder.getstate()[0])

    def push(self, token_id: int) -> str:
        """Take the next id; return the text that is now certain, perhaps none."""
        return self._strip(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def flush(self) -> str:
        """End the answer; return U+FFFD if it stopped within a character, else nothing."""
        return self._strip(self._decoder.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        while text and self._num_spaces_to_strip:
            if text[0] != " ":
                self._num_spaces_to_strip = 0
                break
            text = text[1:]
            self._num_spaces_to_strip -= 1
        return text
