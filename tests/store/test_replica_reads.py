"""Lists use separate connections, to a hot standby if there is one, and nothing else depends on these."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from broker.settings import Settings
from broker.store.replica_reads import MOST_WAITING
from tests.conftest import Running, Serve, running_broker
from tests.crash.pair import Pair, running_pair
from tests.support.api import (
    add_assigned_work,
    add_running_work,
    add_task,
    add_tool,
    assert_problem,
    complete_work,
    get,
    ids,
)
from tests.support.steps import statements_of
from tests.support.waiting import wait_until

# All lists, exports, counts and explanations. They use connections that nothing else uses.
READINGS = [
    "/v1/tasks",
    "/v1/tasks?state=running&needs=1",
    "/v1/tasks/waits/explain",
    "/v1/tools",
    "/v1/work",
    "/v1/work/{work}/reports",
    "/v1/archive",
    "/v1/archive/export",
    "/v1/overview/tools",
    "/v1/overview/queue",
    "/v1/overview/waiting",
    "/v1/overview/timeline",
    "/v1/overview/history",
    "/v1/overview/failures",
    "/v1/stats",
    "/metrics",
]
# The subset that reads the archive.
OF_THE_ARCHIVE = [
    path
    for path in READINGS
    if path.split("?")[0]
    in {
        "/v1/archive",
        "/v1/archive/export",
        "/v1/overview/queue",
        "/v1/overview/timeline",
        "/v1/overview/history",
        "/v1/overview/failures",
        "/v1/stats",
        "/metrics",
    }
]


TASKS_THAT_NEED_NOTHING = """
insert into tasks (id, needs, payload, priority, state, max_attempts, retry_backoff_seconds)
select 'task-' || number, '{{}}', '0', 0, 'available', 3, 1 from generate_series(1, {count}) number
"""


@asynccontextmanager
async def locked_archive(sql: asyncpg.Connection) -> AsyncIterator[None]:
    """Lock the archive, so that everything that reads it must wait."""
    async with sql.transaction():
        await sql.execute("lock table work_archive in access exclusive mode")
        yield


async def waiting(broker: Running, count: int) -> None:
    async def enough_wait() -> bool:
        return broker.server.service.primary_reads.waiting >= count

    await wait_until(enough_wait)


@pytest.mark.parametrize("path", READINGS)
async def test_lists_never_use_a_connection_of_the_life_cycle(
    broker: Running, http: httpx.AsyncClient, path: str
) -> None:
    work = (await add_assigned_work(http, "busy")).work
    await add_task(http, "waits")
    service = broker.server.service
    # Background parts use these connections, so stop them.
    await service.keyring.load()
    for part in (service.upkeep, service.presence, service.sweep):
        await part.stop()
    with statements_of(service.store) as used:
        response = await http.get(path.format(work=work))
    assert response.status_code == 200
    assert used == []


async def test_waiting_lists_do_not_block_the_life_cycle(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http, capacity=10)
    async with locked_archive(sql):
        lists = [asyncio.create_task(http.get(path)) for path in OF_THE_ARCHIVE * 5]
        await waiting(broker, 10)
        async with asyncio.timeout(3):
            # Without an id, the broker need not look for an ended task in the archive.
            task = (await http.post("/v1/tasks", json={"needs": {}})).json()["id"]
            assert (await http.post("/v1/tools/t/heartbeat")).status_code == 200
            assert ids((await get(http, "/v1/candidates"))["tasks"]) == [task]
            work = (await http.post("/v1/work", json={"task_id": task, "tool_id": "t"})).json()["id"]
            assert (await http.post(f"/v1/work/{work}/start")).status_code == 200
            assert (await http.post(f"/v1/work/{work}/reports", json={})).status_code == 201
        assert not any(reading.done() for reading in lists)
    assert {response.status_code for response in await asyncio.gather(*lists)} == {200}


async def test_a_list_gets_503_if_too_many_lists_wait(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    at_once = Settings().read_pool_size
    async with locked_archive(sql):
        lists = [asyncio.create_task(http.get("/v1/archive")) for _ in range(at_once + MOST_WAITING)]
        await waiting(broker, MOST_WAITING)
        refused = await http.get("/v1/archive")
        assert_problem(refused, 503, "unavailable")
        assert int(refused.headers["Retry-After"]) >= 1
    assert {response.status_code for response in await asyncio.gather(*lists)} == {200}


async def test_lists_have_their_own_time_limit(serve: Serve, sql: asyncpg.Connection) -> None:
    broker = await serve(read_timeout_seconds=0.5, database_timeout_seconds=600)
    async with locked_archive(sql):
        assert_problem(await broker.client.get("/v1/archive"), 503, "unavailable")
    assert (await get(broker.client, "/v1/archive"))["items"] == []


async def test_a_list_finds_a_single_match_behind_thousands_in_one_request(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await sql.execute(TASKS_THAT_NEED_NOTHING.format(count=12_000))
    await add_task(http, "last", needs={"rare": True})
    page = await get(http, "/v1/tasks", needs='{"rare": true}')
    assert ids(page["items"]) == ["last"]


@asynccontextmanager
async def broker_with_standby(folder: Path) -> AsyncIterator[tuple[Running, Pair]]:
    async with running_pair(folder) as pair:
        # Turn synchronous replication off, because the test pauses the standby.
        pair.primary.sql("alter system set synchronous_standby_names = ''")
        pair.primary.sql("select pg_reload_conf()")
        settings = Settings(database_url=pair.primary.url, read_url=pair.standby.url)
        async with running_broker(settings) as broker:
            yield broker, pair


@pytest.fixture
def folder(data_dir: Path) -> Path:
    return data_dir.parent


async def test_only_lists_are_read_from_the_standby(folder: Path) -> None:
    async with broker_with_standby(folder) as (broker, pair):
        http = broker.client
        pair.standby.sql("select pg_wal_replay_pause()")
        ended = await add_running_work(http, "ended")
        await complete_work(http, ended.work)
        await add_task(http, "waits")
        lists = ("/v1/tasks", "/v1/archive", "/v1/overview/timeline")
        for path in lists:
            page = await get(http, path)
            assert (page.get("items") or page.get("attempts") or []) == [], path
        assert (await http.get("/v1/archive/export")).text == ""
        # Requests with an id, and those of assigners and tools, see changes at once.
        assert (await get(http, "/v1/tasks/waits"))["state"] == "available"
        assert (await get(http, f"/v1/archive/{ended.work}"))["outcome"] == "succeeded"
        assert ids((await get(http, "/v1/candidates"))["tasks"]) == ["waits"]
        pair.standby.sql("select pg_wal_replay_resume()")

        async def all_there() -> bool:
            tasks = ids((await get(http, "/v1/tasks"))["items"])
            records = ids((await get(http, "/v1/archive"))["items"], "task_id")
            return (tasks, records) == (["waits"], ["ended"])

        await wait_until(all_there)


async def test_lists_are_read_from_the_primary_without_the_standby(folder: Path) -> None:
    async with broker_with_standby(folder) as (broker, pair):
        http = broker.client
        await add_task(http, "waits")
        await pair.standby.kill()
        assert ids((await get(http, "/v1/tasks"))["items"]) == ["waits"]
        assert broker.server.service.replica_reads.missed == 1
