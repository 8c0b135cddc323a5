"""`broker submit`: submit tasks from the shell, and print their results."""

import contextlib
import sys
from collections.abc import Iterable
from typing import Any

import click
import httpx

from broker.cli.option_types import DurationType, JsonType, MomentType
from broker.cli.output import note
from broker.cli.stop_signals import run_async
from broker.cli.submission import SubmitRun
from broker.cli.task_files import TaskInput, check_task, open_task_file, tasks_for_files
from broker.cli.url_option import with_url_option
from broker.client import AsyncBroker

# The exit status of `timeout` in the shell, and that of a command which Ctrl-C ended.
_TIMED_OUT = 124
_INTERRUPTED = 130

_EXAMPLES = """
With --wait, the command prints a line for each task when it ends or fails: {"id": "…", "state":
"succeeded", "result": …, "error": null}, and "file" if the task is for a file. States are succeeded, failed
and cancelled. The exit status is 0 if all tasks have succeeded, 1 if some have not, and 124 after the time of
--within.

The command sends JSON unchanged, with all digits of numbers. SECONDS may have a unit: 90s, 10m, 2h, 7d, 4w.
TIME is a date with a time such as 2026-07-02T09:30:00Z, a date, or a duration from now such as 10m. A date,
or a time without an offset, is in the time zone of this machine.

The command checks all input before it sends anything. If a task with the same id exists, the broker keeps
that task unchanged and creates no second one. So you can repeat an interrupted command if your tasks have
ids.

\b
One task. The command prints its id:
  broker submit --needs '{"can": "count"}' --payload '"three small words"'
  broker submit --needs @needs.json --payload - < payload.json
  broker submit --needs '{"can": "count"}' --payload '"a b"' --result | jq .words

\b
One task for each file, with the payload {"file": "/absolute/path"}:
  broker submit --needs '{"format": "raw"}' scans/*.raw
  broker submit --needs '{"format": "raw"}' --once scans/*.raw
  broker submit --needs '{"format": "raw"}' --wait scans/*.raw | jq -r '[.file, .result.peaks] | @tsv'

\b
Tasks from a file, one JSON object per line with the fields of the API (or one JSON array):
  broker submit --tasks tasks.ndjson
  jq -c '.[] | {needs: {can: "count"}, payload: .text}' texts.json | broker submit --tasks -
  broker submit --tasks tasks.ndjson --wait | jq 'select(.state != "succeeded")'
"""


