"""The tasks that wait, in the order of their urgency."""

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from broker.matching.kinds import Needs

# So many that were taken out may lie in a queue before it is tidied, and as many more as wait in it.
_GONE = 64


class WaitingTask(Struct, order=True, kw_only=True):
    """What is kept of a task that waits; the lesser one goes first.

    Args:
        urgency: The lesser the sooner.
        created_at: When it was submitted, in seconds since 1970.
        arrival: Its number in the order in which tasks and tools were heard of; no two have the same.
        id: What it is called.
        needs: The kind of its needs.
        told: The remark that it has.
        queued: Whether it is in a queue.
    """

    urgency: float
    created_at: float
    arrival: int
    id: str
    needs: "Needs"
    told: str | None = None
    queued: bool = False


class Queue:
    """The waiting tasks of one kind, the most urgent first.

    One that is taken out of the middle stays where it is until it is met, or until too many such lie about.
    """

    __slots__ = ("_heap", "_live")

    def __init__(self) -> None:
        self._heap: list[WaitingTask] = []
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def __iter__(self) -> Iterator[WaitingTask]:
        """All of them, the most urgent one first, and then in no order."""
        return (task for task in self._heap if task.queued)

    def push(self, task: WaitingTask) -> None:
        """Put in a task."""
        task.queued = True
        heapq.heappush(self._heap, task)
        self._live += 1

    def head(self) -> WaitingTask | None:
        """The most urgent one."""
        while self._heap and not self._heap[0].queued:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def pop(self) -> WaitingTask:
        """Take out the most urgent one.

        Raises:
            IndexError: There is none.
        """
        task = heapq.heappop(self._heap)
        while not task.queued:
            task = heapq.heappop(self._heap)
        task.queued = False
        self._live -= 1
        return task

    def discard(self, task: WaitingTask) -> None:
        """Take out a task, if it is in."""
        if not task.queued:
            return
        task.queued = False
        self._live -= 1
        if len(self._heap) > 2 * self._live + _GONE:
            self._heap = [each for each in self._heap if each.queued]
            heapq.heapify(self._heap)
