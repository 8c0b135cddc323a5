"""Each error code of PostgreSQL has one meaning, which determines the broker's response."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import httpx
import pytest
import pytest_asyncio
from sqlalchemy import make_url, text

from broker.errors import DatabaseTrouble, Locked
from broker.settings import Settings
from broker.store import Store, leases, tasks
from broker.store.database_errors import CLASSES, CODES, Meaning
from tests.conftest import Running, running_broker
from tests.support import steps
from tests.support.api import add_task, assert_problem
from tests.support.cli import run
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

STATUS = {
    Meaning.VALUE: (400, "validation_failed"),
    Meaning.DEFECT: (500, "internal"),
    **dict.fromkeys(set(Meaning) - {Meaning.VALUE, Meaning.DEFECT}, (503, "unavailable")),
}
# These are not errors, so PostgreSQL does not allow raising them.
NOT_RAISED = {"00", "01", "02"}
RAISED = {
    **{f"{name}000": line for name, line in CLASSES.items() if name not in NOT_RAISED},
    **CODES,
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def fault(database: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect to a database where the insert of a task raises the code in the table `fault`."""
    async with steps.open_connection(database) as connection:
        await connection.execute("""
            create table fault (state text not null);
            create function fail() returns trigger language plpgsql as $$
                declare code text := (select state from fault);
                begin
                    if code is not null then
                        raise exception 'select secret from tasks' using errcode = code;
                    end if;
                    return null;
                end
            $$;
            create trigger fail before insert on tasks for each statement execute function fail();
        """)
        yield connection
        await connection.execute("drop function fail cascade; drop table fault")


@pytest.mark.parametrize("state", RAISED)
async def test_each_error_of_postgresql_gets_the_response_in_the_table(
    http: httpx.AsyncClient, fault: asyncpg.Connection, state: str
) -> None:
    line = RAISED[state]
    await fault.execute("insert into fault values ($1)", state)
    response = await http.post("/v1/tasks", json={"id": f"a{state}", "needs": {}})
    ready = (await http.get("/health/ready")).json()
    await fault.execute("delete from fault")
    problem = assert_problem(response, *STATUS[line.meaning])
    assert "secret" not in response.text
    if problem["status"] == 503:
        assert int(response.headers["retry-after"]) >= 1
    if line.cause:
        assert f"{line.cause} (SQLSTATE {state})" in ready["causes"]
        of_service = line.meaning in (Meaning.TROUBLE, Meaning.CANCELLED)
        assert (ready["checks"]["database"] == "ok") != of_service
        assert (ready["status"] == "ready") != of_service
    await add_task(http, f"a{state}")
    assert (await http.get("/health/ready")).status_code == 200


async def test_a_lost_privilege_is_503_until_it_is_granted_again(
    database: str, sql: asyncpg.Connection, postgres: str
) -> None:
    name = await sql.fetchval("select current_database()")
    await sql.execute(f"""
        create role clerk_{name} login;
        grant all on all tables in schema public to clerk_{name};
        grant all on all sequences in schema public to clerk_{name};
    """)
    url = make_url(database).set(username=f"clerk_{name}").render_as_string(hide_password=False)
    try:
        async with running_broker(Settings(database_url=url, fallback_seconds=60)) as broker:
            await add_task(broker.client, "before")
            await sql.execute(f"revoke insert on tasks from clerk_{name}")
            refused = await broker.client.post("/v1/tasks", json={"id": "a", "needs": {}})
            assert_problem(refused, 503, "unavailable")
            ready = await broker.client.get("/health/ready")
            assert ready.status_code == 503
            assert "lacks a privilege" in ready.json()["checks"]["database"]
            await sql.execute(f"grant insert on tasks to clerk_{name}")
            await add_task(broker.client, "a")
            assert (await broker.client.get("/health/ready")).status_code == 200
    finally:
        await sql.execute(f"drop owned by clerk_{name}; drop role clerk_{name}")


async def test_a_statement_that_an_operator_cancels_is_503(database: str, sql: asyncpg.Connection) -> None:
    async with steps.open_store(database) as store:
        await steps.register(store, "t")
        async with sql.transaction():
            await sql.execute("select from tool_leases for update")
            beat = asyncio.create_task(store.many(leases.heartbeat, [leases.Beat("t")]))
            await steps.wait_until_blocked(sql)
            await sql.execute(
                "select pg_cancel_backend(pid) from pg_locks where not granted and pid <> pg_backend_pid()"
            )
            with pytest.raises(DatabaseTrouble, match="cannot work now"):
                await beat
        assert store.troubles.causes(of_service=True) == ["a statement was cancelled (SQLSTATE 57014)"]


async def test_readiness_names_a_problem_of_lists_and_stays_ok(
    broker: Running, http: httpx.AsyncClient
) -> None:
    trouble = DatabaseTrouble("the database is out of memory (SQLSTATE 53200)")
    broker.server.service.primary_reads.store.troubles.note("tasks.page", trouble)
    response = await http.get("/health/ready")
    assert response.status_code == 200
    assert response.json()["causes"] == [trouble.cause]


async def test_no_free_connection_does_not_count_as_a_lost_connection(
    database: str, sql: asyncpg.Connection
) -> None:
    name = await sql.fetchval("select current_database()")
    await sql.execute(f"create role guest_{name} login connection limit 0")
    url = make_url(database).set(username=f"guest_{name}").render_as_string(hide_password=False)
    try:
        async with steps.open_store(url) as store:
            with pytest.raises(DatabaseTrouble) as raised:
                await store.read(tasks.find, ["a"])
            assert "53300" in raised.value.cause
            assert store.troubles.causes() == [raised.value.cause]
    finally:
        await sql.execute(f"drop role guest_{name}")


async def test_a_lock_of_another_session_is_503_before_the_statement_timeout(
    database: str, sql: asyncpg.Connection
) -> None:
    async with steps.open_store(database, timeout_seconds=0.5) as store:
        await steps.register(store, "t")
        async with sql.transaction():
            await sql.execute("select from tool_leases for update")
            with pytest.raises(Locked):
                await store.one(leases.heartbeat, leases.Beat("t"))
        assert await store.one(leases.heartbeat, leases.Beat("t")) is not None


async def test_an_error_of_the_schema_is_503_and_names_broker_migrate(database: str, store: Store) -> None:
    with pytest.raises(DatabaseTrouble) as raised:
        await store.read(lambda connection: connection.execute(text("select from no_such_table")))
    assert "broker migrate" in raised.value.cause


@pytest.mark.parametrize("command", [("keys", "list"), ("serve", "--port", "0")], ids=lambda each: each[0])
async def test_a_command_without_privileges_reports_them(
    database: str, sql: asyncpg.Connection, command: tuple[str, ...]
) -> None:
    name = await sql.fetchval("select current_database()")
    await sql.execute(f"create role stranger_{name} login")
    url = make_url(database).set(username=f"stranger_{name}").render_as_string(hide_password=False)
    try:
        finished = await run("", *command, BROKER_DATABASE_URL=url)
    finally:
        await sql.execute(f"drop role stranger_{name}")
    assert finished.status == 1
    assert "Traceback" not in finished.err
    line = finished.err.splitlines()[-1]
    assert line.startswith("Error: The database")
    assert "permission denied for table alembic_version" in line
