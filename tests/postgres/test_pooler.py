"""The broker works through PgBouncer in transaction mode, with fewer connections than the broker has.

`make test-pooler` runs all tests of the HTTP API in this way.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import asyncpg
import httpx
import pytest
from sqlalchemy import text

from broker.errors import Unavailable
from broker.settings import Settings
from broker.store.address import libpq_url
from broker.store.sql_connection import SqlConnection
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


async def run_life_cycle(http: httpx.AsyncClient, name: str) -> None:
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


async def test_many_life_cycles_at_once_work_through_the_pooler(broker: Running) -> None:
    await asyncio.gather(*(run_life_cycle(broker.client, f"n{number}") for number in range(60)))
    assert len((await get(broker.client, "/v1/archive"))["items"]) == 60


async def test_notification_past_the_pooler_ends_a_long_poll(broker: Running) -> None:
    http = broker.client
    await add_tool(http)
    await add_task(http)
    poll = await start_long_poll(broker, "GET", "/v1/tools/t/work?wait=30")
    await assign(http)
    assert (await finish_long_poll(poll))["items"]


async def test_settings_apply_to_each_transaction_and_not_to_other_clients(
    pooler: Pooler, broker: Running
) -> None:
    store = broker.server.service.store
    for run in (store.read, store.run):
        value = await run(lambda connection: connection.execute(text("show enable_seqscan")).scalar_one())
        assert value == "off"
    database = pooler.pooled_url(str(broker.server.service.settings.listen_url))
    others = await asyncpg.connect(libpq_url(database), statement_cache_size=0)
    try:
        async with others.transaction():
            assert await others.fetchval("show enable_seqscan") == "on"
    finally:
        await others.close()


async def test_connection_lost_before_a_statement_is_unavailable(broker: Running) -> None:
    def lose(connection: SqlConnection) -> None:
        connection.driver.terminate()
        connection.execute(text("select 1"))

    store = broker.server.service.store
    for run in (store.read, store.run):
        with pytest.raises(Unavailable):
            await run(lose)
        assert await run(lambda connection: connection.execute(text("select 1")).scalar_one()) == 1


async def test_warning_without_a_direct_url_names_the_setting(
    pooler: Pooler, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    through = pooler.pooled_url(database)
    async with running_broker(Settings(database_url=through, listen_url=through)):
        assert "set BROKER_LISTEN_URL to PostgreSQL itself" in capsys.readouterr().out


async def test_serve_behind_a_pooler_alone_names_the_setting(pooler: Pooler, database: str) -> None:
    with serving(BROKER_DATABASE_URL=pooler.pooled_url(database)) as (process, _):
        assert await asyncio.to_thread(process.wait, 30) == 1
        assert process.stderr is not None
        assert b"If this is a pooler, set BROKER_LISTEN_URL" in process.stderr.read()


async def test_broker_recovers_after_the_database_closed_all_connections(
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
