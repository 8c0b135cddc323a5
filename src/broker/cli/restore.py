"""`broker restore`: read a backup into an empty database."""

from pathlib import Path
from typing import BinaryIO

import click
from rich.filesize import decimal

from broker.cli.database import (
    clear_database_errors,
    database_name,
    open_database,
    run_in_transaction,
    settings_from_environment,
)
from broker.cli.output import note, spinner
from broker.cli.stop_signals import run_async, sigterm_as_ctrl_c
from broker.postgres.backup import DatabaseTarget, backup_version, restore_backup
from broker.postgres.errors import FolderInUseError
from broker.settings import Settings
from broker.store import migration, schema_version

_EXAMPLES = """
\b
Examples:
  BROKER_DATA_DIR=/srv/broker-restored broker restore broker.dump
  BROKER_DATABASE_URL=postgresql://broker@db/restored broker restore broker.dump

Then start the service with the same setting. docs/operate/backup.md says what a restore means for tools
and clients.
"""


@click.command(epilog=_EXAMPLES)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def restore(file: Path) -> None:
    """Read FILE, from `broker backup`, into an EMPTY database, and bring that up to date.

    It is the database of BROKER_DATABASE_URL, or the embedded one in BROKER_DATA_DIR. One that holds anything
    is never touched. It is all or nothing: when it fails, the database is as empty as before.
    """
    settings = settings_from_environment()
    with sigterm_as_ctrl_c(), clear_database_errors():
        try:
            with open_database(settings, shared=False) as url:
                _restore(settings, url, file)
        except FolderInUseError as error:
            raise _refused(settings, "is in use") from error


def _restore(settings: Settings, url: str, path: Path) -> None:
    target = DatabaseTarget.of(url, own=settings.direct_url is not None)
    with _opened(path) as file, spinner("reading") as describe:
        version = backup_version(target, file)
        if not schema_version.is_known(version):
            raise click.ClickException(
                f"{path} is from a newer broker: its schema is at version {version}, and this one knows those"
                f" up to {schema_version.required_version()}. Restore it with that one, or one that is newer"
                " still."
            )
        run_in_transaction(url, schema_version.check_encoding)
        if something := run_in_transaction(url, schema_version.first_object):
            raise _refused(settings, f"is not empty ({something} is there)")
        size = decimal(path.stat().st_size)
        restore_backup(target, file, lambda done: describe(f"{decimal(done)} of {size} read"))
        describe("bringing it up to date")
        run_async(migration.finish_restore, url)
    note(
        f"{path} is restored into {database_name(settings)}, which is at version"
        f" {schema_version.required_version()}."
    )


def _opened(path: Path) -> BinaryIO:
    try:
        file = path.open("rb")
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}.") from error
    if not file.seekable():
        file.close()
        raise click.ClickException(f"{path} is no ordinary file; save what comes from it, and restore that.")
    return file


def _refused(settings: Settings, why: str) -> click.ClickException:
    another = (
        "Set BROKER_DATABASE_URL to one that is new"
        " (`createdb --encoding UTF8 --template template0` makes one)"
        if settings.direct_url is not None
        else "Set BROKER_DATA_DIR to a folder that is not there yet"
    )
    return click.ClickException(
        f"T{database_name(settings)[1:]} {why}, and a restore never touches data. {another}, restore"
        " into that, and start the service with it."
    )
