"""Acceptance of late results: the task's result becomes a success that arrived after its work had ended."""

from collections.abc import Sequence
from typing import Literal, NamedTuple
from uuid import UUID

from sqlalchemy import text

from broker.schemas.archive import ArchiveRecord
from broker.store import archive, rows
from broker.store.group_commit import LATER
from broker.store.sql_connection import SqlConnection

# Without these locks, the task could get work while the next statement runs.
LOCK = text("""
with locked_records as materialized (
    select work_id, task_id
    from work_archive
    where work_id = any(cast(:ids as uuid[]))
    order by work_id
    for update
)
select id from tasks where id = any(array(select task_id from locked_records)) order by id for update
""")

# If a task has two late results, the statement accepts the first. When the records of a task are deleted, a
# new task may have its id. So a result counts only for a task that was submitted at the record's time.
ACCEPT = text(f"""
with records as materialized (
    select work_id, task_id, outcome, late, attempt, submitted_at
    from work_archive
    where work_id = any(cast(:ids as uuid[]))
),
acceptable as materialized (
    select distinct on (r.task_id) r.task_id, r.work_id, r.late, greatest(t.attempt, r.attempt) as attempt
    from records r
    join tasks t
      on t.id = r.task_id and t.created_at = r.submitted_at
     and t.id = any(array(select task_id from records))
    where r.outcome <> 'succeeded' and r.late is not null and {rows.without_work("t")}
    order by r.task_id, array_position(cast(:ids as uuid[]), r.work_id)
),
accepted as (
    update work_archive a
    set outcome = 'succeeded', said = null, result = acceptable.late -> 'result',
        error = acceptable.late ->> 'error',
        version = a.version + 1, bytes = a.bytes + {rows.printed("acceptable.late -> 'result'")}
    from acceptable
    where a.work_id = acceptable.work_id and a.work_id = any(cast(:ids as uuid[]))
),
ended as (
    insert into ended_tasks (task_id, work_id, attempt, ended_at)
    select task_id, work_id, attempt, now() from acceptable order by task_id
)
delete from tasks where id = any(array(select task_id from acceptable))
""")


class Accepted(NamedTuple):
    """The result of an acceptance, and the archive record, which is None for `unknown`."""

    status: Literal["accepted", "nothing_to_accept", "task_unavailable", "unknown"]
    record: ArchiveRecord | None


def accept(connection: SqlConnection, work_ids: Sequence[UUID]) -> list[Accepted]:
    """Accept late results as those of their tasks, and return the status of each.

    For a result that was accepted before, the status is `accepted` again.
    """
    ids = list(work_ids)
    connection.execute(LOCK, {"ids": ids})
    connection.execute(ACCEPT, {"ids": ids})
    return [record if record is LATER else _accepted(record) for record in archive.find(connection, work_ids)]


def _accepted(record: ArchiveRecord | None) -> Accepted:
    if record is None:
        return Accepted("unknown", None)
    if record.late is None:
        return Accepted("nothing_to_accept", record)
    return Accepted("accepted" if record.outcome == "succeeded" else "task_unavailable", record)
