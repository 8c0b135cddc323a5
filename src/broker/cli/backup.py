"""`broker backup`: write a database into a file."""

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
  broker backup --overwrite "broker-$(date +%a).dump"     one for each day of the week
  BROKER_DATA_DIR=/srv/broker broker backup broker.dump

The file is one of `pg_dump --format=custom`: `broker restore` reads it in, and so does `pg_restore`.
"""


@click.command(epilog=_EXAMPLES)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
def backup(file: Path, *, overwrite: bool) -> None:
    """Write all that the database holds into FILE, as it is in one moment.

    It is the database of BROKER_DATABASE_URL, or the embedded one in BROKER_DATA_DIR: set them as the service
    has them, whether it runs or not. A running service goes on meanwhile. The file is there only when it is
    whole; until then it has another name. Only you may read it: payloads, results and the hashes of keys are
    in it.
    """
    settings = settings_from_environment()
    require_database(settings, "Set BROKER_DATA_DIR or BROKER_DATABASE_URL as the service has it.")
    with sigterm_as_ctrl_c(), clear_database_errors(), open_database(settings, shared=True) as url:
        target = DatabaseTarget.of(url, own=settings.direct_url is not None)
        if run_in_transaction(url, schema_version.current_version) is None:
            raise click.ClickException(f"There is nothing in {database_name(settings)} yet.")
        with (
            atomic_file(file, replace=overwrite, option="--overwrite", mode=0o600) as output,
            spinner("writing") as describe,
        ):
            write_backup(target, Path(output.name), lambda size: describe(f"{decimal(size)} written"))
        note(f"{file}: {decimal(file.stat().st_size)}, from {database_name(settings)}.")
