"""The version of the database's schema, the version that this program needs, and the migration to it."""

import asyncio
from importlib.resources import files
from pathlib import Path
from shlex import quote

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.store import retention
from broker.store.address import Address
from broker.store.connections import create_engine

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

# The earliest version whose programs can use the schema.
_WORKS_FROM = text("select works_from from schema_support")
_HAS_WORKS_FROM = text("select to_regclass('schema_support') is not null")

# Before the first release, 0001 replaced the migrations 0001 to 0018. It makes the schema that 0018 made.
_LAST_REPLACED = "0018"
# What their schemas said in `schema_support`; those before 0010 did not have that table.
_REPLACED_WORKS_FROM = {"0010", "0017"}
_MARK_AS_0001 = (
    "update alembic_version set version_num = '0001'; update schema_support set works_from = '0001'"
)

_ENCODING = text("select current_database(), current_setting('server_encoding')")
_OWNER = text("select pg_get_userbyid(datdba) from pg_database where datname = current_database()")

# The first table, function or type that belongs neither to PostgreSQL nor to an extension.
_FIRST_OBJECT = text("""
select min(n.nspname || '.' || object.name)
from (
    select tableoid, oid, relnamespace, relname from pg_class
    where relkind in ('r', 'p', 'v', 'm', 'S', 'f')
    union all
    select tableoid, oid, pronamespace, proname from pg_proc
    union all
    select tableoid, oid, typnamespace, typname from pg_type
    where typtype in ('e', 'd', 'r')
       or typtype = 'c' and exists (select from pg_class where oid = typrelid and relkind = 'c')
) object (catalog, oid, namespace, name)
join pg_namespace n on n.oid = object.namespace
where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
  and not exists (select from pg_depend d
                  where d.classid = object.catalog and d.objid = object.oid and d.deptype = 'e')
""")


def scripts_folder() -> Path:
    """Return the folder of the migrations: in an installed package, or in a checkout."""
    packaged = Path(str(files("broker"))) / "migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "migrations"


def config(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration for the migrations."""
    configuration = Config()
    configuration.set_main_option("script_location", str(scripts_folder()).replace("%", "%%"))
    configuration.attributes["connection"] = connection
    return configuration


def required_version() -> str:
    """Return the version of the schema that this program needs: that of the newest migration."""
    return str(ScriptDirectory.from_config(config()).get_current_head())


def current_version(connection: Connection) -> str | None:
    """Return the version of the database's schema; None if it has no schema yet."""
    return MigrationContext.configure(connection).get_current_revision()


class SchemaError(Exception):
    """This program cannot use or migrate the database's schema; the message says what to do."""


def check_encoding(connection: Connection) -> None:
    """Raise SchemaError if the database cannot store every text, because its encoding is not UTF-8."""
    if problem := _encoding_problem(connection):
        raise SchemaError(f"The database {problem}.")


def _encoding_problem(connection: Connection) -> str | None:
    name, encoding = connection.execute(_ENCODING).one()
    if encoding == "UTF8":
        return None
    owner = connection.execute(_OWNER).scalar_one()
    create = f"createdb --encoding UTF8 --template template0 --locale C --owner {quote(owner)} NAME"
    return (
        f"{name} has the encoding {encoding}, and the broker needs UTF8. Create another one, as a PostgreSQL"
        f" superuser, and use that: {create}"
    )


def schema_problem(connection: Connection) -> str | None:
    """Return why this program cannot use the database's schema, and what to do; None if it can.

    A program can use the schema of a later version, too, if that schema says so. In an upgrade, `broker
    migrate` comes first, and then programs of both versions run beside each other.

    Returns:
        The end of a sentence that begins with "The database", without the period.
    """
    if problem := _encoding_problem(connection):
        return problem
    current, required = current_version(connection), required_version()
    if current is None:
        return f"has no schema yet, this program needs version {required}: run `broker migrate`"
    if current < required:
        return f"is at version {current}, this program needs version {required}: run `broker migrate`"
    return _later_schema_problem(connection, current, required) if current > required else None


def _later_schema_problem(connection: Connection, current: str, required: str) -> str | None:
    has_works_from = connection.execute(_HAS_WORKS_FROM).scalar_one()
    works_from = connection.execute(_WORKS_FROM).scalar_one() if has_works_from else None
    if works_from is None or (current <= _LAST_REPLACED and works_from in _REPLACED_WORKS_FROM):
        mark = f", or mark this one as version 0001, which has the same schema: `{_MARK_AS_0001}`"
        return (
            f"is at version {current}, which was removed before the first release. Create a new database"
            f"{mark if current == _LAST_REPLACED else ''}"
        )
    if works_from <= required:
        return None
    return (
        f"is at version {current}, which serves programs of version {works_from} and later, and this one is"
        f" of version {required}: install a later broker"
    )


def is_known(version: str) -> bool:
    """Return whether this program has the migration to a version, so that it can migrate on from there."""
    try:
        return ScriptDirectory.from_config(config()).get_revision(version) is not None
    except CommandError:
        return False


def first_object(connection: Connection) -> str | None:
    """Return the name of a table, function or type in the database; None if the database is empty."""
    name: str | None = connection.execute(_FIRST_OBJECT).scalar_one()
    return name


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
    check_encoding(connection)
    current = current_version(connection)
    if revision == "head" and current is not None and current > required_version():
        if problem := schema_problem(connection):
            raise SchemaError(f"The database {problem}.")
        return
    down = revision == "base" or (current is not None and revision != "head" and revision < current)
    (command.downgrade if down else command.upgrade)(config(connection), revision)
    if current_version(connection) == required_version():
        retention.create_partitions(connection)


async def finish_restore(url: str) -> None:
    """Migrate a database that was restored from a dump, and analyze its tables.

    A dump has no statistics. Without them, PostgreSQL plans as for empty tables until autovacuum analyzes.
    """
    await migrate(url)
    engine = create_engine(Address(url).connect)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("analyze"))
    finally:
        await engine.dispose()
