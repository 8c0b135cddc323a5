"""`broker explain`: explain why a task has not run yet, how its attempts ended, and what to do."""

import shutil
import textwrap
from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

import click
import msgspec

from broker.cli.output import align_columns, is_terminal
from broker.cli.stop_signals import run_async
from broker.cli.url_option import with_url_option
from broker.client.addresses import in_path
from broker.client.connection import Connection
from broker.client.errors import ProblemError
from broker.schemas.states import VERDICTS, Outcome, Verdict
from broker.schemas.tasks import Explanation
from broker.texts import one_line, shorten_in_the_middle

# Give up early, because a person waits for the output.
_PATIENCE_SECONDS = 5.0
_MOST_ATTEMPTS = 20
_LONGEST_ERROR_CHARS = 200

_VERDICTS = "\n".join(
    textwrap.fill(
        f"{verdict:<20}  {meaning}",
        80,
        initial_indent="  ",
        subsequent_indent=" " * 24,
        break_on_hyphens=False,
    )
    for verdict, meaning in VERDICTS.items()
)
_EXAMPLES = f"""
\b
Verdicts (the first that applies is shown):
{_VERDICTS}

\b
Examples:
  broker explain job-2
  broker explain job-2 --json | jq -r .verdict
"""


class PastAttempt(msgspec.Struct, kw_only=True):
    """The part of an archive record that the command shows."""

    attempt: int
    outcome: Outcome
    tool_id: str | None
    error: str | None
    started_at: datetime | None
    ended_at: datetime
    work_id: UUID


class _Records(msgspec.Struct, kw_only=True):
    items: list[PastAttempt]
    next: str | None


@click.command(epilog=_EXAMPLES)
@click.argument("task")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object on one line.")
@with_url_option
def explain(task: str, *, as_json: bool, url: str | None) -> None:
    """Explain why a task has not run yet, how its attempts ended, and what you can do.

    TASK is the id of the task. To see ended attempts, you need a key that may read their records: the key
    that submitted the task, or one with the role operator or admin.
    """
    explanation, records = run_async(_read, url, task)
    if as_json:
        attempts = None if records is None else records.items
        everything = {"id": task, **msgspec.structs.asdict(explanation), "attempts": attempts}
        click.echo(msgspec.json.encode(everything))
        return
    for line in _lines(task, explanation, records):
        click.echo(line)


async def _read(url: str | None, task: str) -> tuple[Explanation, _Records | None]:
    """Return the explanation and the records of a task; the records are None if the key may not read them."""
    async with Connection(url, patience_seconds=_PATIENCE_SECONDS) as connection:
        try:
            explanation = await connection.call("GET", f"/v1/tasks/{in_path(task)}/explain", Explanation)
        except ProblemError as error:
            if error.code != "task_not_found":
                raise
            raise click.ClickException(
                f"No task has the id {task!r}, and the archive has no record of it. Check the id."
            ) from error
        try:
            query = {"task_id": task, "limit": _MOST_ATTEMPTS}
            records = await connection.call("GET", "/v1/archive", _Records, query=query)
        except ProblemError as error:
            if error.code != "forbidden":
                raise
            records = None
        return explanation, records


def _lines(task: str, explanation: Explanation, records: _Records | None) -> Iterator[str]:
    """Yield the output for people. Sentences are wrapped only on a terminal."""
    detail = one_line(explanation.detail)
    words = dict.fromkeys((explanation.state, explanation.verdict))
    yield click.style(f"{task}: {', '.join(words)}", bold=True)
    yield click.wrap_text(detail, shutil.get_terminal_size().columns) if is_terminal() else detail
    yield ""
    rows = [
        ("Tools with free capacity", f"{explanation.available_tools:,}"),
        ("Last assigner request", _time(explanation.assigner_seen_at) or "never"),
    ]
    if explanation.remark is not None:
        rows.append(("Assigner's remark", one_line(explanation.remark)))
    yield from align_columns(rows)
    if records is not None and records.items:
        yield ""
        yield from _attempts(task, records)
    yield ""
    yield "What you can do:"
    yield from align_columns(
        [(f"  {action}", command) for action, command in _next_steps(task, explanation.verdict)]
    )


def _attempts(task: str, records: _Records) -> Iterator[str]:
    yield "Ended attempts, the newest first:"
    yield from align_columns(
        [("", "outcome", "tool", "started", "ended", "error")]
        + [
            (
                f"  {attempt.attempt}",
                attempt.outcome,
                attempt.tool_id or "none",
                _time(attempt.started_at) or "not started",
                _time(attempt.ended_at),
                shorten_in_the_middle(one_line(attempt.error or ""), _LONGEST_ERROR_CHARS),
            )
            for attempt in records.items
        ]
    )
    if records.next is not None:
        yield f"  For older attempts: broker archive export --task-id {task}"


def _next_steps(task: str, verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield what the user can do, and the command that does it."""
    if verdict == "no_assigner":
        yield "Start an assigner", "broker assign"
    if verdict in ("no_tool_available", "refused_by_assigner", "waiting_for_assigner"):
        yield "Look at the tools", "broker top"
    if verdict in ("refused_by_assigner", "no_tool_available"):
        yield "Start a tool that can do it", "broker tool --help"
    if verdict == "failed":
        yield "Retry the task", f"broker retry {task}"
    if verdict == "ended":
        yield "Export its records", f"broker archive export --task-id {task}"
    elif verdict == "running":
        yield "Ask the tool to stop", f"broker cancel {task}"
        yield "Cancel the task at once", f"broker cancel --force {task}"
    else:
        yield "Cancel the task", f"broker cancel {task}"


def _time(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")
