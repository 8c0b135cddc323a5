"""`broker backup`: all that the database holds, in a file."""

import signal
import sys
from pathlib import Path

import click
from rich.filesize import decimal

from broker.cli.database import from_environment, opened, see_that_it_is_made
from broker.cli.files import whole_file
from broker.cli.screen import spinner
from broker.dump import DumpError, Place, write
from broker.embedded import EmbeddedError

# It holds whatever payloads hold, and from the hashes of keys one can tell which of two is meant.
_MODE = 0o600


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace the file, if it is there.")
def backup(file: Path, overwrite: bool) -> None:
    """Write all that the database holds into FILE: tasks, tools, work, the archive, keys.

    The service may run meanwhile; the file has everything as it was in one moment. It is there only when it
    is whole. `broker restore` reads it, and so does pg_restore (it is what `pg_dump --format=custom` writes).
    """
    # Told to stop, it clears away what it has begun.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settings = from_environment()
    see_that_it_is_made(settings)
    try:
        with (
            opened(settings, shared=True) as url,
            whole_file(file, replace=overwrite, option="--overwrite", mode=_MODE) as written,
            spinner("waiting for the database") as tell,
        ):
            place = Place.of(url, own=settings.direct_url is not None)
            write(place, written, lambda count: tell(f"{decimal(count)} written"))
    except (DumpError, EmbeddedError) as error:
        raise click.ClickException(f"There is no backup: {error}") from error
    click.echo(f"{decimal(file.stat().st_size)} in {file}.", err=True)
