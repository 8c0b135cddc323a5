"""Wait for the work that is assigned to a tool."""

import asyncio
from typing import Any
from uuid import UUID

from msgspec import Struct

from broker.client.connection import Connection
from broker.client.errors import ProblemError
from broker.schemas.work import Work, WorkItems

_WAIT_SECONDS = 30.0


class _Completed(Struct):
    """The part of the response to a completion that the client reads."""

    next: list[Work]


class WorkSource:
    """The work that the broker assigns to a tool.

    A tool with capacity 1 cannot wait for work during a job. Therefore the completion of the job waits for
    the next work in the same request. This saves one of three requests for each job. A tool with a higher
    capacity usually waits for work while its jobs run.

    Args:
        connection: The connection of the tool.
        path: The path of the tool, like `/v1/tools/xrd-1`.
        capacity: The capacity of the tool.

    Attributes:
        is_waiting: True while a request waits for work. Such a request keeps the lease from expiring.
    """

    def __init__(self, connection: Connection, path: str, capacity: int) -> None:
        self._connection = connection
        self._path = f"{path}/work"
        self._next: list[Work] = []
        self._completing: asyncio.Timeout | None = None
        self._may_wait_after_completion = capacity == 1
        self.is_waiting = False

    async def wait(self) -> list[Work]:
        """Wait for work, and return it. Without work, return an empty list after some seconds."""
        if self._next:
            items, self._next = self._next, []
            return items
        query = {"wait": _WAIT_SECONDS}
        self.is_waiting = True
        try:
            call = self._connection.call
            return (await call("GET", self._path, WorkItems, query=query, wait=_WAIT_SECONDS)).items
        finally:
            self.is_waiting = False

    async def complete_and_wait(self, work_id: UUID, completion: dict[str, Any]) -> bool:
        """Complete work and wait for the next work, which `wait` then returns.

        Args:
            work_id: The id of the work item.
            completion: The fields of the HTTP request, such as `outcome` and `result`.

        Returns:
            True if the work is completed. If it is False, the work may be completed or not. The caller then
            completes it in another request, which is safe, and which shows why the broker refused it.
        """
        if not self._may_wait_after_completion:
            return False
        path, body = f"/v1/work/{work_id}/complete", {**completion, "next_wait_seconds": _WAIT_SECONDS}
        call = self._connection.call
        self.is_waiting = True
        try:
            async with asyncio.timeout(None) as self._completing:
                self._next = (await call("POST", path, _Completed, json=body, wait=_WAIT_SECONDS)).next
        except (ProblemError, TimeoutError):
            return False
        finally:
            self.is_waiting, self._completing = False, None
        return True

    def stop(self) -> None:
        """Wait for no work after a completion, neither now nor later."""
        self._may_wait_after_completion = False
        if self._completing is not None:
            self._completing.reschedule(asyncio.get_running_loop().time())
