"""`broker cancel`: cancel tasks."""

import click

from broker.cli.stop_signals import run_async
from broker.cli.task_requests import request_for_each_task
from broker.cli.url_option import with_url_option


@click.command()
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option("--force", is_flag=True, help="At once, whatever the tool does; it is told as soon as it asks.")
@with_url_option
def cancel(tasks: tuple[str, ...], *, force: bool, url: str | None) -> None:
    """Take tasks away, by their ids.

    One that waits is gone at once. Of one that runs the tool is asked to stop, and the task is gone when it
    has; a success that comes first stands. One that has ended stays as it is. The archive has all of it.
    """
    run_async(request_for_each_task, url, tasks, lambda handle: handle.cancel(force=force))
