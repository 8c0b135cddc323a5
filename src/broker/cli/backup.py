"""`broker backup`: write a backup of a database to a file."""

from pathlib import Path

import click
from rich.filesize import decimal

from broker.cli.atomic_file import atomic_file
from broker.cli.database import (
    clear_database_errors,
    database_name,
    open_database,
    require_database,
    run_in_transaction,
    settings_from_environment,
)
from broker.cli.output import note, spinner
from broker.cli.stop_signals import sigterm_as_ctrl_c
from broker.postgres.backup import DatabaseTarget, write_backup
from broker.store import schema_version

_EXAMPLES = """
\b
Examples:
  broker backup broker.dump
  broker backup --overwrite "broker-$(date +%a).dump"     one file per weekday
  BROKER_DATA_DIR=/srv/broker broker backup broker.dump
"""


@click.command(epilog=_EXAMPLES)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
def backup(file: Path, *, overwrite: bool) -> None:
    """Write a consistent backup of the database to FILE.

    The command uses the database of BROKER_DATABASE_URL, or the embedded PostgreSQL in BROKER_DATA_DIR. Set
    them as for the service. The service may run at the same time.

    FILE gets its name only when it is complete. Only you can read it: it contains payloads, results and the
    hashes of keys. Its format is that of `pg_dump --format=custom`, so `broker restore` and `pg_restore` read
    it. For more about backups, see /help/operate/backup/ on the service.
    """
    settings = settings_from_environment()
    require_database(settings, "Set BROKER_DATA_DIR or BROKER_DATABASE_URL as for the service.")
    with sigterm_as_ctrl_c(), clear_database_errors(), open_database(settings, shared=True) as url:
        target = DatabaseTarget.of(url, own=settings.direct_url is not None)
        if run_in_transaction(url, schema_version.current_version) is None:
            raise click.ClickException(f"There is nothing to back up: {database_name(settings)} is empty.")
        with (
            atomic_file(file, replace=overwrite, option="--overwrite", mode=0o600) as output,
            spinner("writing") as describe,
        ):
            write_backup(target, Path(output.name), lambda size: describe(f"{decimal(size)} written"))
        note(f"{file}: {decimal(file.stat().st_size)}, from {database_name(settings)}.")
