"""Estimate how expensive it is to validate a value against a JSON Schema."""

from typing import Any
from urllib.parse import unquote

from broker.matching.mismatch import UnjudgeableError, shown

# The maximum cost of a schema, in objects. Each object counts once for each reference to it.
_HIGHEST_COST = 5_000
# The cost of a regular expression, and the factor for `unevaluated…`, which evaluates its part again.
_PATTERN = 50
_UNEVALUATED = 3
# The cost of a comparison with a number, and the number of comparisons with texts that cost 1.
_NUMBER = 20
_TEXTS = 50

# Keywords whose objects have names as keys. Then keywords without a schema, or with schemas that count only
# when something refers to them.
_MAPS = ("properties", "patternProperties", "dependentSchemas")
_NO_PARTS = frozenset(("const", "enum", "default", "examples", "$defs", "definitions", *_MAPS))
# Keywords whose values the validator compares with the checked value.
_VALUES = ("const", "enum")
# References whose targets depend on more than the schema.
_DYNAMIC = ("$dynamicRef", "$recursiveRef")


def schema_cost(schema: Any) -> int:
    """Return the cost of a schema.

    Each object costs 1, and the same again for each reference to it. References multiply: if each part refers
    twice to the next part, a small schema takes exponential time.

    Raises:
        UnjudgeableError: The schema costs too much, refers to itself, or refers to something outside it.
    """
    try:
        return _Estimate(schema).cost(schema)
    except RecursionError:
        raise UnjudgeableError("the schema is nested too deeply") from None


class _Estimate:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._known: dict[int, int] = {}
        self._above: set[int] = set()

    def cost(self, part: Any) -> int:
        if isinstance(part, list):
            return self._checked(sum(map(self.cost, part)))
        if not isinstance(part, dict):
            return 0
        if id(part) in self._above:
            raise UnjudgeableError("the schema refers to itself")
        if id(part) not in self._known:
            self._above.add(id(part))
            self._known[id(part)] = self._checked(self._object(part))
            self._above.discard(id(part))
        return self._known[id(part)]

    def _object(self, part: dict[str, Any]) -> int:
        total = 1 + sum(self.cost(value) for key, value in part.items() if key not in _NO_PARTS)
        for key in _MAPS:
            if isinstance(part.get(key), dict):
                total += sum(map(self.cost, part[key].values()))
        total += sum(_comparison_cost(part[key]) for key in _VALUES if key in part)
        for key in _DYNAMIC:
            if isinstance(part.get(key), str):
                raise UnjudgeableError(f"the schema uses {key}, which is not supported; use $ref")
        if isinstance(part.get("$id"), str) and part is not self._schema:
            raise UnjudgeableError("the schema uses $id below its top level, which is not supported")
        if isinstance(part.get("$ref"), str):
            total += self.cost(self._target(part["$ref"]))
        if isinstance(part.get("pattern"), str):
            total += _PATTERN
        if isinstance(part.get("patternProperties"), dict):
            total += _PATTERN * len(part["patternProperties"])
        if "unevaluatedItems" in part or "unevaluatedProperties" in part:
            total *= _UNEVALUATED
        return total

    def _target(self, reference: str) -> Any:
        """Return the part of the schema at a JSON Pointer."""
        place, target = unquote(reference), self._schema
        if place != "#" and not place.startswith("#/"):
            raise UnjudgeableError(
                f"$ref must point into the schema, like #/$defs/x, but it is {shown(reference)}"
            )
        for step in place.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(key)] if isinstance(target, list) else target[key]
            except (KeyError, IndexError, TypeError, ValueError):
                raise UnjudgeableError(f"$ref {shown(reference)} does not exist in the schema") from None
        return target

    def _checked(self, total: int) -> int:
        if total > _HIGHEST_COST:
            raise UnjudgeableError("the schema is too large, or refers to its parts too often")
        return total


def _comparison_cost(value: Any) -> int:
    """Return the cost of a comparison with a value. A comparison with a scalar costs nothing."""
    if not isinstance(value, dict | list):
        return 0
    parts = list(value.values()) if isinstance(value, dict) else value
    numbers = sum(isinstance(part, int | float) and not isinstance(part, bool) for part in parts)
    return 1 + _NUMBER * numbers + (len(parts) - numbers) // _TEXTS + sum(map(_comparison_cost, parts))
