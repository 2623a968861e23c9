from __future__ import annotations

import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgephi.pocket.commands import GROUPS, Split, Style, balanced, examples, templates_of
from edgephi.pocket.handwritten import FIRST, SECOND
from edgephi.pocket.numerals import spell
from edgephi.pocket.schema import INTENTS, problems


def test_the_generator_is_deterministic() -> None:
    """The same seed gives the same pairs; another seed gives others."""
    first = list(islice(examples(3, Split.TRAIN), 300))
    assert first == list(islice(examples(3, Split.TRAIN), 300))
    assert first != list(islice(examples(4, Split.TRAIN), 300))


@pytest.mark.parametrize("split", list(Split))
def test_every_generated_answer_is_valid(split: Split) -> None:
    """Whatever the seed produces, the answer is valid against the schema and the sentence is filled in."""
    for example in islice(examples(11, split), 3000):
        assert problems(example.answer) == [], example
        assert not re.search(r"\{\w+\}", example.text) or example.intent == "unknown"
        assert example.text.strip()


def test_handwritten_answers_are_valid() -> None:
    """Every answer of the handwritten lists is valid, and their sentences are distinct."""
    both = (*FIRST, *SECOND)
    assert [problem for example in both for problem in problems(example.answer)] == []
    assert len({example.text for example in both}) == len(both)


@pytest.mark.parametrize("intent", [intent.name for intent in INTENTS])
def test_held_out_templates_are_never_trained_on(intent: str) -> None:
    """No template is in both splits, in any intent, and each intent has at least 12 to learn from and 2 held out."""
    train = [t for g in GROUPS if g.intent == intent for t in templates_of(g, Split.TRAIN)]
    held_out = [t for g in GROUPS if g.intent == intent for t in templates_of(g, Split.HELD_OUT)]
    every_train = {t for g in GROUPS for t in templates_of(g, Split.TRAIN)}
    assert every_train.isdisjoint(held_out)
    assert len(set(train)) >= 12
    assert len(set(held_out)) >= 2
    assert len({*train, *held_out}) == len(train) + len(held_out)


def test_balanced_sets_are_balanced_and_repeatable() -> None:
    """A test set has at most the asked number per intent, without repeats, and is the same each time."""
    found = balanced(5, Split.HELD_OUT, 6)
    assert found == balanced(5, Split.HELD_OUT, 6)
    for intent in INTENTS:
        texts = [example.text for example in found if example.intent == intent.name]
        assert 2 <= len(texts) <= 6
        assert len(set(texts)) == len(texts)


def test_typing_errors_change_no_answer() -> None:
    """Commands with typing errors differ from clean ones in letters alone: their numbers are intact."""
    with_typos = balanced(8, Split.TRAIN, 20, Style(typos=1.0))
    moves = [example for example in with_typos if example.intent == "turn" and re.search(r"\d", example.text)]
    assert moves
    for example in moves:
        number = re.search(r"\d+", example.text)
        assert number is not None
        assert f'"value":{number.group()}' in example.answer


@given(st.integers(0, 1000), st.booleans(), st.booleans())
def test_spelled_numbers_add_up(number: int, hyphen: bool, with_and: bool) -> None:
    """The words of a spelled number, read back by their values, give the number."""
    values = {spell(n): n for n in [*range(21), *range(30, 100, 10)]}
    total = 0
    for word in spell(number, hyphen=hyphen, with_and=with_and).replace("-", " ").split():
        if word == "hundred":
            total *= 100
        elif word == "thousand":
            total *= 1000
        elif word != "and":
            total += values[word]
    assert total == number
