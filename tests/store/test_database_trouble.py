"""The database dies, hangs, is full or moves: clients may retry, and the broker recovers by itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest
from sqlalchemy import make_url

from broker.errors import Unavailable
from broker.settings import Settings
from broker.store import submission
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
    """Return a broker that reaches the database through the proxy."""
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
    """Wait until the service is ready, and return its checks."""
    async with asyncio.timeout(steps.PATIENCE_SECONDS):
        while (response := await http.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.01)
    checks: dict[str, str] = response.json()["checks"]
    return checks


async def metric(http: httpx.AsyncClient, name: str) -> float:
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    [value] = [line.split()[1] for line in response.text.splitlines() if line.startswith(f"{name} ")]
    return float(value)


async def test_requests_get_503_if_the_broker_stops_while_the_database_hangs(
    database: str, proxy: Proxy
) -> None:
    async with running_broker(Settings(database_url=proxy.url, fallback_seconds=60)) as broker:
        proxy.silence()
        writes = (
            broker.client.post("/v1/tasks", json={"id": "a", "needs": {}}),  # the fast path
            broker.client.post("/v1/tasks/a/retry"),
        )
        # Some reads have a connection, and the others wait for one.
        reads = [broker.client.get("/v1/tasks") for _ in range(2 * Settings().read_pool_size)]
        asked = [asyncio.create_task(call) for call in (*writes, *reads)]
        service = broker.server.service
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            while service.store.in_use() < len(writes) or service.primary_reads.waiting < len(reads) // 2:
                await asyncio.sleep(0.001)
        async with asyncio.timeout(2):
            await broker.stop()
        for response in await asyncio.gather(*asked):
            assert_problem(response, 503, "unavailable")
            assert response.headers["Retry-After"] == "1"


async def test_the_broker_recovers_from_a_database_that_refuses_connections(
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
            response = await broker.client.post("/v1/tasks", json={"id": "a", "needs": {}})
            assert_problem(response, 503, "unavailable")
        assert (await broker.client.get("/health/ready")).status_code == 503
        await outside.execute(f"alter database {name} allow_connections true")
    await until_ready(broker.client)
    await add_task(broker.client)


async def test_a_listener_without_deliveries_does_not_count_as_connected(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler accepts LISTEN but delivers nothing."""
    add = asyncpg.Connection.add_listener

    async def without_delivery(connection: asyncpg.Connection, channel: str, _: object) -> None:
        await add(connection, channel, lambda *_: None)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", without_delivery)
    listener = Listener(Waiters(), Address(database).connect)
    listener.start()
    async with steps.open_connection(database) as sql:
        probed = "select count(*) from pg_stat_activity where query like 'notify broker_probe%'"
        await wait_until(lambda: sql.fetchval(probed))
    assert not listener.connected.is_set()
    await listener.stop()


async def test_the_broker_uses_the_host_that_responds(database: str, proxy: Proxy) -> None:
    url = proxy.url.replace("@127.0.0.1", "@127.0.0.1:1,127.0.0.1")
    address = Address(url)
    for _ in range(2):
        connection = await address.connect()
        assert await connection.fetchval("select 1") == 1
        await connection.close()


async def test_a_host_without_responses_does_not_use_up_the_time_of_the_next_one(
    database: str, proxy: Proxy
) -> None:
    async with Proxy(database) as hole:
        hole.silence()
        hosts = f"127.0.0.1:{hole.port},127.0.0.1:{proxy.port}"
        url = proxy.url.replace(f"127.0.0.1:{proxy.port}", hosts)
        address = Address(url, connect_seconds=0.2)
        await (await address.connect()).close()
        # The address remembers the host that responded.
        async with asyncio.timeout(0.15):
            await (await address.connect()).close()


async def test_unreachable_hosts_are_a_connection_error() -> None:
    with pytest.raises(ConnectionRefusedError):
        await Address("postgresql://nobody@127.0.0.1:1,127.0.0.1:2/x").connect()


async def test_a_read_only_host_is_skipped(database: str, sql: asyncpg.Connection) -> None:
    name = await sql.fetchval("select current_database()")
    await sql.execute(f"alter database {name} set default_transaction_read_only = on")
    with pytest.raises(asyncpg.TargetServerAttributeNotMatched):
        await Address(database).connect()
    either = make_url(database).update_query_dict({"target_session_attrs": "any"})
    any_host = await Address(either.render_as_string(hide_password=False)).connect()
    await any_host.close()


async def test_the_broker_leaves_a_primary_that_becomes_read_only(database: str) -> None:
    async with steps.open_store(database, pool_size=1) as store:
        await steps.submit(store, "a")
        async with store.engine.connect() as connection:
            raw = await connection.get_raw_connection()
            driver = raw.driver_connection
            assert driver is not None
            await driver.execute("set default_transaction_read_only = on")
        with pytest.raises(Unavailable):
            await store.many(submission.submit, [steps.new_task("b")])
        # The pool discards that connection, and the next one accepts writes.
        await steps.submit(store, "b")


