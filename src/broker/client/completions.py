"""Completing work: what ends while a call is under way goes with the next one."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw

from broker.client.connection import Connection
from broker.client.together import Together
from broker.schemas.completion import CompletedBatch, CompletedStatus


class Completions:
    """Tells the broker how work ended.

    Args:
        connection: The way to the broker.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._together = Together(self._call)

    async def complete(self, work_id: UUID, completion: dict[str, Any]) -> CompletedStatus:
        """Complete work.

        Args:
            work_id: Its id.
            completion: How it ended, as the API takes it.

        Returns:
            What became of it: `archived`, or that it had ended without us.

        Raises:
            ProblemError: The broker refuses it.
        """
        return await self._together.put(Raw(msgspec.json.encode({"work_id": work_id, **completion})))

    async def _call(self, items: list[Raw], trace: Mapping[str, str]) -> list[CompletedStatus]:
        body, call = {"items": items}, self._connection.call
        answer = await call("POST", "/v1/work/complete", CompletedBatch, json=body, trace=trace)
        return [item.status for item in answer.items]
