"""`broker top`: show tools, work and queue, live."""

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
# Without a terminal, one snapshot shows so many tools in so many columns.
_PLAIN_TOOLS = 100
_PLAIN_WIDTH = 160

_EXAMPLES = """
\b
Examples:
  broker top                              the local broker, read every second
  broker top --every 5                    less often
  broker top --once                       one snapshot
  broker top --once > snapshot.txt
  BROKER_KEY=bk_... broker top --url https://broker.example.org

\b
Keys:
  n, space, page down   the next tools, where there are more than lines
  p, b, page up         those before
  q, Ctrl-C             the end
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--every",
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    help="How often to read anew.",
)
@click.option("--once", is_flag=True, help="Print one snapshot; so it is done where there is no terminal.")
@with_url_option
def top(url: str | None, *, every: float, once: bool) -> None:
    """Watch tools, work and queue, live.

    Above are the counts: tasks and tools by their state, what came and ended in the last minute, and whether
    an assigner asks. Then come the tools with what each works on, how far it is, and the last message that it
    has reported; then the tasks that wait: what they need, and what the assigner says of those that have
    waited longest. What has no room is counted. A broker that is away is waited for.

    It takes a key with the role operator, where there are keys.
    """
    # The screen shows what the client would log.
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
