"""Ended tasks: each has a last record in the archive, and a new task cannot have its id."""

from collections.abc import Collection

from sqlalchemy import text

from broker.schemas.tasks import Task
from broker.store import rows
from broker.store.archive import KEPT_TASK, record_size
from broker.store.group_commit import LATER
from broker.store.pages import bounded, is_cut
from broker.store.rows import Columns, alike
from broker.store.sql_connection import SqlConnection

HAS_ENDED = text("select task_id from ended_tasks where task_id = any(cast(:ids as text[]))")

#: The ended tasks `e` among `:ids`, each with its last record `a`.
ENDED_TASKS_WITH_RECORDS = """from ended_tasks e
join work_archive a
  on a.work_id = e.work_id
 and a.work_id = any(array(select work_id from ended_tasks where task_id = any(cast(:ids as text[]))))
where e.task_id = any(cast(:ids as text[]))"""
# The task as its last record has it. An accepted late result has its own attempt and time.
_TASK = Columns(
    id="a.task_id",
    **alike("a", "needs", "payload", "priority"),
    state="a.outcome",
    attempt="coalesce(e.attempt, a.attempt)",
    **alike("a", "max_attempts", "retry_backoff_seconds", "timeout_seconds", "not_before"),
    created_at="a.submitted_at",
    **alike("a", "work_id", "remark", "result", "error"),
    ended_at="coalesce(e.ended_at, a.ended_at)",
)
_ENDED_TASKS = f"select {_TASK}, {record_size('a')} as size {ENDED_TASKS_WITH_RECORDS}"
ENDED_TASKS = text(bounded(_ENDED_TASKS, size="r.size", order="id"))

# An assignment locks the task, so with this lock, the next statement sees whether the task has work.
LOCK = text("select from tasks where id = any(cast(:ids as text[])) order by id for update")

# A task that had no work leaves a record too, with its own work id.
RECORD_DELETED = text(f"""
with ending as materialized (
    select *, uuid7() as record_id
    from tasks t
    where id = any(cast(:ids as text[])) and {rows.without_work("t")}
),
archived as (
    insert into work_archive (work_id, task_id, attempt, outcome, result, reports, bytes,
                              task_state, remark, task_result, task_ended_at, {KEPT_TASK.names})
    select t.record_id, t.id, t.attempt, 'cancelled', 'null', '[]', {rows.task_size("t")},
           t.state, t.remark, t.result, t.ended_at, {KEPT_TASK}
    from ending t
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
    return later | {row.id: Task(**_TASK.of(row)) for row in page}


def record_deleted(connection: SqlConnection, task_ids: Collection[str]) -> set[str]:
    """Cancel those of the tasks that have no work, write a record of each, and return their ids."""
    ids = list(task_ids)
    connection.execute(LOCK, {"ids": ids})
    return set(connection.execute(RECORD_DELETED, {"ids": ids}).scalars())
