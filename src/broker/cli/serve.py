"""`broker serve`: run the service, with the embedded PostgreSQL if no database is given."""

import errno
import os
import signal
import socket
import sys

import click
import structlog

from broker.cli.database import database_name, migrated_database, run_in_transaction
from broker.cli.output import this_program
from broker.postgres.errors import EmbeddedError
from broker.server.http_server import create_server, is_loopback, stopping_signals
from broker.server.worker_processes import WorkerProcesses, WorkerProcessesError
from broker.settings import Settings, SettingsError, describe, unknown_variables
from broker.store.keys import read_all
from broker.store.schema_version import SchemaError
from broker.telemetry import logs
from broker.telemetry.metrics import SHARED_FOLDER

log = structlog.get_logger(__name__)

# The fewest characters of an admin key that a user chooses.
SHORTEST_ADMIN_KEY = 20


@click.command(epilog="\b\nSettings, from the environment:\n" + describe())
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="The port; 0: a free one."
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="How many processes serve it. One is enough for most; see docs/operate/scale.md.",
)
def serve(host: str, port: int, workers: int) -> None:
    """Run the service.

    With no BROKER_DATABASE_URL it brings its own PostgreSQL, keeps the data under BROKER_DATA_DIR, and brings
    the schema up to date by itself. Stop it with Ctrl-C or SIGTERM: whoever waits is answered, what is being
    written is finished.
    """
    # Until the server handles these signals: end the block below, and with it the database.
    for number in stopping_signals():
        if number != signal.SIGINT:
            signal.signal(number, lambda *_: sys.exit(0))
    _check_port_is_free(host, port)
    _check_metrics_folder_is_unset()
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_level)
        if unknown := unknown_variables():
            log.warning("these variables are no settings: are they misspelt?", names=unknown)
        if 0 < len(settings.load_admin_key() or "") < SHORTEST_ADMIN_KEY:
            log.warning("the admin key is short: whoever guesses it may do everything")
        with migrated_database(settings) as ready:
            if not (is_loopback(host) or ready.load_admin_key() or _has_keys(ready)):
                raise _open_to_others(host, settings)
            if workers > 1:
                WorkerProcesses(ready, host=host, port=port, count=workers).run()
            else:
                create_server(ready, host=host, port=port).run()
    except (SettingsError, EmbeddedError, SchemaError, WorkerProcessesError) as error:
        raise click.ClickException(str(error)) from error


def _check_port_is_free(host: str, port: int) -> None:
    """Check that this process can listen on the port, before starting a database in vain."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server does: connections of a previous service do not block the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        advice = ": is a broker running already? --port takes another one" if in_use else ""
        raise click.ClickException(
            f"Cannot listen on {host}, port {port}: {error.strerror}{advice}."
        ) from error


def _check_metrics_folder_is_unset() -> None:
    """Check that prometheus_client gets no folder: the service would report what others left there."""
    for name in (SHARED_FOLDER, SHARED_FOLDER.lower()):
        if name in os.environ:
            raise click.ClickException(
                f"Unset {name}: with --workers the broker makes such a folder, and else it needs none."
            )


def _has_keys(settings: Settings) -> bool:
    return bool(run_in_transaction(str(settings.direct_url), read_all))


def _open_to_others(host: str, settings: Settings) -> click.ClickException:
    """Return the error for a service without keys that other machines could reach."""
    return click.ClickException(
        f"There are no keys in {database_name(settings)}, so the service listens on this machine only, and"
        f" not on {host}. Make the first one, for yourself, with the same settings, and start again:\n\n"
        f"  {this_program()} keys create --role admin --name me\n\n"
        f"Or set BROKER_ADMIN_KEY_FILE to a file with a key of your own, of {SHORTEST_ADMIN_KEY} characters"
        " or more."
    )
