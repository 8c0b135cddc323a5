"""What a command that takes its time tells: lines on standard output, and on a terminal a bar beside them."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator

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


class Screen:
    """Standard output for what a program may read, standard error for how far it is."""

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
            # Lines for a program would go where the bar is.
            redirect_stdout=False,
            disable=not console.is_terminal,
        )

    @contextlib.contextmanager
    def bar(self, description: str, total: int) -> Iterator[None]:
        """Show a bar for as long as the block takes."""
        self._bar = self._progress.add_task(description, total=total)
        try:
            with self._progress:
                yield
        finally:
            self._progress.remove_task(self._bar)
            self._bar = None

    def advance(self, count: int, description: str | None = None) -> None:
        """Move the bar on by so many."""
        if self._bar is not None:
            self._progress.update(self._bar, advance=count, description=description)

    def tell(self, *lines: str) -> None:
        """Print lines on standard output.

        Raises:
            BrokenPipeError: Nobody reads them any more; what is printed later goes nowhere.
        """
        try:
            if self._bar is not None and is_terminal() and not self._progress.disable:
                # Above the bar.
                for line in lines:
                    shown = harmless(line)
                    self._progress.console.print(shown, markup=False, highlight=False, soft_wrap=True)
            elif lines:
                click.echo("\n".join(map(harmless, lines) if is_terminal() else lines))
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            raise


@contextlib.contextmanager
def spinner(description: str) -> Iterator[Callable[[str], None]]:
    """Show, on a terminal, that something goes on; what the block calls says how far it is."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        shown = progress.add_task(description, total=None)
        yield lambda told: progress.update(shown, description=told)


def is_terminal() -> bool:
    """Whether standard output is a terminal; it may be closed."""
    return sys.stdout is not None and sys.stdout.isatty()


def harmless(text: str) -> str:
    """JSON, or an id, in which nothing steers the terminal; as JSON it is the same."""
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def printable(text: str) -> str:
    """What others have said: nothing in it steers the terminal."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text
    )


def one_line(text: str) -> str:
    """The same on one line."""
    return printable(" ".join(text.split()))


def note(text: str) -> None:
    """Tell people something on standard error."""
    click.echo(text, err=True)


def this_program() -> str:
    """How the command was called, for people who are to call it again."""
    by_module = sys.argv[0].endswith("__main__.py")
    return f"{sys.executable} -m broker.cli" if by_module else sys.argv[0]
