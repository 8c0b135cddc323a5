"""The observer: it counts and logs what transactions did, when they are committed."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from sqlalchemy import Connection

from broker.schemas.states import Outcome

_NOTED = "broker.ended_work"


class EndedWork(NamedTuple):
    """A work item that has ended.

    Args:
        work_id: Its id.
        task_id: Its task.
        tool_id: Its tool.
        outcome: Its outcome.
        waited_seconds: How long its task had waited when it was assigned; None: it was not the first attempt.
        started_after_seconds: How long after its assignment it was started; None: it was not.
        ran_seconds: How long it ran from its start; None: it was not started.
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
        """Count the transaction of a set.

        Args:
            step: The name of the step.
            items: How many items shared the transaction.
            seconds: How long it took.
        """


def note(connection: Connection, works: Iterable[EndedWork]) -> None:
    """Have the observer get ended work when the transaction under way is committed."""
    connection.info.setdefault(_NOTED, []).extend(works)


def pop_noted(info: dict[Any, Any]) -> list[EndedWork]:
    """Return what was noted, and forget it.

    Args:
        info: The `info` of the connection, read before the connection may have been lost.
    """
    noted: list[EndedWork] = info.pop(_NOTED, [])
    return noted
