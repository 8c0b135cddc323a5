"""An assigner: read the available tasks and tools, and pair them."""

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
    """A program that assigns tasks to tools.

    The assigner reads the available tasks and tools from the broker and pairs them, as they become available.
    It assigns tasks with a higher priority first, then older tasks. Each task gets the matching tool with the
    highest rank. Among tools of equal rank, the assigner prefers a tool that few other tasks can use, then
    the tool with the most free capacity. If other tasks of the same round hold all matching tools, it moves
    those tasks to other tools that match them.

    If no tool can do a task, or if all tools that can do it are offline or draining, the assigner adds a
    remark to the task after a few seconds. The remark says what the task needs and what the closest match
    has. `Handle.explain`, `broker explain` and the dashboard show it.

    You may run several assigners at once. Each task is still assigned only once.

    Example:
        Assigner(lambda skills, needs: needs["gpus"] <= skills["gpus"]).run()

    Args:
        match: Decides whether a tool can do a task. Either the name of a strategy or a function
            `match(skills, needs)` that returns True or False. With the strategy `"contains"`, the needs must
            be a part of the skills (see `contains`). With `"schema"`, the needs are a JSON Schema (draft
            2020-12) that the skills must satisfy. A function may raise `MismatchError("wants 2 GPUs, has 1")`
            to explain a mismatch. Any other exception is logged and counts as a mismatch. The assigner calls
            the function once for each combination of different needs and skills, so the result must depend
            on nothing else. Default: `"contains"`.
        rank: A function `rank(skills, needs)` that returns the rank of a matching tool as a number. Higher is
            better. Default: all matching tools have the same rank.
        aging_seconds: A task that has waited this many seconds longer than another task counts as one
            priority higher, so no task waits forever. With None, a higher priority always comes first.
            Default: 3600.
        remarks: If True, the assigner adds remarks to waiting tasks.
        on_assigned: A function that the assigner calls after each assignment. Its argument has the
            attributes `task_id`, `tool_id` and `work_id`.
        reread_seconds: The interval, in seconds, at which the assigner reads all tasks and tools again. It
            then forgets those that other programs have assigned or cancelled. Default: 600.
        recheck_seconds: The interval, in seconds, at which the assigner updates the remark on a waiting task.
            Default: 10.
        url: The URL of the broker. Default: `BROKER_URL`, or else `http://127.0.0.1:8000`.
        key: A key with the role `assigner`. Default: `BROKER_KEY`, or else no key.

    Raises:
        ValueError: No strategy has this name, or a time is not above 0.
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
                raise ValueError(f"a time must be a number of seconds above 0, but is {seconds}")
        self._matcher = Matcher(match, rank, aging_seconds)
        self._remark_sender = RemarkSender(self._matcher, recheck_seconds) if remarks else None
        self._on_assigned = on_assigned
        self._reread_seconds = reread_seconds
        self._url = url
        self._key = key
        self._cursor: str | None = None

    def run(self) -> None:
        """Assign tasks until SIGTERM or Ctrl-C stops the process.

        A second signal ends the process at once. Call this method from the main thread; in an asynchronous
        program, await `assign` instead.

        Raises:
            SystemExit: The broker refused the program, or the URL or the key is not valid. The message says
                why.
        """
        signals.run_until_signal(self.assign())

    def unmatched(self) -> Unmatched:
        """Return needs and skills that do not match. Often one of them has a spelling mistake.

        Returns:
            The needs whose tasks still wait while many newer tasks were assigned, and the skills of free
            tools that no task has needed.
        """
        return self._matcher.unmatched()

    async def assign(self) -> None:
        """Assign tasks until the coroutine is cancelled.

        Raises:
            ProblemError: The broker refused a request, for example because the key lacks the role.
            SettingError: The URL or the key is not valid.
        """
        self._start_over()
        async with Connection(self._url, key=self._key) as connection:
            log.info("assigner started at %s", connection.url)
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
        """Wait for new candidates and pass one page to the matcher; return True if there are more pages."""
        query = {"wait": wait, "cursor": self._cursor}
        try:
            page = await connection.call("GET", "/v1/candidates", CandidatePage, query=query, wait=wait)
        except ProblemError as error:
            if error.code != "cursor_expired":
                raise
            log.warning(
                "the cursor expired, reading all candidates again: the broker uses another database,"
                " or one that was restored from a backup"
            )
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
        """Send pairs to the broker, and pass its response to the matcher."""
        for batch in batches(pairings, MOST_ITEMS):
            items = [Pair(task_id=pairing.task.id, tool_id=pairing.tool.id) for pairing in batch]
            assigned = await connection.call("POST", "/v1/work/batch", AssignedPairs, json={"items": items})
            for pairing, item in zip(batch, assigned.items, strict=True):
                self._matcher.settle(pairing, item.status)
                if item.status == "assigned" and self._on_assigned is not None:
                    self._on_assigned(item)

    async def _reread(self, connection: Connection) -> None:
        """Read all candidates again at each interval, and forget those that no longer exist."""
        while True:
            await asyncio.sleep(self._reread_seconds)
            if not len(self._matcher):
                continue
            arrivals = self._matcher.arrivals
            try:
                tasks, tools = await _all_ids(connection)
            except ProblemError as error:
                log.warning("reading all candidates again failed: %s", error)
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
