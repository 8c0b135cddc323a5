"""Facts: what a transaction did, for those who count and log it; told when it is committed."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from sqlalchemy import Connection

from broker.schemas.states import Outcome

_NOTED = "broker.facts"


class WorkEnded(NamedTuple):
    """A piece of work has ended.

    Args:
        work_id: Which one.
        task_id: Whose.
        tool_id: With which tool.
        outcome: How.
        waited_seconds: How long its task had waited when it was assigned; None: it was no first attempt.
        started_after_seconds: How long it took from then until it was started; None: it was not.
        ran_seconds: How long it ran from then; None: it was not started.
    """

    work_id: UUID
    task_id: str
    tool_id: str
    outcome: Outcome
    waited_seconds: float | None
    started_after_seconds: float | None
    ran_seconds: float | None


class Witness(Protocol):
    """Whoever counts what the store does."""

    def ended(self, works: Sequence[WorkEnded]) -> None:
        """These pieces of work have ended."""

    def set_taken(self, step: str, items: int, seconds: float) -> None:
        """A set of so many items shared a transaction, which took so long."""


def note(connection: Connection, facts: Iterable[WorkEnded]) -> None:
    """Have facts told when what is under way is committed."""
    connection.info.setdefault(_NOTED, []).extend(facts)


def take(info: dict[Any, Any]) -> list[WorkEnded]:
    """What was noted, and forget it.

    Args:
        info: The connection's `info`, from before it may have been lost.
    """
    noted: list[WorkEnded] = info.pop(_NOTED, [])
    return noted
