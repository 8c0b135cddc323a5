"""`broker archive`: export the records of attempts that have ended."""

import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, get_args

import click
import httpx
from rich.filesize import decimal

from broker.cli.atomic_file import atomic_file
from broker.cli.option_types import MomentType
from broker.cli.output import spinner
from broker.cli.stop_signals import run_async, sigterm_as_ctrl_c
from broker.cli.url_option import with_url_option
from broker.client.connection import Connection
from broker.schemas.states import Outcome

_AGO = MomentType(ago=True)
_MEDIA_TYPE = "application/x-ndjson"

_EXAMPLES = """
\b
Examples:
  broker archive export -o archive.ndjson
  broker archive export --since 7d --outcome failed | jq -r '[.task_id, .error] | @tsv'
  broker archive export --tool-id xrd-1 --since 2026-07-01 --until 2026-08-01 | gzip > july.gz

A time is one with an offset, like 2026-07-02T09:30:00Z, one without or a date, which are of this machine's
time zone, or so long ago: 90s, 10m, 2h, 7d, 4w.
"""


@click.group()
def archive() -> None:
    """Export what has ended."""


@archive.command(epilog=_EXAMPLES, short_help="Write what has ended, a record a line.")
@click.option("--task-id", help="Of this task.")
@click.option("--tool-id", help="Of this tool.")
@click.option("--outcome", type=click.Choice(get_args(Outcome)), help="That ended so.")
@click.option("--since", type=_AGO, help="That ended then or later.")
@click.option("--until", type=_AGO, help="That ended before.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    help="Write to this file.  [default: standard output]",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@with_url_option
def export(*, output: Path | None, force: bool, url: str | None, **filters: str | datetime | None) -> None:
    """Write the archive's records, the newest first, as JSON, one a line.

    A record is one attempt at a task: the task and the tool as they were, the result, every report. The exit
    status is 0 only if all of them were written. A file is there only then, and complete: it is written under
    another name and renamed at the end. A key that only submits exports the records of its own tasks.
    """
    query = {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in filters.items()
    }
    if output is None or str(output) == "-":
        if sys.stdout is None:
            raise click.UsageError("Standard output is closed; -o writes to a file.")
        run_async(_Export(sys.stdout.buffer, lambda _: None).run, url, query)
        return
    with (
        sigterm_as_ctrl_c(),
        atomic_file(output, replace=force, option="--force") as file,
        spinner("waiting for the first record") as describe,
    ):
        export = _Export(file, describe)
        run_async(export.run, url, query)
    click.echo(f"{export} in {output}.", err=True)


class _Export:
    """Writes records to a file, and shows their number and size."""

    def __init__(self, file: BinaryIO, show_progress: Callable[[str], None]) -> None:
        self._file = file
        self._show_progress = show_progress
        self._records = 0
        self._bytes = 0

    def __str__(self) -> str:
        noun = "record" if self._records == 1 else "records"
        return f"{self._records:,} {noun} ({decimal(self._bytes)})"

    async def run(self, url: str | None, query: Mapping[str, str | None]) -> None:
        """Write all records, or end the command with a message that says what went wrong."""
        last = b"\n"
        async with Connection(url) as connection:
            try:
                async with connection.stream("/v1/archive/export", _MEDIA_TYPE, query=query) as chunks:
                    async for last in chunks:
                        self._write(last)
            except httpx.TransportError as error:
                if not self._bytes:
                    raise
                raise self._broken(str(error) or type(error).__name__) from error
        if not last.endswith(b"\n"):
            # A proxy has cut the response, and made it look complete.
            raise self._broken("it ends in the middle of a record")

    def _write(self, chunk: bytes) -> None:
        try:
            self._file.write(chunk)
            self._file.flush()
        except BrokenPipeError:  # the reader has closed the pipe; click ends the command quietly
            raise
        except OSError as error:
            raise click.ClickException(f"The records cannot be written: {error.strerror}.") from error
        self._records += chunk.count(b"\n")
        self._bytes += len(chunk)
        self._show_progress(str(self))

    def _broken(self, why: str) -> click.ClickException:
        return click.ClickException(
            f"The export broke off after {self}: {why}. It is not complete; begin again. (A broker cuts"
            " off whoever reads too slowly: where a program reads this, write to a file first, with -o.)"
        )
