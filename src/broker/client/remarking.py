"""Remarking: tells the broker why tasks wait, beside the pairing and never in its way."""

import asyncio
import logging

from broker.client.connection import Connection
from broker.client.slices import in_slices
from broker.matching.matcher import Matcher
from broker.matching.offers import RegisteredTool, RegisteredTools
from broker.matching.remarks import Remarks
from broker.schemas.tasks import RemarkedTasks, TaskRemark

log = logging.getLogger(__name__)

# So long tasks wait before it is asked why, and between two looks at that.
_AFTER_SECONDS = 2.0
# The time that is left to the pairing, after each slice of work.
_PAUSE_SECONDS = 0.1
_BATCH = 1_000
_PAGE = 1_000


class Remarking:
    """Makes the remarks, while it runs.

    Args:
        matcher: What is known.
        recheck_seconds: So long it does not ask again why the same tasks wait.
    """

    def __init__(self, matcher: Matcher, recheck_seconds: float) -> None:
        self._pause_seconds = min(_AFTER_SECONDS, recheck_seconds)
        self._remarks = Remarks(matcher, after_seconds=self._pause_seconds, recheck_seconds=recheck_seconds)
        self._trouble: str | None = None

    async def run(self, connection: Connection) -> None:
        """Make remarks until cancelled; where that is impossible, it is logged once."""
        while True:
            await asyncio.sleep(self._pause_seconds)
            try:
                await self._once(connection)
                self._trouble = None
            except Exception as error:  # noqa: BLE001 - whatever it is, pairing goes on
                if repr(error) != self._trouble:
                    log.warning("no remarks can be made on why tasks wait: %s", error or repr(error))
                self._trouble = repr(error)

    async def _once(self, connection: Connection) -> None:
        if self._remarks.due():
            tools = await _registered(connection)
            await in_slices(self._remarks.look(tools), pause_seconds=_PAUSE_SECONDS)
        unsaid = self._remarks.unsaid()
        for first in range(0, len(unsaid), _BATCH):
            some = unsaid[first : first + _BATCH]
            items = [TaskRemark(task_id=said.task.id, text=said.text) for said in some]
            await connection.call("POST", "/v1/tasks/remarks", RemarkedTasks, json={"items": items})
            for said in some:
                said.task.told = said.text


async def _registered(connection: Connection) -> list[RegisteredTool]:
    """All tools, those without room and those that are away included."""
    tools: list[RegisteredTool] = []
    after: str | None = None
    while True:
        query = {"limit": _PAGE, "after": after}
        page = await connection.call("GET", "/v1/tools", RegisteredTools, query=query)
        tools += page.items
        if page.next is None:
            return tools
        after = page.next
