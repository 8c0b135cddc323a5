"""The database dies, is silent, is full or moves: requests are told to come again, and then all is well."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest
from sqlalchemy import make_url

from broker.errors import Unavailable
from broker.settings import Settings
from broker.store import tasks
from broker.store.address import Address, libpq_url
from broker.wake.listener import TOOL, Listener
from broker.wake.waiters import Waiters
from tests.conftest import Running, running_broker
from tests.support import steps
from tests.support.api import add_task, add_tool, assert_problem, assign, finish_long_poll, start_long_poll
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

BACKENDS = "pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
PATIENCE = {"database_timeout_seconds": 0.5, "probe_seconds": 0.2, "fallback_seconds": 60}


@pytest.fixture
async def proxy(database: str) -> AsyncIterator[Proxy]:
    async with Proxy(database) as proxy:
        yield proxy


@pytest.fixture
async def broker(proxy: Proxy) -> AsyncIterator[Running]:
    """A broker whose way to the database is the proxy."""
    async with running_broker(Settings(database_url=proxy.url, **PATIENCE)) as running:
        yield running


@asynccontextmanager
async def listening(address: Address, **given: float) -> AsyncIterator[tuple[Listener, Waiters]]:
    waiters = Waiters()
    listener = Listener(waiters, address.connect, **given)
    listener.start()
    try:
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            await listener.connected.wait()
        yield listener, waiters
    finally:
        await listener.stop()


async def until_ready(http: httpx.AsyncClient) -> dict[str, str]:
    """What the checks say once the service is ready."""
    async with asyncio.timeout(steps.PATIENCE_SECONDS):
        while (answer := await http.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.01)
    checks: dict[str, str] = answer.json()["checks"]
    return checks


async def metric(http: httpx.AsyncClient, name: str) -> float:
    answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    [value] = [line.split()[1] for line in answer.text.splitlines() if line.startswith(f"{name} ")]
    return float(value)


async def test_told_to_stop_while_the_database_is_silent_it_asks_everyone_to_come_again(
    database: str, proxy: Proxy
) -> None:
    async with running_broker(Settings(database_url=proxy.url, fallback_seconds=60)) as broker:
        proxy.silence()
        writes = (
            broker.client.post("/v1/tasks", json={"id": "a", "needs": {}}),  # the short way
            broker.client.post("/v1/tasks/a/retry"),
        )
        # Some have a connection, and others wait for one.
        reads = [broker.client.get("/v1/tasks") for _ in range(2 * Settings().read_pool_size)]
        asked = [asyncio.create_task(call) for call in (*writes, *reads)]
        service = broker.server.service
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            while service.store.in_use() < len(writes) or service.primary_reads.waiting < len(reads) // 2:
                await asyncio.sleep(0.001)
        async with asyncio.timeout(2):
            await broker.stop()
        for answer in await asyncio.gather(*asked):
            assert_problem(answer, 503, "unavailable")
            assert answer.headers["Retry-After"] == "1"


async def test_a_database_that_lets_nobody_in_is_unavailable_and_found_again(
    broker: Running, sql: asyncpg.Connection, postgres: str
) -> None:
    name = await sql.fetchval("select current_database()")
    async with steps.open_connection(postgres) as outside:
        await outside.execute(f"alter database {name} allow_connections false")
        await outside.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            f" where datname = '{name}' and application_name like 'broker%'"
        )
        for _ in range(3):
            answer = await broker.client.post("/v1/tasks", json={"id": "a", "needs": {}})
            assert_problem(answer, 503, "unavailable")
        assert (await broker.client.get("/health/ready")).status_code == 503
        await outside.execute(f"alter database {name} allow_connections true")
    await until_ready(broker.client)
    await add_task(broker.client)


async def test_a_listener_that_hears_nothing_is_not_taken_for_connected(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler takes LISTEN, and passes on nothing."""
    add = asyncpg.Connection.add_listener

    async def deafly(connection: asyncpg.Connection, channel: str, _: object) -> None:
        await add(connection, channel, lambda *_: None)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", deafly)
    listener = Listener(Waiters(), Address(database).connect)
    listener.start()
    async with steps.open_connection(database) as sql:
        probed = "select count(*) from pg_stat_activity where query like 'notify broker_probe%'"
        await wait_until(lambda: sql.fetchval(probed))
    assert not listener.connected.is_set()
    await listener.stop()


async def test_of_several_hosts_the_one_that_answers_is_used(database: str, proxy: Proxy) -> None:
    url = proxy.url.replace("@127.0.0.1", "@127.0.0.1:1,127.0.0.1")
    address = Address(url)
    for _ in range(2):
        connection = await address.connect()
        assert await connection.fetchval("select 1") == 1
        await connection.close()


