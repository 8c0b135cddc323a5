"""The store: what every step can rely on."""

import asyncpg
from sqlalchemy import Connection, text

from tests.support import steps


def isolation(connection: Connection) -> str:
    return str(connection.execute(text("show transaction_isolation")).scalar_one())


async def test_what_was_waited_for_is_seen_whatever_the_database_prefers(
    database: str, sql: asyncpg.Connection
) -> None:
    """A statement would fail, else, for each row that somebody else has changed meanwhile."""
    name = await sql.fetchval("select current_database()")
    await sql.execute(f"alter database {name} set default_transaction_isolation = 'serializable'")
    async with steps.open_store(database) as store:
        assert await store.read(isolation) == "read committed"
        assert await store.run(isolation) == "read committed"
