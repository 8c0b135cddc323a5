"""Complete work in batches: work that ends during a request is completed by the next request."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw

from broker.client.batching import Batcher
from broker.client.connection import Connection
from broker.schemas.completion import CompletedBatch, CompletedStatus

# The maximum time that a completion waits for jobs that start.
_MOST_HELD_SECONDS = 0.01


class Completions:
    """Sends the completions of all jobs of a tool."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._batcher = Batcher(self._send, self._until_released)
        self._released = asyncio.Event()
        self._released.set()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold completions during the block, but for a few milliseconds at most.

        Use it while jobs start. The completions of short jobs that start together then share a request, which
        costs the client, the broker and the database much less.
        """
        self._released.clear()
        try:
            yield
        finally:
            self._released.set()

    async def complete(self, work_id: UUID, completion: dict[str, Any]) -> CompletedStatus:
        """Complete work.

        Args:
            work_id: The id of the work item.
            completion: The fields of the HTTP request, such as `outcome` and `result`.

        Returns:
            `archived`, or another status if the work had already ended.
        """
        return await self._batcher.put(Raw(msgspec.json.encode({"work_id": work_id, **completion})))

    async def _until_released(self) -> None:
        if not self._released.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MOST_HELD_SECONDS):
                    await self._released.wait()
                    # A handler that never waits ends within two passes of the event loop.
                    for _ in range(2):
                        await asyncio.sleep(0)

    async def _send(self, items: list[Raw], trace: Mapping[str, str]) -> list[CompletedStatus]:
        body, call = {"items": items}, self._connection.call
        completed = await call("POST", "/v1/work/complete", CompletedBatch, json=body, trace=trace)
        return [item.status for item in completed.items]
