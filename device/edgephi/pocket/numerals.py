"""
Numbers as people say and type them.

Owns the spelling of numbers from 0 to 1000 and of simple fractions. Knows no units.
"""

from __future__ import annotations

from random import Random

from edgephi.pocket.phrases.template import words

_ONES = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = words("_ _ twenty thirty forty fifty sixty seventy eighty ninety")
NUMBER_WORDS = frozenset((*_ONES, *_TENS[2:], "hundred", "thousand", "point", "half", "quarter", "quarters", "third"))


def spell(number: int, *, hyphen: bool = False, with_and: bool = False) -> str:
    """
    Spell a whole number in English.

    Args:
        number: 0 to 1000.
        hyphen: "twenty-five" rather than "twenty five".
        with_and: "one hundred and five" rather than "one hundred five".
    """
    assert 0 <= number <= 1000
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (("-" if hyphen else " ") + _ONES[ones] if ones else "")
    if number == 1000:
        return "one thousand"
    hundreds, rest = divmod(number, 100)
    if not rest:
        return f"{_ONES[hundreds]} hundred"
    return f"{_ONES[hundreds]} hundred {'and ' if with_and else ''}{spell(rest, hyphen=hyphen)}"


def say(rng: Random, number: float) -> str:
    """
    Write a number with at most one decimal the way one speaker might.

    Args:
        rng: Source of the choice between digits, words and their variants.
        number: 0 to 1000.
    """
    whole = int(number)
    tenth = round((number - whole) * 10)
    words = rng.random() < 0.5
    if not words:
        return str(whole) if tenth == 0 else f"{whole}.{tenth}"
    hyphen, with_and = rng.random() < 0.2, rng.random() < 0.5
    text = spell(whole, hyphen=hyphen, with_and=with_and)
    if whole in (100, 1000) and rng.random() < 0.4:
        text = "a" + text.removeprefix("one")
    if tenth == 0:
        return text
    if tenth == 5 and whole > 0 and rng.random() < 0.6:
        return f"{text} and a half"
    return f"{text} point {_ONES[tenth]}"
