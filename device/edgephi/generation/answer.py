"""
One answer in the making: tokens in, deltas out.

Owns the order of detokenizing, finding stop strings and releasing log-probabilities. Knows no engine loop and
no thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from edgephi.engine.request import TokenLogprobs, TokenSampled
from edgephi.generation.request import Delta, TokenText, TopToken
from edgephi.text.detokenizer import StreamingDetokenizer
from edgephi.text.stop_strings import StopStringFinder
from edgephi.text.tokenizer import Tokenizer


class AnswerAssembler:
    """
    Turns the tokens of one answer into deltas; make one per request, nothing to close.

    Log-probabilities wait until the text up to and including their token is emitted, so that those of tokens
    within a stop string are never reported:

        tokens       "the"   " end"   " E"  "ND"      stop: "END"
        text          the      end     |END           emitted up to |
        reported       x        x                     " E" is cut by the stop string and left out

    Args:
        tokenizer: Gives the bytes of each token.
        stops: Within the bounds of ``stop_violations``.
        continues_text: Whether the answer continues a text, and so keeps its first space.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, continues_text: bool) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = StreamingDetokenizer(tokenizer, continues_text=continues_text)
        self._finder = StopStringFinder(stops)
        self._matched_stop: str | None = None
        # (characters that must be emitted first, entry), in order.
        self._waiting: deque[tuple[int, TokenText]] = deque()
        self._num_decoded_characters = 0
        self._num_emitted_characters = 0

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the answer, or None."""
        return self._matched_stop

    def push(self, token: TokenSampled) -> Delta | None:
        """Take the next token; return what can be emitted now. After a stop string nothing can."""
        if self._matched_stop is not None:
            return None
        text = self._detokenizer.push(token.token_id)
        self._num_decoded_characters += len(text)
        if token.logprobs is not None:
            # A token that ends within a character belongs to that character.
            needed = self._num_decoded_characters + self._detokenizer.has_partial_character
            self._waiting.append((needed, self._token_text(token.token_id, token.logprobs)))
        return self._scan(text)

    def finish(self) -> Delta | None:
        """End the answer; return what was held back."""
        if self._matched_stop is not None:
            return None
        delta = self._scan(self._detokenizer.flush(), is_last=True)
        self._waiting.clear()
        return delta

    def _scan(self, text: str, *, is_last: bool = False) -> Delta | None:
        safe, self._matched_stop = self._finder.push(text)
        if is_last and self._matched_stop is None:
            safe += self._finder.flush()
        self._num_emitted_characters += len(safe)
        released: list[TokenText] = []
        while self._waiting and self._waiting[0][0] <= self._num_emitted_characters:
            released.append(self._waiting.popleft()[1])
        return Delta(text=safe, logprobs=tuple(released)) if safe or released else None

    def _token_text(self, token_id: int, logprobs: TokenLogprobs) -> TokenText:
        top = tuple(
            TopToken(token_id=other, data=self._tokenizer.token_bytes(other), logprob=logprob)
            for other, logprob in logprobs.top
        )
        data = self._tokenizer.token_bytes(token_id)
        return TokenText(token_id=token_id, data=data, logprob=logprobs.logprob, top=top)
