"""
Measure edgephi-pocket: ``python -m edgephi.pocket.evaluate --json``.

Owns the test sets and the figures. Takes any function from a command to an answer, so the NumPy reference and the
served engine are measured alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgephi.pocket import model_dir, problems
from edgephi.pocket.commands import Example, Split, Style, balanced
from edgephi.pocket.handwritten import FIRST, SECOND
from edgephi.pocket.reference import Reference

TEST_SEED = 1_000_003  # training streams use small seeds
PER_INTENT = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """
    Results on one test set.

    Attributes:
        name: Of the test set.
        num_commands: How many commands were asked.
        exact: Fraction of answers equal to the right one, byte for byte.
        intent: Fraction with the right intent.
        valid: Fraction of answers that are valid against the schema, right or wrong.
        false_actions: Fraction of the commands that are ``unknown`` which were answered with an action.
        per_intent: Exact fraction for each intent of the right answer.
    """

    name: str
    num_commands: int
    exact: float
    intent: float
    valid: float
    false_actions: float
    per_intent: dict[str, float]


@dataclass(frozen=True, slots=True)
class Miss:
    """A command that was answered wrongly."""

    example: Example
    got: str


def build_test_sets(per_intent: int = PER_INTENT) -> dict[str, list[Example]]:
    """
    Return the test sets, the same every time.

    ``held_out``: templates never seen in training. ``held_out_typos``: the same with a typing error or two in each
    command. ``in_template``: training's templates with other words, numbers and additions. ``handwritten`` and
    ``handwritten_new``: sentences from no template; only the second list has never led to a change.
    """
    return {
        "held_out": balanced(TEST_SEED, Split.HELD_OUT, per_intent),
        "held_out_typos": balanced(TEST_SEED, Split.HELD_OUT, per_intent, Style(typos=1.0)),
        "in_template": balanced(TEST_SEED, Split.TRAIN, per_intent),
        "handwritten": list(FIRST),
        "handwritten_new": list(SECOND),
    }


def evaluate(name: str, examples: Sequence[Example], answer: Callable[[str], str]) -> tuple[Score, list[Miss]]:
    """
    Ask every command and compare.

    Args:
        name: Of the test set.
        examples: Commands with their right answers, at least one.
        answer: From a command to the model's answer.

    Returns:
        The figures, and the commands answered wrongly.
    """
    assert examples
    got = [answer(example.text) for example in examples]
    right = [a == example.answer for a, example in zip(got, examples, strict=True)]
    intents = [_intent_of(a) for a in got]
    names = dict.fromkeys(example.intent for example in examples)

    def share(flags: Sequence[bool]) -> float:
        return round(sum(flags) / len(flags), 4) if flags else 0.0

    score = Score(
        name=name,
        num_commands=len(examples),
        exact=share(right),
        intent=share([i == example.intent for i, example in zip(intents, examples, strict=True)]),
        valid=share([not problems(a) for a in got]),
        false_actions=share(
            [i != "unknown" for i, example in zip(intents, examples, strict=True) if example.intent == "unknown"]
        ),
        per_intent={
            name: share([ok for ok, example in zip(right, examples, strict=True) if example.intent == name])
            for name in names
        },
    )
    return score, [Miss(e, a) for e, a, ok in zip(examples, got, right, strict=True) if not ok]


def _intent_of(answer: str) -> str | None:
    try:
        parsed = json.loads(answer)
    except json.JSONDecodeError:
        return None
    return parsed.get("intent") if isinstance(parsed, dict) else None


def main() -> None:
    """Print the figures of the packaged model, computed by the NumPy reference."""
    parser = argparse.ArgumentParser(prog="python -m edgephi.pocket.evaluate", description=main.__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--misses", action="store_true", help="also print every wrong answer")
    parser.add_argument("--per-intent", type=int, default=PER_INTENT, help="commands per intent and test set")
    parser.add_argument("--model", type=Path, default=model_dir(), help="MLC folder")
    options = parser.parse_args()
    reference = Reference(options.model)
    results = [
        evaluate(name, examples, reference.answer) for name, examples in build_test_sets(options.per_intent).items()
    ]
    if options.json:
        sys.stdout.write(json.dumps({score.name: asdict(score) for score, _ in results}, indent=1) + "\n")
    else:
        sys.stdout.write(score_table([score for score, _ in results]))
    if options.misses:
        for score, misses in results:
            for miss in misses:
                sys.stdout.write(
                    f"{score.name}: {miss.example.text!r}\n  want {miss.example.answer}\n  got  {miss.got}\n"
                )


def score_table(scores: Sequence[Score]) -> str:
    """Return the figures as two Markdown tables: the test sets, then exact answers per intent."""
    lines = [
        "| test set | commands | exact | intent | valid JSON | unknown answered with an action |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {s.name} | {s.num_commands} | {s.exact:.1%} | {s.intent:.1%} | {s.valid:.1%} | {s.false_actions:.1%} |"
        for s in scores
    ]
    lines += ["", "| intent | " + " | ".join(s.name for s in scores) + " |", "|---" * (len(scores) + 1) + "|"]
    lines += [
        f"| {intent} | " + " | ".join(f"{s.per_intent.get(intent, 0.0):.0%}" for s in scores) + " |"
        for intent in scores[0].per_intent
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
