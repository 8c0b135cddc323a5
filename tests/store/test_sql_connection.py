"""Statements over the connection of a session: their parameters, their rows, and what follows an error."""

import asyncio

import asyncpg
import pytest
from sqlalchemy import text

from broker.errors import Unavailable
from broker.store import Store
from broker.store.sql_connection import SqlConnection, compiled
from tests.support import steps

NOTES = text("select * from notes")
PID = text("select pg_backend_pid() as pid")
SLOWLY = text("select pg_sleep(30)")


def pid(connection: SqlConnection) -> int:
    return int(connection.execute(PID).one().pid)


async def open_connections(store: Store, count: int) -> set[int]:
    """Open this many connections, and return the process ids of their backends."""
    pids = await asyncio.gather(*(store.read(slow_pid) for _ in range(count)))
    assert len(set(pids)) == count
    return set(pids)


def slow_pid(connection: SqlConnection) -> int:
    return int(connection.execute(text("select pg_backend_pid(), pg_sleep(0.1)")).one()[0])


def test_a_parameter_that_appears_twice_has_one_number() -> None:
    sql, names = compiled(text("select :a, cast(:b as text), :a -- 100 %"))
    assert (sql, names) == ("select $1, cast($2 as text), $1 -- 100 %", ("a", "b"))


async def test_a_row_has_its_columns_as_attributes_and_in_order(store: Store) -> None:
    def read(connection: SqlConnection) -> None:
        rows = connection.execute(text("select 1 as one, cast(:two as integer) as two"), {"two": 2})
        row = rows.one()
        assert (row.one, row.two, row[0], row[:2]) == (1, 2, 1, (1, 2))
        assert row._asdict() == {"one": 1, "two": 2}
        # The same column has another place in another statement.
        assert [row.two for row in connection.execute(text("select 3 as two, 4 as one"))] == [3]
        assert not hasattr(row, "three")
        assert rows.all() == [row] == list(rows)
        assert (rows.scalars(), rows.scalar_one(), rows.one_or_none()) == ([1], 1, row)

    await store.read(read)


async def test_a_statement_that_must_return_one_row_returns_exactly_one(store: Store) -> None:
    def read(connection: SqlConnection) -> None:
        two = connection.execute(text("select generate_series(1, 2)"))
        none = connection.execute(text("select 1 where false"))
        assert (none.one_or_none(), none.scalar_one_or_none()) == (None, None)
        for rows in (two, none):
            with pytest.raises(ValueError, match="unpack"):
                rows.one()
        with pytest.raises(ValueError, match="unpack"):
            two.one_or_none()

    await store.read(read)


@pytest.mark.parametrize("in_transaction", [True, False])
async def test_statements_that_a_migration_invalidated_run_again(
    database: str, sql: asyncpg.Connection, in_transaction: bool
) -> None:
    await sql.execute("create table notes (text text); insert into notes values ('x')")

    def read(connection: SqlConnection) -> tuple[object, ...]:
        connection.execute(text("select pg_sleep(0.02)"))
        return tuple(connection.execute(NOTES).one())

    async with steps.open_store(database, pool_size=8) as store:
        run = store.run if in_transaction else store.read

        async def read_often() -> set[tuple[object, ...]]:
            return set(await asyncio.gather(*(run(read) for _ in range(40))))

        assert await read_often() == {("x",)}
        await sql.execute("alter table notes add number integer default 1")
        # Each connection has its own prepared statements, and a query runs only a few times.
        assert await run(read) == ("x", 1)
        assert await read_often() == {("x", 1)}


async def test_connections_that_the_server_closed_fail_no_request(
    database: str, sql: asyncpg.Connection
) -> None:
    async with steps.open_store(database, pool_size=3) as store:
        before = await open_connections(store, 3)
        await sql.execute("select pg_terminate_backend(pid) from unnest($1::integer[]) pid", list(before))
        drivers = list(store._connections)
        async with asyncio.timeout(5):
            while not all(driver.is_closed() for driver in drivers):
                await asyncio.sleep(0.01)
        assert not await open_connections(store, 3) & before


async def test_an_error_of_a_server_that_stops_discards_all_connections(database: str) -> None:
    def fail(connection: SqlConnection) -> None:
        connection.execute(text("do $$ begin raise sqlstate '57P03'; end $$"))

    async with steps.open_store(database, pool_size=3) as store:
        before = await open_connections(store, 3)
        with pytest.raises(Unavailable):
            await store.read(fail)
        assert not await open_connections(store, 3) & before


@pytest.mark.parametrize("in_transaction", [True, False])
async def test_a_cancelled_query_discards_its_connection(database: str, in_transaction: bool) -> None:
    async with steps.open_store(database, pool_size=1) as store:
        run = store.run if in_transaction else store.read
        before = await run(pid)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await run(lambda connection: connection.execute(SLOWLY))
        assert await run(pid) != before
        assert store.in_use() == 0


async def test_a_failed_transaction_writes_nothing(database: str, sql: asyncpg.Connection) -> None:
    await sql.execute("create table notes (text text)")

    def write(connection: SqlConnection) -> None:
        connection.execute(text("insert into notes values ('x')"))
        raise ZeroDivisionError

    async with steps.open_store(database) as store:
        with pytest.raises(ZeroDivisionError):
            await store.run(write)
        assert await store.read(lambda connection: connection.execute(NOTES).all()) == []
