"""The migration of the database's schema to the version that this program needs, with Alembic."""

import asyncio

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

log = structlog.get_logger(__name__)

# Two processes that migrate at once take turns. PostgreSQL releases the lock when the connection closes. The
# number has no meaning; `create_archive_partition` in the database uses the same lock.
_LOCK = text("select pg_advisory_lock(7022026)")

# A migration that changes a table waits until no transaction uses it. Requests for the table queue up behind
# the migration, so it gives up after a time that requests can bear, and starts again a little later.
_LOCK_TIMEOUT = text("set lock_timeout = '2s'")
_ATTEMPTS = 30
_PAUSE_SECONDS = 1.0
# lock_not_available (the time is up) and deadlock_detected.
_LOCK_ERRORS = {"55P03", "40P01"}

# A dump has the numbers of transactions of the database that it is from. As soon as this one came to such a
# number, the row would be new to assigners that have it.
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
    """Migrate; while another transaction holds a table, start again after the last committed migration."""
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            await connection.run_sync(_migrate, revision)
            await connection.commit()
        except DBAPIError as error:
            await connection.rollback()
            if getattr(error.orig, "sqlstate", None) not in _LOCK_ERRORS:
                raise
            if not attempts_left:
                raise SchemaError(
                    "A transaction that does not end holds a table that the migration changes. Find and end"
                    " it: `select pid, xact_start, query from pg_stat_activity order by xact_start`."
                ) from error
            log.warning("migration postponed: a table is in use", attempts_left=attempts_left)
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            return


def _migrate(connection: Connection, revision: str) -> None:
    schema_version.check_encoding(connection)
    current = schema_version.current_version(connection)
    if revision == "head" and current is not None and current > schema_version.required_version():
        if problem := schema_version.schema_problem(connection):
            raise SchemaError(f"The database {problem}.")
        return
    down = revision == "base" or (current is not None and revision != "head" and revision < current)
    (command.downgrade if down else command.upgrade)(config(connection), revision)
    if schema_version.current_version(connection) == schema_version.required_version():
        retention.create_partitions(connection)


async def finish_restore(url: str) -> None:
    """Migrate a database that was restored from a dump, renumber its rows, and analyze its tables.

    A dump has no statistics. Without them, PostgreSQL plans as for empty tables until autovacuum analyzes.
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
