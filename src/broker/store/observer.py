"""The observer: it counts and logs what transactions did, when they are committed."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from sqlalchemy import Connection

from broker.schemas.states import Outcome

_NOTED = "broker.ended_work"


class EndedWork(NamedTuple):
    """A work item that has ended.

    Its task had waited for `waited_seconds` when it was assigned, if this was the first attempt. It started
    `started_after_seconds` later, if at all, and then ran for `ran_seconds`.
    """

    work_id: UUID
    task_id: str
    tool_id: str
    outcome: Outcome
    waited_seconds: float | None
    started_after_seconds: float | None
    ran_seconds: float | None


class Observer(Protocol):
    """Counts and logs what the store does."""

    def work_ended(self, works: Sequence[EndedWork]) -> None:
        """Count work that has ended."""

    def set_committed(self, step: str, items: int, seconds: float) -> None:
        """Count the transaction of a set: the name of the step, its number of items, and how long it took."""


def note(connection: Connection, works: Iterable[EndedWork]) -> None:
    """Have the observer get ended work when the transaction under way is committed."""
    connection.info.setdefault(_NOTED, []).extend(works)


def pop_noted(info: dict[Any, Any]) -> list[EndedWork]:
    """Remove what was noted from the `info` of a connection, which may be lost by now, and return it."""
    noted: list[EndedWork] = info.pop(_NOTED, [])
    return noted
