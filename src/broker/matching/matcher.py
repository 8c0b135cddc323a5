"""The matcher: all that is known of the tasks that wait and the tools that have room."""

import sys
import time
from collections.abc import Callable, Iterable

from broker.matching.function import Match, Rank
from broker.matching.judge import Judge
from broker.matching.kinds import KnownTool, Needs, Skills, indexes
from broker.matching.offers import OfferedTask, OfferedTool
from broker.matching.queue import WaitingTask
from broker.matching.register import Register
from broker.matching.round import Pairing, Round
from broker.matching.strategies import ordinary, strategy
from broker.matching.wallflowers import Wallflowers, Watch
from broker.schemas.candidates import PairStatus


class Matcher:
    """Knows the tasks that wait and the tools that have room, and pairs them.

    Of a task no more is kept than its id, the kind of its needs, and when its turn is: not its payload.

    Args:
        match: The name of a strategy, or a function: `match(skills, needs)`.
        rank: How much a tool is preferred to others that match, more is better: `rank(skills, needs)`.
        aging_seconds: A task that has waited so much longer counts as one priority higher; None: it does not.
        clock: Tells the seconds.

    Raises:
        ValueError: There is no such strategy.
        TypeError: That is no function that can judge.
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
        self.needs = Register(Needs, self._forget_needs)
        self.skills = Register(self._new_skills, self._forget_skills)
        #: The kinds of needs with which tasks wait.
        self.waiting: dict[Needs, None] = {}
        #: How much news there was, of tasks and tools together.
        self.heard = 0
        self._aging_seconds = aging_seconds
        self._tasks: dict[str, WaitingTask] = {}
        self._tools: dict[str, KnownTool] = {}
        self._free: dict[int, Skills] = {}
        self._by_index: dict[int, Skills] = {}
        self._unused: list[int] = []
        # Those of all tools that are registered: they are not forgotten.
        self._registered: set[Skills] = set()
        self._watch = Watch()

    def __len__(self) -> int:
        """How many tasks and tools are known."""
        return len(self._tasks) + len(self._tools)

    def clear(self) -> None:
        """Forget all tasks and tools, and not what was judged of their kinds."""
        for id_ in list(self._tasks):
            self.forget_task(id_)
        for id_ in list(self._tools):
            self.forget_tool(id_)

    def add_task(self, offered: OfferedTask) -> None:
        """Have a task wait; what was known of one with its id is forgotten."""
        self.forget_task(offered.id)
        self.heard += 1
        needs = self.needs.of(bytes(offered.needs))
        created_at = offered.created_at.timestamp()
        task = self._tasks[offered.id] = WaitingTask(
            urgency=self._urgency(offered.priority, created_at),
            created_at=created_at,
            arrival=self.heard,
            id=offered.id,
            needs=needs,
            # Those of a kind have the same one.
            told=None if offered.remark is None else sys.intern(offered.remark),
        )
        self._wait(task)

    def add_tool(self, offered: OfferedTool) -> None:
        """Take in a tool, if it has room; what was known of one with its id is forgotten."""
        self.forget_tool(offered.id)
        self.heard += 1
        skills = self.skills.of(bytes(offered.skills))
        room = offered.capacity - offered.load
        if room <= 0:
            self._let_rest(skills)
            return
        tool = KnownTool(id=offered.id, skills=skills, room=room, heard=self.heard)
        self._tools[tool.id] = skills.tools[tool.id] = tool
        self._free[skills.index] = skills

    def forget_task(self, id_: str) -> None:
        """A task waits no more, or is about to be told anew."""
        task = self._tasks.pop(id_, None)
        if task is not None:
            task.needs.queue.discard(task)
            self._tidy(task.needs)

    def forget_tool(self, id_: str) -> None:
        """A tool has no room until it is heard of again."""
        tool = self._tools.pop(id_, None)
        if tool is not None:
            skills = tool.skills
            del skills.tools[id_]
            if not skills.tools:
                del self._free[skills.index]
                self._let_rest(skills)

    def keep_only(self, tasks: set[str], tools: set[str], *, heard: int) -> None:
        """Forget what was not met when everything was read anew.

        Args:
            tasks: The ids of the tasks that were met.
            tools: The ids of the tools that were met.
            heard: What was heard of later than that is not concerned.
        """
        gone = [task.id for task in self._tasks.values() if task.arrival <= heard and task.id not in tasks]
        for id_ in gone:
            self.forget_task(id_)
        away = [tool.id for tool in self._tools.values() if tool.heard <= heard and tool.id not in tools]
        for id_ in away:
            self.forget_tool(id_)

    def round(self) -> Round:
        """A round with what is known now. Each of its pairings has to be settled, before the next round."""
        self.needs.tidy()
        self.skills.tidy()
        return Round(self.waiting, self._free, self.judge)

    def settle(self, pairing: Pairing, status: PairStatus) -> None:
        """Take in what became of a pairing."""
        task, tool = pairing
        if status.startswith("tool_"):
            self.forget_tool(tool.id)
            if self._tasks.get(task.id) is task:
                self._wait(task)
            return
        if self._tasks.get(task.id) is task:
            del self._tasks[task.id]
            self._tidy(task.needs)
        if status in ("assigned", "exists"):
            self._watch.passed(task.created_at)
            task.needs.unmatched_since = self.clock()
            task.needs.remark = None
            tool.room -= 1
            if not tool.room and self._tools.get(tool.id) is tool:
                self.forget_tool(tool.id)

    def wallflowers(self) -> Wallflowers:
        """Who is left out."""
        return self._watch.wallflowers(self.waiting, self._free.values())

    def see(self, registered: Iterable[Skills]) -> None:
        """Take in what skills there are, those of tools that have no room included."""
        before, self._registered = self._registered, set(registered)
        for skills in before:
            self._let_rest(skills)

    def _let_rest(self, skills: Skills) -> None:
        """Have skills that no tool has any more be forgotten some day."""
        if not skills.tools and skills not in self._registered:
            self.skills.rest(skills)

    def _wait(self, task: WaitingTask) -> None:
        # While it was about to be assigned its kind may have been forgotten.
        needs = task.needs = self.needs.of(task.needs.text)
        if needs not in self.waiting:
            self.waiting[needs] = None
            needs.unmatched_since = self.clock()
        needs.untold = True
        needs.queue.push(task)

    def _tidy(self, needs: Needs) -> None:
        """Let a kind of needs rest that no task waits with any more."""
        if not needs.queue and needs in self.waiting:
            del self.waiting[needs]
            needs.remark = needs.checked_at = None
            self.needs.rest(needs)

    def _urgency(self, priority: int, created_at: float) -> float:
        return -priority if self._aging_seconds is None else created_at - priority * self._aging_seconds

    def _new_skills(self, text: bytes) -> Skills:
        index = self._unused.pop() if self._unused else len(self._by_index)
        skills = self._by_index[index] = Skills(text, index)
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
