"""`broker cancel`: cancel tasks."""

import click

from broker.cli.stop_signals import run_async
from broker.cli.task_requests import request_for_each_task
from broker.cli.url_option import with_url_option

_EXAMPLES = """
\b
Examples:
  broker cancel job-1 job-2
  broker cancel --force job-1
"""


@click.command(epilog=_EXAMPLES)
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option(
    "--force", is_flag=True, help="Cancel running tasks at once, without waiting for their tools to stop."
)
@with_url_option
def cancel(tasks: tuple[str, ...], *, force: bool, url: str | None) -> None:
    """Cancel tasks by their ids.

    A task that does not run ends at once. If a task runs, the broker asks its tool to stop, and the task ends
    when the tool has stopped. If the work succeeds before that, the task succeeds. A task that has ended
    stays unchanged. The archive keeps a record of each cancelled task.
    """
    run_async(request_for_each_task, url, tasks, lambda handle: handle.cancel(force=force))
