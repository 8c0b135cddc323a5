"""`broker retry`: has failed tasks tried again."""

import asyncio

import click

from broker.cli.calling import calls_a_broker
from broker.cli.handles import each


@click.command()
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@calls_a_broker
def retry(tasks: tuple[str, ...], *, url: str | None) -> None:
    """Have tasks that have failed for good tried again, by their ids; their attempts are counted afresh.

    A task that is live and has not failed stays as it is.
    """
    asyncio.run(each(url, tasks, lambda handle: handle.retry()))
