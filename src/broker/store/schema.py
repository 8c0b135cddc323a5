"""The schema: which version the database is at, which this program needs, and the way there."""

from importlib.resources import files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from broker.store import retention
from broker.store.address import Address
from broker.store.engine import create_engine

# Two processes that migrate at once take turns: the lock goes when its connection is closed.
# The number is only to be nobody else's.
_LOCK = text("select pg_advisory_lock(7022026)")


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


def _move(connection: Connection, revision: str) -> None:
    here = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(config())
    down = revision == "base" or (here is not None and revision != "head" and revision < here)
    (command.downgrade if down else command.upgrade)(config(connection), revision)
    if MigrationContext.configure(connection).get_current_revision() == script.get_current_head():
        retention.create_partitions(connection)
