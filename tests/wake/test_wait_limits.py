"""Limits for waiting requests: a client that reaches its limit does not affect other clients."""

import asyncio

import httpx
import pytest

from broker.errors import Overloaded, TooManyRequests
from broker.store import Store
from broker.wake.wait_limits import WaitLimits
from tests.conftest import Running, Serve
from tests.support.api import add_tool, assert_problem, bearer, make_key
from tests.support.waiting import wait_until


def test_waiting_requests_are_limited_per_client_and_in_total() -> None:
    limits = WaitLimits(for_each=2, in_all=3)
    limits.acquire("a")
    limits.acquire("a")
    with pytest.raises(TooManyRequests):
        limits.acquire("a")
    limits.acquire("b")
    with pytest.raises(Overloaded):
        limits.acquire("b")
    assert limits.count == 3
    for client in ("a", "a", "b"):
        limits.release(client)
    assert (limits.count, limits._per_client) == (0, {})
    limits.acquire("a")


async def start_waiting(
    broker: Running, path: str, count: int, key: str
) -> list[asyncio.Task[httpx.Response]]:
    """Start requests, and return them when all of them wait."""
    limits = broker.server.service.wait_limits
    before = limits.count
    waiting = [
        asyncio.create_task(broker.client.get(path, params={"wait": 60}, headers=bearer(key) if key else {}))
        for _ in range(count)
    ]

    async def all_wait() -> bool:
        return limits.count == before + count

    await wait_until(all_wait)
    return waiting


async def test_a_client_above_its_limit_gets_429_and_others_can_wait(serve: Serve, store: Store) -> None:
    greedy, modest = await make_key(store, "greedy", "operator"), await make_key(store, "modest", "assigner")
    own = await make_key(store, "own", "tool", "submitter")
    broker = await serve(max_waits_per_client=3, max_waits=6)
    client = broker.client
    await client.post("/v1/tasks", json={"id": "a", "needs": 1}, headers=bearer(own))
    registered = await client.post("/v1/tools", json={"id": "t", "skills": 1}, headers=bearer(own))
    token = registered.json()["token"]
    waiting = await start_waiting(broker, "/v1/tasks/a", 3, greedy)

    refused = await client.get("/v1/tasks/a?wait=60", headers=bearer(greedy))
    assert_problem(refused, 429, "too_many_requests")
    assert int(refused.headers["retry-after"]) > 0
    preferred = await client.get("/v1/tasks/a", headers=bearer(greedy) | {"Prefer": "wait=60"})
    assert_problem(preferred, 429, "too_many_requests")
    # A request that does not wait is not limited.
    assert (await client.get("/v1/tasks/a", headers=bearer(greedy))).status_code == 200

    # A key is one client, and so is the token of a tool.
    others = [
        *await start_waiting(broker, "/v1/tools/t/work", 2, token),
        *await start_waiting(broker, "/v1/tasks/a", 1, modest),
    ]
    refused = await client.get("/v1/tasks/a?wait=60", headers=bearer(modest))
    assert_problem(refused, 503, "unavailable")
    assert int(refused.headers["retry-after"]) > 0

    # A request that leaves makes room for another one.
    waiting[0].cancel()
    others[0].cancel()

    async def have_left() -> bool:
        return broker.server.service.wait_limits.count == 4

    await wait_until(have_left)
    again = [
        *await start_waiting(broker, "/v1/tasks/a", 1, greedy),
        *await start_waiting(broker, "/v1/tasks/a", 1, modest),
    ]
    await broker.stop()
    for response in await asyncio.gather(*waiting[1:], *others[1:], *again):
        assert response.status_code == 200


async def test_a_completion_succeeds_if_its_wait_is_refused(serve: Serve) -> None:
    broker = await serve(max_waits_per_client=1)
    client = broker.client
    await add_tool(client, capacity=2)
    for id_ in "ab":
        await client.post("/v1/tasks", json={"id": id_, "needs": 1})
    work = (await client.post("/v1/work", json={"task_id": "a", "tool_id": "t"})).json()
    # The completion must not wake this request, which would make room.
    [waiting] = await start_waiting(broker, "/v1/tasks/b", 1, "")
    response = await client.post(
        f"/v1/work/{work['id']}/complete", json={"outcome": "succeeded", "next_wait_seconds": 60}
    )
    assert response.status_code == 200
    assert (response.json()["archived"]["outcome"], response.json()["next"]) == ("succeeded", [])
    await client.delete("/v1/tasks/b")
    assert (await waiting).json()["state"] == "cancelled"
