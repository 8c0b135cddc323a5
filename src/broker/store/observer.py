"""The observer: counts and logs the effects of transactions when they are committed."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol
from uuid import UUID

from broker.schemas.states import Outcome


class EndedWork(NamedTuple):
    """A work item that has ended.

    `waited_seconds` is the time that the task waited for its assignment, in first attempts only.
    `started_after_seconds` is the time from the assignment to the start, and `ran_seconds` the time from the
    start to the end. Both are None if the work was not started.
    """

    work_id: UUID
    task_id: str
    tool_id: str
    outcome: Outcome
    waited_seconds: float | None
    started_after_seconds: float | None
    ran_seconds: float | None


class Observer(Protocol):
    """Counts and logs the effects of the store's transactions."""

    def work_ended(self, works: Sequence[EndedWork]) -> None:
        """Count work that has ended."""

    def set_committed(self, step: str, items: int, seconds: float) -> None:
        """Count a transaction, with its step, its number of items and its duration in seconds."""
