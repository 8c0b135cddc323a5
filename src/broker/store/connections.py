"""Connections to PostgreSQL: their settings, and SQLAlchemy's engine for them."""

import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import asyncpg
from msgspec import Raw
from sqlalchemy import ExceptionContext, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from broker.store import database_errors
from broker.store.sql_connection import SqlRow

# Each statement names the rows that it needs of each table (`= any(...)`), finds them by an index, and joins
# them by hash. PostgreSQL caches plans. If statistics say that a queue is empty, a cached plan with nested
# loops would later compare a thousand rows with a thousand. A plain index scan marks the dead entries that it
# meets, so the next scan skips them; a bitmap scan does not. Statements are too short for JIT compilation.
# The plan of a statement does not depend on its values, and planning takes longer than running it, so each
# connection plans a statement once. The default page costs are those of a spinning disk. The busy tables are
# small and in memory, where reading a page costs almost nothing.
SETTINGS = {
    "enable_seqscan": "off",
    "enable_nestloop": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "seq_page_cost": "0.1",
    "random_page_cost": "0.1",
}
NAME = {"application_name": "broker"}
#: The settings of a session, which a pooler in transaction mode needs in each transaction.
SESSION = SETTINGS | {"TimeZone": "UTC"}
#: The settings that need a dedicated connection.
CONNECTION = {
    # A statement must see the rows that it waited for.
    "default_transaction_isolation": "read committed",
    # If a broker's machine fails, PostgreSQL soon releases its locks.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
#: Options of asyncpg for a dedicated connection. Each of its prepared statements stays, however long it is.
PREPARING: dict[str, Any] = {"max_cacheable_statement_size": 0, "max_cached_statement_lifetime": 0}
# PostgreSQL's binary form of jsonb is this byte and the text. That of json is only the text.
_JSONB_VERSION = b"\x01"
# The share of the statement timeout for which a statement may wait for one lock. Without its own limit, a
# wait for a lock looks like a slow statement.
_LOCK_SHARE = 0.6
# The key in the `info` of a pool's connection for the time when it was opened.
_CONNECTED = "broker.connected"


def time_limits(timeout_seconds: float) -> dict[str, str]:
    """Return the settings that limit the time for a statement, a lock and an idle transaction."""
    milliseconds = str(int(timeout_seconds * 1000))
    return {
        **statement_timeout(timeout_seconds),
        "lock_timeout": str(int(timeout_seconds * _LOCK_SHARE * 1000)),
        "idle_in_transaction_session_timeout": milliseconds,
    }


def statement_timeout(seconds: float) -> dict[str, str]:
    """Return the setting that limits the time for a statement."""
    return {"statement_timeout": str(int(seconds * 1000))}


def create_engine(
    connect: Callable[..., Awaitable["asyncpg.Connection[Any]"]],
    *,
    server_settings: dict[str, str] | None = None,
    **options: Any,
) -> AsyncEngine:
    """Return SQLAlchemy's engine for a database.

    Args:
        connect: Opens a connection, given options of asyncpg.
        server_settings: PostgreSQL settings for each connection.
        options: Options of SQLAlchemy.
    """
    # asyncpg forgets the class of the rows of a query that it retries, so it is set for the connection.
    creator = partial(connect, server_settings=server_settings, record_class=SqlRow)
    # Parameters hold users' data, which errors must not write to the log.
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=creator, hide_parameters=True, **options
    )
    # JSON passes through as bytes: `Raw` or text goes in, and `Raw` comes out. SQLAlchemy's own codecs would
    # decode and encode each value. A value of 32 MiB would block the event loop for 100 ms.
    dialect: Any = engine.dialect
    dialect.setup_asyncpg_json_codec = partial(_set_codec, "json", encoder=_bytes, decoder=Raw)
    dialect.setup_asyncpg_jsonb_codec = partial(_set_codec, "jsonb", encoder=_jsonb, decoder=_of_jsonb)
    return engine


async def _set_codec(name: str, connection: Any, **codec: Callable[[Any], Any]) -> None:
    await connection._connection.set_type_codec(name, schema="pg_catalog", format="binary", **codec)


def _bytes(value: Raw | str) -> Raw | bytes:
    return value.encode() if isinstance(value, str) else value


def _jsonb(value: Raw | str) -> bytes:
    return b"".join((_JSONB_VERSION, _bytes(value)))


def _of_jsonb(value: bytes) -> Raw:
    return Raw(value[1:])


def replace_unusable(engine: AsyncEngine) -> None:
    """Make the pool replace connections that are closed, or opened before an error showed them unusable.

    SQLAlchemy does so only after an error of a statement that it executed itself.
    """
    unusable_since = -math.inf

    def note_error(context: ExceptionContext) -> None:
        if database_errors.is_unusable(context.original_exception):
            context.is_disconnect = True

    def note_connected(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[_CONNECTED] = time.monotonic()

    def note_discarded(_connection: Any, _record: ConnectionPoolEntry, error: BaseException | None) -> None:
        nonlocal unusable_since
        if database_errors.is_unusable(error):
            unusable_since = time.monotonic()

    def check(_connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        driver: Any = record.driver_connection
        if driver.is_closed() or record.info[_CONNECTED] <= unusable_since:
            raise DisconnectionError

    event.listen(engine.sync_engine, "handle_error", note_error)
    event.listen(engine.sync_engine, "connect", note_connected)
    event.listen(engine.sync_engine, "invalidate", note_discarded)
    event.listen(engine.sync_engine, "checkout", check)
