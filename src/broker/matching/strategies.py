"""Strategies: what it means that skills meet needs."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from broker.matching.contains import Contains, contains
from broker.matching.function import Function, Match
from broker.matching.misfit import Misfit

NAMES = ("contains", "schema")

Given = TypeVar("Given", bound=Callable[..., Any])


class Strategy(Protocol):
    """Judges whether skills meet needs.

    Both are made ready once, and then judged with many others. What cannot be judged raises an exception.
    """

    def needs(self, text: bytes) -> Any:
        """Needs, made ready to be judged."""

    def skills(self, text: bytes) -> Any:
        """Skills, made ready to be judged."""

    def matches(self, skills: Any, needs: Any) -> bool:
        """Whether these skills meet these needs."""

    def misfits(self, skills: Any, needs: Any) -> list[Misfit]:
        """What these skills lack; nothing: nobody can say."""


def strategy(match: Match | str) -> Strategy:
    """The strategy that is called so, or that judges by this function.

    Raises:
        ValueError: There is no such strategy.
        TypeError: This is no function that can judge.
    """
    if match in ("contains", contains):
        return Contains()
    if match == "schema":
        # It takes a third of the time that importing all of the client takes.
        from broker.matching.json_schema import Schema  # noqa: PLC0415

        return Schema()
    if not isinstance(match, str):
        return Function(ordinary(match, "match"))
    raise ValueError(f"there is no strategy {match!r}; there are {' and '.join(NAMES)}")


def ordinary(function: Given, role: str) -> Given:
    """An ordinary function: what an asynchronous one answers has yet to be awaited, and is always true.

    Raises:
        TypeError: It is none.
    """
    if not callable(function):
        raise TypeError(f"{role} has to be a function, and is {function!r}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{role} has to be an ordinary function, not `async def`")
    return function
