"""The assigner: read the available tasks and tools, and pair them."""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

from broker.batches import batches
from broker.client import signals
from broker.client.batching import MOST_ITEMS
from broker.client.connection import Connection
from broker.client.errors import ProblemError
from broker.client.remark_sender import RemarkSender
from broker.client.time_slices import run_in_time_slices
from broker.matching.candidates import CandidatePage
from broker.matching.contains import contains
from broker.matching.matcher import Matcher
from broker.matching.round import Pairing
from broker.matching.strategies import Match, Rank
from broker.matching.unmatched import Unmatched
from broker.schemas.candidates import AssignedPair, AssignedPairs, Pair

log = logging.getLogger(__name__)

_WAIT_SECONDS = 30.0


class Assigner:
    """Pairs tasks with tools as they become available.

    The assigner serves tasks by priority, older ones first. Each task gets the matching tool with the highest
    rank. Among equal tools it prefers skills that few needs match, then the tool with the most free capacity.
    If other tasks of the same round hold all matching tools, it moves those tasks to other tools that match
    them. No other way to pair gives more tasks a tool, or more urgent ones. The assigner judges equal needs
    and equal skills once, however many tasks and tools have them.

    If no tool can do a task, or only tools that are offline or draining, the assigner adds a remark to it
    after some seconds. `GET /v1/tasks/{id}/explain` returns the remark.

        Assigner(lambda skills, needs: needs["gpu"] <= skills["gpu"]).run()

    Args:
        match: Decides whether a tool with these skills can do a task with these needs: a function
            `match(skills, needs)`, or the name of a strategy. `contains`: the needs are a part of the skills.
            `schema`: the needs are a JSON Schema that the skills satisfy. A function may raise
            `MismatchError("wants 2 GPUs, has 1")` to say why not. Any other exception is logged and means no.
            The assigner calls it once for each pair of different needs and skills, so its result must depend
            on them alone.
        rank: Returns the rank of a matching tool, `rank(skills, needs)`; higher is better.
        aging_seconds: A task that has waited this much longer than another counts as one priority higher, so
            that no task waits forever; None: priority always goes before age.
        remarks: Whether to add remarks to tasks that wait.
        on_assigned: Called with each pair that has become work.
        reread_seconds: How often to read all tasks and tools again, to forget those that other programs have
            assigned or deleted.
        recheck_seconds: How often to check again why a task waits.
        url: The URL of the broker. Default: `BROKER_URL`, or else the local broker.
        key: The key. Default: `BROKER_KEY`, or else none.

    Raises:
        ValueError: There is no strategy of this name, or a time is not above 0.
        TypeError: `match` or `rank` is not an ordinary function.
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
        self._remark_sender = RemarkSender(self._matcher, recheck_seconds) if remarks else None
        self._on_assigned = on_assigned
        self._reread_seconds = reread_seconds
        self._url = url
        self._key = key
        self._cursor: str | None = None

    def run(self) -> None:
        """Pair until SIGTERM or Ctrl-C stops the process."""
        signals.run_until_signal(self.assign())

    def unmatched(self) -> Unmatched:
        """Return the needs that are passed over again and again, and the skills that no task needs."""
        return self._matcher.unmatched()

    async def assign(self) -> None:
        """Pair until cancelled."""
        self._start_over()
        async with Connection(self._url, key=self._key) as connection:
            log.info("assigning at %s", connection.url)
            side_tasks = [asyncio.create_task(self._reread(connection))]
            if self._remark_sender is not None:
                side_tasks.append(asyncio.create_task(self._remark_sender.run(connection)))
            try:
                more = False
                while True:
                    more = await self._read_candidates(connection, 0.0 if more else _WAIT_SECONDS)
                    while pairings := await self._round():
                        await self._post(connection, pairings)
            finally:
                for task in side_tasks:
                    task.cancel()
                await asyncio.gather(*side_tasks, return_exceptions=True)

    def _start_over(self) -> None:
        self._cursor = None
        self._matcher.clear()

    async def _read_candidates(self, connection: Connection, wait: float) -> bool:
        """Wait for new candidates, and give a page of them to the matcher; return whether there are more."""
        query = {"wait": wait, "cursor": self._cursor}
        try:
            page = await connection.call("GET", "/v1/candidates", CandidatePage, query=query, wait=wait)
        except ProblemError as error:
            if error.code != "cursor_expired":
                raise
            log.warning("the broker has another database, or one from a backup: everything is read anew")
            self._start_over()
            return True
        for task in page.tasks:
            self._matcher.add_task(task)
        for tool in page.tools:
            self._matcher.add_tool(tool)
        self._cursor = page.cursor
        return page.more

    async def _round(self) -> list[Pairing]:
        round_ = self._matcher.round()
        await run_in_time_slices(round_.steps())
        return round_.pairings()

    async def _post(self, connection: Connection, pairings: Sequence[Pairing]) -> None:
        """Send pairs to the broker, and give their statuses to the matcher."""
        for batch in batches(pairings, MOST_ITEMS):
            items = [Pair(task_id=pairing.task.id, tool_id=pairing.tool.id) for pairing in batch]
            assigned = await connection.call("POST", "/v1/work/batch", AssignedPairs, json={"items": items})
            for pairing, item in zip(batch, assigned.items, strict=True):
                self._matcher.settle(pairing, item.status)
                if item.status == "assigned" and self._on_assigned is not None:
                    self._on_assigned(item)

    async def _reread(self, connection: Connection) -> None:
        """Read all candidates again from time to time, and forget those that are gone."""
        while True:
            await asyncio.sleep(self._reread_seconds)
            if not len(self._matcher):
                continue
            arrivals = self._matcher.arrivals
            try:
                tasks, tools = await _all_ids(connection)
            except ProblemError as error:
                log.warning("not everything could be read anew: %s", error)
                continue
            self._matcher.keep_only(tasks, tools, arrivals=arrivals)


async def _all_ids(connection: Connection) -> tuple[set[str], set[str]]:
    """Return the ids of all available tasks and tools."""
    tasks: set[str] = set()
    tools: set[str] = set()
    cursor, more = None, True
    while more:
        page = await connection.call("GET", "/v1/candidates", CandidatePage, query={"cursor": cursor})
        tasks.update(task.id for task in page.tasks)
        tools.update(tool.id for tool in page.tools)
        cursor, more = page.cursor, page.more
    return tasks, tools
