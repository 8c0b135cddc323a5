"""`broker retry`: retry failed tasks."""

import click

from broker.cli.stop_signals import run_async
from broker.cli.task_requests import request_for_each_task
from broker.cli.url_option import with_url_option

_EXAMPLES = """
\b
Example:
  broker retry job-1 job-2
"""


@click.command(epilog=_EXAMPLES)
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@with_url_option
def retry(tasks: tuple[str, ...], *, url: str | None) -> None:
    """Retry failed tasks by their ids.

    The broker counts their attempts from zero again. A task that waits or runs stays unchanged. You cannot
    retry a task that has succeeded or was cancelled. Submit a task with another id instead.
    """
    run_async(request_for_each_task, url, tasks, lambda handle: handle.retry())
