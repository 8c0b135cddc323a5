"""Complete work in batches: work that ends during a request is completed by the next request."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw

from broker.client.batching import Batcher
from broker.client.connection import Connection
from broker.schemas.completion import CompletedBatch, CompletedStatus


class Completions:
    """Sends the completions of all jobs of a tool."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._batcher = Batcher(self._send)

    async def complete(self, work_id: UUID, completion: dict[str, Any]) -> CompletedStatus:
        """Complete work.

        Args:
            work_id: The id of the work item.
            completion: The fields of the HTTP request, such as `outcome` and `result`.

        Returns:
            `archived`, or another status if the work had already ended.
        """
        return await self._batcher.put(Raw(msgspec.json.encode({"work_id": work_id, **completion})))

    async def _send(self, items: list[Raw], trace: Mapping[str, str]) -> list[CompletedStatus]:
        body, call = {"items": items}, self._connection.call
        completed = await call("POST", "/v1/work/complete", CompletedBatch, json=body, trace=trace)
        return [item.status for item in completed.items]
