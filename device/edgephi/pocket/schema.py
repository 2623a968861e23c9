"""
The intents edgephi-pocket can answer with: their fields, in order, and the values each field may take.

Owns the one declaration that the generator, the evaluation, the documentation and a grammar can use.
Knows no phrasing: how people say these things is in the template files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Scalar = str | int | float | None

ROOMS = (
    "kitchen",
    "living_room",
    "bedroom",
    "bathroom",
    "hall",
    "office",
    "garage",
    "garden",
    "basement",
    "attic",
    "dining_room",
    "nursery",
    "guest_room",
    "laundry",
    "porch",
    "balcony",
)
COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "white", "black", "brown", "gray", "gold")
LIGHT_COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "white", "warm_white", "cool_white")
COVERS = ("blinds", "curtains", "shutters", "garage_door", "awning")
DOORS = ("front_door", "back_door", "side_door", "garage_door", "patio_door", "gate", "all")
OBJECTS = (
    "cup",
    "bottle",
    "ball",
    "box",
    "book",
    "pen",
    "phone",
    "keys",
    "plate",
    "bowl",
    "spoon",
    "fork",
    "knife",
    "glass",
    "can",
    "apple",
    "banana",
    "toy",
    "shoe",
    "sock",
    "towel",
    "remote",
    "block",
    "bag",
    "hammer",
    "screwdriver",
    "wrench",
    "newspaper",
    "pillow",
    "blanket",
)
PLACES = (
    "table",
    "desk",
    "shelf",
    "floor",
    "counter",
    "sink",
    "bin",
    "basket",
    "drawer",
    "sofa",
    "chair",
    "bed",
    "fridge",
    "tray",
    "cupboard",
    "window",
    "door",
    "stairs",
    "bowl",
    "box",
    "bag",
    "plate",
)
SCENES = ("movie", "night", "morning", "away", "home", "party", "reading", "dinner", "relax", "work")
MODES = ("heat", "cool", "auto", "fan", "dry", "eco", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """
    One key of an answer.

    Exactly one of ``choices`` and ``high`` describes the value.

    Attributes:
        name: The JSON key.
        choices: The strings allowed, or empty for a number.
        low: Smallest number allowed.
        high: Largest number allowed.
        whole: Whether only whole numbers are allowed.
        optional: Whether the value may be null, which means "not said".
    """

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    whole: bool = False
    optional: bool = False

    def problem(self, value: object) -> str | None:
        """Return what is wrong with ``value``, or None when it is allowed."""
        if value is None:
            return None if self.optional else f"{self.name} is null; it must be said"
        if self.choices:
            return None if value in self.choices else f"{self.name} is {value!r}; allowed: {', '.join(self.choices)}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{self.name} is {value!r}; it must be a number"
        if self.whole and not isinstance(value, int):
            return f"{self.name} is {value!r}; it must be a whole number"
        if not self.low <= value <= self.high:
            return f"{self.name} is {value!r}; it must be {self.low:g} to {self.high:g}"
        return None

    def describe(self) -> str:
        """Return the allowed values as one phrase, as the documentation's table shows them."""
        if self.choices:
            text = " ".join(f"`{choice}`" for choice in self.choices)
        else:
            text = f"{'whole number' if self.whole else 'number'} {self.low:g} to {self.high:g}"
        return f"{text} or null" if self.optional else text


@dataclass(frozen=True, slots=True)
class Intent:
    """
    One kind of command.

    Attributes:
        name: The value of the answer's ``intent`` key.
        meaning: One phrase for the documentation.
        fields: The keys that follow ``intent``, in order. All of them are always present.
    """

    name: str
    meaning: str
    fields: tuple[Field, ...] = ()


_TARGET = Field(name="target", choices=(*ROOMS, "all"), optional=True)
_PERCENT = Field(name="value", low=0, high=100, whole=True)
_PERCENT_UNIT = Field(name="unit", choices=("percent",))
_UP_DOWN = Field(name="direction", choices=("up", "down"))
_DEVICE = Field(name="device", choices=COVERS)
_DOOR = Field(name="target", choices=DOORS, optional=True)
_SCALE = ("celsius", "fahrenheit", "degrees")
_OBJECT = Field(name="object", choices=OBJECTS, optional=True)
_COLOR = Field(name="color", choices=COLORS, optional=True)