@click.command(epilog=_EXAMPLES)
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--needs",
    type=JsonType(),
    help="What the task needs from a tool: JSON, or @FILE to read JSON from a file.",
)
@click.option(
    "--payload",
    type=JsonType(stdin=True),
    help="The input for the tool: JSON, @FILE, or - for standard input.  [default: null]",
)
@click.option(
    "--tasks",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE|-",
    help="Submit the tasks of this file; - is standard input. If a task does not have the field of an option,"
    " it gets the value of the option.",
)
@click.option(
    "--once",
    is_flag=True,
    help="Derive each task's id from the path, size and modification time of its file and from the needs. The"
    " command then submits an unchanged file only once, even if you repeat it, and even if its task has"
    " failed.",
)
@click.option("--id", help="The id of the task.  [default: a new id]")
@click.option(
    "--priority",
    type=click.IntRange(-32768, 32767),
    help="Tasks with a higher priority are assigned first.  [default: 0]",
)
@click.option(
    "--not-before", type=MomentType(ago=False), help="Do not start the task before this time.  [default: now]"
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=DurationType(),
    help="The maximum duration of an attempt.  [default: no limit]",
)
@click.option(
    "--max-attempts",
    type=click.IntRange(1, 1_000),
    help="The maximum number of attempts. If the last one does not succeed, the task has failed."
    "  [default: 3]",
)
@click.option(
    "--retry-backoff",
    "retry_backoff_seconds",
    type=DurationType(),
    help="The maximum delay before the second attempt. It doubles with each further attempt.  [default: 1]",
)
@click.option(
    "--wait",
    is_flag=True,
    help="Wait until all tasks have ended or failed, and print the outcome of each as a line of JSON.",
)
@click.option(
    "--within",
    type=DurationType(),
    help="Wait like --wait, but at most this long, then exit with status 124. The tasks continue."
    "  [default: no limit]",
)
@click.option("--result", is_flag=True, help="Submit one task, wait for it, and print its result as JSON.")
@with_url_option
def submit(
    *,
    files: tuple[str, ...],
    tasks: str | None,
    once: bool,
    wait: bool,
    within: float | None,
    result: bool,
    url: str | None,
    **options: Any,
) -> None:
    """Submit tasks, and optionally wait for their results.

    Submit one task with --needs and --payload, one task for each of FILES, or the tasks of a file with
    --tasks.
    """
    fields = {name: value for name, value in options.items() if value is not None}
    _check_combination(fields, files, tasks, once=once)
    for name, value in fields.items():
        _check_option(name, value)
    with _inputs(fields, files, tasks, once=once) as inputs:
        # Check all tasks before sending the first one.
        total = sum(1 for _ in inputs)
        if result and total != 1:
            raise click.UsageError(f"--result accepts one task, but there are {total:,}. Use --wait.")
        broker = AsyncBroker(url)
        submission = SubmitRun(broker, inputs, total, wait=wait or result or within is not None)
        sys.exit(_exit_status(submission, broker, within=within, result=result))


def _check_combination(
    fields: dict[str, Any], files: tuple[str, ...], tasks: str | None, *, once: bool
) -> None:
    if files and tasks:
        raise click.UsageError("Use either files or --tasks, not both.")
    if not tasks and "needs" not in fields:
        raise click.UsageError("Use --needs or --tasks. `broker submit --help` shows examples.")
    if "payload" in fields and (files or tasks):
        raise click.UsageError("--payload cannot be used with files or --tasks.")
    if "id" in fields and (len(files) > 1 or tasks):
        raise click.UsageError("--id accepts one task only.")
    if once and (not files or "id" in fields):
        raise click.UsageError("--once derives ids from files. Name files, and omit --id.")


def _check_option(name: str, value: Any) -> None:
    """Check that a broker could accept the value of an option, so that an error names the option."""
    try:
        check_task(TaskInput({"needs": None, name: value}))
    except click.ClickException as error:
        option = name.removesuffix("_seconds").replace("_", "-")
        raise click.BadParameter(error.message, param_hint=f"'--{option}'") from error


def _inputs(
    fields: dict[str, Any], files: tuple[str, ...], tasks: str | None, *, once: bool
) -> contextlib.AbstractContextManager[Iterable[TaskInput]]:
    """Return the tasks to submit. The caller may iterate over them repeatedly."""
    if tasks:
        return open_task_file(tasks, fields)
    if files:
        return contextlib.nullcontext(tasks_for_files(files, fields, once=once))
    return contextlib.nullcontext([check_task(TaskInput(fields))])


async def _submit(submission: SubmitRun, broker: AsyncBroker, *, within: float | None, result: bool) -> None:
    async with broker:
        await submission.submit()
        if result:
            await submission.result(within)
        else:
            await submission.results(within)


def _exit_status(submission: SubmitRun, broker: AsyncBroker, *, within: float | None, result: bool) -> int:
    try:
        run_async(_submit, submission, broker, within=within, result=result)
    except TimeoutError:
        note(f"The wait timed out. {submission.describe_unfinished()}")
        return _TIMED_OUT
    except KeyboardInterrupt:
        note(f"Stopped. {submission.describe_unfinished()}")
        return _INTERRUPTED
    except httpx.TransportError:
        if submission.has_begun:
            note(submission.describe_unfinished())
        raise
    return 1 if submission.unsuccessful else 0
