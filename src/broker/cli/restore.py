"""`broker restore`: a backup, read into an empty database."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import click
from rich.filesize import decimal

from broker.cli.database import ask, described, from_environment, opened
from broker.cli.screen import spinner
from broker.dump import DumpError, Place, read_in, version
from broker.embedded import EmbeddedError
from broker.errors import Unavailable
from broker.settings import Settings
from broker.store import schema


@click.command()
@click.argument("file", type=click.File("rb"))
def restore(file: BinaryIO) -> None:
    """Read FILE, which `broker backup` has written, into an empty database, and bring its schema up to date.

    With no BROKER_DATABASE_URL that is a new PostgreSQL of the broker's own, in BROKER_DATA_DIR. What is
    there already is never touched. Either all of it is read in, or nothing.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settings = from_environment()
    try:
        with opened(settings, shared=False) as url:
            place = Place.of(url, own=settings.direct_url is not None)
            _see_that_it_fits(settings, url, version(place, file))
            size = Path(file.name).stat().st_size
            with spinner("reading it in") as tell:
                read_in(place, file, lambda count: tell(f"{decimal(count)} of {decimal(size)} read in"))
            asyncio.run(schema.migrate(url))
    except Unavailable as error:
        raise click.ClickException(f"The database does not answer: {error.__cause__}") from error
    except (DumpError, EmbeddedError, schema.OtherSchemaError) as error:
        raise click.ClickException(f"Nothing was restored: {error}") from error
    click.echo(f"{file.name} is in {described(settings)}.", err=True)


def _see_that_it_fits(settings: Settings, url: str, version: str) -> None:
    """See that the database is empty, and the backup none of a later program.

    Raises:
        click.ClickException: It is not so.
    """
    if version > schema.needed():
        raise click.ClickException(
            f"Nothing was restored: the backup is of schema {version}, this program of {schema.needed()}."
            " Install a later broker."
        )
    if ask(url, schema.current) is not None:
        instead = (
            "an empty database: create one, and set BROKER_DATABASE_URL"
            if settings.direct_url is not None
            else "a new folder: set BROKER_DATA_DIR"
        )
        raise click.ClickException(
            f"Nothing was restored: there is something in {described(settings)} already. Choose {instead}."
        )
