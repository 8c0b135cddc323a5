"""Migration of the database's schema to the version that this program needs, with Alembic."""

import asyncio

import asyncpg
import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.store import retention, schema_version
from broker.store.address import Address
from broker.store.connections import create_engine
from broker.store.schema_version import SchemaError
from broker.store.sql_connection import SqlConnection

log = structlog.get_logger(__name__)

# Processes that migrate at the same time take turns. PostgreSQL releases the lock when the connection closes.
# The number is arbitrary. `create_archive_partition` in the database uses the same lock.
_LOCK = text("select pg_advisory_lock(7022026)")

# A migration that changes a table waits until no transaction uses it. Requests for the table queue behind the
# migration. So it gives up after a wait that requests tolerate, and retries a little later.
_LOCK_TIMEOUT = text("set lock_timeout = '2s'")
_ATTEMPTS = 30
_PAUSE_SECONDS = 1.0
# lock_not_available (after the lock timeout) and deadlock_detected.
_LOCK_ERRORS = {"55P03", "40P01"}

# A dump has the transaction ids of its original database. When this database reached such an id, the row
# would be new to assigners that already have it.
_RENUMBER = tuple(
    text(
        f"update {table} set changed = pg_current_xact_id()"
        " where changed >= pg_snapshot_xmax(pg_current_snapshot())"
    )
    for table in ("tasks", "tools")
)


def config(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration for the migrations."""
    configuration = Config()
    configuration.set_main_option("script_location", str(schema_version.scripts_folder()).replace("%", "%%"))
    configuration.attributes["connection"] = connection
    return configuration


async def migrate(url: str, revision: str = "head") -> None:
    """Migrate the schema of a database to a revision, and create the archive's next partitions.

    Args:
        url: The database.
        revision: `head`, `base` or the number of a revision.

    Raises:
        SchemaError: This program cannot use the schema, or a transaction holds a table and does not end.
    """
    engine = create_engine(Address(url).connect)
    try:
        async with engine.connect() as connection:
            await connection.execute(_LOCK)
            await connection.execute(_LOCK_TIMEOUT)
            await connection.commit()
            await _migrate_with_retries(connection, revision)
    finally:
        await engine.dispose()


async def _migrate_with_retries(connection: AsyncConnection, revision: str) -> None:
    """Migrate. While another transaction holds a table, retry from the last committed migration on."""
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            await connection.run_sync(_migrate, revision)
            await connection.commit()
        except (DBAPIError, asyncpg.PostgresError) as error:
            await connection.rollback()
            if getattr(getattr(error, "orig", error), "sqlstate", None) not in _LOCK_ERRORS:
                raise
            if not attempts_left:
                raise SchemaError(
                    "The migration cannot change a table, because an open transaction holds it. Find the"
                    " transaction, end it, and migrate again:"
                    " `select pid, xact_start, query from pg_stat_activity order by xact_start`."
                ) from error
            log.warning("migration postponed because a table is in use", attempts_left=attempts_left)
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            return


def _migrate(connection: Connection, revision: str) -> None:
    sql = SqlConnection(connection)
    schema_version.check_encoding(sql)
    current = schema_version.current_version(sql)
    if revision == "head" and current is not None and current > schema_version.required_version():
        if problem := schema_version.schema_problem(sql):
            raise SchemaError(f"The database {problem}.")
        return
    down = revision == "base" or (current is not None and revision != "head" and revision < current)
    (command.downgrade if down else command.upgrade)(config(connection), revision)
    if schema_version.current_version(sql) == schema_version.required_version():
        retention.create_partitions(sql)


async def finish_restore(url: str) -> None:
    """Migrate a database that was restored from a dump, renumber its rows, and analyze its tables.

    A dump has no statistics. Without them, PostgreSQL makes plans for empty tables until autovacuum runs.
    """
    await migrate(url)
    engine = create_engine(Address(url).connect)
    try:
        async with engine.begin() as connection:
            for statement in _RENUMBER:
                await connection.execute(statement)
            await connection.execute(text("analyze"))
    finally:
        await engine.dispose()
