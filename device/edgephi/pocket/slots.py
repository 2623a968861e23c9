"""
How each ``{slot}`` of a template is filled: words for the sentence and values for the answer.

Owns the distribution of values. Knows neither templates nor noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from edgephi.pocket import vocabulary as words
from edgephi.pocket.numerals import say
from edgephi.pocket.phrases.unknown import FILL
from edgephi.pocket.schema import Scalar

Filled = tuple[str, dict[str, Scalar]]
"""Words said, and the fields they stand for."""


def fill(slot: str, rng: Random) -> Filled:
    """
    Fill one slot.

    Args:
        slot: Its name in the template, without braces.
        rng: Source of every choice.
    """
    if slot in FILL:
        return rng.choice(FILL[slot]), {}
    return _FILLERS[slot](rng)


def _word(table: Mapping[str, tuple[str, ...]], rng: Random) -> tuple[str, str]:
    """Return (surface, canonical); the usual surface form half of the time."""
    canonical = rng.choice(list(table))
    surfaces = table[canonical]
    return (surfaces[0] if rng.random() < 0.5 else rng.choice(surfaces)), canonical


def _simple(table: Mapping[str, tuple[str, ...]], field: str) -> Callable[[Random], Filled]:
    def filler(rng: Random) -> Filled:
        surface, canonical = _word(table, rng)
        return surface, {field: canonical}

    return filler


def _silent(table: Mapping[str, tuple[str, ...]]) -> Callable[[Random], Filled]:
    return lambda rng: (_word(table, rng)[0], {})


def _spot(rng: Random) -> Filled:
    surface, canonical = _word(words.ROOM_WORDS if rng.random() < 0.5 else words.PLACE_WORDS, rng)
    return surface, {"place": canonical}


def _object(rng: Random) -> Filled:
    surface, canonical = _word(words.OBJECT_WORDS, rng)
    if rng.random() < 0.4:
        color_surface, color = _word(words.COLOR_WORDS, rng)
        return f"{color_surface} {surface}", {"object": canonical, "color": color}
    return surface, {"object": canonical}


def _percent(rng: Random) -> Filled:
    draw = rng.random()
    if draw < 0.05:
        surface, value = rng.choice(
            (("half", 50), ("a quarter", 25), ("three quarters", 75), ("a third", 33), ("two thirds", 67))
        )
        return surface, {"value": value}
    if draw < 0.09:
        surface = rng.choice(("full", "maximum", "max", "full brightness"))
        return surface.split()[0], {"value": 100}
    value = rng.choice((10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 100)) if rng.random() < 0.4 else rng.randint(0, 100)
    number = say(rng, value)
    unit = rng.choice((" percent", " percent", " per cent", "%", " %", ""))
    if unit == "%" and not number[-1].isdigit():
        unit = " percent"
    return number + unit, {"value": value}


_SCALES = (
    ("", "degrees"),
    (" degrees", "degrees"),
    ("°", "degrees"),
    (" degrees celsius", "celsius"),
    (" celsius", "celsius"),
    (" c", "celsius"),
    ("°c", "celsius"),
    (" degrees fahrenheit", "fahrenheit"),
    (" fahrenheit", "fahrenheit"),
    (" f", "fahrenheit"),
    ("°f", "fahrenheit"),
)
_SCALE_WEIGHTS = (3, 5, 0.5, 2, 1, 0.5, 0.5, 2, 1, 0.5, 0.5)


def _temperature(rng: Random, *, bare: bool = True) -> Filled:
    scales, weights = (_SCALES, _SCALE_WEIGHTS) if bare else (_SCALES[1:], _SCALE_WEIGHTS[1:])
    suffix, unit = rng.choices(scales, weights)[0]
    low, high = {"celsius": (5, 35), "fahrenheit": (40, 99), "degrees": (5, 99)}[unit]
    if unit == "degrees" and rng.random() < 0.6:
        low, high = 15, 28
    value: float = rng.randint(low, high)
    if unit != "fahrenheit" and rng.random() < 0.15:
        value += 0.5 if rng.random() < 0.7 else rng.randint(1, 9) / 10
    number = say(rng, value)
    if suffix.startswith("°") and not number[-1].isdigit():
        suffix = " degrees" + {"°": "", "°c": " celsius", "°f": " fahrenheit"}[suffix]
    return number + suffix, {"value": value, "unit": unit}


def _delta(rng: Random) -> Filled:
    scale, unit = rng.choices((("", "degrees"), (" celsius", "celsius"), (" fahrenheit", "fahrenheit")), (8, 1, 1))[0]
    draw = rng.random()
    if draw < 0.1:
        return f"{rng.choice(('a', 'one'))} degree{scale}", {"value": 1, "unit": unit}
    if draw < 0.16:
        return f"half a degree{scale}", {"value": 0.5, "unit": unit}
    if draw < 0.2:
        return f"a couple of degrees{scale}", {"value": 2, "unit": unit}
    value: float = rng.randint(1, 10) if draw < 0.85 else rng.randint(1, 5) + 0.5
    return f"{say(rng, value)} degree{'s' if value != 1 else ''}{scale}", {"value": value, "unit": unit}


_DURATION_UNITS = (
    (("hour", "hours"), ("hour", "hours"), ("hr", "hrs"), ("h", "h")),
    (("minute", "minutes"), ("minute", "minutes"), ("min", "mins"), ("min", "min")),
    (("second", "seconds"), ("second", "seconds"), ("sec", "secs"), ("s", "s")),
)


def _part(rng: Random, value: int, unit: int) -> str:
    singular, plural = rng.choice(_DURATION_UNITS[unit])
    if value == 1 and rng.random() < 0.5:
        return f"{'an' if unit == 0 else 'a'} {_DURATION_UNITS[unit][0][0]}"
    return f"{say(rng, value)} {singular if value == 1 or rng.random() < 0.1 else plural}"


def _duration(rng: Random) -> Filled:
    parts = [0, 0, 0]
    draw = rng.random()
    if draw < 0.15:
        text, parts = rng.choice(
            (
                ("half an hour", [0, 30, 0]),
                ("a half hour", [0, 30, 0]),
                ("an hour and a half", [1, 30, 0]),
                ("one and a half hours", [1, 30, 0]),
                ("a quarter of an hour", [0, 15, 0]),
                ("three quarters of an hour", [0, 45, 0]),
                ("half a minute", [0, 0, 30]),
                ("a minute and a half", [0, 1, 30]),
                ("one and a half minutes", [0, 1, 30]),
                ("two and a half hours", [2, 30, 0]),
                ("two and a half minutes", [0, 2, 30]),
                ("three and a half hours", [3, 30, 0]),
                ("three and a half minutes", [0, 3, 30]),
                ("a couple of minutes", [0, 2, 0]),
                ("a couple of hours", [2, 0, 0]),
            )
        )
    elif draw < 0.35:
        first = rng.choice((0, 1))
        parts[first], parts[first + 1] = rng.randint(1, 12), rng.randint(1, 59)
        joint = rng.choice((" and ", " ", " and "))
        text = joint.join(_part(rng, value, unit) for unit, value in enumerate(parts) if value)
    else:
        unit = rng.choices((0, 1, 2), (1, 3, 1.3))[0]
        parts[unit] = (
            rng.randint(1, (24, 120, 120)[unit]) if rng.random() < 0.7 else rng.choice((1, 2, 3, 5, 10, 15, 20))
        )
        text = _part(rng, parts[unit], unit)
    return text, dict(zip(("hours", "minutes", "seconds"), parts, strict=True))


_RANGES: Mapping[str, tuple[int, int]] = {
    "meter": (1, 50),
    "centimeter": (1, 500),
    "millimeter": (1, 1000),
    "foot": (1, 50),
    "inch": (1, 100),
    "step": (1, 50),
}


def _distance(rng: Random) -> Filled:
    unit = rng.choices(tuple(_RANGES), (4, 3, 1, 2, 1.5, 2))[0]
    singular, plural = rng.choice(words.UNIT_WORDS[unit])
    article = "an" if singular[0] in "aeiou" else "a"
    draw = rng.random()
    if draw < 0.08 and len(singular) > 2:
        return f"{article} {singular}", {"value": 1, "unit": unit}
    if draw < 0.12 and len(singular) > 2 and unit != "step":
        return f"half {article} {singular}", {"value": 0.5, "unit": unit}
    if draw < 0.14 and len(singular) > 2:
        return f"a couple of {plural}", {"value": 2, "unit": unit}
    low, high = _RANGES[unit]
    value: float = rng.randint(low, high if rng.random() < 0.5 else 20)
    if unit in ("meter", "foot", "inch") and rng.random() < 0.25:
        value = min(value, 20) + (0.5 if rng.random() < 0.6 else rng.randint(1, 9) / 10)
    number = say(rng, value)
    glue = (
        "" if len(plural) == 2 and plural in ("cm", "mm", "ft") and number[-1].isdigit() and rng.random() < 0.4 else " "
    )
    return f"{number}{glue}{singular if value == 1 else plural}", {"value": value, "unit": unit}


def _steps(rng: Random) -> Filled:
    value = rng.randint(1, 20)
    number = "a" if value == 1 and rng.random() < 0.5 else say(rng, value)
    return f"{number} step{'s' if value != 1 else ''}", {"value": value, "unit": "step"}


def _angle(rng: Random) -> Filled:
    value = rng.choice((30, 45, 60, 90, 90, 120, 180, 270, 360)) if rng.random() < 0.4 else rng.randint(1, 360)
    number = say(rng, value)
    unit = rng.choice((" degrees", " degrees", " degrees", ""))
    if unit and number[-1].isdigit() and rng.random() < 0.1:
        unit = "°"
    return number + ("" if not unit else " degree" if value == 1 and unit == " degrees" else unit), {"value": value}


_FILLERS: Mapping[str, Callable[[Random], Filled]] = {
    "room": _simple(words.ROOM_WORDS, "target"),
    "anyroom": _silent(words.ROOM_WORDS),
    "lcolor": _simple(words.LIGHT_COLOR_WORDS, "color"),
    "cover": _simple(words.COVER_WORDS, "device"),
    "door": _simple(words.DOOR_WORDS, "target"),
    "place": _simple(words.PLACE_WORDS, "place"),
    "anyplace": _silent(words.PLACE_WORDS),
    "scene": _simple(words.SCENE_WORDS, "name"),
    "mode": _simple(words.MODE_WORDS, "mode"),
    "spot": _spot,
    "object": _object,
    "percent": _percent,
    "temp": _temperature,
    "unit_temp": lambda rng: _temperature(rng, bare=False),
    "delta": _delta,
    "duration": _duration,
    "distance": _distance,
    "steps": _steps,
    "angle": _angle,
}
