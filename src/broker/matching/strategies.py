"""Strategies: ways to decide whether skills meet needs."""

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
    """Decides whether skills meet needs.

    The judge prepares needs and skills once, and then compares them many times. If a strategy cannot compare
    them, any of its methods may raise an exception.
    """

    def needs(self, text: bytes) -> Any:
        """Prepare needs."""

    def skills(self, text: bytes) -> Any:
        """Prepare skills."""

    def matches(self, skills: Any, needs: Any) -> bool:
        """Return whether these skills meet these needs."""

    def mismatches(self, skills: Any, needs: Any) -> list[Mismatch]:
        """Return the mismatches between skills and needs, or an empty list if the strategy names none."""


class Function:
    """A strategy that calls a `match` function, with new values each time, which it may change."""

    def __init__(self, match: Match) -> None:
        self._match = match

    def needs(self, text: bytes) -> bytes:
        """Return needs unchanged."""
        return text

    def skills(self, text: bytes) -> bytes:
        """Return skills unchanged."""
        return text

    def matches(self, skills: bytes, needs: bytes) -> bool:
        """Return the result of the function. Any exception of the function passes through."""
        return bool(self._match(decode(skills), decode(needs)))

    def mismatches(self, skills: bytes, needs: bytes) -> list[Mismatch]:
        """Return the message of the function's MismatchError, if any. Other exceptions pass through."""
        try:
            self._match(decode(skills), decode(needs))
        except MismatchError as error:
            return [Mismatch(wanted="", had=str(error))]
        return []


def strategy(match: Match | str) -> Strategy:
    """Return the strategy with a name, or the strategy that calls a `match` function.

    Raises:
        ValueError: No strategy has this name.
        TypeError: `match` is not an ordinary function.
    """
    if match in ("contains", contains):
        return Contains()
    if match == "schema":
        # This import is slow: it would add a third to the import time of the client.
        from broker.matching.json_schema import Schema  # noqa: PLC0415

        return Schema()
    if not isinstance(match, str):
        return Function(ordinary(match, "match"))
    raise ValueError(f"unknown strategy {match!r}; the strategies are {' and '.join(NAMES)}")


def ordinary(function: Ordinary, role: str) -> Ordinary:
    """Return the function unchanged.

    Raises:
        TypeError: It is not a function, or it is asynchronous. The result of such a function is a coroutine,
            which always counts as true.
    """
    if not callable(function):
        raise TypeError(f"{role} must be a function, but is {function!r}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{role} must be an ordinary function, not `async def`")
    return function
