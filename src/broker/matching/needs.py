"""Needs: all waiting tasks with equal needs, in order of urgency."""

import heapq
from collections.abc import Iterator

from msgspec import Struct, field

# A heap is rebuilt when it has this many more removed tasks than waiting tasks.
_MOST_REMOVED = 64


class Reason(Struct, frozen=True):
    """A reason why the tasks with some needs have no tool.

    Args:
        text: The reason, for people.
        corrects: If True, only tasks that already have another remark get this text as a remark.
    """

    text: str
    corrects: bool = False


class QueuedTask(Struct, order=True, kw_only=True):
    """A waiting task. Tasks compare by urgency: the lesser of two tasks goes first.

    Args:
        urgency: A lower value means that the task goes earlier.
        created_at: The time of its submission, in seconds since 1970.
        arrival: Its unique number in the order in which the matcher received tasks and tools.
        id: Its id.
        needs: Its needs.
        remark: The text of its remark, if it has one.
        queued: True while it is in a queue.
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

    A removed task stays in the heap until it reaches the top, or until the heap has too many removed tasks.
    """

    __slots__ = ("_heap", "_length")

    def __init__(self) -> None:
        self._heap: list[QueuedTask] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[QueuedTask]:
        """Iterate over all tasks. The most urgent task comes first, the others in no order."""
        return (task for task in self._heap if task.queued)

    def push(self, task: QueuedTask) -> None:
        """Add a task."""
        task.queued = True
        heapq.heappush(self._heap, task)
        self._length += 1

    def head(self) -> QueuedTask | None:
        """Return the most urgent task, or None if the queue is empty."""
        while self._heap and not self._heap[0].queued:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def pop(self) -> QueuedTask:
        """Remove and return the most urgent task. An empty queue raises IndexError."""
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
    """The needs of one or more tasks, with the judgements about them.

    Sets of skills are bit sets of the indexes of skills. They are small even for many skills, and one
    operation finds the matching skills that have free tools.

    Args:
        text: The needs, as canonical JSON.
        queue: The tasks with these needs.
        judged: The set of skills that were judged.
        matching: The set of skills that match.
        ranks: The ranks of the matching skills by their index, if the assigner ranks tools.
        trouble: The reason why the strategy could not judge the needs, if it could not.
        unmatched_since: The time since which none of the tasks was assigned, on the matcher's clock.
        checked_at: The time of the last check, on the matcher's clock.
        checked_for: The version of the list of tools at the last check.
        reason: The reason why the tasks wait, if it is known.
        has_new_remarks: True if some tasks may not have the current remark yet.
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
    reason: Reason | None = None
    has_new_remarks: bool = False
