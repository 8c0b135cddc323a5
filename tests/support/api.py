"""HTTP requests that many tests send, and functions that make leases, deadlines and backoffs end."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, NamedTuple

import asyncpg
import httpx

from broker.access.keyring import hashed, new_key
from broker.store import Store, keys
from tests.conftest import Running
from tests.support import description
from tests.support.steps import statements_of

Json = dict[str, Any]


class Pair(NamedTuple):
    """The ids of a task, of the tool it is assigned to, and of the work."""

    task: str
    tool: str
    work: str


async def add_tool(http: httpx.AsyncClient, id: str = "t", **fields: Any) -> Json:  # noqa: A002 (the field's name)
    response = await http.post("/v1/tools", json={"id": id, "skills": {}, **fields})
    assert response.status_code in (200, 201), response.text
    return response.json()


async def add_task(http: httpx.AsyncClient, id: str = "a", **fields: Any) -> Json:  # noqa: A002 (the field's name)
    response = await http.post("/v1/tasks", json={"id": id, "needs": {}, **fields})
    assert response.status_code == 201, response.text
    return response.json()


async def add_tasks(http: httpx.AsyncClient, *ids: str, **fields: Any) -> None:
    items = [{"id": id_, "needs": {}, **fields} for id_ in ids]
    response = await http.post("/v1/tasks/batch", json={"items": items})
    assert response.status_code == 200, response.text


async def assign(http: httpx.AsyncClient, task: str = "a", tool: str = "t") -> Json:
    response = await http.post("/v1/work", json={"task_id": task, "tool_id": tool})
    assert response.status_code in (200, 201), response.text
    return response.json()


async def add_assigned_work(http: httpx.AsyncClient, task: str = "a", tool: str = "t", **fields: Any) -> Pair:
    """Register a tool, submit a task with these fields, and assign the task to the tool."""
    await add_tool(http, tool, capacity=100, resume=True)
    await add_task(http, task, **fields)
    return Pair(task, tool, (await assign(http, task, tool))["id"])


async def add_running_work(http: httpx.AsyncClient, task: str = "a", tool: str = "t", **fields: Any) -> Pair:
    """Do the same as `add_assigned_work`, and start the work."""
    pair = await add_assigned_work(http, task, tool, **fields)
    response = await http.post(f"/v1/work/{pair.work}/start")
    assert response.status_code == 200, response.text
    return pair


async def complete(
    http: httpx.AsyncClient, work: str, outcome: str = "succeeded", **fields: Any
) -> httpx.Response:
    return await http.post(f"/v1/work/{work}/complete", json={"outcome": outcome, **fields})


async def complete_work(
    http: httpx.AsyncClient, work: str, outcome: str = "succeeded", **fields: Any
) -> Json:
    """Complete work and return its archive record."""
    response = await complete(http, work, outcome, **fields)
    assert response.status_code == 200, response.text
    return response.json()["archived"]


async def get(http: httpx.AsyncClient, path: str, **query: Any) -> Any:
    response = await http.get(path, params=query or None)  # httpx: {} would remove the query of the path
    assert response.status_code == 200, response.text
    return response.json()


async def get_pages(http: httpx.AsyncClient, path: str, **query: Any) -> list[list[Json]]:
    """Return the items of all pages of a list."""
    items_of_pages: list[list[Json]] = []
    while True:
        page = await get(http, path, **query)
        items_of_pages.append(page["items"])
        if page["next"] is None:
            return items_of_pages
        query["after"] = page["next"]
        assert len(items_of_pages) < 1000, "the list has no end"


def flatten(items_of_pages: list[list[Json]]) -> list[Json]:
    return [item for items in items_of_pages for item in items]


def ids(items: list[Json], key: str = "id") -> list[Any]:
    return [item[key] for item in items]


def parse_exactly(text: str) -> Any:
    """Parse JSON and keep every digit of its numbers."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def waiting_count(broker: Running) -> int:
    """Return the number of registered waiters, which may include the upkeep."""
    return len(broker.server.service.waiters)


@contextmanager
def recorded_statements(broker: Running) -> Iterator[list[str]]:
    """Record the SQL statements that the broker executes within the block."""
    service = broker.server.service
    with statements_of(service.store, service.primary_reads.store) as recorded:
        yield recorded


