"""
What people add to a command and what microphones and thumbs do to it.

Owns politeness, fillers, case, punctuation and typing errors. Never touches numbers, so the right answer
stays the same.
"""

from __future__ import annotations

from random import Random

from edgephi.pocket.numerals import NUMBER_WORDS
from edgephi.pocket.phrases.template import words

_LEADS = (
    "please",
    "please",
    "could you",
    "could you please",
    "can you",
    "can you please",
    "would you",
    "would you please",
    "will you",
    "hey robot",
    "ok robot",
    "robot",
    "hey",
    "hello robot please",
    "computer",
    "hey robot please",
    "i want you to",
    "i would like you to",
    "i need you to",
    "now",
    "ok now",
    "just",
    "go ahead and",
    "hi robot can you",
    "so",
    "alright",
)
_CALLS = ("hey robot", "ok robot", "robot", "hey", "computer", "please", "hey robot please", "so", "ok", "tell me")
_TAILS = (
    "please",
    "please",
    "now",
    "for me",
    "thanks",
    "thank you",
    "right now",
    "will you",
    "robot",
    "if you can",
    "right away",
    "immediately",
    "as soon as you can",
    "i'm in a hurry",
    "it's late",
    "we have guests",
    "before i forget",
    "my friend",
    "my friend is here",
    "before we leave",
    "we are waiting",
    "because i am tired",
    "i am busy",
    "someone is waiting",
    "ok",
)
_FILLERS = ("um", "uh", "like", "er", "well", "you know", "hmm")
_NEIGHBOURS = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
_QUESTION_WORDS = frozenset(words("what how is are did do does who when where why which will can have was"))


def wrap(text: str, rng: Random) -> str:
    """Add politeness, a wake word, a filler or another article to a command in about half of the cases."""
    text = _articles(text, rng)
    question = text.split(" ", 1)[0].split("'")[0] in _QUESTION_WORDS
    if rng.random() < 0.3:
        lead = rng.choice(_CALLS if question else _LEADS)
        text = f"{lead}{',' if rng.random() < 0.2 else ''} {text}"
    if rng.random() < 0.15:
        text = f"{text}{',' if rng.random() < 0.2 else ''} {rng.choice(_TAILS)}"
    if rng.random() < 0.06:
        parts = text.split(" ")
        # A filler inside a number would be read as part of it, so it goes near the start.
        parts.insert(0 if len(parts) < 4 else rng.choice((0, 1)), rng.choice(_FILLERS))
        text = " ".join(parts)
    return text


def _articles(text: str, rng: Random) -> str:
    """Leave out the first "the", or say "my" or "our" for it, as speakers do."""
    draw = rng.random()
    if draw > 0.12 or " the " not in text:
        return text
    other = " " if draw < 0.05 else " my " if draw < 0.10 else " our "
    return text.replace(" the ", other, 1)


def restyle(text: str, rng: Random, capitals: float) -> str:
    """Choose capitals and the final punctuation mark; ``capitals`` is how often everything is in capitals."""
    draw = rng.random()
    if draw < 0.35:
        text = text[:1].upper() + text[1:]
    elif draw < 0.35 + capitals:
        text = text.upper()
    elif draw < 0.38 + capitals:
        text = text.title()
    draw = rng.random()
    if draw < 0.25:
        first = text.split(" ", 1)[0].lower().split("'")[0]
        text += "?" if first in _QUESTION_WORDS or (first in ("could", "would") and rng.random() < 0.7) else "."
    elif draw < 0.30:
        text += rng.choice(("!", "...", "?", " ", "!!", " ."))
    return text


def misspell(text: str, rng: Random) -> str:
    """
    Make one or two typing errors in words of five letters or more.

    Number words and anything with a digit are left alone; so is the first letter of a word.
    """
    parts = text.split(" ")
    long_words = [i for i, w in enumerate(parts) if len(w) >= 5 and w.isalpha() and w.lower() not in NUMBER_WORDS]
    rng.shuffle(long_words)
    for index in long_words[: 1 if rng.random() < 0.8 else 2]:
        parts[index] = _damage(parts[index], rng)
    return " ".join(parts)


def _damage(word: str, rng: Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    match rng.randrange(4):
        case 0:
            return word[:at] + word[at + 1 :]
        case 1:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case 2:
            return word[:at] + word[at] + word[at:]
        case _:
            return word[:at] + rng.choice(_NEIGHBOURS.get(word[at].lower(), word[at])) + word[at + 1 :]
