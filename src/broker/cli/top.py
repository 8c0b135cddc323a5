"""`broker top`: show tools, work and the queue, live."""

import io
import logging
import sys

import click
import httpx
from rich.console import Console

from broker.cli.stop_signals import run_async
from broker.cli.url_option import with_url_option
from broker.client.connection import Connection
from broker.top.reader import TopReader
from broker.top.screen import TopScreen
from broker.top.view import View

# How long to retry a request before the screen shows the error.
_PATIENCE_SECONDS = 2.0
# The size of a snapshot without a terminal: the number of tools, and the width in characters.
_PLAIN_TOOLS = 100
_PLAIN_WIDTH = 160

_EXAMPLES = """
\b
Keys:
  n, space, page down   show the next page of tools
  p, b, page up         show the previous page of tools
  q, Ctrl-C             quit

\b
Examples:
  broker top                              the local broker, every second
  broker top --every 5                    every five seconds
  broker top --once                       one snapshot
  broker top --once > snapshot.txt
  BROKER_KEY=bk_... broker top --url https://broker.example.org
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--every",
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    help="The interval between two snapshots, in seconds.",
)
@click.option(
    "--once", is_flag=True, help="Print one snapshot. This is the default if the output is not a terminal."
)
@with_url_option
def top(url: str | None, *, every: float, once: bool) -> None:
    """Show tools, work and the queue, live.

    At the top, the screen shows counts: tasks and tools by state, tasks of the last minute, and the time of
    the last request of an assigner. Below, it shows the tools, with the progress and the last message of
    their work. At the bottom, it shows the available tasks by their needs, and the remarks on the oldest
    tasks. If the broker does not respond, the command keeps trying.

    If the broker has keys, set BROKER_KEY to a key with the role operator.
    """
    # The screen itself shows the messages that the client would log.
    logging.getLogger().addHandler(logging.NullHandler())
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Show a question mark for characters that the encoding lacks.
        sys.stdout.reconfigure(errors="replace")
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    once = once or not sys.stdout.isatty() or console.is_dumb_terminal
    sys.exit(run_async(_show, console, url, every_seconds=None if once else every))


async def _show(console: Console, url: str | None, *, every_seconds: float | None) -> int:
    async with Connection(url, patience_seconds=_PATIENCE_SECONDS) as connection:
        without_password = str(httpx.URL(connection.url).copy_with(userinfo=b""))
        if every_seconds is not None:
            screen = TopScreen(console, connection, url=without_password, every_seconds=every_seconds)
            return await screen.show()
        console.print(View(without_password, await TopReader(connection).read(_PLAIN_TOOLS)))
        return 0
