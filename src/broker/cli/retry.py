"""`broker retry`: retry failed tasks."""

import click

from broker.cli.stop_signals import run_async
from broker.cli.task_requests import request_for_each_task
from broker.cli.url_option import with_url_option


@click.command()
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@with_url_option
def retry(tasks: tuple[str, ...], *, url: str | None) -> None:
    """Have tasks that have failed for good tried again, by their ids; their attempts are counted afresh.

    A task that is live and has not failed stays as it is.
    """
    run_async(request_for_each_task, url, tasks, lambda handle: handle.retry())
