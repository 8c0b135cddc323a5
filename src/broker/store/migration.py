"""The schema: which version the database is at, which this program needs, and the way there."""

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
from broker.store.engine import create_engine

log = structlog.get_logger(__name__)

# Two processes that migrate at once take turns: the lock goes when its connection is closed.
# The number is only to be nobody else's.
_LOCK = text("select pg_advisory_lock(7022026)")

# To change a table one has to wait until everybody lets go of it, and meanwhile nobody else gets at it: so
# not for longer than requests can bear, but again and again.
_PATIENCE = text("set lock_timeout = '2s'")
_TRIES = 30
_PAUSE_SECONDS = 1.0
# The lock was not given in time; or it, and somebody else's, would never have been.
_NOT_GIVEN = {"55P03", "40P01"}

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

# Whatever a database can hold that is not PostgreSQL's own, nor an extension's.
SOMETHING = text("""
select min(n.nspname || '.' || it.name)
from (
    select tableoid, oid, relnamespace, relname from pg_class
    where relkind in ('r', 'p', 'v', 'm', 'S', 'f')
    union all
    select tableoid, oid, pronamespace, proname from pg_proc
    union all
    select tableoid, oid, typnamespace, typname from pg_type
    where typtype in ('e', 'd', 'r')
       or typtype = 'c' and exists (select from pg_class where oid = typrelid and relkind = 'c')
) it (catalog, oid, namespace, name)
join pg_namespace n on n.oid = it.namespace
where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
  and not exists (select from pg_depend d
                  where d.classid = it.catalog and d.objid = it.oid and d.deptype = 'e')
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


def needed() -> str:
    """The version that this program needs."""
    return str(ScriptDirectory.from_config(config()).get_current_head())


def current(connection: Connection) -> str | None:
    """The version that the database is at; none: it has no schema yet."""
    return MigrationContext.configure(connection).get_current_revision()


class OtherSchemaError(Exception):
    """The database has a schema that this program cannot work with; the message says what to do."""


def check_encoding(connection: Connection) -> None:
    """See that the database can store every text that a request may contain.

    Raises:
        OtherSchemaError: Its encoding is not UTF-8.
    """
    if problem := _encoding_problem(connection):
        raise OtherSchemaError(f"The database {problem}.")


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


def misfit(connection: Connection) -> str | None:
    """Why this program cannot work with the database's schema, for people; None: it can.

    A program works with the schema of a later version, too, as long as that says so: so programs of both
    run beside each other while they are changed for the later one, which is migrated to first.
    """
    if problem := _encoding_problem(connection):
        return problem
    here, wanted = current(connection), needed()
    if here is None:
        return f"has no schema yet, this program needs version {wanted}: run `broker migrate`"
    if here < wanted:
        return f"is at version {here}, this program needs version {wanted}: run `broker migrate`"
    return None if here == wanted else _later_problem(connection, here, wanted)


def _later_problem(connection: Connection, here: str, wanted: str) -> str | None:
    """Return why a program cannot work with a schema of a version that it does not know; None if it can."""
    has_works_from = connection.execute(_HAS_WORKS_FROM).scalar_one()
    works_from = connection.execute(_WORKS_FROM).scalar_one() if has_works_from else None
    if works_from is None or (here <= _LAST_REPLACED and works_from in _REPLACED_WORKS_FROM):
        mark = f", or mark this one as version 0001, which has the same schema: `{_MARK_AS_0001}`"
        return (
            f"is at version {here}, which was removed before the first release. Create a new database"
            f"{mark if here == _LAST_REPLACED else ''}"
        )
    if works_from <= wanted:
        return None
    return (
        f"is at version {here}, which serves programs of version {works_from} and later, and this one is"
        f" of version {wanted}: install a later broker"
    )


def is_known(version: str) -> bool:
    """Whether this program knows the way on from a version: it is none of a newer program's."""
    try:
        return ScriptDirectory.from_config(config()).get_revision(version) is not None
    except CommandError:
        return False


def something_in(connection: Connection) -> str | None:
    """The name of a table, function or type that the database has; none: it is empty."""
    found: str | None = connection.execute(SOMETHING).scalar_one()
    return found


async def migrate(url: str, revision: str = "head") -> None:
    """Bring the schema of a database to a revision, and make the archive's next partitions.

    Args:
        url: The database.
        revision: `head`, `base` or the number of a revision.

    Raises:
        OtherSchemaError: The schema is a later program's; or one that is in the way has not ended.
    """
    engine = create_engine(Address(url).connect)
    try:
        async with engine.connect() as connection:
            await connection.execute(_LOCK)
            await connection.execute(_PATIENCE)
            await connection.commit()
            await _move_patiently(connection, revision)
    finally:
        await engine.dispose()


async def _move_patiently(connection: AsyncConnection, revision: str) -> None:
    """Move, and try again where somebody holds a table: what is done of it is done."""
    for left in reversed(range(_TRIES)):
        try:
            await connection.run_sync(_move, revision)
            await connection.commit()
        except DBAPIError as error:
            await connection.rollback()
            if getattr(error.orig, "sqlstate", None) not in _NOT_GIVEN:
                raise
            if not left:
                raise OtherSchemaError(
                    "Somebody holds a table that has to be changed, in a transaction that does not end:"
                    " see `select pid, xact_start, query from pg_stat_activity order by xact_start`."
                ) from error
            log.warning("a table is in use; trying again", tries_left=left)
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            return


async def take_over(url: str) -> None:
    """Make a database ready that was read in from a dump: bring it up to date, and count what is in it.

    PostgreSQL plans by such counts, which no dump has, and would plan as for empty tables until it has come
    to count by itself.
    """
    await migrate(url)
    engine = create_engine(Address(url).connect)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("analyze"))
    finally:
        await engine.dispose()


def _move(connection: Connection, revision: str) -> None:
    check_encoding(connection)
    here = current(connection)
    if revision == "head" and here is not None and here > needed():
        if why := misfit(connection):
            raise OtherSchemaError(f"The database {why}.")
        return
    script = ScriptDirectory.from_config(config())
    down = revision == "base" or (here is not None and revision != "head" and revision < here)
    (command.downgrade if down else command.upgrade)(config(connection), revision)
    if current(connection) == script.get_current_head():
        retention.create_partitions(connection)
