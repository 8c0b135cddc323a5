"""Steps of the life cycle: functions that write or read a set of items in one transaction."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection

from broker.store.sessions import Result

Item = TypeVar("Item")

# A step returns a result for each item, in order. It is a plain function: a session runs it with the
# connection that the session holds (SQLAlchemy's `run_sync`), which costs a third less than to await its
# statements.
Step = Callable[[Connection, Sequence[Item]], list[Result]]

# The steps that are one statement, and for which items they are.
_ONE_STATEMENT: dict[Step[Any, Any], Callable[[Any], bool]] = {}


def one_statement(
    fits: Callable[[Any], bool] = lambda _: True,
) -> Callable[[Step[Item, Result]], Step[Item, Result]]:
    """Mark a step that writes with one statement, which is a transaction of its own and needs none around it.

    To begin and to commit a transaction takes as long as a small statement. Such a statement sees the latest
    version of each row that it locks, and of all other rows the version that was committed when it began. If
    a further statement of the step fails, the whole step runs again and finds what the first statement wrote.

    Args:
        fits: For which items the step is one statement.
    """

    def mark(step: Step[Item, Result]) -> Step[Item, Result]:
        _ONE_STATEMENT[step] = fits
        return step

    return mark


def is_one_statement(step: Step[Item, Result], items: Sequence[Item]) -> bool:
    """Return whether a step writes these items with one statement."""
    fits = _ONE_STATEMENT.get(step)
    return fits is not None and all(map(fits, items))
