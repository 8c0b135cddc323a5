"""Mismatches between the needs of a task and the skills of a tool."""

import json
from fractions import Fraction
from typing import Any

from msgspec import Struct

from broker.texts import replace_unprintable, shorten

Path = tuple[str | int, ...]

_LONGEST_VALUE = 60
# A name with one of these characters needs quotes.
_SEPARATORS = set('."[] ')


class MismatchError(Exception):
    """A `match` function raises this error to explain why a tool cannot do a task.

    The assigner adds the message to the remark on the waiting tasks, which `broker explain` and the dashboard
    show.

    Example:
        def match(skills, needs):
            if skills["gpus"] < needs["gpus"]:
                raise MismatchError(f"wants {needs['gpus']} GPUs, has {skills['gpus']}")
            return True
    """


class UnjudgeableError(ValueError):
    """The strategy cannot judge these needs or skills."""


class Mismatch(Struct, frozen=True, kw_only=True):
    """One need that skills do not meet.

    Args:
        wanted: The need, like `gpu ≥ 2`; empty if it is unknown.
        had: The value in the skills, like `1`, or `no gpu`.
        path: The place in the skills.
        absent: True if the skills have no value at this place.
        gap: The distance between the need and the value, from 0 to 1. It orders tools that have the same
            number of mismatches.
    """

    wanted: str
    had: str
    path: Path = ()
    absent: bool = False
    gap: float = 1.0

    def implies(self, other: "Mismatch") -> bool:
        """Return whether skills with this mismatch also have the other one."""
        is_below = self.absent and other.path[: len(self.path)] == self.path
        return is_below or self.wanted == other.wanted


def gap(wanted: Any, had: Any) -> float:
    """Return the difference of two numbers, divided by the greater one, or 1 if one is not a number."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (wanted, had)):
        return 1.0
    # The integers may be too large for a float.
    difference, greater = Fraction(abs(wanted - had)), Fraction(max(abs(wanted), abs(had)))
    return float(difference / greater) if greater else 0.0


def shown(value: Any) -> str:
    """Return a JSON value as a short text on one line."""
    text, chunks = "", json.JSONEncoder(ensure_ascii=False).iterencode(value)
    for chunk in chunks:
        text += chunk
        if len(text) > _LONGEST_VALUE:
            return short_line(text, _LONGEST_VALUE)
    return text


def short_line(text: str, longest: int) -> str:
    """Return a text on one line, of at most `longest` characters."""
    return shorten(replace_unprintable(text[: longest + 1], " "), longest)


def place(path: Path) -> str:
    """Return a place in a JSON value as a text, like `gpus[0].memory`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif not step or _SEPARATORS & set(step):
            text += f"[{shown(step)}]"
        else:
            text += f".{step}" if text else step
    return short_line(text, _LONGEST_VALUE)
