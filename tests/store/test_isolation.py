"""Transactions of the store: their isolation level."""

import asyncpg
from sqlalchemy import text

from broker.store.sql_connection import SqlConnection
from tests.support import steps


def isolation(connection: SqlConnection) -> str:
    return str(connection.execute(text("show transaction_isolation")).scalar_one())


async def test_transactions_are_read_committed_whatever_the_default_of_the_database(
    database: str, sql: asyncpg.Connection
) -> None:
    """With another level, a statement would fail if another transaction changed one of its rows."""
    name = await sql.fetchval("select current_database()")
    await sql.execute(f"alter database {name} set default_transaction_isolation = 'serializable'")
    async with steps.open_store(database) as store:
        assert await store.read(isolation) == "read committed"
        assert await store.run(isolation) == "read committed"
