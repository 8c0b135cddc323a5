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
from broker.cli.task_files import TaskInput, checked, for_files, task_file
from broker.cli.url_option import with_url_option
from broker.client import AsyncBroker

# The status of `timeout` of the shell, and the shell's own status of a command that Ctrl-C ended.
_TIME_OVER = 124
_INTERRUPTED = 130

_EXAMPLES = """
\b
One task; its id is printed:
  broker submit --needs '{"can": "count"}' --payload '"three small words"'
  broker submit --needs @needs.json --payload - < payload.json
  broker submit --needs '{"can": "count"}' --payload '"a b"' --result | jq .words

\b
A task for each file; its payload is {"file": "/absolute/path"}:
  broker submit --needs '{"format": "raw"}' scans/*.raw
  broker submit --needs '{"format": "raw"}' --once scans/*.raw
  broker submit --needs '{"format": "raw"}' --wait scans/*.raw | jq -r '[.file, .result.peaks] | @tsv'

\b
Tasks from a file, one JSON object a line as the API takes it (or one JSON array of them):
  broker submit --tasks tasks.ndjson
  jq -c '.[] | {needs: {can: "count"}, payload: .text}' texts.json | broker submit --tasks -
  broker submit --tasks tasks.ndjson --wait | jq 'select(.state != "succeeded")'

With --wait, each task is a line as it ends: {"id": "…", "state": "succeeded", "result": …, "error": null},
and "file" where it is for one. States are succeeded, failed and cancelled. The exit status is 0 if all have
succeeded, 1 if not, 124 if time was over.

JSON is passed on as it is, numbers to the last digit. A span of time is a number of seconds, or one with s,
m, h, d or w: 10m. A time is like 2026-07-02T09:30:00Z; without an offset, or a date, it is of this machine's
time zone. All input is checked before anything is sent. A task whose id is known already is not made
anew, whatever else is said of it: what broke off can be repeated where tasks have ids.
"""


@click.command(epilog=_EXAMPLES)
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option("--needs", type=JsonType(), help="What the task needs of a tool: JSON, or @FILE.")
@click.option(
    "--payload", type=JsonType(stdin=True), help="What to work on: JSON, @FILE, or - for standard input."
)
@click.option(
    "--tasks",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE|-",
    help="Tasks, one a line. What the options say is for those that do not say it themselves.",
)
@click.option(
    "--once",
    is_flag=True,
    help="With files: make the id from the file's path, size and time of last change, and the needs as they"
    " are written. However often the command runs, a file that has not changed is submitted once; whether"
    " its task has succeeded or failed.",
)
@click.option("--id", help="The task's id: the same id is the same task.  [default: a new one]")
@click.option("--priority", type=click.IntRange(-32768, 32767), help="Higher is offered first.  [default: 0]")
@click.option(
    "--not-before", type=MomentType(ago=False), help="Do not begin before: a time, or 10m from now."
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=DurationType(),
    help="The longest an attempt may run.  [default: no limit]",
)
@click.option("--max-attempts", type=click.IntRange(1, 1_000), help="Then it has failed.  [default: 3]")
@click.option(
    "--retry-backoff",
    "retry_backoff_seconds",
    type=DurationType(),
    help="The pause before the second attempt.  [default: 1]",
)
@click.option("--wait", is_flag=True, help="Wait until all have ended, and print how, a JSON object a line.")
@click.option(
    "--within",
    type=DurationType(),
    help="Wait so long at most; what has not ended goes on, and the status is 124.",
)
@click.option("--result", is_flag=True, help="Wait for one task, and print its result alone, as JSON.")
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
    """Submit tasks, and wait for their results where that is wanted.

    One task, by --needs and --payload; or one for each of FILES; or those of a file, by --tasks.
    """
    fields = {name: value for name, value in options.items() if value is not None}
    _check_combination(fields, files, tasks, once=once)
    for name, value in fields.items():
        _check_option(name, value)
    with _inputs(fields, files, tasks, once=once) as inputs:
        # Check all tasks before sending the first one.
        total = sum(1 for _ in inputs)
        if result and total != 1:
            raise click.UsageError(f"--result is for one task, and these are {total:,}: use --wait.")
        broker = AsyncBroker(url)
        submission = SubmitRun(broker, inputs, total, wait=wait or result or within is not None)
        sys.exit(_exit_status(submission, broker, within=within, result=result))


def _check_combination(
    fields: dict[str, Any], files: tuple[str, ...], tasks: str | None, *, once: bool
) -> None:
    if files and tasks:
        raise click.UsageError("Give files, or --tasks, not both.")
    if not tasks and "needs" not in fields:
        raise click.UsageError("--needs is missing, or --tasks; `broker submit --help` has examples.")
    if "payload" in fields and (files or tasks):
        raise click.UsageError("--payload is for one task, without files and --tasks.")
    if "id" in fields and (len(files) > 1 or tasks):
        raise click.UsageError("--id is for one task.")
    if once and (not files or "id" in fields):
        raise click.UsageError("--once makes the ids of files: give files, and no --id.")


def _check_option(name: str, value: Any) -> None:
    """Check that a broker could accept the value of an option, so that the message can name the option."""
    try:
        checked(TaskInput({"needs": None, name: value}))
    except click.ClickException as error:
        option = name.removesuffix("_seconds").replace("_", "-")
        raise click.BadParameter(error.message, param_hint=f"'--{option}'") from error


def _inputs(
    fields: dict[str, Any], files: tuple[str, ...], tasks: str | None, *, once: bool
) -> contextlib.AbstractContextManager[Iterable[TaskInput]]:
    """Return the tasks to submit; they can be iterated over repeatedly."""
    if tasks:
        return task_file(tasks, fields)
    if files:
        return contextlib.nullcontext(for_files(files, fields, once=once))
    return contextlib.nullcontext([checked(TaskInput(fields))])


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
        note(f"Time is over. {submission.left()}")
        return _TIME_OVER
    except KeyboardInterrupt:
        note(f"Stopped. {submission.left()}")
        return _INTERRUPTED
    except httpx.TransportError:
        if submission.has_begun:
            note(submission.left())
        raise
    return 1 if submission.unsuccessful else 0