async def test_a_host_that_swallows_everything_does_not_use_up_the_time_of_the_next(
    database: str, proxy: Proxy
) -> None:
    async with Proxy(database) as hole:
        hole.silence()
        hosts = f"127.0.0.1:{hole.port},127.0.0.1:{proxy.port}"
        url = proxy.url.replace(f"127.0.0.1:{proxy.port}", hosts)
        address = Address(url, connect_seconds=0.2)
        await (await address.connect()).close()
        # It is remembered which one answered.
        async with asyncio.timeout(0.15):
            await (await address.connect()).close()


async def test_no_host_at_all_is_an_error_that_says_which() -> None:
    with pytest.raises(ConnectionRefusedError):
        await Address("postgresql://nobody@127.0.0.1:1,127.0.0.1:2/x").connect()


async def test_a_host_that_takes_no_writes_is_passed_over(database: str, sql: asyncpg.Connection) -> None:
    name = await sql.fetchval("select current_database()")
    await sql.execute(f"alter database {name} set default_transaction_read_only = on")
    with pytest.raises(asyncpg.TargetServerAttributeNotMatched):
        await Address(database).connect()
    either = make_url(database).update_query_dict({"target_session_attrs": "any"})
    any_host = await Address(either.render_as_string(hide_password=False)).connect()
    await any_host.close()


async def test_a_primary_that_takes_no_more_writes_is_left(database: str) -> None:
    async with steps.open_store(database, pool_size=1) as store:
        await steps.submit(store, "a")
        async with store.engine.connect() as connection:
            raw = await connection.get_raw_connection()
            driver = raw.driver_connection
            assert driver is not None
            await driver.execute("set default_transaction_read_only = on")
        with pytest.raises(Unavailable):
            await store.many(tasks.submit, [steps.new_task("b")])
        # That connection is thrown away; the next one writes.
        await steps.submit(store, "b")


