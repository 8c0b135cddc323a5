"""Events: what became of tasks, tools and work, told in short for whoever watches."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from broker.schemas.overview import ArchiveEvent, TaskEvent, ToolEvent, WorkEvent
from broker.store import rows, summaries
from broker.store.ended_tasks import ENDED_TASKS_WITH_RECORDS

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
left join work w
  on w.id = t.work_id and w.id = any(array(select work_id from tasks where id = any(cast(:ids as text[]))))
where t.id = any(cast(:ids as text[]))
order by t.seq
""")

# By its last record; that has the priority, but in the midst of the payload.
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

# Where there is nothing to read, it is to be known that there could be.
NOTHING = text("select")


class Events(NamedTuple):
    """What became of things, as events."""

    tasks: list[TaskEvent]
    tools: list[ToolEvent]
    work: list[WorkEvent]
    records: list[ArchiveEvent]


def read(
    connection: Connection,
    *,
    tasks: Collection[str],
    tools: Collection[str],
    work: Collection[UUID],
    known: Mapping[UUID, str],
) -> Events:
    """What became of things, and of others with them.

    New work is told with its task and its tool, work that was started with its task, and work that has ended
    with both and by its record; so is a task that ended without work.

    Args:
        connection: To the database; a transaction is not needed.
        tasks: Tasks that came, changed or ended.
        tools: Tools that came, changed or are gone.
        work: Work that was assigned, changed or ended.
        known: Of work that was told before, in which state.
    """
    if not (tasks or tools or work):
        connection.execute(NOTHING)
    under_way = [summaries.work(row) for row in _those(connection, WORKS, work)]
    ended = set(work).difference(each.id for each in under_way)
    records = {each.work_id: each for each in map(summaries.record, _those(connection, RECORDS, ended))}
    told, new = list(records.values()), [each for each in under_way if each.id not in known]

    task_ids = {*tasks, *(each.task_id for each in told)}
    task_ids.update(each.task_id for each in under_way if known.get(each.id) != each.state)
    live = [_task(row) for row in _those(connection, TASKS, task_ids)]
    gone = _those(connection, ENDED_TASKS, task_ids.difference(each.id for each in live))
    records |= {each.work_id: each for each in map(summaries.record, gone)}

    tool_ids = {*tools, *(each.tool_id for each in new), *(each.tool_id for each in told if each.tool_id)}
    there = [_tool(row) for row in _those(connection, TOOLS, tool_ids)]
    deleted = sorted(tool_ids.difference(each.id for each in there))
    return Events(
        live + [_ended_task(row) for row in gone],
        there + [ToolEvent(id=id_, state="deleted", load=0, capacity=0, skills="") for id_ in deleted],
        under_way,
        sorted(records.values(), key=lambda each: (each.ended_at, each.work_id)),
    )


def _those(connection: Connection, statement: TextClause, ids: Collection[Any]) -> list[rows.AnyRow]:
    """The rows of these ids; of none they are not asked for."""
    return list(connection.execute(statement, {"ids": list(ids)})) if ids else []


def _task(row: rows.AnyRow) -> TaskEvent:
    return TaskEvent(**row._asdict())


def _ended_task(row: rows.AnyRow) -> TaskEvent:
    return TaskEvent(id=row.task_id, state=row.outcome, priority=None, attempt=row.attempts)


def _tool(row: rows.AnyRow) -> ToolEvent:
    return ToolEvent(**row._asdict())
