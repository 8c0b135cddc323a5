"""The database that a command works with: the one that is given, or the embedded PostgreSQL."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from broker.errors import Unavailable
from broker.postgres.backup import BackupError
from broker.postgres.cluster import EmbeddedPostgres
from broker.postgres.errors import EmbeddedError, FolderInUseError
from broker.settings import Settings, SettingsError
from broker.store import Store, migration
from broker.store.sessions import Params, Query, Result
from broker.telemetry import logs

log = structlog.get_logger(__name__)

# By PostgreSQL's SQLSTATE.
_ADVICE = {
    "28000": "where that user is missing, `createuser --pwprompt USER` makes it",
    "28P01": "the password is in the URL, or in the file that BROKER_DATABASE_PASSWORD_FILE names",
    "3D000": "`createdb --owner USER --encoding UTF8 --template template0 NAME` makes it",
    "42501": "the database has to belong to the user that the broker comes as",
}


def from_environment() -> Settings:
    """The settings.

    Raises:
        click.ClickException: One of them cannot be used.
    """
    try:
        return Settings.from_environment()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """What goes wrong in the block is told to people, and nothing else is.

    Raises:
        click.ClickException: Something went wrong.
    """
    logs.configure("warning")
    try:
        yield
    except (BackupError, EmbeddedError, migration.SchemaError) as error:
        raise click.ClickException(str(error)) from error
    except Unavailable as error:
        raise click.ClickException(
            f"The database does not answer: {_in_its_words(error.__cause__)}"
        ) from error
    except DBAPIError as error:
        raise click.ClickException(f"The database refuses it: {_in_its_words(error.orig)}") from error
    except SQLAlchemyError as error:
        raise click.ClickException(f"The database cannot be used: {error}") from error


def _in_its_words(error: BaseException | None) -> str:
    """What PostgreSQL says, and what can be done about it."""
    advice = _ADVICE.get(str(getattr(error, "sqlstate", "")))
    return f"{error}; {advice}" if advice else str(error)


@contextlib.contextmanager
def database(settings: Settings) -> Iterator[Settings]:
    """The settings with a database that is there and has the current schema.

    Args:
        settings: Without a `database_url` the embedded PostgreSQL runs for as long as the block does.

    Raises:
        EmbeddedError: The embedded PostgreSQL cannot run.
        click.ClickException: The database has another schema.
    """
    if settings.direct_url is not None:
        _check_schema(settings.direct_url)
        yield settings
        return
    folder = _folder(settings)
    with EmbeddedPostgres(folder) as postgres:
        log.info("embedded PostgreSQL is up", data_dir=str(folder))
        try:
            asyncio.run(migration.migrate(postgres.url()))
        except migration.SchemaError as error:
            raise click.ClickException(str(error)) from error
        yield msgspec.structs.replace(settings, database_url=postgres.url(), listen_url=None)


def described(settings: Settings) -> str:
    """Which database that is, for people."""
    if settings.database_url is not None:
        return "the database of BROKER_DATABASE_URL"
    return f"the embedded database in {_folder(settings)}"


def is_made(settings: Settings) -> bool:
    """Whether there is such a database; the embedded one is made when it is first used."""
    return settings.database_url is not None or (_folder(settings) / "postgres").exists()


def see_that_it_is_made(settings: Settings) -> None:
    """See that there is something to look into.

    Raises:
        click.ClickException: The embedded database was never used.
    """
    if not is_made(settings):
        raise click.ClickException(
            f"There is no {described(settings).removeprefix('the ')} yet. Set BROKER_DATA_DIR or"
            " BROKER_DATABASE_URL as the service has it."
        )


def default_data_dir(instead: str = "BROKER_DATA_DIR") -> Path:
    """Where data of services, or of this user, belongs.

    Args:
        instead: The setting or option that names another folder.

    Raises:
        click.ClickException: This user has no home folder.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/broker")
    base = os.environ.get("XDG_DATA_HOME")
    try:
        return (Path(base) if base else Path.home() / ".local" / "share") / "broker"
    except RuntimeError as error:
        raise click.ClickException(
            f"User id {os.geteuid()} has no home folder to keep data in: set {instead} to a folder,"
            " or set HOME."
        ) from error


def _folder(settings: Settings) -> Path:
    return settings.data_dir or default_data_dir()


def ask(url: str, do: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
    """Do something with a database, in a transaction of its own.

    Raises:
        Unavailable: It does not answer.
    """

    async def take() -> Result:
        store = Store(url)
        try:
            return await store.run(do, *args, **kwargs)
        finally:
            await store.close()

    return asyncio.run(take())


def _check_schema(url: str) -> None:
    try:
        problem = ask(url, migration.schema_problem)
    except (DBAPIError, Unavailable) as error:
        cause = error if isinstance(error, DBAPIError) else error.__cause__
        if isinstance(cause, DBAPIError):
            raise click.ClickException(
                f"The database of BROKER_DATABASE_URL refuses it: {_in_its_words(cause.orig)}"
            ) from error
        pooler = "startup parameter" in str(cause)
        hint = " Is it a pooler? Then set BROKER_LISTEN_URL to the database itself." if pooler else ""
        raise click.ClickException(
            f"The database of BROKER_DATABASE_URL does not answer: {_in_its_words(cause)}{hint}"
        ) from error
    if problem:
        raise click.ClickException(f"The database {problem}.")


@contextlib.contextmanager
def reached(settings: Settings) -> Iterator[str]:
    """The URL of the database, also where a service is running on the embedded one.

    Raises:
        EmbeddedError: The embedded PostgreSQL cannot run.
        click.ClickException: The given database has another schema, or does not answer.
    """
    with contextlib.ExitStack() as stack:
        try:
            url = str(stack.enter_context(database(settings)).direct_url)
        except FolderInUseError:
            if (running := _running(settings)) is None:
                raise
            _check_schema(running)
            url = running
        yield url


@contextlib.contextmanager
def opened(settings: Settings, *, shared: bool) -> Iterator[str]:
    """The URL of the database as it is, whatever schema it has.

    Args:
        settings: Of a database that a pooler stands in front of, the one behind it is meant.
        shared: Whether it may be the embedded one that a service is running on.

    Raises:
        EmbeddedError: The embedded PostgreSQL cannot run.
    """
    if settings.direct_url is not None:
        yield settings.direct_url
        return
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(EmbeddedPostgres(_folder(settings))).url()
        except FolderInUseError:
            running = _running(settings)
            if not shared or running is None:
                raise
            url = running
        yield url


def _running(settings: Settings) -> str | None:
    """The URL of the embedded PostgreSQL that a service is running, once it is known."""
    return EmbeddedPostgres.url_of_running(_folder(settings))
