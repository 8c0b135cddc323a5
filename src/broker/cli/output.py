"""Write the output of commands: lines, progress bars and notes."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from broker.cli.standard_streams import discard_output
from broker.texts import escape_unprintable


class CommandOutput:
    """Lines on standard output for programs, and a progress bar on standard error for people."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            # Otherwise the lines would go to standard error.
            redirect_stdout=False,
            disable=not console.is_terminal,
        )

    @contextlib.contextmanager
    def bar(self, description: str, total: int) -> Iterator[None]:
        """Show a progress bar during the block."""
        self._bar = self._progress.add_task(description, total=total)
        try:
            with self._progress:
                yield
        finally:
            self._progress.remove_task(self._bar)
            self._bar = None

    def advance(self, count: int, description: str | None = None) -> None:
        """Advance the bar by a count."""
        if self._bar is not None:
            self._progress.update(self._bar, advance=count, description=description)

    def write(self, *lines: str) -> None:
        """Print lines on standard output. After a BrokenPipeError, later lines go to /dev/null."""
        try:
            if self._bar is not None and is_terminal() and not self._progress.disable:
                # Print them above the bar.
                for line in lines:
                    escaped = escape_unprintable(line)
                    self._progress.console.print(escaped, markup=False, highlight=False, soft_wrap=True)
            elif lines:
                click.echo("\n".join(map(escape_unprintable, lines) if is_terminal() else lines))
        except BrokenPipeError:
            discard_output()
            raise


@contextlib.contextmanager
def spinner(description: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner on a terminal, and yield a function that changes its description."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        yield lambda text: progress.update(task, description=text)


def is_terminal() -> bool:
    """Return whether standard output is open and a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def align_columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def note(text: str) -> None:
    """Write a message for people to standard error."""
    click.echo(text, err=True)


def this_program() -> str:
    """Return the command line that starts this program, for examples in messages."""
    by_module = sys.argv[0].endswith("__main__.py")
    return f"{sys.executable} -m broker.cli" if by_module else sys.argv[0]
