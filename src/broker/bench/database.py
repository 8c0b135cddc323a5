"""Run SQL on the databases of the measurements."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg


@asynccontextmanager
async def connected(url: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """Yield a connection to a database, and close it after the block."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def execute(url: str, statement: str) -> None:
    """Run one or more SQL statements without parameters."""
    async with connected(url) as connection:
        await connection.execute(statement)
