"""Strategies: different ways to decide whether skills meet needs."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from msgspec.json import decode

from broker.matching.contains import Contains, contains
from broker.matching.mismatch import Mismatch, MismatchError

Match = Callable[[Any, Any], bool]
Rank = Callable[[Any, Any], float]

NAMES = ("contains", "schema")

Ordinary = TypeVar("Ordinary", bound=Callable[..., Any])


class Strategy(Protocol):
    """Judges whether skills meet needs.

    Needs and skills are prepared once, and then judged many times. If they cannot be judged, each method
    raises an exception.
    """

    def needs(self, text: bytes) -> Any:
        """Prepare needs."""

    def skills(self, text: bytes) -> Any:
        """Prepare skills."""

    def matches(self, skills: Any, needs: Any) -> bool:
        """Return whether these skills meet these needs."""

    def mismatches(self, skills: Any, needs: Any) -> list[Mismatch]:
        """Return what these skills lack; empty: unknown."""


class Function:
    """Judges by a `match` function. It gets new values each time, and may change them."""

    def __init__(self, match: Match) -> None:
        self._match = match

    def needs(self, text: bytes) -> bytes:
        """Return needs unchanged."""
        return text

    def skills(self, text: bytes) -> bytes:
        """Return skills unchanged."""
        return text

    def matches(self, skills: bytes, needs: bytes) -> bool:
        """Return whether the skills meet the needs; raise whatever the function raises."""
        return bool(self._match(decode(skills), decode(needs)))

    def mismatches(self, skills: bytes, needs: bytes) -> list[Mismatch]:
        """Return the message of its MismatchError, if any; raise whatever else the function raises."""
        try:
            self._match(decode(skills), decode(needs))
        except MismatchError as error:
            return [Mismatch(wanted="", had=str(error))]
        return []


def strategy(match: Match | str) -> Strategy:
    """Return the strategy of a name, or of a `match` function.

    Raises:
        ValueError: There is no strategy of this name.
        TypeError: `match` is not an ordinary function.
    """
    if match in ("contains", contains):
        return Contains()
    if match == "schema":
        # This import takes a third as long as that of the whole client.
        from broker.matching.json_schema import Schema  # noqa: PLC0415

        return Schema()
    if not isinstance(match, str):
        return Function(ordinary(match, "match"))
    raise ValueError(f"there is no strategy {match!r}; there are {' and '.join(NAMES)}")


def ordinary(function: Ordinary, role: str) -> Ordinary:
    """Return the function; raise TypeError if it is none, or asynchronous: a coroutine is always true."""
    if not callable(function):
        raise TypeError(f"{role} has to be a function, and is {function!r}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{role} has to be an ordinary function, not `async def`")
    return function
