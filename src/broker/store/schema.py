"""The schema: which version the database is at, which this program needs, and the way there."""

from importlib.resources import files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from broker.store import retention
from broker.store.address import Address
from broker.store.engine import create_engine

# Two processes that migrate at once take turns: the lock goes when its connection is closed.
# The number is only to be nobody else's.
_LOCK = text("select pg_advisory_lock(7022026)")


# Whatever a database can hold that is not PostgreSQL's own, nor an extension's.
SOMETHING = text("""
select min(n.nspname || '.' || c.relname)
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
  and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
  and not exists (select from pg_depend d
                  where d.classid = cast('pg_class' as regclass) and d.objid = c.oid and d.deptype = 'e')
""")


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration: the migrations beside the package, or those of the checkout."""
    packaged = Path(str(files("broker"))) / "migrations"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[3] / "migrations"
    found = Config()
    found.set_main_option("script_location", str(folder).replace("%", "%%"))
    found.attributes["connection"] = connection
    return found


def needed() -> str:
    """The version that this program needs."""
    return str(ScriptDirectory.from_config(config()).get_current_head())


def current(connection: Connection) -> str | None:
    """The version that the database is at; none: it has no schema yet."""
    return MigrationContext.configure(connection).get_current_revision()


def is_known(version: str) -> bool:
    """Whether this program knows the way on from a version: it is none of a newer program's."""
    try:
        return ScriptDirectory.from_config(config()).get_revision(version) is not None
    except CommandError:
        return False


def something_in(connection: Connection) -> str | None:
    """The name of a table or the like that the database has; none: it is empty."""
    found: str | None = connection.execute(SOMETHING).scalar_one()
    return found


async def migrate(url: str, revision: str = "head") -> None:
    """Bring the schema of a database to a revision, and make the archive's next partitions.

    Args:
        url: The database.
        revision: `head`, `base` or the number of a revision.
    """
    engine = create_engine(Address(url).connect)
    try:
        async with engine.connect() as connection:
            await connection.execute(_LOCK)
            await connection.commit()
            await connection.run_sync(_move, revision)
            await connection.commit()
    finally:
        await engine.dispose()


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
    here = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(config())
    down = revision == "base" or (here is not None and revision != "head" and revision < here)
    (command.downgrade if down else command.upgrade)(config(connection), revision)
    if MigrationContext.configure(connection).get_current_revision() == script.get_current_head():
        retention.create_partitions(connection)
