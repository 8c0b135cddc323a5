"""Hold the waiting tasks and the free tools, and pair them."""

import sys
import time
from collections.abc import Callable, Iterable

from broker.matching.candidates import CandidateTask, CandidateTool
from broker.matching.interning import InternTable
from broker.matching.judge import Judge
from broker.matching.needs import Needs, QueuedTask
from broker.matching.round import Pairing, Round
from broker.matching.skills import FreeTool, Skills, indexes
from broker.matching.strategies import Match, Rank, ordinary, strategy
from broker.matching.unmatched import Unmatched, UnmatchedTracker
from broker.schemas.candidates import PairStatus


class Matcher:
    """Holds the waiting tasks and the free tools, and pairs them.

    It keeps the id, the needs and the urgency of a task, not its payload.

    Args:
        match: The name of a strategy, or a function: `match(skills, needs)`.
        rank: Returns the rank of a matching tool, `rank(skills, needs)`; higher is better.
        aging_seconds: A task that has waited this many seconds longer counts as one priority higher. None
            turns this off.
        clock: Returns the current time in seconds.

    Raises:
        ValueError: There is no strategy of this name.
        TypeError: `match` or `rank` is not an ordinary function.
    """

    def __init__(
        self,
        match: Match | str = "contains",
        rank: Rank | None = None,
        aging_seconds: float | None = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.judge = Judge(strategy(match), None if rank is None else ordinary(rank, "rank"))
        self.clock = clock
        self.needs = InternTable(Needs, self._forget_needs)
        self.skills = InternTable(self._new_skills, self._forget_skills)
        #: The needs of the waiting tasks.
        self.waiting: dict[Needs, None] = {}
        #: The number of tasks and tools that were added so far.
        self.arrivals = 0
        self._aging_seconds = aging_seconds
        self._tasks: dict[str, QueuedTask] = {}
        self._tools: dict[str, FreeTool] = {}
        self._free: dict[int, Skills] = {}
        self._by_index: dict[int, Skills] = {}
        self._unused: list[int] = []
        # The skills of all registered tools. The table keeps them.
        self._registered: set[Skills] = set()
        self._tracker = UnmatchedTracker()

    def __len__(self) -> int:
        """Return the number of tasks and tools."""
        return len(self._tasks) + len(self._tools)

    def clear(self) -> None:
        """Forget all tasks and tools, but keep the judgements of their needs and skills."""
        self.keep_only(set(), set(), arrivals=self.arrivals)

    def add_task(self, candidate: CandidateTask) -> None:
        """Add a waiting task. It replaces a task with the same id."""
        self.forget_task(candidate.id)
        self.arrivals += 1
        needs = self.needs.intern(bytes(candidate.needs))
        created_at = candidate.created_at.timestamp()
        task = self._tasks[candidate.id] = QueuedTask(
            urgency=self._urgency(candidate.priority, created_at),
            created_at=created_at,
            arrival=self.arrivals,
            id=candidate.id,
            needs=needs,
            # Many tasks have the same remark, so keep only one copy of the text.
            remark=None if candidate.remark is None else sys.intern(candidate.remark),
        )
        self._wait(task)

    def add_tool(self, candidate: CandidateTool) -> None:
        """Add a tool if it has free capacity. It replaces a tool with the same id."""
        self.forget_tool(candidate.id)
        self.arrivals += 1
        room = candidate.capacity - candidate.load
        if room <= 0:
            return
        skills = self.skills.intern(bytes(candidate.skills))
        tool = FreeTool(id=candidate.id, skills=skills, room=room, arrival=self.arrivals)
        self._tools[tool.id] = skills.tools[tool.id] = tool
        self._free[skills.index] = skills

    def forget_task(self, id_: str) -> None:
        """Remove a task."""
        task = self._tasks.pop(id_, None)
        if task is not None:
            task.needs.queue.discard(task)
            self._release_needs(task.needs)

    def forget_tool(self, id_: str) -> None:
        """Remove a tool until it is added again."""
        tool = self._tools.pop(id_, None)
        if tool is not None:
            skills = tool.skills
            del skills.tools[id_]
            if not skills.tools:
                del self._free[skills.index]
                self._release_skills(skills)

    def keep_only(self, tasks: set[str], tools: set[str], *, arrivals: int) -> None:
        """Forget the tasks and tools that are no longer candidates.

        Args:
            tasks: The ids of all candidate tasks.
            tools: The ids of all candidate tools.
            arrivals: The value of `arrivals` before the candidates were read. Later arrivals stay.
        """
        gone = [task.id for task in self._tasks.values() if task.arrival <= arrivals and task.id not in tasks]
        for id_ in gone:
            self.forget_task(id_)
        away = [tool.id for tool in self._tools.values() if tool.arrival <= arrivals and tool.id not in tools]
        for id_ in away:
            self.forget_tool(id_)

    def round(self) -> Round:
        """Return a round of the current tasks and tools. Settle its pairings before the next round."""
        self.needs.evict()
        self.skills.evict()
        return Round(self.waiting, self._free, self.judge)

    def settle(self, pairing: Pairing, status: PairStatus) -> None:
        """Apply the status of a pairing, as the broker returned it."""
        task, tool = pairing
        if status.startswith("tool_"):
            self.forget_tool(tool.id)
            if self._tasks.get(task.id) is task:
                self._wait(task)
            return
        if self._tasks.get(task.id) is task:
            del self._tasks[task.id]
            self._release_needs(task.needs)
        if status in ("assigned", "exists"):
            self._tracker.record(task.created_at)
            task.needs.unmatched_since = self.clock()
            task.needs.reason = None
            tool.room -= 1
            if not tool.room and self._tools.get(tool.id) is tool:
                self.forget_tool(tool.id)

    def unmatched(self) -> Unmatched:
        """Return needs that other tasks overtake, and skills that no task needs."""
        return self._tracker.unmatched(self.waiting, self._free.values())

    def set_registered(self, registered: Iterable[Skills]) -> None:
        """Set the skills of all registered tools, including tools without free capacity."""
        before, self._registered = self._registered, set(registered)
        for skills in before:
            self._release_skills(skills)

    def _release_skills(self, skills: Skills) -> None:
        """Release skills if no tool has them any more."""
        if not skills.tools and skills not in self._registered:
            self.skills.release(skills)

    def _wait(self, task: QueuedTask) -> None:
        # The table may have evicted the needs while the task was not in the queue.
        needs = task.needs = self.needs.intern(task.needs.text)
        if needs not in self.waiting:
            self.waiting[needs] = None
            needs.unmatched_since = self.clock()
        needs.has_new_remarks = True
        needs.queue.push(task)

    def _release_needs(self, needs: Needs) -> None:
        """Release needs if no task has them any more."""
        if not needs.queue and needs in self.waiting:
            del self.waiting[needs]
            needs.reason = needs.checked_at = None
            self.needs.release(needs)

    def _urgency(self, priority: int, created_at: float) -> float:
        return -priority if self._aging_seconds is None else created_at - priority * self._aging_seconds

    def _new_skills(self, text: bytes) -> Skills:
        index = self._unused.pop() if self._unused else len(self._by_index)
        skills = self._by_index[index] = Skills(text, index, 1 << index)
        return skills

    def _forget_skills(self, forgotten: list[Skills]) -> None:
        for skills in forgotten:
            del self._by_index[skills.index]
            self._unused.append(skills.index)
        known = ~sum(skills.bit for skills in forgotten)
        for needs in self.needs:
            for index in indexes(needs.matching & ~known):
                needs.ranks.pop(index, None)
            needs.judged &= known
            needs.matching &= known

    def _forget_needs(self, forgotten: list[Needs]) -> None:
        for needs in forgotten:
            for index in indexes(needs.matching):
                self._by_index[index].wanted -= 1
