"""`broker explain`: say why a task has not run yet, how its attempts ended, and what to do."""

import shutil
from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

import click
import msgspec

from broker.cli.output import aligned, is_terminal
from broker.cli.stop_signals import run_async
from broker.cli.url_option import with_url_option
from broker.client.addresses import in_path
from broker.client.connection import Connection
from broker.client.errors import ProblemError
from broker.schemas.states import Outcome, Verdict
from broker.schemas.tasks import Explanation
from broker.texts import one_line, shorten_in_the_middle

# Short, because a person waits for the output.
_PATIENCE_SECONDS = 5.0
_MOST_ATTEMPTS = 20
_LONGEST_ERROR_CHARS = 200

_EXAMPLES = """
\b
Examples:
  broker explain job-2
  broker explain job-2 --json | jq -r .verdict

\b
The verdicts; the first that holds is told:
  ended                 it has succeeded, or was cancelled
  failed                it has failed for good, and is held
  running               a tool is at it
  assigned              a tool has it, and has not started it yet
  not_before_its_time   it was submitted for later
  backing_off           an attempt did not succeed; the next one comes after a pause
  no_assigner           no assigner has asked for tasks for a minute
  refused_by_assigner   the assigner has said why it gives it to no tool
  no_tool_available     no tool has room
  waiting_for_assigner  tools have room, and the assigner has not given it to one
"""


class PastAttempt(msgspec.Struct, kw_only=True):
    """The shown part of the archive record of an attempt."""

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
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object, on one line.")
@with_url_option
def explain(task: str, *, as_json: bool, url: str | None) -> None:
    """Tell why a task has not run yet, what has become of it so far, and what can be done.

    TASK is its id. The attempts that have ended are told to keys that may read the archive: the key that
    submitted the task, operators and admins.
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
    """Return the explanation and the records of a task; no records if the key may not read them."""
    async with Connection(url, patience_seconds=_PATIENCE_SECONDS) as connection:
        try:
            explanation = await connection.call("GET", f"/v1/tasks/{in_path(task)}/explain", Explanation)
        except ProblemError as error:
            if error.code != "task_not_found":
                raise
            raise click.ClickException(f"There is no task {task!r}, neither live nor ended.") from error
        try:
            query = {"task_id": task, "limit": _MOST_ATTEMPTS}
            records = await connection.call("GET", "/v1/archive", _Records, query=query)
        except ProblemError as error:
            if error.code != "forbidden":
                raise
            records = None
        return explanation, records


def _lines(task: str, explanation: Explanation, records: _Records | None) -> Iterator[str]:
    """Yield the lines for people. Sentences are wrapped on a terminal only."""
    detail = one_line(explanation.detail)
    words = dict.fromkeys((explanation.state, explanation.verdict))
    yield click.style(f"{task}: {', '.join(words)}", bold=True)
    yield click.wrap_text(detail, shutil.get_terminal_size().columns) if is_terminal() else detail
    yield ""
    rows = [
        ("Tools with room", f"{explanation.available_tools:,}"),
        ("Assigner last asked", _time(explanation.assigner_seen_at) or "never"),
    ]
    if explanation.remark is not None:
        rows.append(("Assigner's remark", one_line(explanation.remark)))
    yield from aligned(rows)
    if records is not None and records.items:
        yield ""
        yield from _attempts(task, records)
    yield ""
    yield "What you can do:"
    yield from aligned([(f"  {what}", command) for what, command in _next_steps(task, explanation.verdict)])


def _attempts(task: str, records: _Records) -> Iterator[str]:
    yield "Attempts that have ended, the newest first:"
    yield from aligned(
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
        yield f"  There are older ones: broker archive export --task-id {task}"


def _next_steps(task: str, verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield what the user can do, and the command that does it."""
    if verdict == "no_assigner":
        yield "Start an assigner", "broker assign"
    if verdict in ("no_tool_available", "refused_by_assigner", "waiting_for_assigner"):
        yield "Look at the tools", "broker top"
    if verdict in ("refused_by_assigner", "no_tool_available"):
        yield "Start one that can do it", "broker tool --help"
    if verdict == "failed":
        yield "Have it tried again", f"broker retry {task}"
    if verdict == "ended":
        yield "Read all about it", f"broker archive export --task-id {task}"
    elif verdict == "running":
        yield "Have the tool stop it", f"broker cancel {task}"
        yield "Take it away at once", f"broker cancel --force {task}"
    else:
        yield "Take it away", f"broker cancel {task}"


def _time(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")
