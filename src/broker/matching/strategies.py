"""Strategies: different ways to decide whether skills meet needs."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from broker.matching.contains import Contains, contains
from broker.matching.function import Function, Match
from broker.matching.mismatch import Mismatch

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
    """Return the function, after checking that it is not asynchronous: a coroutine would always be true.

    Raises:
        TypeError: It is not a function, or it is asynchronous.
    """
    if not callable(function):
        raise TypeError(f"{role} has to be a function, and is {function!r}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{role} has to be an ordinary function, not `async def`")
    return function
