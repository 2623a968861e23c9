"""
JSON files read field by field, with errors that name the file, the key, the value and what was expected.

Knows nothing of what the fields mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from edgephi.errors import ModelInvalid, ModelNotFound

MAX_JSON_BYTES = 64 << 20  # a tensor-cache.json of a 32-layer model is 100 kB, a tokenizer.json a few MB


class Fields:
    """
    One JSON object, read with checks. A field that is ``null`` counts as absent.

    Args:
        values: The object's members.
        file: Name of the file, for messages.
        prefix: Path of the object inside the file, such as ``model_config.``.
    """

    def __init__(self, values: Mapping[str, object], *, file: str, prefix: str = "") -> None:
        self.values = values
        self.file = file
        self._prefix = prefix

    def has(self, key: str) -> bool:
        """Return whether the field is present and not null."""
        return self.values.get(key) is not None

    def invalid(self, key: str, expected: str) -> ModelInvalid:
        """Return, not raise, the error for a field that is missing or not as expected."""
        found = f"is {_shown(self.values[key])}" if key in self.values else "is missing"
        return ModelInvalid(f"{self.file}: {self._prefix}{key} {found}; expected {expected}")

    def integer(self, key: str, *, low: int, high: int, default: int | None = None) -> int:
        """
        Return an integer field within bounds, or the default where it is absent.

        Raises:
            ModelInvalid: If it is not an integer, out of bounds, or absent without a default.
        """
        if not self.has(key) and default is not None:
            return default
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.invalid(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, *, low: float, high: float, default: float | None = None) -> float:
        """
        Return a finite number within bounds, or the default where it is absent.

        Raises:
            ModelInvalid: If it is not such a number, or absent without a default.
        """
        if not self.has(key) and default is not None:
            return default
        value = _as_number(self.values.get(key))
        if value is None or not low <= value <= high:
            raise self.invalid(key, f"a number from {low:g} to {high:g}")
        return value

    def text(self, key: str, *, default: str | None = None) -> str:
        """
        Return a string, or the default where it is absent.

        Raises:
            ModelInvalid: If it is not a string, or absent without a default.
        """
        if not self.has(key) and default is not None:
            return default
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self.invalid(key, "a string")
        return value

    def boolean(self, key: str, *, default: bool) -> bool:
        """
        Return a boolean, or the default where it is absent.

        Raises:
            ModelInvalid: If it is not a boolean.
        """
        if not self.has(key):
            return default
        value = self.values[key]
        if not isinstance(value, bool):
            raise self.invalid(key, "true or false")
        return value

    def numbers(self, key: str, *, count: int) -> tuple[float, ...]:
        """
        Return a list of exactly ``count`` finite numbers above zero.

        Raises:
            ModelInvalid: If the list has another length or holds anything else.
        """
        value = self.values.get(key)
        items = [_as_number(item) for item in value] if isinstance(value, list) else []
        found = tuple(item for item in items if item is not None and item > 0)
        if len(found) != count or len(items) != count:
            raise self.invalid(key, f"a list of {count} numbers above 0")
        return found

    def integers(self, key: str, *, low: int, high: int) -> tuple[int, ...]:
        """
        Return a list of integers within bounds; a lone integer counts as a list of one.

        Raises:
            ModelInvalid: If it is neither, or an item is out of bounds.
        """
        value = self.values.get(key)
        items = value if isinstance(value, list) else [value]
        found: list[int] = []
        for item in items:
            if isinstance(item, bool) or not isinstance(item, int) or not low <= item <= high:
                raise self.invalid(key, f"integers from {low} to {high}")
            found.append(item)
        return tuple(found)

    def child(self, key: str) -> Fields:
        """
        Return the object in a field.

        Raises:
            ModelInvalid: If the field holds no object.
        """
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.invalid(key, "an object")
        return Fields(value, file=self.file, prefix=f"{self._prefix}{key}.")

    def children(self, key: str) -> tuple[Fields, ...]:
        """
        Return the objects of a list.

        Raises:
            ModelInvalid: If the field is no list of objects.
        """
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.invalid(key, "a list of objects")
        return tuple(
            Fields(item, file=self.file, prefix=f"{self._prefix}{key}[{index}].") for index, item in enumerate(value)
        )


def read_fields(path: Path) -> Fields:
    """
    Read a file that holds one JSON object.

    Raises:
        ModelNotFound: If there is no such file.
        ModelInvalid: If it is too large, not UTF-8, not JSON, or not an object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelInvalid(f"{path.name} has {size} bytes; at most {MAX_JSON_BYTES} are read")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFound(f"{path} does not exist; name a folder that holds a model") from None
    except (ValueError, RecursionError) as error:
        raise ModelInvalid(f"{path.name} is not JSON ({error}); download the model again") from error
    except OSError as error:
        raise ModelInvalid(f"{path.name} cannot be read ({error.strerror})") from error
    if not isinstance(value, dict):
        raise ModelInvalid(f"{path.name} holds {_shown(value)}; expected an object")
    return Fields(value, file=path.name)


def _as_number(value: object) -> float | None:
    """Return a finite number as a float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _shown(value: object) -> str:
    """Return a value as JSON, cut to a readable length."""
    try:
        text = json.dumps(value)
    except RecursionError:  # it was read from fewer frames down
        return "too deeply nested"
    return text if len(text) <= 80 else text[:77] + "..."
