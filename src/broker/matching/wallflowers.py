"""Wallflowers: needs that are passed over again and again, and skills that nobody asks for."""

from array import array
from bisect import bisect_right, insort
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct
from msgspec.json import decode

from broker.matching.kinds import Needs, Skills

# So many tasks that were given to tools are remembered, and by how many of those needs have to be passed over
# before they are worth a word.
_REMEMBERED = 1_000_000
_OFTEN = 10


class PassedOver(Struct, frozen=True, kw_only=True):
    """A kind of needs that is passed over: tasks that came later had their turn before.

    Args:
        needs: What the tasks need, as a Python value.
        waiting: How many wait.
        oldest: The id of the one that was submitted first.
        since: When that was.
        passed_by: How many tasks that were submitted later went before it.
    """

    needs: Any
    waiting: int
    oldest: str
    since: datetime
    passed_by: int


class Unasked(Struct, frozen=True, kw_only=True):
    """A kind of skills that no task asked for since the assigner saw them first.

    Args:
        skills: The skills, as a Python value.
        tools: The ids of the tools that have them, and have room.
        since: When they were first seen.
    """

    skills: Any
    tools: list[str]
    since: datetime


class Wallflowers(Struct, frozen=True, kw_only=True):
    """Who is left out: a hint at needs, skills or a `match` that are not as they were meant to be.

    Args:
        needs: Those that are passed over, the one that has waited longest first.
        skills: Those that nobody asks for, the ones that have been there longest first.
    """

    needs: list[PassedOver]
    skills: list[Unasked]

    def __bool__(self) -> bool:
        """Whether anybody is."""
        return bool(self.needs or self.skills)


class Watch:
    """Watches who is passed over. It knows when the tasks that had their turn had been submitted."""

    def __init__(self) -> None:
        # In seconds since 1970, in order.
        self._submitted = array("d")

    def passed(self, created_at: float) -> None:
        """A task that was submitted then has had its turn."""
        insort(self._submitted, created_at)
        if len(self._submitted) > _REMEMBERED:
            del self._submitted[: _REMEMBERED // 2]

    def wallflowers(self, waiting: Iterable[Needs], free: Iterable[Skills]) -> Wallflowers:
        """Who is left out, of these."""
        needs = [each for each in map(self._passed_over, waiting) if each is not None]
        skills = [
            Unasked(skills=decode(each.text), tools=sorted(each.tools), since=each.since)
            for each in free
            if not each.matched and each.trouble is None
        ]
        return Wallflowers(
            needs=sorted(needs, key=lambda each: each.since),
            skills=sorted(skills, key=lambda each: each.since),
        )

    def _passed_over(self, needs: Needs) -> PassedOver | None:
        oldest = min(needs.queue, key=lambda task: task.created_at, default=None)
        if oldest is None or needs.trouble is not None:
            return None
        passed_by = len(self._submitted) - bisect_right(self._submitted, oldest.created_at)
        if passed_by < _OFTEN:
            return None
        return PassedOver(
            needs=decode(needs.text),
            waiting=len(needs.queue),
            oldest=oldest.id,
            since=datetime.fromtimestamp(oldest.created_at, UTC),
            passed_by=passed_by,
        )
