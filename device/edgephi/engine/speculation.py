"""
Which guessed tokens to check in a step, and whether that pays.

A decode step reads all weights for one row; more rows cost little as long as memory is what limits. So a decoding
sequence may bring its last token and k guessed ones, and gets logits for all of them. The engine draws from each row
as it would have without guesses and goes on to the next only if it drew the guess: answers are the same, token for
token and number for number.

Owns the choice of k: what is expected to be gained by what steps of that many rows were measured to cost. Knows no
logits and no pages.

Source: several tokens checked in one pass, arXiv 2211.17192 section 2; there a draft has probabilities of its own,
here it is certain, so that accepting it is nothing but drawing it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from edgephi.engine.batch import ScheduledRows
from edgephi.engine.prediction import HitRates, RecentAnswers, TokenPredictor
from edgephi.engine.sequence import SequenceState

_RECENT_ANSWER_TOKENS = 4096  # with its index a few megabytes
_LEAST_CHANCE = 0.05  # of a guess to be worth its row; below, planning costs more than it brings
_LEAST_GAIN = 1.03  # in tokens per second, so that noise in the measured times does not decide
_MAX_STRETCH = 1.25  # of a step that other sequences wait for

_TIME_WEIGHT = 0.25  # of the newest step in the moving average
_MAX_OUTLIER = 2.0  # times the average; what is above was an interruption
_FRESH_STEPS = 128  # a time older than this is measured again
_UNTRIED_ROW = 0.02  # what a row more is taken to cost, as part of a step, until it was tried


@dataclass(slots=True)
class _MeanTime:
    seconds: float
    measured_at: int  # number of the step


class StepTimes:
    """
    How long a forward of so many decoded rows takes on this machine now: moving averages, renewed all the time.

    Lives as long as its engine.
    """

    def __init__(self) -> None:
        self._means: dict[int, _MeanTime] = {}
        self._num_steps = 0

    def observe(self, num_rows: int, seconds: float) -> None:
        """Take a measured forward."""
        self._num_steps += 1
        seconds = max(seconds, 1e-9)  # a clock may not tell two moments apart
        mean = self._means.get(num_rows)
        if mean is None or not self._is_fresh(mean):
            self._means[num_rows] = _MeanTime(seconds, self._num_steps)
            return
        mean.seconds += _TIME_WEIGHT * (min(seconds, _MAX_OUTLIER * mean.seconds) - mean.seconds)
        mean.measured_at = self._num_steps

    def knows(self, num_rows: int) -> bool:
        """Whether steps of exactly that many rows were measured lately."""
        mean = self._means.get(num_rows)
        return mean is not None and self._is_fresh(mean)

    def expected(self, num_rows: int, more_rows: int) -> list[float]:
        """
        Seconds of steps of ``num_rows``, which must be known, and of more rows, one by one, up to ``more_rows`` more.

        Between two known times the line through them. Beyond the last one a hopeful guess, so that it gets tried, but
        only up to twice as many rows: a trial may prove dear, and where two are dear eight need no trial.
        """
        assert self.knows(num_rows)
        times = [self._means[num_rows].seconds]
        known = num_rows
        for rows in range(num_rows + 1, num_rows + more_rows + 1):
            if not self.knows(rows):
                continue
            step = (self._means[rows].seconds - times[-1]) / (rows - known)
            times += [times[-1] + step * n for n in range(1, rows - known + 1)]
            known = rows
        rest = min(num_rows + more_rows, 2 * known) - known
        return times + [times[-1] * (1 + _UNTRIED_ROW * n) for n in range(1, rest + 1)]

    def _is_fresh(self, mean: _MeanTime) -> bool:
        return self._num_steps - mean.measured_at < _FRESH_STEPS


class Speculation:
    """
    Adds guessed tokens to the decodes of a step. Lives as long as its engine; one thread uses it.

    Args:
        max_draft_tokens: Most guesses of one sequence in a step, at least 1.
        max_batch_tokens: Most rows of a step.
    """

    def __init__(self, *, max_draft_tokens: int, max_batch_tokens: int) -> None:
        assert max_draft_tokens > 0
        self._max_draft_tokens = max_draft_tokens
        self._max_batch_tokens = max_batch_tokens
        self._recent = RecentAnswers(_RECENT_ANSWER_TOKENS)
        self._rates = HitRates()
        self._times = StepTimes()

    def extend(self, scheduled: tuple[ScheduledRows, ...]) -> tuple[ScheduledRows, ...]:
        """
        Add guesses to the decodes as far as that pays, and write them behind the known tokens of their sequences.

        Nothing is added beside a chunk of prefill: its rows keep the processor busy already. The first step of so
        many sequences goes without, and now and then another one, because the gain is measured against it.
        """
        num_plain = len(scheduled)
        if scheduled[-1].is_prefill or not self._times.knows(num_plain):
            return scheduled
        offers = [(chance, index) for index, rows in enumerate(scheduled) for chance in self._chances(rows.sequence)]
        if not offers:
            return scheduled
        # Falling chances; the sort is stable, so those of one sequence stay in the order of its tokens.
        offers.sort(key=lambda offer: -offer[0])
        counts = [0] * num_plain
        for _, index in offers[: self._num_worth([chance for chance, _ in offers], num_plain)]:
            counts[index] += 1
        return tuple(_with_drafts(rows, count) for rows, count in zip(scheduled, counts, strict=True))

    def observe(self, num_rows: int, seconds: float) -> None:
        """Take how long a forward of decodes alone took."""
        self._times.observe(num_rows, seconds)

    def drawn(self, sequence: SequenceState, token_id: int) -> None:
        """Take a token that was drawn and appended to its sequence."""
        if sequence.predictor is None:
            known = sequence.tokens[: sequence.num_tokens - 1].tolist()
            sequence.predictor = TokenPredictor(known, self._recent, self._rates)
        sequence.predictor.append(token_id)

    def ended(self, sequence: SequenceState) -> None:
        """Remember an answer, complete or not."""
        self._recent.add(sequence.tokens[sequence.prompt_len : sequence.num_tokens].tolist())

    def _chances(self, sequence: SequenceState) -> list[float]:
        assert sequence.predictor is not None, "a decoding sequence has drawn a token"
        # The last token of an answer is drawn and never computed, so the row before it is the last one of use.
        room = sequence.max_len - sequence.num_tokens - 1
        return sequence.predictor.chances(min(self._max_draft_tokens, room), least=_LEAST_CHANCE)

    def _num_worth(self, chances: list[float], num_plain: int) -> int:
        """How many of the most likely guesses give the most tokens per second; 0 if that is hardly more than none."""
        chances = chances[: self._max_batch_tokens - num_plain]
        times = self._times.expected(num_plain, len(chances))
        longest = times[0] * _MAX_STRETCH if num_plain > 1 else float("inf")
        best, best_rate = 0, _LEAST_GAIN * num_plain / times[0]
        num_tokens = float(num_plain)
        for count, (chance, seconds) in enumerate(zip(chances, times[1:], strict=False), start=1):
            num_tokens += chance
            if seconds <= longest and num_tokens / seconds > best_rate:
                best, best_rate = count, num_tokens / seconds
        return best


def _with_drafts(rows: ScheduledRows, count: int) -> ScheduledRows:
    if count == 0:
        return rows
    sequence = rows.sequence
    assert sequence.predictor is not None
    sequence.tokens[sequence.num_tokens : sequence.num_tokens + count] = sequence.predictor.guesses(count)
    return dataclasses.replace(rows, num_tokens=1 + count, num_logits=1 + count)
