"""`broker restore`: restore a backup into an empty database."""

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
"""


@click.command(epilog=_EXAMPLES)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def restore(file: Path) -> None:
    """Restore FILE, a backup from `broker backup`, into an empty database, and upgrade its schema.

    The command uses the database of BROKER_DATABASE_URL, or the embedded PostgreSQL in BROKER_DATA_DIR. It
    refuses a database that is not empty. If the restore fails, the database stays empty.

    Then start the service with the same setting. For the effects of a restore on tools and
    clients, see /help/operate/backup/ on the service.
    """
    settings = settings_from_environment()
    with sigterm_as_ctrl_c(), clear_database_errors():
        try:
            with open_database(settings, shared=False) as url:
                _restore(settings, url, file)
        except FolderInUseError as error:
            raise _refusal(settings, "is in use") from error


def _restore(settings: Settings, url: str, path: Path) -> None:
    target = DatabaseTarget.of(url, own=settings.direct_url is not None)
    with _open(path) as file, spinner("restoring") as describe:
        version = backup_version(target, file)
        if not schema_version.is_known(version):
            raise click.ClickException(
                f"{path} was written by a newer broker: its schema has version {version}, and this broker"
                f" knows versions up to {schema_version.required_version()}. Restore it with that broker or a"
                " newer one."
            )
        run_in_transaction(url, schema_version.check_encoding)
        if existing := run_in_transaction(url, schema_version.first_object):
            raise _refusal(settings, f"is not empty (it contains {existing})")
        size = decimal(path.stat().st_size)
        restore_backup(target, file, lambda done: describe(f"{decimal(done)} of {size} restored"))
        describe("upgrading the schema")
        run_async(migration.finish_restore, url)
    note(
        f"Restored {path} into {database_name(settings)}. Its schema has version"
        f" {schema_version.required_version()}."
    )


def _open(path: Path) -> BinaryIO:
    try:
        file = path.open("rb")
    except OSError as error:
        raise click.ClickException(f"Cannot read {path}: {error.strerror}.") from error
    if not file.seekable():
        file.close()
        raise click.ClickException(
            f"{path} is not a regular file. Save its content to a file, and restore that file."
        )
    return file


def _refusal(settings: Settings, why: str) -> click.ClickException:
    another = (
        "Set BROKER_DATABASE_URL to a new database"
        " (create it with `createdb --encoding UTF8 --template template0`)"
        if settings.direct_url is not None
        else "Set BROKER_DATA_DIR to a folder that does not exist yet"
    )
    return click.ClickException(
        f"T{database_name(settings)[1:]} {why}, and a restore needs an empty database. {another}, restore"
        " into it, and start the service with the same setting."
    )
