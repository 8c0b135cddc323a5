"""Mismatches: what a task needs, and what the skills of a tool have instead."""

import json
from fractions import Fraction
from typing import Any

from msgspec import Struct

from broker.texts import replace_unprintable, shorten

Path = tuple[str | int, ...]

_LONGEST_VALUE = 60
# A name with one of these stands in quotes.
_SEPARATORS = set('."[] ')


class MismatchError(Exception):
    """A `match` function raises this error to say why the skills do not meet the needs.

    Its message, like "wants 2 GPUs, has 1", becomes a part of the remark on the tasks with these needs.
    """


class UnjudgeableError(ValueError):
    """The strategy cannot judge these needs or skills."""


class Mismatch(Struct, frozen=True, kw_only=True):
    """One thing that skills lack.

    Args:
        wanted: What is needed, like `gpu ≥ 2`; empty: unknown.
        had: What the skills have instead, like `1`, or `no gpu`.
        gap: How far that is from what is needed, 0 to 1, to compare skills that lack as many things.
        path: The place in the skills.
        absent: Whether the skills have nothing at that place.
    """

    wanted: str
    had: str
    path: Path = ()
    absent: bool = False
    gap: float = 1.0

    def implies(self, other: "Mismatch") -> bool:
        """Return whether skills with this mismatch have the other one, too."""
        is_below = self.absent and other.path[: len(self.path)] == self.path
        return is_below or self.wanted == other.wanted


def gap(wanted: Any, had: Any) -> float:
    """Return the difference of two numbers as a share of the greater one; 1 if one is not a number."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (wanted, had)):
        return 1.0
    # They may be larger than a float can be.
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
