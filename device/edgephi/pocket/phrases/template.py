"""
What a phrasing template is and how its alternatives are chosen.

Owns the small template language: ``(a|b)`` picks one, ``[a]`` is said or left out, ``{slot}`` is filled
later. Knows neither the slots' values nor the intents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from edgephi.pocket.schema import Scalar

HELD_OUT_EVERY = 6
_INNERMOST = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]")


@dataclass(frozen=True, slots=True)
class Group:
    """
    Phrasings of one intent that share the same fixed values.

    Attributes:
        intent: Name of the intent.
        lines: The templates. Every sixth (index 3, 9, 15, ...) is held out: training never sees it.
        fixed: Values of fields that the phrasing itself implies.
        weight: How often the group is drawn, relative to the intent's other groups.
    """

    intent: str
    lines: tuple[str, ...]
    fixed: Mapping[str, Scalar] = field(default_factory=dict)
    weight: float = 1.0

    def training_lines(self) -> tuple[str, ...]:
        """Templates that training may see."""
        return tuple(line for i, line in enumerate(self.lines) if i % HELD_OUT_EVERY != 3)

    def held_out_lines(self) -> tuple[str, ...]:
        """Templates kept for the test alone."""
        return tuple(line for i, line in enumerate(self.lines) if i % HELD_OUT_EVERY == 3)


def lines(text: str) -> tuple[str, ...]:
    """Split a block of text into templates, one per line."""
    return tuple(line.strip() for line in text.strip().splitlines() if line.strip())


def words(text: str) -> tuple[str, ...]:
    """Split a list of words or phrases that are separated by ``|`` or, without any, by spaces."""
    return tuple(text.split("|" if "|" in text else None))


def choose(template: str, rng: Random) -> str:
    """
    Decide every alternative and optional part of a template.

    Returns:
        The text with its ``{slot}`` marks still in place, words separated by one space.
    """

    def pick(match: re.Match[str]) -> str:
        if match.group(1) is not None:
            options: list[str] = match.group(1).split("|")
            return rng.choice(options)
        options = match.group(2).split("|")
        return rng.choice(options) if rng.random() < 0.5 else ""

    while _INNERMOST.search(template):
        template = _INNERMOST.sub(pick, template)
    return " ".join(template.split())
