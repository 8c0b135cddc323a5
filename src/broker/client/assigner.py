"""An assigner: looks at the available tasks and tools, and pairs them."""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

from broker.client import running
from broker.client.connection import Connection
from broker.client.errors import ProblemError
from broker.client.remarking import Remarking
from broker.client.slices import in_slices
from broker.matching.contains import contains
from broker.matching.function import Match, Rank
from broker.matching.matcher import Matcher
from broker.matching.offers import Offers
from broker.matching.round import Pairing
from broker.matching.wallflowers import Wallflowers
from broker.schemas.candidates import AssignedPair, AssignedPairs, Pair

log = logging.getLogger(__name__)

_WAIT_SECONDS = 30.0
_BATCH = 1_000


class Assigner:
    """Pairs tasks with tools, as they become available.

    Tasks are served by priority, and the older ones first. Each gets the tool that is ranked highest; of
    equal ones, one with skills that few needs ask for, and there the one with most room. Where all that match
    are taken by other tasks of the same round, these are given others that match them as well, if there are
    any: no other way to pair gives more tasks a tool, or more urgent ones. Equal needs, and equal skills, are
    judged once, however many tasks and tools have them.

    Tasks that no tool can do, or only tools that are offline or draining, have a remark that says so after
    some seconds; `GET /v1/tasks/{id}/explain` tells it.

        Assigner(lambda skills, needs: needs["gpu"] <= skills["gpu"]).run()

    Args:
        match: Whether a tool with these skills can do a task with these needs: a function
            `match(skills, needs)`, or the name of a strategy. `contains`: the needs are a part of the skills.
            `schema`: the needs are a JSON Schema that the skills satisfy. A function may raise
            `MisfitError("wants 2 GPUs, has 1")` to say why not; whatever else it raises is logged, and means
            no. It is asked once for each two kinds of needs and skills, so it should go by them alone.
        rank: How much a tool is preferred to others that match: `rank(skills, needs)`, more is better.
        aging_seconds: A task that has waited so much longer than another counts as one priority higher, so
            that none waits for ever; None: priority goes before age, always.
        remarks: Whether to say why tasks wait.
        on_assigned: Is told of every pair that has become work.
        reread_seconds: So often everything is read anew, to forget what others have assigned or deleted.
        recheck_seconds: So often it is looked at again why a task waits.
        url: Where the broker is; else `BROKER_URL`, else the local one.
        key: The key; else `BROKER_KEY`, else none.

    Raises:
        ValueError: There is no such strategy, or a time is none.
        TypeError: What should judge or rank is no ordinary function.
    """

    def __init__(
        self,
        match: Match | str = contains,
        *,
        rank: Rank | None = None,
        aging_seconds: float | None = 3600.0,
        remarks: bool = True,
        on_assigned: Callable[[AssignedPair], object] | None = None,
        reread_seconds: float = 600.0,
        recheck_seconds: float = 10.0,
        url: str | None = None,
        key: str | None = None,
    ) -> None:
        for seconds in (aging_seconds, reread_seconds, recheck_seconds):
            if seconds is not None and not 0 < seconds < math.inf:
                raise ValueError(f"a time has to be a number of seconds above 0, and is {seconds}")
        self._matcher = Matcher(match, rank, aging_seconds)
        self._remarking = Remarking(self._matcher, recheck_seconds) if remarks else None
        self._on_assigned = on_assigned
        self._reread_seconds = reread_seconds
        self._url = url
        self._key = key
        self._cursor: str | None = None

    def run(self) -> None:
        """Pair until the process is told to stop (SIGTERM, Ctrl-C)."""
        running.run(self.assign())

    def wallflowers(self) -> Wallflowers:
        """Who is left out: needs that are passed over again and again, and skills that nobody asks for."""
        return self._matcher.wallflowers()

    async def assign(self) -> None:
        """Pair until cancelled."""
        self._begin_anew()
        async with Connection(self._url, key=self._key) as connection:
            log.info("assigning at %s", connection.url)
            beside = [asyncio.create_task(self._reread(connection))]
            if self._remarking is not None:
                beside.append(asyncio.create_task(self._remarking.run(connection)))
            try:
                more = False
                while True:
                    more = await self._look(connection, 0.0 if more else _WAIT_SECONDS)
                    while pairings := await self._round():
                        await self._post(connection, pairings)
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)

    def _begin_anew(self) -> None:
        self._cursor = None
        self._matcher.clear()

    async def _look(self, connection: Connection, wait: float) -> bool:
        """Wait for news, and take in a page of it; whether there is more."""
        query = {"wait": wait, "cursor": self._cursor}
        try:
            found = await connection.call("GET", "/v1/candidates", Offers, query=query, wait=wait)
        except ProblemError as error:
            if error.code != "cursor_expired":
                raise
            log.warning("the broker has another database, or one from a backup: everything is read anew")
            self._begin_anew()
            return True
        for task in found.tasks:
            self._matcher.add_task(task)
        for tool in found.tools:
            self._matcher.add_tool(tool)
        self._cursor = found.cursor
        return found.more

    async def _round(self) -> list[Pairing]:
        round_ = self._matcher.round()
        await in_slices(round_.steps())
        return round_.pairings()

    async def _post(self, connection: Connection, pairings: Sequence[Pairing]) -> None:
        """Post pairs, and take in what became of them."""
        for first in range(0, len(pairings), _BATCH):
            some = pairings[first : first + _BATCH]
            items = [Pair(task_id=pairing.task.id, tool_id=pairing.tool.id) for pairing in some]
            answer = await connection.call("POST", "/v1/work/batch", AssignedPairs, json={"items": items})
            for pairing, item in zip(some, answer.items, strict=True):
                self._matcher.settle(pairing, item.status)
                if item.status == "assigned" and self._on_assigned is not None:
                    self._on_assigned(item)

    async def _reread(self, connection: Connection) -> None:
        """Read everything anew from time to time, and forget what is not there any more."""
        while True:
            await asyncio.sleep(self._reread_seconds)
            if not len(self._matcher):
                continue
            heard = self._matcher.heard
            try:
                tasks, tools = await _all(connection)
            except ProblemError as error:
                log.warning("not everything could be read anew: %s", error)
                continue
            self._matcher.keep_only(tasks, tools, heard=heard)


async def _all(connection: Connection) -> tuple[set[str], set[str]]:
    """The ids of all tasks and tools that are available."""
    tasks: set[str] = set()
    tools: set[str] = set()
    cursor, more = None, True
    while more:
        found = await connection.call("GET", "/v1/candidates", Offers, query={"cursor": cursor})
        tasks.update(task.id for task in found.tasks)
        tools.update(tool.id for tool in found.tools)
        cursor, more = found.cursor, found.more
    return tasks, tools