async def start_long_poll(
    broker: Running, method: str, path: str, **request: Any
) -> "asyncio.Task[httpx.Response]":
    """Send a request, and return when the broker has queried the database for it and waits for a change."""
    before = waiting_count(broker)
    poll = asyncio.create_task(broker.client.request(method, path, **request))
    calm = 0
    async with asyncio.timeout(10):
        while calm < 3:
            await asyncio.sleep(0.003)
            assert not poll.done(), f"responded at once: {poll.result().text[:500]}"
            is_querying = (
                waiting_count(broker) <= before or broker.server.service.store.engine.pool.checkedout()
            )
            calm = 0 if is_querying else calm + 1
    return poll


async def finish_long_poll(poll: "asyncio.Task[httpx.Response]", within: float = 5) -> Any:
    """Return the body of a long poll, which must end long before its timeout and its fallback query."""
    async with asyncio.timeout(within):
        response = await poll
    assert response.status_code == 200, response.text
    return response.json()


async def poll_until_timeout(http: httpx.AsyncClient, method: str, path: str, **request: Any) -> Any:
    """Send a long poll that times out after 0.3 seconds, and return the body of the response."""
    began = time.monotonic()
    response = await http.request(method, path, **request)
    took = time.monotonic() - began
    assert response.status_code == 200, response.text
    assert 0.28 <= took < 5, f"the response took {took:.3f} s"
    return response.json()


def assert_problem(response: httpx.Response, status: int, code: str) -> Json:
    """Check the shape of an error, and that the OpenAPI description lists it. Return the problem."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"].split(";")[0] == "application/problem+json"
    problem: Json = response.json()
    assert {"type", "title", "status", "detail", "instance", "code"} <= problem.keys()
    assert (problem["status"], problem["code"]) == (status, code)
    described = description.error_codes(response.request.method, response.request.url.path)
    assert described is None or (status, code) in described or code == "internal", (
        "the description does not list this error"
    )
    return problem


async def expire_lease(sql: asyncpg.Connection, tool: str = "t") -> None:
    """Set the end of a tool's lease to now, and wake the upkeep."""
    await sql.execute("update tool_leases set expires_at = now() where tool_id = $1", tool)
    await sql.execute("notify broker_upkeep, 'tools'")


async def expire_deadline(sql: asyncpg.Connection, work: str) -> None:
    """Set the deadline of work to now, and wake the upkeep."""
    await sql.execute("update work set deadline_at = now() where id = $1", work)
    await sql.execute("notify broker_upkeep, 'work'")


async def end_backoff(sql: asyncpg.Connection, task: str = "a") -> None:
    """Set the end of a task's backoff to now, and wake the upkeep."""
    await sql.execute("update tasks set due_at = now() where id = $1", task)
    await sql.execute("notify broker_upkeep, 'tasks'")


async def wait_for_state(http: httpx.AsyncClient, path: str, state: str, within: float = 10) -> Json:
    """Wait until a resource is in this state, and return it."""
    async with asyncio.timeout(within):
        while True:
            resource: Json = await get(http, path)
            if resource["state"] == state:
                return resource
            await asyncio.sleep(0.002)


async def take_tool_offline(http: httpx.AsyncClient, sql: asyncpg.Connection, tool: str = "t") -> Json:
    """Expire a tool's lease until the tool is offline, and return the tool."""
    async with asyncio.timeout(10):
        while True:
            # Repeated, because a long poll that has just ended may still renew the lease.
            await expire_lease(sql, tool)
            with contextlib.suppress(TimeoutError):
                return await wait_for_state(http, f"/v1/tools/{tool}", "offline", within=0.6)


async def get_records(http: httpx.AsyncClient, task: str = "a") -> list[Json]:
    """Return the archive records of a task, newest first."""
    items: list[Json] = (await get(http, "/v1/archive", task_id=task))["items"]
    return items


async def make_key(store: Store, name: str, *roles: str, replace: bool = False) -> str:
    """Create a key with these roles and return it."""
    key = new_key()
    assert await store.run(keys.create, name, roles, hashed(key), replace=replace)
    return key


def bearer(key: str) -> dict[str, str]:
    """Return the header that sends a key."""
    return {"Authorization": f"Bearer {key}"}
