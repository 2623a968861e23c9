"""What comes next, judged by what came next before."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edgephi.engine.prediction import LONGEST_NGRAM, HitRates, Match, RecentAnswers, TokenHistory, TokenPredictor

_CAPACITY = 8


def _predictor(tokens: list[int], recent: RecentAnswers | None = None, rates: HitRates | None = None) -> TokenPredictor:
    return TokenPredictor(tokens, recent or RecentAnswers(_CAPACITY), rates or HitRates())


def _guesses(predictor: TokenPredictor, count: int = 4) -> list[int]:
    return predictor.guesses(len(predictor.chances(count, least=0.0)))


@given(tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_a_history_finds_the_last_place_of_the_longest_run(tokens: list[int]) -> None:
    """After every token the match is the one a search through the whole history finds."""
    history = TokenHistory()
    for end in range(1, len(tokens) + 1):
        match = history.append(tokens[end - 1])
        expected = next(
            (
                (place, length)
                for length in range(min(LONGEST_NGRAM, end), 0, -1)
                for place in range(end - 1, length - 1, -1)
                if tokens[place - length : place] == tokens[end - length : end]
            ),
            None,
        )
        assert (None if match is None else (match.next, match.length)) == expected


def test_a_quoted_text_is_followed_to_its_end() -> None:
    """Once a quotation has begun, its continuation is guessed, and the chances rise with its length."""
    predictor = _predictor([10, 11, 12, 13, 14, 15, 16, 17, 1, 2])
    predictor.append(11)
    assert _guesses(predictor) == [12, 13, 14, 15]
    first = predictor.chances(1, least=0.0)[0]
    for token_id in (12, 13, 14):
        predictor.append(token_id)
    assert _guesses(predictor, 2) == [15, 16]
    assert predictor.chances(1, least=0.0)[0] > first


def test_a_text_that_repeats_itself_is_guessed_beyond_its_end() -> None:
    """A period shorter than the number of guesses is continued."""
    predictor = _predictor([5, 1, 2])
    for token_id in (1, 2):
        predictor.append(token_id)
    assert _guesses(predictor, 5) == [1, 2, 1, 2, 1]


def test_a_match_that_has_held_outlives_a_later_shorter_one() -> None:
    """What agrees with the last five tokens is believed before what agrees with three, however recent."""
    quoted, decoy = [1, 2, 3, 4, 5, 6], [3, 4, 5, 9]
    predictor = _predictor([*quoted, *decoy])
    for token_id in (1, 2, 3, 4, 5):
        predictor.append(token_id)
    assert _guesses(predictor, 1) == [6]


def test_nothing_is_guessed_where_nothing_occurred_before() -> None:
    """A token never seen before has no chances and no guesses."""
    predictor = _predictor([1, 2, 3])
    predictor.append(9)
    assert predictor.chances(4, least=0.0) == []
    assert predictor.guesses(0) == []


def test_other_answers_help_where_the_own_text_does_not() -> None:
    """A recent answer is followed, no further than it went, but a match as long in the own text comes first."""
    recent = RecentAnswers(_CAPACITY)
    recent.add([4, 5, 6, 7])
    predictor = _predictor([1, 2], recent)
    predictor.append(5)
    assert _guesses(predictor) == [6, 7]
    predictor = _predictor([5, 8], recent)
    predictor.append(5)
    assert _guesses(predictor, 1) == [8]


@given(answers=st.lists(st.lists(st.integers(0, 5), max_size=30), max_size=12))
def test_recent_answers_are_bounded_and_never_forget_the_newest(answers: list[list[int]]) -> None:
    """However many answers come, at most twice the capacity is kept, and the newest tokens among it."""
    recent = RecentAnswers(_CAPACITY)
    for answer in answers:
        recent.add(answer)
        histories = recent._older.tokens, recent._newer.tokens
        assert max(map(len, histories)) <= _CAPACITY
        kept = [*histories[0], *histories[1]]
        tail = answer[-_CAPACITY:]
        assert kept[len(kept) - len(tail) :] == tail


def test_of_two_places_in_recent_answers_the_newer_counts() -> None:
    """The same run in the older and in the newer half is followed in the newer one."""
    recent = RecentAnswers(4)
    recent.add([1, 2, 3, 0])
    recent.add([1, 2, 7])
    match = recent.find([1, 2])
    assert match is not None
    assert (match.guess, match.length) == (7, 2)


def test_chances_follow_what_came_true() -> None:
    """Wrong guesses lower the chances and right ones raise them, for this answer more than for the next."""
    right, wrong = HitRates(), HitRates()
    match = Match([1, 2], 1, 2, is_own=True)
    for _ in range(20):
        right.record(match, is_hit=True, weight=0.15)
        wrong.record(match, is_hit=False, weight=0.15)
    assert right.of(2, is_own=True) > 0.9 > 0.1 > wrong.of(2, is_own=True)
    assert right.of(2, is_own=False) == HitRates().of(2, is_own=False), "matches in other answers are counted apart"

    engine = HitRates()
    predictor = _predictor([1, 2, 1, 3, 1, 4, 1, 5], rates=engine)
    for token_id in (1, 6, 1, 7, 1, 8, 1, 9):
        predictor.append(token_id)
    own, next_one = predictor._rates.of(1, is_own=True), engine.of(1, is_own=True)
    assert own < next_one < HitRates().of(1, is_own=True)


@pytest.mark.parametrize(("least", "count"), [(0.0, 8), (0.5, 1), (0.99, 0)])
def test_chances_fall_and_stop_where_told(least: float, count: int) -> None:
    """Each chance includes all guesses before it, and the list ends before the first that is too small."""
    predictor = _predictor([*range(20)])
    for token_id in (3, 4, 5):
        predictor.append(token_id)
    chances = predictor.chances(8, least=least)
    assert len(chances) == count
    assert chances == sorted(chances, reverse=True)
    assert all(chance >= least for chance in chances)
