"""Through PgBouncer in transaction mode, with fewer connections than the broker has, all goes as without it.

`make test-pooler` runs all tests of the HTTP interface so.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import asyncpg
import httpx
import pytest
from sqlalchemy import Connection

from broker.errors import Unavailable
from broker.settings import Settings
from broker.store.address import libpq_url
from tests.conftest import Running, running_broker
from tests.support.api import (
    add_task,
    add_tool,
    assign,
    complete,
    finish_long_poll,
    get,
    get_records,
    start_long_poll,
    wait_for_state,
)
from tests.support.engines import requires_program
from tests.support.pooler import Pooler
from tests.support.processes import serving

pytestmark = requires_program("pgbouncer")


@pytest.fixture
def pooler(postgres: str) -> Iterator[Pooler]:
    with Pooler(postgres) as pooler:
        yield pooler


@pytest.fixture
async def broker(pooler: Pooler, database: str) -> AsyncIterator[Running]:
    settings = Settings(database_url=pooler.pooled_url(database), listen_url=database, fallback_seconds=60)
    async with running_broker(settings) as running:
        yield running


async def a_life(http: httpx.AsyncClient, name: str) -> None:
    await add_tool(http, name)
    await add_task(http, name)
    work = await assign(http, name, name)
    assert [item["id"] for item in (await get(http, f"/v1/tools/{name}/work", wait=5))["items"]] == [
        work["id"]
    ]
    assert (await http.post(f"/v1/work/{work['id']}/reports", json={"progress": 0.5})).status_code == 201
    assert (await complete(http, work["id"], result=name)).status_code == 200
    [record] = await get_records(http, name)
    assert (record["result"], len(record["reports"])) == (name, 1)


async def test_many_lives_at_once(broker: Running) -> None:
    await asyncio.gather(*(a_life(broker.client, f"n{number}") for number in range(60)))
    assert len((await get(broker.client, "/v1/archive"))["items"]) == 60


async def test_who_waits_is_woken_by_what_is_heard_past_it(broker: Running) -> None:
    http = broker.client
    await add_tool(http)
    await add_task(http)
    parked = await start_long_poll(broker, "GET", "/v1/tools/t/work?wait=30")
    await assign(http)
    assert (await finish_long_poll(parked))["items"]


async def test_settings_are_those_of_each_transaction_and_stay_with_nobody(
    pooler: Pooler, broker: Running
) -> None:
    store = broker.server.service.store
    for run in (store.read, store.run):
        told = await run(lambda connection: connection.exec_driver_sql("show enable_seqscan").scalar_one())
        assert told == "off"
    database = pooler.pooled_url(str(broker.server.service.settings.listen_url))
    others = await asyncpg.connect(libpq_url(database), statement_cache_size=0)
    try:
        async with others.transaction():
            assert await others.fetchval("show enable_seqscan") == "on"
    finally:
        await others.close()


async def test_a_connection_that_is_lost_before_a_statement_is_told_as_any_other(broker: Running) -> None:
    def lose(connection: Connection) -> None:
        connection.connection.driver_connection.terminate()  # type: ignore[union-attr]
        connection.exec_driver_sql("select 1")

    store = broker.server.service.store
    for run in (store.read, store.run):
        with pytest.raises(Unavailable):
            await run(lose)
        assert await run(lambda connection: connection.exec_driver_sql("select 1").scalar_one()) == 1


async def test_without_a_way_past_it_that_is_said(
    pooler: Pooler, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    through = pooler.pooled_url(database)
    async with running_broker(Settings(database_url=through, listen_url=through)):
        assert "set BROKER_LISTEN_URL to the database itself" in capsys.readouterr().out


async def test_serve_says_what_to_do_where_it_is_told_of_a_pooler_alone(
    pooler: Pooler, database: str
) -> None:
    with serving(BROKER_DATABASE_URL=pooler.pooled_url(database)) as (process, _):
        assert await asyncio.to_thread(process.wait, 30) == 1
        assert process.stderr is not None
        assert b"Is it a pooler? Then set BROKER_LISTEN_URL" in process.stderr.read()


async def test_when_the_database_has_ended_all_connections_it_goes_on(
    broker: Running, sql: asyncpg.Connection
) -> None:
    http = broker.client
    await add_task(http)
    await sql.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(20):
        while (await http.get("/v1/tasks/a")).status_code != 200:
            await asyncio.sleep(0.05)
    assert (await wait_for_state(http, "/v1/tasks/a", "available"))["id"] == "a"
