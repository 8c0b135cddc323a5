"""Unmatched needs and skills: needs that are passed over again and again, and skills that no task needs."""

from array import array
from bisect import bisect_right, insort
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct
from msgspec.json import decode

from broker.matching.needs import Needs
from broker.matching.skills import Skills

# How many assigned tasks are remembered, and how many of them must have passed a task before it is reported.
_REMEMBERED = 1_000_000
_OFTEN = 10


class UnmatchedNeeds(Struct, frozen=True, kw_only=True):
    """Needs that are passed over: tasks that were submitted later were assigned earlier.

    Args:
        needs: The needs, as a Python value.
        waiting: How many tasks wait with them.
        oldest: The id of the oldest of these tasks.
        since: When that task was submitted.
        passed_by: How many tasks that were submitted later were assigned before it.
    """

    needs: Any
    waiting: int
    oldest: str
    since: datetime
    passed_by: int


class UnmatchedSkills(Struct, frozen=True, kw_only=True):
    """Skills that no task has needed since the assigner first saw them.

    Args:
        skills: The skills, as a Python value.
        tools: The ids of the free tools that have them.
        since: When the assigner first saw them.
    """

    skills: Any
    tools: list[str]
    since: datetime


class Unmatched(Struct, frozen=True, kw_only=True):
    """All unmatched needs and skills: there may be a mistake in the needs, the skills or the `match`.

    Args:
        needs: The needs that are passed over, the oldest first.
        skills: The skills that no task needs, the oldest first.
    """

    needs: list[UnmatchedNeeds]
    skills: list[UnmatchedSkills]

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self.needs or self.skills)


class UnmatchedTracker:
    """Finds unmatched needs and skills. It remembers when the assigned tasks were submitted."""

    def __init__(self) -> None:
        # In seconds since 1970, in order.
        self._submitted = array("d")

    def record(self, created_at: float) -> None:
        """Record that a task was assigned that was submitted at this time."""
        insort(self._submitted, created_at)
        if len(self._submitted) > _REMEMBERED:
            del self._submitted[: _REMEMBERED // 2]

    def unmatched(self, waiting: Iterable[Needs], free: Iterable[Skills]) -> Unmatched:
        """Return which of these needs and skills are unmatched."""
        needs = [each for each in map(self._passed_over, waiting) if each is not None]
        skills = [
            UnmatchedSkills(skills=decode(each.text), tools=sorted(each.tools), since=each.since)
            for each in free
            if not each.matched and each.trouble is None
        ]
        return Unmatched(
            needs=sorted(needs, key=lambda each: each.since),
            skills=sorted(skills, key=lambda each: each.since),
        )

    def _passed_over(self, needs: Needs) -> UnmatchedNeeds | None:
        oldest = min(needs.queue, key=lambda task: task.created_at, default=None)
        if oldest is None or needs.trouble is not None:
            return None
        passed_by = len(self._submitted) - bisect_right(self._submitted, oldest.created_at)
        if passed_by < _OFTEN:
            return None
        return UnmatchedNeeds(
            needs=decode(needs.text),
            waiting=len(needs.queue),
            oldest=oldest.id,
            since=datetime.fromtimestamp(oldest.created_at, UTC),
            passed_by=passed_by,
        )
