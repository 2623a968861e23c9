"""
The seeded generator of (command, answer) pairs that edgephi-pocket is trained and tested on.

Owns which templates are for training and which are held out, and the mix of intents. Plain Python; two runs
with the same seed give the same pairs.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

from edgephi.pocket import noise
from edgephi.pocket.phrases import access, climate, hands, lights, robot, status, timers, unknown
from edgephi.pocket.phrases.template import Group, choose, words
from edgephi.pocket.schema import INTENTS, Intent, Scalar, intent_named, render_answer
from edgephi.pocket.slots import fill

GROUPS: tuple[Group, ...] = (
    *lights.GROUPS,
    *climate.GROUPS,
    *access.GROUPS,
    *timers.GROUPS,
    *robot.GROUPS,
    *hands.GROUPS,
    *status.GROUPS,
    *unknown.GROUPS,
)
_SLOT = re.compile(r"\{(\w+)\}")
# Intents with more values to learn are drawn more often in training; the tests draw all alike.
_TRAINING_WEIGHTS: Mapping[str, float] = {
    "unknown": 6.0,
    "set_light": 2.0,
    "set_cover": 1.3,
    "set_temperature": 2.5,
    "change_temperature": 1.3,
    "set_timer": 3.5,
    "move": 3.5,
    "turn": 2.5,
    "pick": 1.3,
    "place": 1.5,
    "bring": 1.3,
    "stop": 0.5,
    "dock": 0.6,
    "cancel_timer": 0.5,
    "get_timer": 0.5,
    "get_battery": 0.5,
    "vacuum_pause": 0.5,
}


class Split(enum.Enum):
    """Which templates a stream of pairs draws from."""

    TRAIN = "train"
    HELD_OUT = "held_out"  # templates that training never sees


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """
    How a stream of commands is written.

    Attributes:
        typos: Fraction of commands with a typing error or two.
        capitals: Fraction written in capitals throughout, 0 to 0.62.
    """

    typos: float = 0.0
    capitals: float = 0.0


CLEAN = Style()
TRAINING_STYLE = Style(typos=0.12, capitals=0.07)


@dataclass(frozen=True, slots=True)
class Example:
    """
    One command and its right answer.

    Attributes:
        text: What a person says or types.
        answer: Compact JSON, valid against the schema.
        intent: The answer's intent.
        template: The template it came from, or how it was composed, for error reports.
    """

    text: str
    answer: str
    intent: str
    template: str


def examples(seed: int, split: Split) -> Iterator[Example]:
    """
    Yield an endless stream of pairs.

    Args:
        seed: Same seed, same stream.
        split: Training templates in the training mix, or held-out templates with all intents alike.
    """
    rng = Random(f"{seed}/{split.value}")  # noqa: S311 - a seeded stream of sentences, no secret
    names = [intent.name for intent in INTENTS]
    weights = [_TRAINING_WEIGHTS.get(name, 1.0) if split is Split.TRAIN else 1.0 for name in names]
    while True:
        name = rng.choices(names, weights)[0]
        yield one(name, rng, split, TRAINING_STYLE)


def balanced(seed: int, split: Split, per_intent: int, style: Style = CLEAN) -> list[Example]:
    """
    Return a test set with the same number of distinct commands for each intent, as far as its templates reach.

    Args:
        seed: Use one that training does not.
        split: Where the templates come from.
        per_intent: Commands for each intent; fewer where an intent has not that many ways to be said.
        style: How often commands carry typing errors or capitals.
    """
    rng = Random(f"{seed}/{split.value}/balanced")  # noqa: S311 - a seeded stream of sentences, no secret
    found: list[Example] = []
    for intent in INTENTS:
        seen: set[str] = set()
        for _ in range(per_intent * 3):
            example = one(intent.name, rng, split, style)
            if len(seen) < per_intent and example.text not in seen:
                seen.add(example.text)
                found.append(example)
    return found


def one(name: str, rng: Random, split: Split, style: Style) -> Example:
    """Draw one example of the intent called ``name``."""
    intent = intent_named(name)
    assert intent is not None
    if name == "unknown":
        return _unknown(intent, rng, split, style)
    text, values, template = _say(name, rng, split)
    return Example(_finish(text, rng, style), render_answer(intent, values), name, template)


def templates_of(group: Group, split: Split) -> tuple[str, ...]:
    """Return the templates of a group that belong to a split."""
    return group.training_lines() if split is Split.TRAIN else group.held_out_lines()


_BY_INTENT: Mapping[str, tuple[Group, ...]] = {
    intent.name: tuple(group for group in GROUPS if group.intent == intent.name) for intent in INTENTS
}


def _say(name: str, rng: Random, split: Split) -> tuple[str, dict[str, Scalar], str]:
    groups = [group for group in _BY_INTENT[name] if templates_of(group, split)]
    group = rng.choices(groups, [group.weight for group in groups])[0]
    template = rng.choice(templates_of(group, split))
    values: dict[str, Scalar] = dict(group.fixed)

    def replace(match: re.Match[str]) -> str:
        surface, found = fill(match.group(1), rng)
        values.update(found)
        return surface

    text = _SLOT.sub(replace, choose(template, rng))
    return re.sub(r"\ba ([aeiou])", r"an \1", text), values, template


def _finish(text: str, rng: Random, style: Style) -> str:
    text = noise.wrap(text, rng)
    if rng.random() < style.typos:
        text = noise.misspell(text, rng)
    return noise.restyle(text, rng, style.capitals)


def _unknown(intent: Intent, rng: Random, split: Split, style: Style) -> Example:
    """Draw something that is not one command: chat, two commands, a negated command, or noise."""
    draw = rng.random()
    names = [i.name for i in INTENTS if i.name != "unknown"]
    if draw < 0.10:
        first, second = rng.sample([n for n in names if n != "stop"], 2)
        joint = rng.choice((" and ", " and then ", " then ", ", then ", " and also "))
        text, template = joint.join(_say(n, rng, split)[0] for n in (first, second)), "<two commands>"
    elif draw < 0.17:
        actions = [n for n in names if not n.startswith("get_") and n not in ("scene", "stop")]
        text, _, template = _say(rng.choice(actions), rng, split)
        while text.split(" ", 1)[0] not in _VERBS:
            text, _, template = _say(rng.choice(actions), rng, split)
        text = f"{rng.choice(_NEGATIONS)} {text}"
        template = f"<negated> {template}"
    elif draw < 0.25:
        text, template = _babble(rng), "<babble>"
    elif draw < 0.31:
        salad = " ".join(_say(rng.choice(names), rng, split)[0] for _ in range(2)).split(" ")
        rng.shuffle(salad)
        text, template = " ".join(salad[: rng.randint(6, 10)]), "<word salad>"
    else:
        text, _, template = _say("unknown", rng, split)
    return Example(_finish(text, rng, style), render_answer(intent, {}), "unknown", template)


_NEGATIONS = ("do not", "don't", "never", "please do not", "please don't")
_VERBS = frozenset(
    words(
        "turn switch put set make dim lower raise open close shut lock unlock move go drive rotate pick grab take "
        "place bring fetch vacuum clean start stop cancel change increase decrease"
    )
)


def _babble(rng: Random) -> str:
    """Return words of random letters, or random characters."""
    if rng.random() < 0.3:
        return "".join(
            rng.choice("abcdefghijklmnopqrstuvwxyz0123456789 .,;:-+*/()#@!?") for _ in range(rng.randint(1, 25))
        )
    vowels, consonants = "aeiou", "bcdfghjklmnprstvwz"
    made = [
        "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(rng.randint(1, 4)))
        for _ in range(rng.randint(1, 6))
    ]
    return " ".join(made)
