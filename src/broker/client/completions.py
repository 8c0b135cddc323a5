"""Completing work: what ends while a call is under way goes with the next one."""

import asyncio
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw

from broker.client.connection import Connection
from broker.schemas import CompletedBatch, CompletedStatus

_BATCH = 1_000
# The broker takes bodies of 32 MiB, unless it is set otherwise; one that is bigger has a call of its own.
_BATCH_BYTES = 1 * 2**20


class Completions:
    """Sends how work ended: one call at a time, and with it all that has ended since the last one.

    Args:
        connection: The way to the broker.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: list[_Ended] = []
        self._sending: asyncio.Task[None] | None = None

    async def complete(self, work_id: UUID, completion: dict[str, Any]) -> CompletedStatus:
        """Complete work.

        Args:
            work_id: Its id.
            completion: How it ended, as the API takes it.

        Returns:
            What became of it: `archived`, or that it had ended without us.

        Raises:
            ProblemError: The broker refuses it.
            Exception: It is no JSON; whatever the result's own methods raise.
        """
        item = Raw(msgspec.json.encode({"work_id": work_id, **completion}))
        ended = _Ended(item)
        self._waiting.append(ended)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        return await ended.told

    async def _send(self) -> None:
        try:
            while batch := self._next():
                await self._together(batch)
        finally:
            self._sending = None

    def _next(self) -> list["_Ended"]:
        """As much as a call takes of what waits, in its order; what nobody waits for any more is left out."""
        self._waiting = [ended for ended in self._waiting if not ended.told.done()]
        size, count = 0, 0
        for ended in self._waiting[:_BATCH]:
            size += ended.size
            if count and size > _BATCH_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _together(self, batch: list["_Ended"]) -> None:
        body = {"items": [ended.item for ended in batch]}
        try:
            answer = await self._connection.call("POST", "/v1/work/complete", CompletedBatch, json=body)
        except Exception as error:  # noqa: BLE001 - it is told to whoever waits
            if len(batch) == 1:
                batch[0].fail(error)
                return
            # One of them is to blame, and the others are not: each by itself.
            for ended in batch:
                await self._together([ended])
            return
        for ended, item in zip(batch, answer.items, strict=True):
            ended.tell(item.status)


class _Ended:
    """Work that has ended, and whoever waits for that to be known."""

    def __init__(self, item: Raw) -> None:
        self.item = item
        self.size = len(bytes(item))
        self.told: asyncio.Future[CompletedStatus] = asyncio.get_running_loop().create_future()

    def tell(self, status: CompletedStatus) -> None:
        if not self.told.done():
            self.told.set_result(status)

    def fail(self, error: Exception) -> None:
        if not self.told.done():
            self.told.set_exception(error)
