"""Misfits: what is wanted of a tool's skills, and what they have instead."""

import json
from fractions import Fraction
from typing import Any

from msgspec import Struct

Path = tuple[str | int, ...]

_LONGEST_VALUE = 60
# A name may hold what separates names, and then stands in quotes.
_SEPARATORS = set('."[] ')


class MisfitError(Exception):
    """Raised by a `match` function to say why the skills do not meet the needs.

    What it says, like "wants 2 GPUs, has 1", becomes a part of the remark on the tasks that wait for that.
    """


class UnjudgeableError(ValueError):
    """That needs, or skills, are not what the strategy can judge."""


class Misfit(Struct, frozen=True, kw_only=True):
    """One thing that skills lack.

    Args:
        wanted: What is needed, like `gpu ≥ 2`; none: nobody can say.
        had: What there is instead, like `1`, or `no gpu`.
        gap: How far that is from it, of several that lack as much: the less the nearer.
        path: The place in the skills.
        absent: Whether there is nothing at that place.
    """

    wanted: str
    had: str
    path: Path = ()
    absent: bool = False
    gap: float = 1.0

    def implies(self, other: "Misfit") -> bool:
        """Whether who has this one lacks what the other one wants, too."""
        is_below = self.absent and other.path[: len(self.path)] == self.path
        return is_below or self.wanted == other.wanted


def gap(wanted: Any, had: Any) -> float:
    """How far apart two numbers are, as a share of the greater one; 1 where they are none."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (wanted, had)):
        return 1.0
    # They may be larger than a float can be.
    apart, greater = Fraction(abs(wanted - had)), Fraction(max(abs(wanted), abs(had)))
    return float(apart / greater) if greater else 0.0


def shown(value: Any) -> str:
    """A JSON value for people: a long one is cut."""
    text, written = "", json.JSONEncoder(ensure_ascii=False).iterencode(value)
    for part in written:
        text += part
        if len(text) > _LONGEST_VALUE:
            return cut(text, _LONGEST_VALUE)
    return text


def cut(text: str, length: int) -> str:
    """A text in one line, of so many characters at most."""
    text = "".join(character if character.isprintable() else " " for character in text[: length + 1])
    return text if len(text) <= length else text[: length - 1] + "…"


def place(path: Path) -> str:
    """A place in a JSON value, like `gpus[0].memory`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif not step or _SEPARATORS & set(step):
            text += f"[{shown(step)}]"
        else:
            text += f".{step}" if text else step
    return cut(text, _LONGEST_VALUE)
