"""Read snapshots for `broker top`, with four requests each."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from msgspec import Struct

from broker.client.connection import Connection
from broker.schemas.limits import MOST_ON_PAGE
from broker.schemas.overview import Queue, ToolSummary, ToolSummaryPage, WaitingTask, WaitingTasks
from broker.schemas.stats import Stats

Response = TypeVar("Response")

# The maximum of the API.
_MOST_WAITING = 200


class Snapshot(Struct, frozen=True, kw_only=True):
    """The state of a broker at one moment.

    Args:
        stats: The counts.
        tools: One page of the tools, in the order of their ids.
        page: The number of that page; the first is 0.
        queue: The available tasks, counted by their needs.
        waiting: The available tasks that have waited longest.
    """

    stats: Stats
    tools: Sequence[ToolSummary]
    page: int
    queue: Queue
    waiting: Sequence[WaitingTask]


class TopReader:
    """Reads snapshots of a broker, and remembers the current page of tools."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # The cursors of the current page and of the pages before it.
        self._cursors: list[str | None] = [None]

    async def read(self, lines: int) -> Snapshot:
        """Read a snapshot for a screen with this number of lines for tools.

        Raises:
            ProblemError: The broker refused a request.
            httpx.TransportError: The broker did not respond.
        """
        stats, tools, queue, waiting = await asyncio.gather(
            self._get("/v1/stats", Stats),
            self._tools(lines),
            self._get("/v1/overview/queue", Queue),
            self._get("/v1/overview/waiting", WaitingTasks, {"limit": _MOST_WAITING}),
        )
        return Snapshot(
            stats=stats,
            tools=tools,
            page=len(self._cursors) - 1,
            queue=queue,
            # Scheduled tasks wait for their time, not for a tool.
            waiting=[task for task in waiting.items if task.state == "available"],
        )

    async def turn(self, shown: int) -> None:
        """Go to the page after the shown tools, if there are more."""
        if shown > 0:
            page = await self._page(shown)
            if page.next is not None:
                self._cursors.append(page.next)

    def turn_back(self) -> None:
        """Go back to the previous page of tools."""
        if len(self._cursors) > 1:
            self._cursors.pop()

    async def _tools(self, lines: int) -> Sequence[ToolSummary]:
        page = await self._page(min(max(1, lines), MOST_ON_PAGE))
        if not page.items and len(self._cursors) > 1:
            # The tools of this page were deleted.
            self.turn_back()
            return await self._tools(lines)
        return page.items

    async def _page(self, limit: int) -> ToolSummaryPage:
        return await self._get(
            "/v1/overview/tools", ToolSummaryPage, {"limit": limit, "after": self._cursors[-1]}
        )

    async def _get(
        self, path: str, response: type[Response], query: Mapping[str, Any] | None = None
    ) -> Response:
        return await self._connection.call("GET", path, response, query=query)
