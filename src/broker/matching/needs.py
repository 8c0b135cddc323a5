"""Needs: all waiting tasks with equal needs, in order of urgency."""

import heapq
from collections.abc import Iterator

from msgspec import Struct, field

# How many removed tasks may stay in a heap before it is rebuilt, besides as many as wait in it.
_MOST_REMOVED = 64


class Remark(Struct, frozen=True):
    """Why the tasks with some needs have no tool.

    Args:
        text: The reason, for people.
        corrects: Whether only tasks that have another remark should get this one.
    """

    text: str
    corrects: bool = False


class QueuedTask(Struct, order=True, kw_only=True):
    """A waiting task. The lesser of two tasks goes first.

    Args:
        urgency: The lesser, the sooner.
        created_at: When it was submitted, in seconds since 1970.
        arrival: Its number in the order in which the matcher got tasks and tools. No two have the same.
        remark: The text of its remark, if it has one.
        queued: Whether it is in a queue.
    """

    urgency: float
    created_at: float
    arrival: int
    id: str
    needs: "Needs"
    remark: str | None = None
    queued: bool = False


class NeedsQueue:
    """The waiting tasks with equal needs, the most urgent first.

    A removed task stays in the heap until it is on top, or until the heap holds too many of them.
    """

    __slots__ = ("_heap", "_length")

    def __init__(self) -> None:
        self._heap: list[QueuedTask] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[QueuedTask]:
        """Iterate over all tasks: first the most urgent one, then the others in no order."""
        return (task for task in self._heap if task.queued)

    def push(self, task: QueuedTask) -> None:
        """Add a task."""
        task.queued = True
        heapq.heappush(self._heap, task)
        self._length += 1

    def head(self) -> QueuedTask | None:
        """Return the most urgent task."""
        while self._heap and not self._heap[0].queued:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def pop(self) -> QueuedTask:
        """Remove and return the most urgent task; raise IndexError if there is none."""
        task = heapq.heappop(self._heap)
        while not task.queued:
            task = heapq.heappop(self._heap)
        task.queued = False
        self._length -= 1
        return task

    def discard(self, task: QueuedTask) -> None:
        """Remove a task if it is in the queue."""
        if not task.queued:
            return
        task.queued = False
        self._length -= 1
        if len(self._heap) > 2 * self._length + _MOST_REMOVED:
            self._heap = [each for each in self._heap if each.queued]
            heapq.heapify(self._heap)


class Needs(Struct, eq=False):
    """The needs of one or more tasks, and what was judged of them.

    The sets of skills are bit sets of their indexes. They are small even if there are many skills, and one
    operation finds the matching skills that have free tools.

    Args:
        text: The needs, as canonical JSON.
        queue: Their tasks.
        judged: The set of skills that were judged.
        matching: The set of skills that match.
        ranks: The ranks of the matching skills by their index, if the assigner ranks tools.
        trouble: Why the needs could not be judged.
        unmatched_since: Since when none of the tasks has got a tool.
        checked_at: When the reason for that was last checked.
        checked_for: For which version of the list of tools it was checked.
        remark: The reason.
        has_new_remarks: Whether there may be tasks without the current remark.
    """

    text: bytes
    queue: NeedsQueue = field(default_factory=NeedsQueue)
    judged: int = 0
    matching: int = 0
    ranks: dict[int, float] = {}
    trouble: str | None = None
    unmatched_since: float = 0.0
    checked_at: float | None = None
    checked_for: int | None = None
    remark: Remark | None = None
    has_new_remarks: bool = False