async def test_a_database_that_says_nothing_is_given_up_in_time_and_found_again(
    broker: Running, proxy: Proxy
) -> None:
    http = broker.client
    await add_task(http, "before")
    proxy.silence()
    async with asyncio.timeout(5):
        answers = await asyncio.gather(
            *(http.post("/v1/tasks", json={"id": f"a{n}", "needs": 1}) for n in range(20))
        )
    for answer in answers:
        assert_problem(answer, 503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1

    async def both_are_missed() -> bool:
        checks = (await http.get("/health/ready")).json()["checks"]
        return bool(checks["database"] != "ok" and checks["listener"] != "ok")

    await wait_until(both_are_missed)
    proxy.restore()
    await until_ready(http)
    for number in range(20):
        answer = await http.post("/v1/tasks", json={"id": f"a{number}", "needs": 1})
        assert answer.status_code in (200, 201)
    assert (await http.get("/v1/tasks/before")).status_code == 200


async def test_a_statement_that_waits_too_long_is_given_up_and_holds_nothing(
    database: str, sql: asyncpg.Connection
) -> None:
    async with steps.open_store(database, timeout_seconds=0.5) as store:
        await steps.submit(store, "a")
        async with sql.transaction():
            await sql.execute("select from tasks for update")
            with pytest.raises(Unavailable):
                await steps.delete(store, "a")
        assert await steps.delete(store, "a") == "deleted"


async def test_the_listener_finds_out_that_it_hears_nothing(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.wake.listener._PROBE_TIMEOUT_SECONDS", 0.3)
    async with listening(Address(proxy.url), probe_seconds=0.1) as (listener, waiters):
        proxy.silence()

        async def silent() -> bool:
            return not listener.connected.is_set()

        await wait_until(silent)
        proxy.restore()
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            await listener.connected.wait()
        assert listener.connects == 2
        with waiters.register(TOOL, "t") as waiter:
            connection = await Address(proxy.url).connect()
            await connection.execute(f"notify {TOOL}, 't'")
            assert await waiter.wait(5)
            await connection.close()


async def test_an_error_that_the_listener_meets_over_a_connection_that_lives_is_no_outage(
    database: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outages extend leases."""
    async with listening(Address(proxy.url), probe_seconds=0.1) as (listener, _):
        execute, found_at = asyncpg.Connection.execute, listener.reachability_changed_at

        async def refuse(connection: asyncpg.Connection, query: str, *args: object) -> str:
            if query.startswith("notify"):
                query = "do $$ begin raise exception 'full' using errcode = '53100'; end $$"
            return await execute(connection, query, *args)

        with monkeypatch.context() as patch:
            patch.setattr(asyncpg.Connection, "execute", refuse)

            async def silent() -> bool:
                return not listener.connected.is_set()

            await wait_until(silent)
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            await listener.connected.wait()
        assert listener.connects == 2
        assert listener.reachability_changed_at == found_at
        await proxy.cut()
        await wait_until(silent)
        assert listener.reachability_changed_at > found_at


async def test_probes_keep_an_idle_listener_and_wake_nobody(database: str) -> None:
    async with listening(Address(database), probe_seconds=0.1) as (listener, waiters):
        with waiters.register(TOOL, "t") as waiter:
            assert not await waiter.wait(0.5)
        assert listener.connects == 1
        assert listener.received == 0


async def test_a_parked_tool_gets_its_work_though_all_connections_were_cut(
    broker: Running, proxy: Proxy
) -> None:
    http = broker.client
    await add_tool(http)
    await add_task(http)
    parked = await start_long_poll(broker, "GET", "/v1/tools/t/work", params={"wait": 60})
    await proxy.cut()
    async with asyncio.timeout(steps.PATIENCE_SECONDS):
        while (await http.post("/v1/work", json={"task_id": "a", "tool_id": "t"})).status_code != 201:
            await asyncio.sleep(0.01)
    assert len((await finish_long_poll(parked))["items"]) == 1
    await until_ready(http)


async def test_backends_that_are_killed_cost_a_retry_and_nothing_else(
    broker: Running, sql: asyncpg.Connection
) -> None:
    http = broker.client
    acknowledged = []
    for number in range(60):
        if number % 10 == 5:
            await sql.execute(f"select pg_terminate_backend(pid) from (select {BACKENDS}) b")
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            while (answer := await http.post("/v1/tasks", json={"id": f"a{number}", "needs": 1})).is_error:
                assert_problem(answer, 503, "unavailable")
        acknowledged.append(answer.json()["id"])
    assert await sql.fetchval("select count(*) from tasks where id = any($1)", acknowledged) == 60


@pytest.mark.parametrize("state", ["53100", "53200", "53300", "57014", "58030"])
async def test_a_statement_that_the_database_cannot_do_now_is_503_and_writes_nothing(
    broker: Running, sql: asyncpg.Connection, state: str
) -> None:
    http = broker.client
    await sql.execute(
        "create function full_up() returns trigger language plpgsql as $$ begin"
        f" raise exception 'no space left on device' using errcode = '{state}'; end $$"
    )
    await sql.execute("create trigger full_up before insert on tasks execute function full_up()")
    requests = [http.post("/v1/tasks", json={"id": f"a{n}", "needs": 1}) for n in range(10)]
    requests.append(http.post("/v1/tasks/batch", json={"items": [{"needs": 1}] * 10}))
    for answer in await asyncio.gather(*requests):
        problem = assert_problem(answer, 503, "unavailable")
        assert "space" not in problem["detail"]
        assert int(answer.headers["retry-after"]) >= 1
    await sql.execute("drop trigger full_up on tasks")
    assert await sql.fetchval("select count(*) from tasks") == 0
    await add_task(http)


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_what_is_given_up_for_another_is_begun_again(
    broker: Running, sql: asyncpg.Connection, state: str
) -> None:
    await sql.execute("create sequence tries")
    await sql.execute(
        "create function give_up() returns trigger language plpgsql as $$ begin"
        f" if nextval('tries') < 4 then raise exception 'given up' using errcode = '{state}'; end if;"
        " return null; end $$"
    )
    await sql.execute("create trigger give_up after insert on work execute function give_up()")
    await add_tool(broker.client)
    await add_task(broker.client)
    assert (await assign(broker.client))["attempt"] == 1


async def test_the_health_of_the_listener_is_to_be_seen(broker: Running, sql: asyncpg.Connection) -> None:
    http = broker.client
    assert (await until_ready(http))["listener"] == "ok"
    assert await metric(http, "broker_listener_connected") == 1
    assert await metric(http, "broker_listener_probe_seconds") < 5
    before = await metric(http, "broker_listener_connects_total")
    await sql.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'broker listener' and datname = current_database()"
    )

    async def connected_again() -> bool:
        return await metric(http, "broker_listener_connects_total") == before + 1

    await wait_until(connected_again)
    await until_ready(http)


def test_the_scheme_of_a_url_may_be_any_of_three() -> None:
    for scheme in ("postgres", "postgresql", "postgresql+asyncpg"):
        assert libpq_url(f"{scheme}://u:p@h:1/d?host=/x") == "postgresql://u:p@h:1/d?host=/x"
