"""What is shown of a broker, read by as many calls as a screen has lines, however much there is."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from msgspec import Struct

from broker.client.addresses import in_path
from broker.client.connection import Connection
from broker.client.errors import ProblemError
from broker.schemas.stats import Stats
from broker.schemas.tasks import Task, TaskPage
from broker.schemas.tools import ToolPage, ToolStatus
from broker.schemas.work import ReportPage, Work, WorkPage

Answer = TypeVar("Answer")

#: How many of the waiting tasks are read, from the one that has waited longest on.
WAITING = 100
#: How much work of one tool is shown.
WORK_OF_TOOL = 4

# Up to here all work is read by one call; more of it by one for each tool that is shown.
_LITTLE_WORK = 100
_REPORTS = 1_000
# How far the reading of one work's reports goes on at once; the rest is for the next times.
_PAGES_OF_REPORTS = 3
# A last page of so many reports is not read again with each that comes.
_LONG_PAGE = 100
_CALLS_AT_ONCE = 8
# What the API gives at once.
_MOST_TOOLS = 1_000


class Doing(Struct, frozen=True, kw_only=True):
    """A work that a tool has.

    Args:
        task_id: Its task.
        is_running: Whether the tool has started it.
        since: Since when it runs; else since when it is assigned.
        progress: How far it is, from 0 to 1.
        cancel_requested: Whether the tool is asked to stop.
        message: The last one that was reported.
    """

    task_id: str
    is_running: bool
    since: datetime
    progress: float | None
    cancel_requested: bool
    message: str | None


class ToolAtWork(Struct, frozen=True, kw_only=True):
    """A tool, and the first of the work that it has."""

    id: str
    state: str
    load: int
    capacity: int
    seen_at: datetime
    work: Sequence[Doing]


class Waiting(Struct, frozen=True, kw_only=True):
    """A task that waits."""

    id: str
    needs: str
    priority: int
    since: datetime
    remark: str | None


class Snapshot(Struct, frozen=True, kw_only=True):
    """What is shown.

    Args:
        stats: The counts.
        tools: One page of the tools, in the order of their ids.
        page: Which one; the first is 0.
        waiting: Those of the available tasks that have waited longest.
    """

    stats: Stats
    tools: Sequence[ToolAtWork]
    page: int
    waiting: Sequence[Waiting]


class Reader:
    """Reads what is shown.

    Args:
        connection: The way to the broker.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._places = asyncio.Semaphore(_CALLS_AT_ONCE)
        # Where the page that is shown begins, and those before it.
        self._begins: list[str | None] = [None]
        self._messages: dict[UUID, _Messages] = {}

    async def read(self, lines: int) -> Snapshot:
        """Read all that may be shown.

        Args:
            lines: How many lines there are for tools.

        Raises:
            ProblemError: The broker refused it.
            httpx.TransportError: The broker did not answer.
        """
        stats = await self._get("/v1/stats", Stats)
        tools, waiting = await asyncio.gather(self._tools(lines), self._waiting(stats))
        by_tool = await self._work(tools, stats)
        shown = {tool.id: by_tool.get(tool.id, [])[:WORK_OF_TOOL] for tool in tools}
        messages = await self._last_messages([work for works in shown.values() for work in works])
        return Snapshot(
            stats=stats,
            tools=[
                ToolAtWork(
                    id=tool.id,
                    state=tool.state,
                    load=tool.load,
                    capacity=tool.capacity,
                    seen_at=tool.seen_at,
                    work=[_doing(work, messages.get(work.id)) for work in shown[tool.id]],
                )
                for tool in tools
            ],
            page=len(self._begins) - 1,
            waiting=[_waiting(task) for task in waiting],
        )

    async def turn(self, shown: int) -> None:
        """Go on to the tools after those that are shown, where there are some.

        Args:
            shown: How many of the page are.
        """
        if shown > 0:
            query = {"limit": shown, "after": self._begins[-1]}
            found = await self._get("/v1/tools", ToolPage, query)
            if found.next is not None:
                self._begins.append(found.next)

    def turn_back(self) -> None:
        """Go back to the page of tools before."""
        if len(self._begins) > 1:
            self._begins.pop()

    async def _tools(self, lines: int) -> Sequence[ToolStatus]:
        query = {"limit": min(max(1, lines), _MOST_TOOLS), "after": self._begins[-1]}
        found = await self._get("/v1/tools", ToolPage, query)
        if not found.items and len(self._begins) > 1:
            # Those that were here are gone.
            self.turn_back()
            return await self._tools(lines)
        return found.items

    async def _waiting(self, stats: Stats) -> Sequence[Task]:
        # To find none may take a look at every task there is.
        if not stats.tasks.available:
            return []
        found = await self._get("/v1/tasks", TaskPage, {"state": "available", "limit": WAITING})
        return found.items

    async def _work(self, tools: Sequence[ToolStatus], stats: Stats) -> Mapping[str, Sequence[Work]]:
        at_work = [tool.id for tool in tools if tool.load]
        queries: list[dict[str, Any]] = [{"tool_id": id_, "limit": WORK_OF_TOOL} for id_ in at_work]
        if len(at_work) > 1 and stats.work.assigned + stats.work.running <= _LITTLE_WORK:
            queries = [{"limit": _LITTLE_WORK}]
        pages = await asyncio.gather(*(self._get("/v1/work", WorkPage, query) for query in queries))
        by_tool: defaultdict[str, list[Work]] = defaultdict(list)
        for page in pages:
            for work in page.items:
                by_tool[work.tool_id].append(work)
        return by_tool

    async def _last_messages(self, works: Sequence[Work]) -> Mapping[UUID, str | None]:
        """The last message on each of the works that have one."""
        self._messages = {work.id: self._messages.get(work.id) or _Messages() for work in works}
        await asyncio.gather(*(self._read_on(work, self._messages[work.id]) for work in works))
        return {id_: known.last for id_, known in self._messages.items()}

    async def _read_on(self, work: Work, known: "_Messages") -> None:
        if work.state == "assigned" or work.version == known.version:
            return
        for _ in range(_PAGES_OF_REPORTS):
            path = f"/v1/work/{in_path(work.id)}/reports"
            limit = known.held if known.held >= _LONG_PAGE else _REPORTS
            try:
                page = await self._get(path, ReportPage, {"limit": limit, "after": known.after})
            except ProblemError as error:
                if error.code == "work_not_found":
                    return
                raise
            said = [report.message for report in page.items if report.message is not None]
            known.last = said[-1] if said else known.last
            if page.next is None:
                known.version, known.held = work.version, len(page.items)
                return
            known.after, known.held = page.next, 0

    async def _get(self, path: str, form: type[Answer], query: Mapping[str, Any] | None = None) -> Answer:
        async with self._places:
            return await self._connection.call("GET", path, form, query=query)


class _Messages(Struct):
    """What is known of the reports on a work.

    Args:
        version: The version of the work at which all of them were read.
        after: Where their last page begins.
        held: How many it held.
        last: The last message among them.
    """

    version: int | None = None
    after: str | None = None
    held: int = 0
    last: str | None = None


def _doing(work: Work, message: str | None) -> Doing:
    return Doing(
        task_id=work.task_id,
        is_running=work.state == "running",
        since=work.started_at or work.assigned_at,
        progress=work.progress,
        cancel_requested=work.cancel_requested,
        message=message,
    )


def _waiting(task: Task) -> Waiting:
    return Waiting(
        id=task.id,
        needs=bytes(task.needs).decode(),
        priority=task.priority,
        since=task.created_at,
        remark=task.remark,
    )
