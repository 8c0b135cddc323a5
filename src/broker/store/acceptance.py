"""Accepting late results: a success that came after its work had ended otherwise, taken for the task's."""

from collections.abc import Sequence
from typing import Literal, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from broker.schemas.archive import ArchiveRecord
from broker.store import archive, rows
from broker.store.group_commit import LATER
from broker.store.steps import one_statement

# Of two late results of the same task the first is taken. When its records are old a task is forgotten, and
# its id may be another's: a result is for the task that was submitted when it says.
ACCEPT = text(f"""
with locked_records as materialized (
    select work_id, task_id, outcome, late, attempt, cast(task ->> 'created_at' as timestamptz) as created_at
    from work_archive
    where work_id = any(cast(:ids as uuid[]))
    order by work_id
    for update
),
locked_tasks as materialized (
    select id, state, attempt, created_at
    from tasks
    where id = any(array(select task_id from locked_records))
    order by id
    for update
),
taken as materialized (
    select distinct on (r.task_id) r.task_id, r.work_id, r.late, greatest(t.attempt, r.attempt) as attempt
    from locked_records r
    join locked_tasks t on t.id = r.task_id and t.created_at = r.created_at
    where r.outcome <> 'succeeded' and r.late is not null and t.state <> 'assigned'
    order by r.task_id, array_position(cast(:ids as uuid[]), r.work_id)
),
accepted as (
    update work_archive a
    set outcome = 'succeeded', said = null, result = taken.late -> 'result', error = taken.late ->> 'error',
        version = a.version + 1, bytes = a.bytes + {rows.printed("taken.late -> 'result'")}
    from taken
    where a.work_id = taken.work_id and a.work_id = any(cast(:ids as uuid[]))
),
ended as (
    insert into ended_tasks (task_id, work_id, attempt, ended_at)
    select task_id, work_id, attempt, now() from taken order by task_id
)
delete from tasks where id = any(array(select task_id from taken))
""")


class Accepted(NamedTuple):
    """What became of an acceptance; the record is the archive's, None for `unknown`."""

    status: Literal["accepted", "nothing_to_accept", "task_unavailable", "unknown"]
    record: ArchiveRecord | None


@one_statement()
def accept(connection: Connection, work_ids: Sequence[UUID]) -> list[Accepted]:
    """Take late results as those of their tasks; for each what became of it, or did before."""
    connection.execute(ACCEPT, {"ids": list(work_ids)})
    return [record if record is LATER else _accepted(record) for record in archive.find(connection, work_ids)]


def _accepted(record: ArchiveRecord | None) -> Accepted:
    if record is None:
        return Accepted("unknown", None)
    if record.late is None:
        return Accepted("nothing_to_accept", record)
    return Accepted("accepted" if record.outcome == "succeeded" else "task_unavailable", record)
