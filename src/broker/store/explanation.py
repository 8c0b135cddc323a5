"""Explanations: why a task has not run yet."""

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, text

from broker.schemas import Explanation, Task, Verdict
from broker.store import archive, rows

# All at one moment.
FACTS = text(f"""
select (select count(*) from tools where available) as available_tools,
       (select seen_at from assigner where id) as assigner_seen_at,
       now() as now, t.due_at, {rows.TASK}
from (select) always
left join tasks t on t.id = :id
left join work w on w.id = t.work_id and w.id = (select work_id from tasks where id = :id)
""")

# The assigner is taken to be away after that.
_SILENCE = timedelta(minutes=1)


class Facts(NamedTuple):
    """What an explanation goes by, at one moment.

    Args:
        task: The task.
        available_tools: How many tools have room.
        assigner_seen_at: When an assigner last asked; None: never.
        now: When all of this was.
        due_at: When it is offered, where it is scheduled.
    """

    task: Task
    available_tools: int
    assigner_seen_at: datetime | None
    now: datetime
    due_at: datetime | None


def explain(connection: Connection, id_: str) -> Explanation | None:
    """Why a task has not run yet; None: there is no such task."""
    row = connection.execute(FACTS, {"id": id_}).one()
    live = row[-rows.TASK_WIDTH :]
    found = [rows.task(live)] if live[0] is not None else archive.ended_tasks(connection, [id_])
    if not found:
        return None
    facts = Facts(found[0], *row[: -rows.TASK_WIDTH])
    word, detail = verdict(facts)
    return Explanation(
        state=facts.task.state,
        verdict=word,
        detail=detail,
        remark=facts.task.remark,
        available_tools=facts.available_tools,
        assigner_seen_at=facts.assigner_seen_at,
    )


def verdict(facts: Facts) -> tuple[Verdict, str]:
    """The first reason that holds, as a word for programs and a sentence for people."""
    task = facts.task
    if task.state in ("succeeded", "cancelled"):
        return "ended", f"The task has ended: {task.state}."
    if task.state == "failed":
        return "failed", (
            f"The task has failed after {_times(task.attempt, 'attempt')} and is held until it is retried or"
            f" deleted. Its last error: {task.error or 'none was told'}"
        )
    if task.state == "running":
        return "running", f"It runs: attempt {task.attempt + 1}, work {task.work_id}."
    if task.state == "assigned":
        return "assigned", f"Work {task.work_id} waits for its tool to start it."
    if task.state == "scheduled":
        return _not_due(facts)
    return _waiting(facts)


def _not_due(facts: Facts) -> tuple[Verdict, str]:
    task, due_at = facts.task, facts.due_at
    # It is offered some time after it is due: until then it waits for the same.
    if task.not_before is not None and (task.not_before > facts.now or task.not_before == due_at):
        return "not_before_its_time", f"It is not to run before {_time(task.not_before)}."
    until = f" until {_time(due_at)}" if due_at else ""
    return "backing_off", (
        f"Attempt {task.attempt} of {task.max_attempts} did not succeed: it waits{until} for the next one."
        f" The error: {task.error or 'none was told'}"
    )


def _waiting(facts: Facts) -> tuple[Verdict, str]:
    if facts.assigner_seen_at is None:
        return "no_assigner", "No assigner has ever asked for tasks: start one (GET /v1/candidates)."
    silence = facts.now - facts.assigner_seen_at
    if silence > _SILENCE:
        seconds = int(silence.total_seconds())
        return "no_assigner", f"No assigner has asked for tasks for {seconds} s: is it running?"
    if facts.task.remark is not None:
        return "refused_by_assigner", f"The assigner says: {facts.task.remark}"
    if not facts.available_tools:
        return "no_tool_available", "No tool has room: all are busy, draining or offline, or there is none."
    return "waiting_for_assigner", (
        f"An assigner asks, and {_times(facts.available_tools, 'tool')} could be given work; it has said"
        " nothing about this task."
    )


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
