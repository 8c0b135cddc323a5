"""Unmatched needs and skills: needs that newer tasks overtake, and skills that no task needs."""

from array import array
from bisect import bisect_right, insort
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct
from msgspec.json import decode

from broker.matching.needs import Needs
from broker.matching.skills import Skills

# The number of assigned tasks that the tracker remembers, and the number that must overtake a task before
# the tracker reports it.
_REMEMBERED = 1_000_000
_OFTEN = 10


class UnmatchedNeeds(Struct, frozen=True, kw_only=True):
    """Needs whose tasks wait while at least 10 tasks that were submitted later were assigned.

    `Assigner.unmatched` returns it. Often the needs contain a mistake, or no suitable tool is registered.

    Args:
        needs: The needs, as a Python value.
        waiting: The number of waiting tasks with these needs.
        oldest: The id of the oldest of these tasks.
        since: The time at which that task was submitted.
        passed_by: The number of tasks that were submitted later but assigned earlier than that task.
    """

    needs: Any
    waiting: int
    oldest: str
    since: datetime
    passed_by: int


class UnmatchedSkills(Struct, frozen=True, kw_only=True):
    """Skills of free tools that no task has needed so far.

    `Assigner.unmatched` returns it. Often the skills contain a mistake, or nobody submits such tasks.

    Args:
        skills: The skills, as a Python value.
        tools: The ids of the free tools that have them.
        since: The time at which the assigner first saw them.
    """

    skills: Any
    tools: list[str]
    since: datetime


class Unmatched(Struct, frozen=True, kw_only=True):
    """Needs and skills that do not match. They or the `match` function may contain a mistake.

    `Assigner.unmatched` returns it. `bool` of it is True if it has any needs or skills.

    Args:
        needs: The needs that newer tasks overtake, oldest first.
        skills: The skills that no task needs, oldest first.
    """

    needs: list[UnmatchedNeeds]
    skills: list[UnmatchedSkills]

    def __bool__(self) -> bool:
        """Return whether there are any unmatched needs or skills."""
        return bool(self.needs or self.skills)


class UnmatchedTracker:
    """Finds unmatched needs and skills. It remembers the submission times of the assigned tasks."""

    def __init__(self) -> None:
        # Sorted, in seconds since 1970.
        self._submitted = array("d")

    def record(self, created_at: float) -> None:
        """Record the submission time of a task that was assigned."""
        insort(self._submitted, created_at)
        if len(self._submitted) > _REMEMBERED:
            del self._submitted[: _REMEMBERED // 2]

    def unmatched(self, waiting: Iterable[Needs], free: Iterable[Skills]) -> Unmatched:
        """Return the unmatched ones among these needs and skills."""
        needs = [each for each in map(self._overtaken, waiting) if each is not None]
        skills = [
            UnmatchedSkills(skills=decode(each.text), tools=sorted(each.tools), since=each.since)
            for each in free
            if not each.matched and each.trouble is None
        ]
        return Unmatched(
            needs=sorted(needs, key=lambda each: each.since),
            skills=sorted(skills, key=lambda each: each.since),
        )

    def _overtaken(self, needs: Needs) -> UnmatchedNeeds | None:
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
