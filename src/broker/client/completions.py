"""Complete work: what ends while a request is under way goes with the next one."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw

from broker.client.batching import Batcher
from broker.client.connection import Connection
from broker.schemas.completion import CompletedBatch, CompletedStatus


class Completions:
    """Completes the work of all jobs of a tool."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._batcher = Batcher(self._send)

    async def complete(self, work_id: UUID, completion: dict[str, Any]) -> CompletedStatus:
        """Complete work, as in the HTTP request; return `archived`, or that the work had ended before."""
        return await self._batcher.put(Raw(msgspec.json.encode({"work_id": work_id, **completion})))

    async def _send(self, items: list[Raw], trace: Mapping[str, str]) -> list[CompletedStatus]:
        body, call = {"items": items}, self._connection.call
        completed = await call("POST", "/v1/work/complete", CompletedBatch, json=body, trace=trace)
        return [item.status for item in completed.items]
