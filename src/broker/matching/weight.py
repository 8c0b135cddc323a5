"""The weight of a JSON Schema: how much work it may be to hold something against it."""

from typing import Any
from urllib.parse import unquote

from broker.matching.misfit import UnjudgeableError, shown

# Parts of a schema, each counted as often as it is referred to.
_HEAVIEST = 5_000
# A regular expression is as much work as so many parts; `unevaluated…` has its part judged again, and again
# at each level of nesting.
_PATTERN = 50
_UNEVALUATED = 3
# To compare with a number is as much work as so many parts, with so many texts as one part.
_NUMBER = 20
_TEXTS = 50

# Objects whose keys are names, and no keywords; and what is no part of a schema, or if referred to only.
_MAPS = ("properties", "patternProperties", "dependentSchemas")
_NO_PARTS = frozenset(("const", "enum", "default", "examples", "$defs", "definitions", *_MAPS))
# What values are compared with: each of them is as much work as its parts.
_VALUES = ("const", "enum")
# They are found in ways that a look at the schema alone does not tell.
_DYNAMIC = ("$dynamicRef", "$recursiveRef")


def weight(schema: Any) -> int:
    """The weight of a schema.

    Each object in it counts as one, those that are referred to as often as they are: what refers to
    something twice that refers to something twice, and so on, is small, and takes for ever.

    Raises:
        UnjudgeableError: It is too heavy; or refers to itself, or to something that is not a part of it.
    """
    try:
        return _Scale(schema).weigh(schema)
    except RecursionError:
        raise UnjudgeableError("the schema is nested too deep") from None


class _Scale:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._known: dict[int, int] = {}
        self._above: set[int] = set()

    def weigh(self, part: Any) -> int:
        if isinstance(part, list):
            return self._bearable(sum(map(self.weigh, part)))
        if not isinstance(part, dict):
            return 0
        if id(part) in self._above:
            raise UnjudgeableError("the schema refers to itself")
        if id(part) not in self._known:
            self._above.add(id(part))
            self._known[id(part)] = self._bearable(self._object(part))
            self._above.discard(id(part))
        return self._known[id(part)]

    def _object(self, part: dict[str, Any]) -> int:
        total = 1 + sum(self.weigh(value) for key, value in part.items() if key not in _NO_PARTS)
        for key in _MAPS:
            if isinstance(part.get(key), dict):
                total += sum(map(self.weigh, part[key].values()))
        total += sum(_size(part[key]) for key in _VALUES if key in part)
        for key in _DYNAMIC:
            if isinstance(part.get(key), str):
                raise UnjudgeableError(f"{key} is not taken; $ref is")
        if isinstance(part.get("$id"), str) and part is not self._schema:
            raise UnjudgeableError("$id is taken at the top of a schema only")
        if isinstance(part.get("$ref"), str):
            total += self.weigh(self._target(part["$ref"]))
        if isinstance(part.get("pattern"), str):
            total += _PATTERN
        if isinstance(part.get("patternProperties"), dict):
            total += _PATTERN * len(part["patternProperties"])
        if "unevaluatedItems" in part or "unevaluatedProperties" in part:
            total *= _UNEVALUATED
        return total

    def _target(self, reference: str) -> Any:
        """What a JSON Pointer points at."""
        place, found = unquote(reference), self._schema
        if place != "#" and not place.startswith("#/"):
            raise UnjudgeableError(
                f"$ref has to point into the schema, like #/$defs/x, and is {shown(reference)}"
            )
        for step in place.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, TypeError, ValueError):
                raise UnjudgeableError(f"$ref {shown(reference)} points at nothing") from None
        return found

    def _bearable(self, total: int) -> int:
        if total > _HEAVIEST:
            raise UnjudgeableError("the schema is too large, or refers to its parts too often")
        return total


def _size(value: Any) -> int:
    """How much work it is to compare something with a value, which is little where it is a scalar."""
    if not isinstance(value, dict | list):
        return 0
    parts = list(value.values()) if isinstance(value, dict) else value
    numbers = sum(isinstance(part, int | float) and not isinstance(part, bool) for part in parts)
    return 1 + _NUMBER * numbers + (len(parts) - numbers) // _TEXTS + sum(map(_size, parts))
