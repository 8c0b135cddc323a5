"""The long poll, from outside: parked requests are woken by what concerns them, and cost nothing."""

import asyncio
from typing import Any

import httpx

from tests.conftest import Running


async def park(client: httpx.AsyncClient, broker: Running, path: str, **query: Any) -> "asyncio.Task[Any]":
    """A request that is parked when this returns."""
    before = len(broker.server.waiters)
    parked = asyncio.create_task(client.get(path, params={"wait": 60, **query}))
    async with asyncio.timeout(10):
        while len(broker.server.waiters) == before and not parked.done():
            await asyncio.sleep(0.002)
    return parked


async def test_an_assignment_wakes_the_tool_at_once(broker: Running, http: httpx.AsyncClient) -> None:
    await http.post("/v1/tools", json={"id": "t", "skills": {}})
    await http.post("/v1/tasks", json={"id": "a", "needs": {}})
    parked = await park(http, broker, "/v1/tools/t/work")
    work = (await http.post("/v1/work", json={"task_id": "a", "tool_id": "t"})).json()
    async with asyncio.timeout(5):
        answer = await parked
    assert [item["id"] for item in answer.json()["items"]] == [work["id"]]
