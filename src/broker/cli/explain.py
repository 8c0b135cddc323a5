"""`broker explain`: why a task has not run yet, what has become of it so far, and what can be done."""

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import click
import msgspec

from broker.cli.calling import calls_a_broker
from broker.cli.screen import is_terminal, one_line
from broker.client.addresses import in_path
from broker.client.connection import Connection
from broker.client.errors import ProblemError
from broker.schemas.states import Outcome
from broker.schemas.tasks import Explanation, Verdict

# A person waits: a broker that is away is told after a few tries.
_PATIENCE_SECONDS = 5.0
_MOST_ATTEMPTS = 20
_MOST_OF_AN_ERROR = 200

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


class Attempt(msgspec.Struct, kw_only=True):
    """What is shown of one attempt; its record has more."""

    attempt: int
    outcome: Outcome
    tool_id: str | None
    error: str | None
    started_at: datetime | None
    ended_at: datetime
    work_id: UUID


class _Records(msgspec.Struct, kw_only=True):
    items: list[Attempt]
    next: str | None


class _Told(NamedTuple):
    """What the broker has said; `records` None: this key may not read them."""

    task: str
    why: Explanation
    records: _Records | None


@click.command(epilog=_EXAMPLES)
@click.argument("task")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object, on one line.")
@calls_a_broker
def explain(task: str, *, as_json: bool, url: str | None) -> None:
    """Tell why a task has not run yet, what has become of it so far, and what can be done.

    TASK is its id. The attempts that have ended are told to keys that may read the archive: the key that
    submitted the task, operators and admins.
    """
    told = asyncio.run(_ask(url, task))
    if as_json:
        click.echo(_as_json(told))
        return
    width = shutil.get_terminal_size().columns if is_terminal() else None
    for line in _lines(told, width):
        click.echo(line)


async def _ask(url: str | None, task: str) -> _Told:
    async with Connection(url, patience_seconds=_PATIENCE_SECONDS) as connection:
        try:
            why = await connection.call("GET", f"/v1/tasks/{in_path(task)}/explain", Explanation)
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
        return _Told(task, why, records)


def _as_json(told: _Told) -> bytes:
    attempts = None if told.records is None else told.records.items
    return msgspec.json.encode({"id": told.task, **msgspec.structs.asdict(told.why), "attempts": attempts})


def _lines(told: _Told, width: int | None) -> Iterator[str]:
    """For people; sentences are broken only for a terminal, which has a width."""
    why = told.why
    detail = one_line(why.detail)
    words = dict.fromkeys((why.state, why.verdict))
    yield click.style(f"{told.task}: {', '.join(words)}", bold=True)
    yield detail if width is None else click.wrap_text(detail, width)
    yield ""
    facts = [
        ("Tools with room", f"{why.available_tools:,}"),
        ("Assigner last asked", _time(why.assigner_seen_at) or "never"),
    ]
    if why.remark is not None:
        facts.append(("Assigner's remark", one_line(why.remark)))
    yield from _aligned(facts)
    if told.records is not None and told.records.items:
        yield ""
        yield from _attempts(told.task, told.records)
    yield ""
    yield "What you can do:"
    yield from _aligned([(f"  {what}", command) for what, command in _steps(told)])


def _attempts(task: str, records: _Records) -> Iterator[str]:
    yield "Attempts that have ended, the newest first:"
    yield from _aligned(
        [("", "outcome", "tool", "started", "ended", "error")]
        + [
            (
                f"  {each.attempt}",
                each.outcome,
                each.tool_id or "none",
                _time(each.started_at) or "not started",
                _time(each.ended_at),
                _shortened(one_line(each.error or "")),
            )
            for each in records.items
        ]
    )
    if records.next is not None:
        yield f"  There are older ones: broker archive export --task-id {task}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _steps(told: _Told) -> Iterator[tuple[str, str]]:
    """What can be done, and the command that does it."""
    verdict: Verdict = told.why.verdict
    if verdict == "no_assigner":
        yield "Start an assigner", "broker assign"
    if verdict in ("no_tool_available", "refused_by_assigner", "waiting_for_assigner"):
        yield "Look at the tools", "broker top"
    if verdict in ("refused_by_assigner", "no_tool_available"):
        yield "Start one that can do it", "broker tool --help"
    if verdict == "failed":
        yield "Have it tried again", f"broker retry {told.task}"
    if verdict == "ended":
        yield "Read all about it", f"broker archive export --task-id {told.task}"
    elif verdict == "running":
        yield "Have the tool stop it", f"broker cancel {told.task}"
        yield "Take it away at once", f"broker cancel --force {told.task}"
    else:
        yield "Take it away", f"broker cancel {told.task}"


def _time(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _shortened(line: str) -> str:
    """Cut in the middle: what went wrong stands at the end of a traceback, and else in front."""
    if len(line) <= _MOST_OF_AN_ERROR:
        return line
    third = _MOST_OF_AN_ERROR // 3
    return f"{line[:third]} … {line[-2 * third :]}"
