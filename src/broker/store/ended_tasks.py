"""Ended tasks: each has a last record in the archive, and a new task cannot have its id."""

from collections.abc import Collection

from sqlalchemy import text

from broker.schemas.tasks import Task
from broker.store import records, rows
from broker.store.archive import record_size
from broker.store.group_commit import LATER
from broker.store.pages import bounded, is_cut
from broker.store.sql_connection import SqlConnection

HAS_ENDED = text("select task_id from ended_tasks where task_id = any(cast(:ids as text[]))")

#: The ended tasks `e` among `:ids`, each with its last record `a`.
ENDED_TASKS_WITH_RECORDS = """from ended_tasks e
join work_archive a
  on a.work_id = e.work_id
 and a.work_id = any(array(select work_id from ended_tasks where task_id = any(cast(:ids as text[]))))
where e.task_id = any(cast(:ids as text[]))"""
_ENDED_TASKS = f"""
select e.task_id, a.task, a.outcome, coalesce(e.attempt, a.attempt) as attempt, a.result, a.error,
       coalesce(e.ended_at, a.ended_at) as ended_at, a.work_id, {record_size("a")} as size
{ENDED_TASKS_WITH_RECORDS}"""
ENDED_TASKS = text(bounded(_ENDED_TASKS, size="r.size", order="task_id"))

# A task that had no work leaves a record too, with its own work id.
RECORD_DELETED = text(f"""
with ending as materialized (
    select *, uuid7() as record_id
    from tasks
    where id = any(cast(:ids as text[])) and state <> 'assigned'
    order by id
    for update
),
archived as (
    insert into work_archive (work_id, task_id, task, attempt, outcome, result, error, reports, created_by,
                              submitted_at, waiting_since, bytes)
    select t.record_id, t.id,
           {rows.TASK.json()},
           t.attempt, 'cancelled', 'null', null, '[]', t.created_by, t.created_at,
           greatest(t.created_at, t.not_before), {rows.task_size("t")}
    from ending t
    left join work w on false
),
ended as (
    insert into ended_tasks (task_id, work_id) select id, record_id from ending order by id
)
delete from tasks where id = any(array(select id from ending))
returning id
""")


def has_ended(connection: SqlConnection, task_ids: Collection[str]) -> set[str]:
    """Return which of the tasks have ended."""
    return set(connection.execute(HAS_ENDED, {"ids": list(task_ids)}).scalars())


def find(connection: SqlConnection, task_ids: Collection[str]) -> dict[str, Task]:
    """Return the ended tasks by their ids. If not all fit in one response, the others are `LATER`."""
    page = connection.execute(ENDED_TASKS, {"ids": list(task_ids)}).all()
    later: dict[str, Task] = dict.fromkeys(task_ids, LATER) if is_cut(page) else {}
    return later | {row.task_id: _task(row) for row in page}


def record_deleted(connection: SqlConnection, task_ids: Collection[str]) -> set[str]:
    """Cancel those of the tasks that have no work, write a record of each, and return their ids."""
    return set(connection.execute(RECORD_DELETED, {"ids": list(task_ids)}).scalars())


def _task(row: rows.AnyRow) -> Task:
    task = records.TASK.decode(row.task)
    task.state, task.result, task.error = row.outcome, row.result, row.error
    task.attempt, task.ended_at, task.work_id = row.attempt, row.ended_at, row.work_id
    return task