INTENTS = (
    Intent("light_on", "switch lights on", (_TARGET,)),
    Intent("light_off", "switch lights off", (_TARGET,)),
    Intent("set_light", "set brightness", (_TARGET, _PERCENT, _PERCENT_UNIT)),
    Intent(
        "change_light",
        "brighter or dimmer, by an amount where one is said",
        (
            _TARGET,
            _UP_DOWN,
            Field(name="value", low=0, high=100, whole=True, optional=True),
            _PERCENT_UNIT,
        ),
    ),
    Intent("light_color", "set the colour of lights", (_TARGET, Field(name="color", choices=LIGHT_COLORS))),
    Intent(
        "set_temperature",
        "set the thermostat; `degrees` where no scale is said",
        (_TARGET, Field(name="value", low=0, high=120), Field(name="unit", choices=_SCALE)),
    ),
    Intent(
        "change_temperature",
        "warmer or cooler, by an amount where one is said",
        (_TARGET, _UP_DOWN, Field(name="value", low=0, high=30, optional=True), Field(name="unit", choices=_SCALE)),
    ),
    Intent("climate_mode", "set the mode of heating or air conditioning", (_TARGET, Field(name="mode", choices=MODES))),
    Intent("open_cover", "open blinds, curtains, a garage door", (_DEVICE, _TARGET)),
    Intent("close_cover", "close them", (_DEVICE, _TARGET)),
    Intent("set_cover", "open them to a percentage", (_DEVICE, _TARGET, _PERCENT, _PERCENT_UNIT)),
    Intent("lock", "lock a door", (_DOOR,)),
    Intent("unlock", "unlock a door", (_DOOR,)),
    Intent(
        "set_timer",
        "start a timer; the three fields add up",
        (
            Field(name="hours", low=0, high=1000, whole=True),
            Field(name="minutes", low=0, high=1000, whole=True),
            Field(name="seconds", low=0, high=1000, whole=True),
        ),
    ),
    Intent("cancel_timer", "stop the timer"),
    Intent("get_timer", "ask for the time left"),
    Intent(
        "move",
        "drive straight; value and unit are null where no distance is said",
        (
            Field(name="direction", choices=("forward", "back", "left", "right")),
            Field(name="value", low=0, high=1000, optional=True),
            Field(name="unit", choices=("meter", "centimeter", "millimeter", "foot", "inch", "step"), optional=True),
        ),
    ),
    Intent(
        "turn",
        "turn on the spot; value is null where no angle is said",
        (
            Field(name="direction", choices=("left", "right", "around")),
            Field(name="value", low=0, high=360, whole=True, optional=True),
            Field(name="unit", choices=("degree",)),
        ),
    ),
    Intent("stop", "stop all motion"),
    Intent("dock", "return to the charger"),
    Intent("go_to", "drive to a place", (Field(name="place", choices=(*ROOMS, *PLACES)),)),
    Intent("vacuum_start", "start or resume vacuuming", (_TARGET,)),
    Intent("vacuum_pause", "pause vacuuming"),
    Intent("pick", "pick an object up", (_OBJECT, _COLOR)),
    Intent("place", "put an object somewhere", (_OBJECT, _COLOR, Field(name="place", choices=PLACES))),
    Intent("bring", "fetch an object", (_OBJECT, _COLOR)),
    Intent("get_battery", "ask for the robot's charge"),
    Intent("get_lock", "ask whether a door is locked", (_DOOR,)),
    Intent("get_temperature", "ask for the temperature", (_TARGET,)),
    Intent("get_light", "ask whether lights are on", (_TARGET,)),
    Intent("scene", "activate a scene", (Field(name="name", choices=SCENES),)),
    Intent("unknown", "anything else: chat, facts, other devices, several commands at once, negated commands"),
)


def intent_named(name: str) -> Intent | None:
    """Return the intent of that name, or None."""
    return next((intent for intent in INTENTS if intent.name == name), None)


def render_answer(intent: Intent, values: Mapping[str, Scalar]) -> str:
    """
    Write an answer as compact JSON: ``intent`` first, then every field in the order of the schema.

    Args:
        intent: The kind of command.
        values: Field name to value; a field that is missing is written as null.

    Returns:
        One line without spaces, ASCII only.
    """
    answer: dict[str, Scalar] = {"intent": intent.name}
    for field in intent.fields:
        value = values.get(field.name)
        answer[field.name] = int(value) if isinstance(value, float) and value.is_integer() else value
    return json.dumps(answer, separators=(",", ":"))


def problems(answer: str) -> list[str]:
    """
    Check one answer against the schema.

    Returns:
        What is wrong, one sentence each; empty for a valid answer in canonical form.
    """
    try:
        parsed: Any = json.loads(answer)
    except json.JSONDecodeError as error:
        return [f"not JSON: {error}"]
    if not isinstance(parsed, dict):
        return [f"a JSON {type(parsed).__name__}; it must be an object"]
    intent = intent_named(str(parsed.get("intent")))
    if intent is None:
        return [f"intent is {parsed.get('intent')!r}; allowed: {', '.join(i.name for i in INTENTS)}"]
    keys = ["intent", *(field.name for field in intent.fields)]
    if list(parsed) != keys:
        return [f"keys are {list(parsed)}; they must be {keys} in this order"]
    found = [problem for field in intent.fields if (problem := field.problem(parsed[field.name])) is not None]
    if not found and answer != render_answer(intent, parsed):
        found.append("not in compact form")
    return found


def schema_table() -> str:
    """Return the table of intents and fields in Markdown, as docs/pocket-model.md holds it."""
    lines = ["| intent | meaning | fields, in order |", "|---|---|---|"]
    for intent in INTENTS:
        fields = "; ".join(f"**{field.name}**: {field.describe()}" for field in intent.fields) or "none"
        lines.append(f"| `{intent.name}` | {intent.meaning} | {fields} |")
    return "\n".join(lines) + "\n"
