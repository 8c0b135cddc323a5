"""`broker serve`: the service, with a database of its own where none is given."""

import asyncio
import contextlib
import ipaddress
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import structlog

from broker import logs
from broker.embedded import EmbeddedError, EmbeddedPostgres
from broker.errors import Unavailable
from broker.server import create_server
from broker.settings import Settings, SettingsError, describe
from broker.store import Store, schema

log = structlog.get_logger(__name__)


@click.command(epilog="\b\nSettings, from the environment:\n" + describe())
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="The port; 0: a free one."
)
def serve(host: str, port: int) -> None:
    """Run the service.

    With no BROKER_DATABASE_URL it brings its own PostgreSQL, keeps the data under BROKER_DATA_DIR, and brings
    the schema up to date by itself. Stop it with Ctrl-C or SIGTERM: whoever waits is answered, what is being
    written is finished.
    """
    # Until the server takes over: told to stop, stop the database as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_level)
        _only_on_this_machine(host)
        with database(settings) as ready:
            create_server(ready, host=host, port=port).run()
    except (SettingsError, EmbeddedError) as error:
        raise click.ClickException(str(error)) from error


@contextlib.contextmanager
def database(settings: Settings) -> Iterator[Settings]:
    """The settings with a database that is there and has the current schema.

    Args:
        settings: Without a `database_url` the embedded PostgreSQL runs for as long as the block does.

    Raises:
        EmbeddedError: The embedded PostgreSQL cannot run.
        click.ClickException: The given database has another schema.
    """
    if settings.database_url is not None:
        asyncio.run(_check_schema(settings.database_url))
        yield settings
        return
    folder = settings.data_dir or default_data_dir()
    with EmbeddedPostgres(folder) as postgres:
        log.info("embedded PostgreSQL is up", data_dir=str(folder))
        asyncio.run(schema.migrate(postgres.url()))
        yield msgspec.structs.replace(settings, database_url=postgres.url(), listen_url=None)


def default_data_dir() -> Path:
    """Where data of services, or of this user, belongs."""
    if os.geteuid() == 0:
        return Path("/var/lib/broker")
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "broker"


async def _check_schema(url: str) -> None:
    store = Store(url)
    try:
        current = await store.read(schema.current)
    except Unavailable as error:
        raise click.ClickException(
            f"The database of BROKER_DATABASE_URL does not answer: {error.__cause__}"
        ) from error
    finally:
        await store.close()
    if current != schema.needed():
        state = f"is at version {current}" if current else "has no schema yet"
        raise click.ClickException(
            f"The database {state}; this program needs version {schema.needed()}. Run `broker migrate` first."
        )


def _only_on_this_machine(host: str) -> None:
    """Refuse to be open to others: as long as there are no keys, everybody may do everything."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost":
        raise click.ClickException(
            f"This version has no keys yet, so it listens on this machine only, and not on {host}. "
            "Put a proxy that asks for a password in front of 127.0.0.1."
        )
