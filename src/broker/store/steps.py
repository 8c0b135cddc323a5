"""Steps of the life cycle: functions that write or read a set of items in one transaction."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from broker.store.sessions import Result
from broker.store.sql_connection import SqlConnection

Item = TypeVar("Item")

# A step returns a result for each item, in order. It is a synchronous function, which a session runs in a
# greenlet. This costs a third less than awaiting each statement.
Step = Callable[[SqlConnection, Sequence[Item]], list[Result]]

# The steps that are one statement, and the condition on their items.
_ONE_STATEMENT: dict[Step[Any, Any], Callable[[Any], bool]] = {}


def one_statement(
    fits: Callable[[Any], bool] = lambda _: True,
) -> Callable[[Step[Item, Result]], Step[Item, Result]]:
    """Mark a step that writes with one statement, which needs no transaction around it.

    Beginning and committing a transaction takes as long as a small statement. The statement sees the latest
    version of the rows that it locks, and other rows as they were committed when it began. If a further
    statement of the step fails, the whole step runs again and finds the writes of the first one.

    Args:
        fits: Returns whether the step is one statement for an item.
    """

    def mark(step: Step[Item, Result]) -> Step[Item, Result]:
        _ONE_STATEMENT[step] = fits
        return step

    return mark


def is_one_statement(step: Step[Item, Result], items: Sequence[Item]) -> bool:
    """Return whether a step writes these items with one statement."""
    fits = _ONE_STATEMENT.get(step)
    return fits is not None and all(map(fits, items))
