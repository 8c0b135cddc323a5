"""Events: short summaries of changed tasks, tools and work for event-stream subscribers."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import TextClause, text

from broker.schemas.overview import ArchiveEvent, TaskEvent, ToolEvent, WorkEvent
from broker.store import rows, summaries
from broker.store.ended_tasks import ENDED_TASKS_WITH_RECORDS
from broker.store.sql_connection import SqlConnection

WORKS = text(f"""
select {summaries.WORK}
from work w
where w.id = any(cast(:ids as uuid[]))
order by w.assigned_at, w.id
""")

RECORDS = text(f"""
select {summaries.RECORD}
from work_archive a
where a.work_id = any(cast(:ids as uuid[]))
""")

TASKS = text("""
select t.id, coalesce(w.state, t.state) as state, t.priority, t.attempt
from tasks t
left join work w on w.task_id = t.id and w.task_id = any(cast(:ids as text[]))
where t.id = any(cast(:ids as text[]))
order by t.seq
""")

# The last record represents the task.
ENDED_TASKS = text(f"""
select {summaries.RECORD}, coalesce(e.attempt, a.attempt) as attempts
{ENDED_TASKS_WITH_RECORDS}
""")

TOOLS = text(f"""
select t.id, {rows.TOOL_STATE} as state, t.load, t.capacity, {summaries.cut("t.skills")} as skills
from tools t
where t.id = any(cast(:ids as text[]))
order by t.id
""")

# If there is nothing to read, this statement checks that the database responds.
NOTHING = text("select")


class Events(NamedTuple):
    """The events of changed tasks, tools and work, and of new records."""

    tasks: list[TaskEvent]
    tools: list[ToolEvent]
    work: list[WorkEvent]
    records: list[ArchiveEvent]


def read(
    connection: SqlConnection,
    *,
    tasks: Collection[str],
    tools: Collection[str],
    work: Collection[UUID],
    known: Mapping[UUID, str],
) -> Events:
    """Return the events of changed tasks, tools and work, and of rows that changed with them.

    New work also causes events of its task and its tool, and started work an event of its task. Ended work
    causes events of its record, its task and its tool. A task that ended without work causes an event of its
    record. Work is new if `known` does not have its state.
    """
    if not (tasks or tools or work):
        connection.execute(NOTHING)
    under_way = [summaries.work(row) for row in _rows_of(connection, WORKS, work)]
    ended = set(work).difference(each.id for each in under_way)
    records = {each.work_id: each for each in map(summaries.record, _rows_of(connection, RECORDS, ended))}
    ended_now, new = list(records.values()), [each for each in under_way if each.id not in known]

    task_ids = {*tasks, *(each.task_id for each in ended_now)}
    task_ids.update(each.task_id for each in under_way if known.get(each.id) != each.state)
    live = [TaskEvent(**row._asdict()) for row in _rows_of(connection, TASKS, task_ids)]
    ended_tasks = _rows_of(connection, ENDED_TASKS, task_ids.difference(each.id for each in live))
    records |= {each.work_id: each for each in map(summaries.record, ended_tasks)}

    tool_ids = {
        *tools,
        *(each.tool_id for each in new),
        *(each.tool_id for each in ended_now if each.tool_id),
    }
    existing = [ToolEvent(**row._asdict()) for row in _rows_of(connection, TOOLS, tool_ids)]
    deleted = sorted(tool_ids.difference(each.id for each in existing))
    return Events(
        live + [_ended_task(row) for row in ended_tasks],
        existing + [ToolEvent(id=id_, state="deleted", load=0, capacity=0, skills="") for id_ in deleted],
        under_way,
        sorted(records.values(), key=lambda each: (each.ended_at, each.work_id)),
    )


def _rows_of(connection: SqlConnection, statement: TextClause, ids: Collection[Any]) -> list[rows.AnyRow]:
    """Return the rows of these ids. Without ids, run no query."""
    return list(connection.execute(statement, {"ids": list(ids)})) if ids else []


def _ended_task(row: rows.AnyRow) -> TaskEvent:
    return TaskEvent(id=row.task_id, state=row.outcome, priority=None, attempt=row.attempts)
