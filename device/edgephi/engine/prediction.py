"""
Guesses the next tokens of a sequence: what came next when its last tokens occurred before.

Answers repeat what was said: the prompt they quote, earlier turns, the keys of the last JSON object. Finding the last
occurrence of the present end costs a few dictionary look-ups a token, whatever the length of the history. A guess is
never trusted; it is only worth checking (edgephi.engine.speculation). Knows no model and no pages.

Source: copying spans of the context as drafts, LLMA (arXiv 2304.04487) section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LONGEST_NGRAM = 3
_LONGEST_COUNTED_MATCH = 8  # longer ones are as good as certain, and all alike

# Before anything was seen: what share of guesses comes true after a match of 1, 2, ... tokens.
_FIRST_RATES = (0.3, 0.5, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
_ANSWER_WEIGHT = 0.15  # of the newest guess in an answer's own rates: about the last dozen count
_ENGINE_WEIGHT = 0.03  # and in the rates that new answers start from


@dataclass(slots=True)
class Match:
    """
    A place where the last tokens of a sequence occurred before.

        tokens   a b c d [e f g] h i j ... [e f g]      length = 3
                                 ^ next                 when is_own; otherwise tokens are another history

    Attributes:
        tokens: The history it lies in; it may grow.
        next: Index of the token that followed there: the guess.
        length: How many tokens before it are known to agree, at least 1.
        is_own: Whether the history is that of the sequence itself.
    """

    tokens: list[int]
    next: int
    length: int
    is_own: bool

    @property
    def guess(self) -> int | None:
        """The token that followed; None at the end of another history."""
        return self.tokens[self.next] if self.next < len(self.tokens) else None

    def continuation(self, count: int) -> list[int]:
        """
        Return up to ``count`` tokens that followed.

        In the sequence's own history there are always as many: where it ends, it is taken to repeat from ``next`` on.
        """
        found = self.tokens[self.next : self.next + count]
        if self.is_own:
            period = len(self.tokens) - self.next
            while len(found) < count:
                found.append(found[-period])
        return found


class TokenHistory:
    """
    Tokens in order, and where each run of up to three of them occurred last.

    Lives as long as whoever adds to it; about 500 bytes a token.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self._next_of: dict[tuple[int, ...], int] = {}
        for token_id in tokens:
            self.append(token_id)

    def append(self, token_id: int) -> Match | None:
        """Add a token; return where the new end occurred before, longest run first."""
        tokens = self.tokens
        tokens.append(token_id)
        end = len(tokens)
        match: Match | None = None
        for length in range(min(LONGEST_NGRAM, end), 0, -1):
            ngram = tuple(tokens[-length:])
            if match is None and (earlier := self._next_of.get(ngram)) is not None:
                match = Match(tokens, earlier, length, is_own=True)
            self._next_of[ngram] = end
        return match

    def find(self, last: Sequence[int]) -> Match | None:
        """Return where the end of another sequence, its last tokens, occurred here; longest run first."""
        for length in range(min(LONGEST_NGRAM, len(last)), 0, -1):
            place = self._next_of.get(tuple(last[-length:]))
            if place is not None and place < len(self.tokens):
                return Match(self.tokens, place, length, is_own=False)
        return None


class RecentAnswers:
    """
    The latest answers of an engine, of all its callers: a robot's JSON has the same keys every time.

    Holds between one and two times ``capacity`` tokens once that many were seen, and forgets the oldest half at a time.
    """

    def __init__(self, capacity: int) -> None:
        assert capacity > 0
        self._capacity = capacity
        self._newer = TokenHistory()
        self._older = TokenHistory()

    def add(self, answer: Iterable[int]) -> None:
        """Remember the end of an answer."""
        for token_id in list(answer)[-self._capacity :]:
            if len(self._newer.tokens) == self._capacity:
                self._newer, self._older = TokenHistory(), self._newer
            self._newer.append(token_id)

    def find(self, last: Sequence[int]) -> Match | None:
        """Return where the last tokens of a sequence occurred, longest run first and of equals the newer one."""
        newer, older = self._newer.find(last), self._older.find(last)
        if newer is None or (older is not None and older.length > newer.length):
            return older
        return newer


class HitRates:
    """What share of recent guesses came true, by the length of their match and whether it was the sequence's own."""

    def __init__(self, start: HitRates | None = None) -> None:
        self._rates: list[float] = [*_FIRST_RATES, *_FIRST_RATES] if start is None else list(start._rates)

    def of(self, length: int, *, is_own: bool) -> float:
        """Return the share, 0 to 1, after a match of ``length`` tokens."""
        return self._rates[self._index(length, is_own)]

    def record(self, match: Match, *, is_hit: bool, weight: float) -> None:
        """Count a guess; ``weight`` is its part of the moving average."""
        index = self._index(match.length, match.is_own)
        self._rates[index] += weight * (is_hit - self._rates[index])

    def _index(self, length: int, is_own: bool) -> int:
        return min(length, _LONGEST_COUNTED_MATCH) - 1 + (0 if is_own else _LONGEST_COUNTED_MATCH)


class TokenPredictor:
    """
    Follows one sequence and guesses what comes next. Lives as long as its request.

    Every token drawn shows whether the guess was right, checked in a forward or not: so the chances are known while
    nothing is drafted, and drafting begins when it would pay.

    Args:
        tokens: The sequence so far.
        recent: Other answers to look in.
        rates: The engine's; this sequence starts from them and adds to them.
    """

    def __init__(self, tokens: Iterable[int], recent: RecentAnswers, rates: HitRates) -> None:
        self._own = TokenHistory(tokens)
        self._recent = recent
        self._engine_rates = rates
        self._rates = HitRates(rates)
        self._match: Match | None = None

    def append(self, token_id: int) -> None:
        """Take the token that was drawn."""
        match = self._match
        if match is not None:
            guess = match.guess
            if guess is not None:
                self._rates.record(match, is_hit=guess == token_id, weight=_ANSWER_WEIGHT)
                self._engine_rates.record(match, is_hit=guess == token_id, weight=_ENGINE_WEIGHT)
            match.next += 1
            match.length += 1
            if guess != token_id:
                match = None
        # A match that has held is longer than any that the look-up can tell, so it stays.
        own = self._own.append(token_id)
        if own is not None and (match is None or own.length >= match.length):
            match = own
        if match is None or match.length < LONGEST_NGRAM:
            other = self._recent.find(self._own.tokens[-LONGEST_NGRAM:])
            if other is not None and (match is None or other.length > match.length):
                match = other
        self._match = match

    def chances(self, count: int, *, least: float) -> list[float]:
        """
        Say how likely each of the next guesses is to be drawn, all before it included; falling.

        Args:
            count: Most guesses.
            least: Where to stop.
        """
        found: list[float] = []
        match, chance = self._match, 1.0
        if match is None:
            return found
        if not match.is_own:
            count = min(count, len(match.tokens) - match.next)
        for ahead in range(count):
            chance *= self._rates.of(match.length + ahead, is_own=match.is_own)
            if chance < least:
                break
            found.append(chance)
        return found

    def guesses(self, count: int) -> list[int]:
        """Return the next tokens; ``count`` is at most the length of what :meth:`chances` gave."""
        return [] if self._match is None else self._match.continuation(count)
