"""Calls that many tests make: a tool, a task and their work in one line, and time that passes."""

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
from sqlalchemy import event

from broker.access.keyring import hashed, new_key
from broker.store import Store, keys
from tests.conftest import Running
from tests.support import description

Json = dict[str, Any]


class Pair(NamedTuple):
    """A task that was assigned to a tool, and the work that this made."""

    task: str
    tool: str
    work: str


async def add_tool(http: httpx.AsyncClient, id: str = "t", **fields: Any) -> Json:  # noqa: A002 (the field's name)
    answer = await http.post("/v1/tools", json={"id": id, "skills": {}, **fields})
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def add_task(http: httpx.AsyncClient, id: str = "a", **fields: Any) -> Json:  # noqa: A002 (the field's name)
    answer = await http.post("/v1/tasks", json={"id": id, "needs": {}, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def add_tasks(http: httpx.AsyncClient, *ids: str, **fields: Any) -> None:
    items = [{"id": id_, "needs": {}, **fields} for id_ in ids]
    answer = await http.post("/v1/tasks/batch", json={"items": items})
    assert answer.status_code == 200, answer.text


async def assign(http: httpx.AsyncClient, task: str = "a", tool: str = "t") -> Json:
    answer = await http.post("/v1/work", json={"task_id": task, "tool_id": tool})
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def add_assigned_work(http: httpx.AsyncClient, task: str = "a", tool: str = "t", **fields: Any) -> Pair:
    """A new task (`fields` are its own) on a tool, which is made too."""
    await add_tool(http, tool, capacity=100, resume=True)
    await add_task(http, task, **fields)
    return Pair(task, tool, (await assign(http, task, tool))["id"])


async def add_running_work(http: httpx.AsyncClient, task: str = "a", tool: str = "t", **fields: Any) -> Pair:
    pair = await add_assigned_work(http, task, tool, **fields)
    answer = await http.post(f"/v1/work/{pair.work}/start")
    assert answer.status_code == 200, answer.text
    return pair


async def complete(
    http: httpx.AsyncClient, work: str, outcome: str = "succeeded", **fields: Any
) -> httpx.Response:
    return await http.post(f"/v1/work/{work}/complete", json={"outcome": outcome, **fields})


async def complete_work(
    http: httpx.AsyncClient, work: str, outcome: str = "succeeded", **fields: Any
) -> Json:
    """The archive record that ending the work made."""
    answer = await complete(http, work, outcome, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["archived"]


async def get(http: httpx.AsyncClient, path: str, **query: Any) -> Any:
    answer = await http.get(path, params=query or None)  # httpx: {} would drop the query that is there
    assert answer.status_code == 200, answer.text
    return answer.json()


async def get_pages(http: httpx.AsyncClient, path: str, **query: Any) -> list[list[Json]]:
    """All pages of a list, to its end."""
    found: list[list[Json]] = []
    while True:
        page = await get(http, path, **query)
        found.append(page["items"])
        if page["next"] is None:
            return found
        query["after"] = page["next"]
        assert len(found) < 1000, "the list has no end"


def flatten(found: list[list[Json]]) -> list[Json]:
    return [item for page in found for item in page]


def ids(items: list[Json], key: str = "id") -> list[Any]:
    return [item[key] for item in items]


def parse_exactly(text: str) -> Any:
    """JSON with every number to its last digit."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def waiting_count(broker: Running) -> int:
    """How many are registered to be woken (the upkeep may be one of them)."""
    return len(broker.server.service.waiters)


@contextmanager
def recorded_statements(broker: Running) -> Iterator[list[str]]:
    """The statements that reach the database within the block."""
    told: list[str] = []
    service = broker.server.service
    engines = [store.engine.sync_engine for store in (service.store, service.primary_reads.store)]

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        told.append(statement)

    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield told
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


async def start_long_poll(
    broker: Running, method: str, path: str, **request: Any
) -> "asyncio.Task[httpx.Response]":
    """A request that has looked and is parked when this returns."""
    before = waiting_count(broker)
    parked = asyncio.create_task(broker.client.request(method, path, **request))
    calm = 0
    async with asyncio.timeout(10):
        while calm < 3:
            await asyncio.sleep(0.003)
            assert not parked.done(), f"answered at once: {parked.result().text[:500]}"
            looking = waiting_count(broker) <= before or broker.server.service.store.engine.pool.checkedout()
            calm = 0 if looking else calm + 1
    return parked


async def finish_long_poll(parked: "asyncio.Task[httpx.Response]", within: float = 5) -> Any:
    """What a parked request answers, long before its own time (and any look of its own) is up."""
    async with asyncio.timeout(within):
        answer = await parked
    assert answer.status_code == 200, answer.text
    return answer.json()


async def poll_until_timeout(http: httpx.AsyncClient, method: str, path: str, **request: Any) -> Any:
    """What a request answers that waits for 0.3 seconds in vain."""
    began = time.monotonic()
    answer = await http.request(method, path, **request)
    took = time.monotonic() - began
    assert answer.status_code == 200, answer.text
    assert 0.28 <= took < 5, f"answered after {took:.3f} s"
    return answer.json()


def assert_problem(answer: httpx.Response, status: int, code: str) -> Json:
    """Checks the shape of an error, and that the description has it, and hands it back."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"].split(";")[0] == "application/problem+json"
    problem: Json = answer.json()
    assert {"type", "title", "status", "detail", "instance", "code"} <= problem.keys()
    assert (problem["status"], problem["code"]) == (status, code)
    described = description.error_codes(answer.request.method, answer.request.url.path)
    assert described is None or (status, code) in described or code == "internal", "it is not described"
    return problem


async def expire_lease(sql: asyncpg.Connection, tool: str = "t") -> None:
    """Time moves on, for the tool's lease."""
    await sql.execute("update tool_leases set expires_at = now() where tool_id = $1", tool)
    await sql.execute("notify broker_upkeep, 'tools'")


async def expire_deadline(sql: asyncpg.Connection, work: str) -> None:
    """Time moves on, for the work's deadline."""
    await sql.execute("update work set deadline_at = now() where id = $1", work)
    await sql.execute("notify broker_upkeep, 'work'")


async def end_backoff(sql: asyncpg.Connection, task: str = "a") -> None:
    """Time moves on, for a task that backs off."""
    await sql.execute("update tasks set due_at = now() where id = $1", task)
    await sql.execute("notify broker_upkeep, 'tasks'")


async def wait_for_state(http: httpx.AsyncClient, path: str, state: str, within: float = 10) -> Json:
    """What is there, once it is in this state."""
    async with asyncio.timeout(within):
        while True:
            found: Json = await get(http, path)
            if found["state"] == state:
                return found
            await asyncio.sleep(0.002)


async def take_tool_offline(http: httpx.AsyncClient, sql: asyncpg.Connection, tool: str = "t") -> Json:
    """The tool, after its lease has run out."""
    async with asyncio.timeout(10):
        while True:
            # Again and again: a poll of just before may still be renewing it.
            await expire_lease(sql, tool)
            with contextlib.suppress(TimeoutError):
                return await wait_for_state(http, f"/v1/tools/{tool}", "offline", within=0.6)


async def get_records(http: httpx.AsyncClient, task: str = "a") -> list[Json]:
    """The archive's records of a task, the newest first."""
    items: list[Json] = (await get(http, "/v1/archive", task_id=task))["items"]
    return items


async def make_key(store: Store, name: str, *roles: str, replace: bool = False) -> str:
    """A key with these roles."""
    key = new_key()
    assert await store.run(keys.create, name, roles, hashed(key), replace=replace)
    return key


def bearer(key: str) -> dict[str, str]:
    """The header that carries it."""
    return {"Authorization": f"Bearer {key}"}
