"""Fixtures that share one broker, or one database, among all tests of a module.

In a module of many short tests, they share one broker, whose rows are deleted before each test:

    pytestmark, database, broker, sql, http = SHARED_BROKER

Its long polls query the database by themselves only once a minute. If one responds sooner, a notification has
woken it. Tests of the store share a database in the same way:

    pytestmark, database, sql, store = SHARED_STORE
"""

import os
from collections.abc import AsyncIterator

import asyncpg
import httpx
import pytest
import pytest_asyncio

from broker.settings import Settings
from broker.store import Store
from broker.store.address import libpq_url
from tests.conftest import Running, running_broker, temporary_database

# Run more examples. `make test-all` sets the variable.
THOROUGH = bool(os.environ.get("BROKER_TEST_THOROUGH"))
TABLES = ("work_reports", "work", "tasks", "tool_leases", "tools", "ended_tasks", "work_archive")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared_database(postgres: str, template: str) -> AsyncIterator[str]:
    """Create a database for all tests of a module, and provide its URL."""
    async with temporary_database(postgres, template) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared_broker(database: str) -> AsyncIterator[Running]:
    """Start a broker for all tests of a module."""
    async with running_broker(Settings(database_url=database, fallback_seconds=60)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared_sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect to the database of the shared broker."""
    connection = await asyncpg.connect(libpq_url(database))
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope="module")
async def shared_http(broker: Running, sql: asyncpg.Connection) -> httpx.AsyncClient:
    """Delete the rows, and return a client of the shared broker."""
    await delete_rows(sql)
    return broker.client


@pytest_asyncio.fixture(loop_scope="module")
async def shared_store(database: str, sql: asyncpg.Connection) -> AsyncIterator[Store]:
    """Delete the rows, and open a store on the shared database."""
    await delete_rows(sql)
    await sql.execute("delete from keys")
    store = Store(database)
    yield store
    await store.close()


async def delete_rows(sql: asyncpg.Connection) -> None:
    """Delete all rows except keys."""
    for table in TABLES:
        await sql.execute(f"delete from {table}")  # 25 times as fast as truncate


_MARK = pytest.mark.asyncio(loop_scope="module")
SHARED_BROKER = _MARK, shared_database, shared_broker, shared_sql, shared_http
SHARED_STORE = _MARK, shared_database, shared_sql, shared_store
