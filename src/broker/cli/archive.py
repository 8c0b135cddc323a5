"""`broker archive`: export the records of ended work."""

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
TIME is a date with a time such as 2026-07-02T09:30:00Z, a date such as 2026-07-02, or a duration before now:
90s, 10m, 2h, 7d, 4w. A date, or a time without an offset, is in the time zone of this machine.

\b
Examples:
  broker archive export -o archive.ndjson
  broker archive export --since 7d --outcome failed | jq -r '[.task_id, .error] | @tsv'
  broker archive export --tool-id xrd-1 --since 2026-07-01 --until 2026-08-01 | gzip > july.gz
"""


@click.group(epilog="\b\nExample:\n  broker archive export -o archive.ndjson")
def archive() -> None:
    """Export the records of ended work."""


@archive.command(epilog=_EXAMPLES, short_help="Write the records as JSON, one per line.")
@click.option("--task-id", help="Only records of this task.")
@click.option("--tool-id", help="Only records of this tool.")
@click.option("--outcome", type=click.Choice(get_args(Outcome)), help="Only records with this outcome.")
@click.option("--since", type=_AGO, help="Only records of work that ended at this time or later.")
@click.option("--until", type=_AGO, help="Only records of work that ended before this time.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    help="Write to this file; - is standard output.  [default: standard output]",
)
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@with_url_option
def export(*, output: Path | None, force: bool, url: str | None, **filters: str | datetime | None) -> None:
    """Write the records of ended work as JSON, one per line, the newest first.

    A record describes one attempt at a task: the task and the tool as they were, the result, and every
    report. With a key of the role submitter, you export the records of the tasks that this key submitted.

    The exit status is 0 only if the command has written all records. A file gets its name only when it is
    complete: the command writes to a temporary file and renames it at the end.
    """
    query = {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in filters.items()
    }
    if output is None or str(output) == "-":
        if sys.stdout is None:
            raise click.UsageError("Standard output is closed. Write to a file with -o.")
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
        """Write all records, or end the command with an error message."""
        last = b"\n"
        async with Connection(url) as connection:
            try:
                async with connection.stream("/v1/archive/export", _MEDIA_TYPE, query=query) as chunks:
                    async for last in chunks:
                        self._write(last)
            except httpx.TransportError as error:
                if not self._bytes:
                    raise
                raise self._incomplete(str(error) or type(error).__name__) from error
        if not last.endswith(b"\n"):
            # A proxy has cut off the response and made it look complete.
            raise self._incomplete("the last record is incomplete")

    def _write(self, chunk: bytes) -> None:
        try:
            self._file.write(chunk)
            self._file.flush()
        except BrokenPipeError:  # the reader has closed the pipe, and click ends the command quietly
            raise
        except OSError as error:
            raise click.ClickException(f"The records cannot be written: {error.strerror}.") from error
        self._records += chunk.count(b"\n")
        self._bytes += len(chunk)
        self._show_progress(str(self))

    def _incomplete(self, why: str) -> click.ClickException:
        return click.ClickException(
            f"The export ended early, after {self}: {why}. It is incomplete. Run the command again. (The"
            " broker closes the connection of a slow reader. If a program reads the output, write it to a"
            " file first, with -o.)"
        )
