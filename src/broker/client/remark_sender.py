"""Send remarks that explain why tasks wait, without delaying the assignments."""

import asyncio
import logging

from broker.batches import batches
from broker.client.batching import MOST_ITEMS
from broker.client.connection import Connection
from broker.client.time_slices import run_in_time_slices
from broker.matching.candidates import ListedTool, ListedToolPage
from broker.matching.matcher import Matcher
from broker.matching.remarks import Remarks
from broker.schemas.limits import MOST_ON_PAGE
from broker.schemas.tasks import RemarkedTasks, TaskRemark

log = logging.getLogger(__name__)

# The assigner looks for the reason after a task has waited this long, and pauses this long between checks.
_AFTER_SECONDS = 2.0
# The pause after each time slice, in which the event loop serves assignments only.
_PAUSE_SECONDS = 0.1


class RemarkSender:
    """Finds the reasons why tasks wait, sends them to the broker as remarks, and keeps them up to date."""

    def __init__(self, matcher: Matcher, recheck_seconds: float) -> None:
        self._pause_seconds = min(_AFTER_SECONDS, recheck_seconds)
        self._remarks = Remarks(matcher, after_seconds=self._pause_seconds, recheck_seconds=recheck_seconds)
        self._trouble: str | None = None

    async def run(self, connection: Connection) -> None:
        """Send remarks until cancelled. Log a repeated error only once."""
        while True:
            await asyncio.sleep(self._pause_seconds)
            try:
                await self._run_once(connection)
                self._trouble = None
            except Exception as error:  # noqa: BLE001 - the assigner continues to assign
                if repr(error) != self._trouble:
                    log.warning("remarks on waiting tasks could not be sent: %s", error or repr(error))
                self._trouble = repr(error)

    async def _run_once(self, connection: Connection) -> None:
        if self._remarks.due():
            tools = await _list_tools(connection)
            await run_in_time_slices(self._remarks.check(tools), pause_seconds=_PAUSE_SECONDS)
        for batch in batches(self._remarks.new_remarks(), MOST_ITEMS):
            items = [TaskRemark(task_id=new.task.id, text=new.text) for new in batch]
            await connection.call("POST", "/v1/tasks/remarks", RemarkedTasks, json={"items": items})
            for new in batch:
                new.task.remark = new.text


async def _list_tools(connection: Connection) -> list[ListedTool]:
    """Return all registered tools, in any state."""
    tools: list[ListedTool] = []
    after: str | None = None
    while True:
        query = {"limit": MOST_ON_PAGE, "after": after}
        page = await connection.call("GET", "/v1/tools", ListedToolPage, query=query)
        tools += page.items
        if page.next is None:
            return tools
        after = page.next
