"""The version of the database's schema, and whether this program can use it.

Each command that uses a database imports this module. So it does not import Alembic, which takes 100 ms.
"""

from importlib.resources import files
from pathlib import Path
from shlex import quote

from sqlalchemy import text

from broker.store.sql_connection import SqlConnection

_HAS_VERSION = text("select to_regclass('alembic_version') is not null")
_VERSION = text("select version_num from alembic_version")

# The earliest version whose programs can use the schema.
_WORKS_FROM = text("select works_from from schema_support")

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


def required_version() -> str:
    """Return the version of the schema that this program needs, which is that of the newest migration."""
    return max(_versions())


def current_version(connection: SqlConnection) -> str | None:
    """Return the version of the database's schema, or None if it has no schema yet."""
    if not connection.execute(_HAS_VERSION).scalar_one():
        return None
    version: str | None = connection.execute(_VERSION).scalar_one_or_none()
    return version


def _versions() -> set[str]:
    """Return the versions that have a migration. Each file is named after its version."""
    return {file.name.partition("_")[0] for file in (scripts_folder() / "versions").glob("[0-9]*.py")}


class SchemaError(Exception):
    """This program cannot use or migrate the database's schema. The message says what to do."""


def check_encoding(connection: SqlConnection) -> None:
    """Raise SchemaError if the encoding of the database is not UTF-8, so it cannot store every text."""
    if problem := _encoding_problem(connection):
        raise SchemaError(f"The database {problem}.")


def _encoding_problem(connection: SqlConnection) -> str | None:
    name, encoding = connection.execute(_ENCODING).one()
    if encoding == "UTF8":
        return None
    owner = connection.execute(_OWNER).scalar_one()
    create = f"createdb --encoding UTF8 --template template0 --locale C --owner {quote(owner)} NAME"
    return (
        f"{name} has the encoding {encoding}, but the broker needs UTF8. Create another database as a"
        f" PostgreSQL superuser, and use that: {create}"
    )


def schema_problem(connection: SqlConnection) -> str | None:
    """Return why this program cannot use the database's schema and what to do, or None if it can.

    A program can also use the schema of a later version, if that schema allows it. In an upgrade, `broker
    migrate` comes first, and then programs of both versions run side by side.

    Returns:
        The end of a sentence that begins with "The database", without the period.
    """
    if problem := _encoding_problem(connection):
        return problem
    current, required = current_version(connection), required_version()
    if current is None:
        return f"has no schema yet, and this program needs version {required}: run `broker migrate`"
    if current < required:
        return f"is at version {current}, and this program needs version {required}: run `broker migrate`"
    return _later_schema_problem(connection, current, required) if current > required else None


def _later_schema_problem(connection: SqlConnection, current: str, required: str) -> str | None:
    works_from: str = connection.execute(_WORKS_FROM).scalar_one()
    if works_from <= required:
        return None
    return (
        f"is at version {current}, which needs programs of version {works_from} or later, and this program"
        f" has version {required}: install a later broker"
    )


def is_known(version: str) -> bool:
    """Return whether this program has the migration to a version, and so can migrate from there."""
    return version in _versions()


def first_object(connection: SqlConnection) -> str | None:
    """Return the name of a table, function or type in the database, or None if the database is empty."""
    name: str | None = connection.execute(_FIRST_OBJECT).scalar_one()
    return name
