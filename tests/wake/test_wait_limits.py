"""Places to wait in: who takes too many keeps nobody else from waiting."""

import asyncio

import httpx
import pytest

from broker.errors import Overloaded, TooManyRequests
from broker.store import Store
from broker.wake.wait_limits import WaitLimits
from tests.conftest import Running, Serve
from tests.support.api import add_tool, assert_problem, bearer, make_key
from tests.support.waiting import wait_until


def test_a_client_has_so_many_places_and_all_together_have_so_many() -> None:
    places = WaitLimits(for_each=2, in_all=3)
    places.acquire("a")
    places.acquire("a")
    with pytest.raises(TooManyRequests):
        places.acquire("a")
    places.acquire("b")
    with pytest.raises(Overloaded):
        places.acquire("b")
    assert places.count == 3
    for client in ("a", "a", "b"):
        places.release(client)
    assert (places.count, places._per_client) == (0, {})
    places.acquire("a")


async def parked(broker: Running, path: str, count: int, key: str) -> list[asyncio.Task[httpx.Response]]:
    """Requests that wait when this returns."""
    places = broker.server.service.wait_limits
    before = places.count
    waiting = [
        asyncio.create_task(broker.client.get(path, params={"wait": 60}, headers=bearer(key) if key else {}))
        for _ in range(count)
    ]

    async def all_wait() -> bool:
        return places.count == before + count

    await wait_until(all_wait)
    return waiting


async def test_who_waits_too_often_is_told_so_and_others_wait_on(serve: Serve, store: Store) -> None:
    greedy, modest = await make_key(store, "greedy", "operator"), await make_key(store, "modest", "assigner")
    own = await make_key(store, "own", "tool", "submitter")
    broker = await serve(max_waits_per_client=3, max_waits=6)
    client = broker.client
    await client.post("/v1/tasks", json={"id": "a", "needs": 1}, headers=bearer(own))
    registered = await client.post("/v1/tools", json={"id": "t", "skills": 1}, headers=bearer(own))
    token = registered.json()["token"]
    waiting = await parked(broker, "/v1/tasks/a", 3, greedy)

    refused = await client.get("/v1/tasks/a?wait=60", headers=bearer(greedy))
    assert_problem(refused, 429, "too_many_requests")
    assert int(refused.headers["retry-after"]) > 0
    preferred = await client.get("/v1/tasks/a", headers=bearer(greedy) | {"Prefer": "wait=60"})
    assert_problem(preferred, 429, "too_many_requests")
    # What does not wait is answered as ever.
    assert (await client.get("/v1/tasks/a", headers=bearer(greedy))).status_code == 200

    # A key is one client; so is a tool by its token.
    others = [
        *await parked(broker, "/v1/tools/t/work", 2, token),
        *await parked(broker, "/v1/tasks/a", 1, modest),
    ]
    refused = await client.get("/v1/tasks/a?wait=60", headers=bearer(modest))
    assert_problem(refused, 503, "unavailable")
    assert int(refused.headers["retry-after"]) > 0

    # Whoever leaves makes room.
    waiting[0].cancel()
    others[0].cancel()

    async def have_left() -> bool:
        return broker.server.service.wait_limits.count == 4

    await wait_until(have_left)
    again = [
        *await parked(broker, "/v1/tasks/a", 1, greedy),
        *await parked(broker, "/v1/tasks/a", 1, modest),
    ]
    await broker.stop()
    for answered in await asyncio.gather(*waiting[1:], *others[1:], *again):
        assert answered.status_code == 200


async def test_a_completion_that_may_not_wait_is_completed_all_the_same(serve: Serve) -> None:
    broker = await serve(max_waits_per_client=1)
    client = broker.client
    await add_tool(client, capacity=2)
    for id_ in "ab":
        await client.post("/v1/tasks", json={"id": id_, "needs": 1})
    work = (await client.post("/v1/work", json={"task_id": "a", "tool_id": "t"})).json()
    # On what the completion does not wake, or there might be a place again in time.
    [waiting] = await parked(broker, "/v1/tasks/b", 1, "")
    answer = await client.post(
        f"/v1/work/{work['id']}/complete", json={"outcome": "succeeded", "next_wait_seconds": 60}
    )
    assert answer.status_code == 200
    assert (answer.json()["archived"]["outcome"], answer.json()["next"]) == ("succeeded", [])
    await client.delete("/v1/tasks/b")
    assert (await waiting).json()["state"] == "cancelled"
