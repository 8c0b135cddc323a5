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

# The minimum length of a safe admin key.
SHORTEST_ADMIN_KEY = 20


_EPILOG = f"""
\b
Settings (environment variables), each with its default:
{describe()}

\b
Examples:
  broker serve
  BROKER_DATABASE_URL=postgresql://broker@db/broker broker serve --host 0.0.0.0 --workers 4
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The bind address. Before you use another address than loopback, create a key.",
)
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="The port to listen on. With 0, the service chooses a free port.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="The number of worker processes. One is usually enough. See /help/operate/scale/ on the service.",
)
def serve(host: str, port: int, workers: int) -> None:
    """Run the service.

    Without BROKER_DATABASE_URL, the service starts an embedded PostgreSQL, keeps its data in BROKER_DATA_DIR,
    and upgrades its schema. To use your own PostgreSQL, set BROKER_DATABASE_URL and run `broker migrate`
    first.

    Stop the service with Ctrl-C or SIGTERM. It responds to waiting requests and finishes writes in progress
    before it ends.
    """
    # Until the server handles these signals, they must end the block below, which stops the database.
    for number in stopping_signals():
        if number != signal.SIGINT:
            signal.signal(number, lambda *_: sys.exit(0))
    _check_port_is_free(host, port)
    _check_metrics_folder_is_unset()
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_level)
        if unknown := unknown_variables():
            log.warning("unknown settings ignored", variables=unknown)
        if 0 < len(settings.load_admin_key() or "") < SHORTEST_ADMIN_KEY:
            log.warning("admin key is short and could be guessed", minimum_characters=SHORTEST_ADMIN_KEY)
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
    """Check that this process can listen on the port, before it starts a database."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # Like the server, so that connections of a previous service do not block the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        advice = ". If a broker is running already, choose another --port" if in_use else ""
        raise click.ClickException(
            f"Cannot listen on {host}, port {port}: {error.strerror}{advice}."
        ) from error


def _check_metrics_folder_is_unset() -> None:
    """Refuse a metrics folder from the environment, which may contain metrics of other programs."""
    for name in (SHARED_FOLDER, SHARED_FOLDER.lower()):
        if name in os.environ:
            raise click.ClickException(
                f"Unset {name}, and start the service again. If the service needs this folder, it creates the"
                " folder itself."
            )


def _has_keys(settings: Settings) -> bool:
    return bool(run_in_transaction(str(settings.direct_url), read_all))


def _open_to_others(host: str, settings: Settings) -> click.ClickException:
    """Return the error for a service without keys that other machines could reach."""
    return click.ClickException(
        f"There are no keys in {database_name(settings)}. Without keys, the service accepts only loopback"
        f" addresses, not {host}. Create the first key with the same settings, and start the service"
        f" again:\n\n  {this_program()} keys create --role admin --name me\n\nOr set BROKER_ADMIN_KEY_FILE to"
        f" a file with an admin key of at least {SHORTEST_ADMIN_KEY} random characters."
    )
