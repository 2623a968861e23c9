from __future__ import annotations

import json

import pytest

from edgephi.pocket.schema import INTENTS, intent_named, problems, render_answer


def test_an_answer_is_compact_and_in_the_order_of_the_schema() -> None:
    """Keys follow the schema whatever order the values come in, without spaces; whole floats become integers."""
    intent = intent_named("set_light")
    assert intent is not None
    answer = render_answer(intent, {"unit": "percent", "value": 30.0, "target": "kitchen"})
    assert answer == '{"intent":"set_light","target":"kitchen","value":30,"unit":"percent"}'
    assert problems(answer) == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON list; it must be an object"),
        ('{"intent":"fly"}', "intent is 'fly'"),
        ('{"target":null,"intent":"lock"}', "keys are ['target', 'intent']"),
        ('{"intent":"lock"}', "keys are ['intent']"),
        ('{"intent":"lock","target":"moon"}', "target is 'moon'; allowed: front_door"),
        ('{"intent":"set_light","target":null,"value":101,"unit":"percent"}', "value is 101; it must be 0 to 100"),
        ('{"intent":"set_light","target":null,"value":1.5,"unit":"percent"}', "must be a whole number"),
        ('{"intent":"set_light","target":null,"value":true,"unit":"percent"}', "must be a number"),
        ('{"intent":"set_light","target":null,"value":null,"unit":"percent"}', "value is null"),
        ('{"intent": "stop"}', "not in compact form"),
    ],
)
def test_a_wrong_answer_is_named(answer: str, expected: str) -> None:
    """Each way an answer can be wrong gives a sentence with the value and the limit."""
    found = problems(answer)
    assert len(found) == 1
    assert expected in found[0]


def test_every_intent_has_a_valid_answer() -> None:
    """The first choice or the lowest number of every field makes a valid answer for every intent."""
    for intent in INTENTS:
        values = {field.name: field.choices[0] if field.choices else field.low for field in intent.fields}
        answer = render_answer(intent, values)
        assert problems(answer) == []
        assert json.loads(answer)["intent"] == intent.name