async def test_the_broker_times_out_on_a_hanging_database_and_recovers(broker: Running, proxy: Proxy) -> None:
    http = broker.client
    await add_task(http, "before")
    proxy.silence()
    async with asyncio.timeout(5):
        responses = await asyncio.gather(
            *(http.post("/v1/tasks", json={"id": f"a{n}", "needs": 1}) for n in range(20))
        )
    for response in responses:
        assert_problem(response, 503, "unavailable")
        assert int(response.headers["retry-after"]) >= 1

    async def both_are_missed() -> bool:
        checks = (await http.get("/health/ready")).json()["checks"]
        return bool(checks["database"] != "ok" and checks["listener"] != "ok")

    await wait_until(both_are_missed)
    proxy.restore()
    await until_ready(http)
    for number in range(20):
        response = await http.post("/v1/tasks", json={"id": f"a{number}", "needs": 1})
        assert response.status_code in (200, 201)
    assert (await http.get("/v1/tasks/before")).status_code == 200


async def test_a_statement_that_waits_too_long_ends_and_releases_its_locks(
    database: str, sql: asyncpg.Connection
) -> None:
    async with steps.open_store(database, timeout_seconds=0.5) as store:
        await steps.submit(store, "a")
        async with sql.transaction():
            await sql.execute("select from tasks for update")
            with pytest.raises(Unavailable):
                await steps.delete(store, "a")
        assert await steps.delete(store, "a") == "deleted"


async def test_the_listener_detects_a_silent_connection(
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


async def test_an_error_over_a_live_connection_of_the_listener_is_no_outage(
    database: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage would extend leases."""
    async with listening(Address(proxy.url), probe_seconds=0.1) as (listener, _):
        execute, changed_at = asyncpg.Connection.execute, listener.reachability_changed_at

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
        assert listener.reachability_changed_at == changed_at
        await proxy.cut()
        await wait_until(silent)
        assert listener.reachability_changed_at > changed_at


async def test_probes_keep_an_idle_listener_connected_and_wake_no_request(database: str) -> None:
    async with listening(Address(database), probe_seconds=0.1) as (listener, waiters):
        with waiters.register(TOOL, "t") as waiter:
            assert not await waiter.wait(0.5)
        assert listener.connects == 1
        assert listener.received == 0


async def test_a_waiting_tool_gets_its_work_after_all_connections_were_cut(
    broker: Running, proxy: Proxy
) -> None:
    http = broker.client
    await add_tool(http)
    await add_task(http)
    waiting = await start_long_poll(broker, "GET", "/v1/tools/t/work", params={"wait": 60})
    await proxy.cut()
    async with asyncio.timeout(steps.PATIENCE_SECONDS):
        while (await http.post("/v1/work", json={"task_id": "a", "tool_id": "t"})).status_code != 201:
            await asyncio.sleep(0.01)
    assert len((await finish_long_poll(waiting))["items"]) == 1
    await until_ready(http)


async def test_killed_backends_cost_only_a_retry(broker: Running, sql: asyncpg.Connection) -> None:
    http = broker.client
    acknowledged = []
    for number in range(60):
        if number % 10 == 5:
            await sql.execute(f"select pg_terminate_backend(pid) from (select {BACKENDS}) b")
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            while (response := await http.post("/v1/tasks", json={"id": f"a{number}", "needs": 1})).is_error:
                assert_problem(response, 503, "unavailable")
        acknowledged.append(response.json()["id"])
    assert await sql.fetchval("select count(*) from tasks where id = any($1)", acknowledged) == 60


@pytest.mark.parametrize("state", ["53100", "53200", "53300", "57014", "58030"])
async def test_a_statement_that_the_database_cannot_run_now_is_503_and_writes_nothing(
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
    for response in await asyncio.gather(*requests):
        problem = assert_problem(response, 503, "unavailable")
        assert "space" not in problem["detail"]
        assert int(response.headers["retry-after"]) >= 1
    await sql.execute("drop trigger full_up on tasks")
    assert await sql.fetchval("select count(*) from tasks") == 0
    await add_task(http)


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_an_aborted_transaction_is_retried(
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


async def test_metrics_and_readiness_show_the_state_of_the_listener(
    broker: Running, sql: asyncpg.Connection
) -> None:
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


def test_a_database_url_may_have_any_of_three_schemes() -> None:
    for scheme in ("postgres", "postgresql", "postgresql+asyncpg"):
        assert libpq_url(f"{scheme}://u:p@h:1/d?host=/x") == "postgresql://u:p@h:1/d?host=/x"
