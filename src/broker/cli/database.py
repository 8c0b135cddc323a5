"""Find and open the database of the settings: the user's own, or the embedded PostgreSQL."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import click
import msgspec
import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from broker.cli.stop_signals import run_async
from broker.errors import Unavailable
from broker.postgres.backup import BackupError
from broker.postgres.cluster import EmbeddedPostgres
from broker.postgres.errors import EmbeddedError, FolderInUseError
from broker.settings import Settings, SettingsError
from broker.store import Store, schema_version
from broker.store.sessions import Params, Query, Result
from broker.telemetry import logs

log = structlog.get_logger(__name__)

# The key is PostgreSQL's SQLSTATE.
_ADVICE = {
    "28000": "if the user does not exist, create it with `createuser --pwprompt USER`",
    "28P01": "check the password in the URL, or in the file that BROKER_DATABASE_PASSWORD_FILE names",
    "3D000": "create it with `createdb --owner USER --encoding UTF8 --template template0 NAME`",
    "42501": "make the broker's user the owner of the database",
}


def settings_from_environment() -> Settings:
    """Return the settings, or end the command with an error message if one is not valid."""
    try:
        return Settings.from_environment()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error


@contextlib.contextmanager
def clear_database_errors() -> Iterator[None]:
    """End the command with an error message if the database fails, and log warnings only."""
    logs.configure("warning")
    try:
        yield
    except (BackupError, EmbeddedError, schema_version.SchemaError) as error:
        raise click.ClickException(str(error)) from error
    except Unavailable as error:
        raise click.ClickException(
            f"The database does not respond: {_with_advice(error.__cause__)}"
        ) from error
    except (DBAPIError, asyncpg.PostgresError) as error:
        raise click.ClickException(f"The database refuses the request: {_with_advice(error)}") from error
    except SQLAlchemyError as error:
        raise click.ClickException(f"The database cannot be used: {error}") from error


def _with_advice(error: BaseException | None) -> str:
    """Return the message of PostgreSQL with advice, if there is any."""
    error = getattr(error, "orig", error)
    advice = _ADVICE.get(str(getattr(error, "sqlstate", "")))
    return f"{error}; {advice}" if advice else str(error)


@contextlib.contextmanager
def migrated_database(settings: Settings) -> Iterator[Settings]:
    """Yield the settings with the URL of a database that has the current schema.

    Without a `database_url`, the embedded PostgreSQL runs during the block.

    Raises:
        EmbeddedError: The embedded PostgreSQL cannot run.
        SchemaError: The embedded database has a schema that this broker cannot migrate.
        click.ClickException: The given database has another schema, or does not respond.
    """
    if settings.direct_url is not None:
        _check_schema(settings.direct_url)
        yield settings
        return
    from broker.store import migration  # noqa: PLC0415 - imports Alembic, which takes 100 ms

    folder = _folder(settings)
    with EmbeddedPostgres(folder) as postgres:
        log.info("embedded PostgreSQL started", data_dir=str(folder))
        run_async(migration.migrate, postgres.url())
        yield msgspec.structs.replace(settings, database_url=postgres.url(), listen_url=None)


def database_name(settings: Settings) -> str:
    """Return the name of the database for messages."""
    if settings.database_url is not None:
        return "the database of BROKER_DATABASE_URL"
    return f"the embedded database in {_folder(settings)}"


def require_database(settings: Settings, advice: str) -> None:
    """End the command with this advice if the service has not created its embedded database yet."""
    if settings.database_url is None and not (_folder(settings) / "postgres").exists():
        name = database_name(settings).removeprefix("the ")
        raise click.ClickException(f"There is no {name} yet. {advice}")


def default_data_dir(instead: str = "BROKER_DATA_DIR") -> Path:
    """Return the default data folder: one of the system for root, one of this user otherwise.

    If this user has no home folder, end the command with a message that names `instead`, the setting or
    option for another folder.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/broker")
    base = os.environ.get("XDG_DATA_HOME")
    try:
        return (Path(base) if base else Path.home() / ".local" / "share") / "broker"
    except RuntimeError as error:
        raise click.ClickException(
            f"User id {os.geteuid()} has no home folder to keep data in. Set {instead} to a folder, or set"
            " HOME."
        ) from error


def _folder(settings: Settings) -> Path:
    return settings.data_dir or default_data_dir()


def run_in_transaction(
    url: str, do: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs
) -> Result:
    """Connect to a database, and run a function of the store in a transaction."""

    async def run() -> Result:
        store = Store(url)
        try:
            return await store.run(do, *args, **kwargs)
        finally:
            await store.close()

    return run_async(run)


def _check_schema(url: str) -> None:
    try:
        problem = run_in_transaction(url, schema_version.schema_problem)
    except (asyncpg.PostgresError, Unavailable) as error:
        cause = error.__cause__ if isinstance(error, Unavailable) else error
        problem = "refuses the connection" if isinstance(cause, asyncpg.PostgresError) else "does not respond"
        pooler = "startup parameter" in str(cause)
        hint = (
            " If this is a pooler, set BROKER_LISTEN_URL to the URL of PostgreSQL itself." if pooler else ""
        )
        raise click.ClickException(
            f"The database of BROKER_DATABASE_URL {problem}: {_with_advice(cause)}{hint}"
        ) from error
    if problem:
        raise click.ClickException(f"The database {problem}.")


@contextlib.contextmanager
def running_database(settings: Settings) -> Iterator[str]:
    """Yield the URL of the database with the current schema. A service may use the embedded one meanwhile.

    Raises:
        EmbeddedError: The embedded PostgreSQL cannot run.
        click.ClickException: The database has another schema, or does not respond.
    """
    with contextlib.ExitStack() as stack:
        try:
            url = str(stack.enter_context(migrated_database(settings)).direct_url)
        except FolderInUseError:
            url = stack.enter_context(open_database(settings, shared=True))
            _check_schema(url)
        yield url


@contextlib.contextmanager
def open_database(settings: Settings, *, shared: bool) -> Iterator[str]:
    """Yield the URL of the database, with any schema. Connect to PostgreSQL itself, not to a pooler.

    Args:
        settings: The settings.
        shared: Whether a service may use the embedded database at the same time.

    Raises:
        EmbeddedError: The embedded PostgreSQL cannot run, or is in use and not shared.
    """
    if settings.direct_url is not None:
        yield settings.direct_url
        return
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(EmbeddedPostgres(_folder(settings))).url()
        except FolderInUseError:
            running = EmbeddedPostgres.url_of_running(_folder(settings))
            if not shared or running is None:
                raise
            url = running
        yield url
