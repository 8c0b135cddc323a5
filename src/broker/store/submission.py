"""Submission: write new tasks. The id of a live or ended task is never given to another one."""

from collections.abc import Sequence
from datetime import UTC
from typing import NamedTuple

from sqlalchemy import text

from broker.errors import Forbidden
from broker.schemas.problems import FieldError
from broker.schemas.tasks import NewTask, Task
from broker.schemas.values import NULL
from broker.store import new_ids, ownership, rows
from broker.store.group_commit import LATER
from broker.store.rows import Columns, alike
from broker.store.sql_connection import SqlConnection
from broker.store.steps import one_statement
from broker.store.tasks import find
from broker.trace_context import TraceContext

_NEW_TASKS = """
unnest(cast(:id as text[]), cast(:needs as jsonb[]), cast(:payload as json[]), cast(:priority as smallint[]),
       cast(:not_before as timestamptz[]), cast(:timeout_seconds as double precision[]),
       cast(:max_attempts as integer[]), cast(:retry_backoff_seconds as double precision[]),
       cast(:created_by as text[]), cast(:trace_context as text[]))
with ordinality
as u (id, needs, payload, priority, not_before, timeout_seconds, max_attempts, retry_backoff_seconds,
      created_by, trace_context, place)"""
_COLUMNS = """needs, payload, priority, not_before, timeout_seconds, max_attempts, retry_backoff_seconds,
       created_by, trace_context"""
_DERIVED = Columns(
    state="case when not_before > now() then 'scheduled' else 'available' end",
    due_at="case when not_before > now() then not_before end",
    bytes=f"{rows.printed('needs')} + {rows.printed('payload')}",
)
# The values of a new task that the client did not send.
_CREATED = Columns(**alike("t", "id", "state", "created_at"))

# Submissions whose ids are new, because the client sent none.
SUBMIT = text(f"""
with {new_ids.CTE}
insert into tasks as t (id, {_COLUMNS}, {_DERIVED.names})
select cast({new_ids.NEW_ID} as text), {_COLUMNS}, {_DERIVED}
from {_NEW_TASKS}, new_ids
order by place
returning {_CREATED}
""")

# Tasks get their `seq` in the order of submission, but the statement writes them in the order of their ids.
# So two submissions with the same ids cannot cause a deadlock.
SUBMIT_WITH_IDS = text(f"""
with requested as materialized (
    select place, nextval('tasks_seq_seq') as seq, coalesce(id, cast(uuid7() as text)) as id, {_COLUMNS}
    from (select * from {_NEW_TASKS} order by place) u
),
created as (
    insert into tasks as t (seq, id, {_COLUMNS}, {_DERIVED.names})
    overriding system value
    select seq, id, {_COLUMNS}, {_DERIVED}
    from requested
    order by id collate "C", seq
    on conflict (id) do nothing
    returning seq, {_CREATED}
)
select {_CREATED}
from requested
left join created t on t.seq = requested.seq
order by requested.place
""")

# If a task ends while a client submits it again, the insert waits for its deletion, and then finds its id
# free. Only a later statement sees the old task in the archive, and deletes the new one. If the record was
# deleted too, the id is free.
DELETE_ENDED = text("""
with ended as materialized (
    select e.task_id, a.work_id is not null as recorded
    from ended_tasks e
    left join work_archive a
      on a.work_id = e.work_id
     and a.work_id = any(array(select work_id from ended_tasks where task_id = any(cast(:ids as text[]))))
    where e.task_id = any(cast(:ids as text[]))
),
forgotten as (
    delete from ended_tasks where task_id = any(array(select task_id from ended where not recorded))
)
delete from tasks where id = any(array(select task_id from ended where recorded))
returning id
""")


class TaskSubmission(NamedTuple):
    """A new task, and the name of the key that submits it, if there are keys.

    With `any_owner`, an existing task with this id may belong to another key.
    """

    task: NewTask
    by: str | None = None
    any_owner: bool = True
    trace_context: TraceContext | None = None


class Submitted(NamedTuple):
    """A task, and whether this submission created it. The task is None if it belongs to another key."""

    task: Task | None
    created: bool


class BrieflySubmitted(NamedTuple):
    """A task's id, and whether this submission created it."""

    id: str
    created: bool


def _without_id(new: TaskSubmission) -> bool:
    return new.task.id is None


@one_statement(_without_id)
def submit(connection: SqlConnection, new: Sequence[TaskSubmission]) -> list[Submitted]:
    """Write new tasks, which become available in this order, and return them.

    If a live or ended task already has the id, return that task unchanged.
    """
    created = _submit(connection, new)
    known_ids = list(
        {
            submission.task.id
            for row, submission in zip(created, new, strict=True)
            if not row and submission.task.id
        }
    )
    known = dict(zip(known_ids, find(connection, known_ids), strict=True)) if known_ids else {}
    refused = set(_of_others(connection, created, new))

    def result(place: int) -> Submitted:
        if row := created[place]:
            return Submitted(_new_task(new[place].task, row), created=True)
        if place in refused:
            return Submitted(None, created=False)
        task = known[str(new[place].task.id)]
        return task if task is LATER else Submitted(task, created=False)

    return [result(place) for place in range(len(new))]


@one_statement(_without_id)
def submit_briefly(connection: SqlConnection, new: Sequence[TaskSubmission]) -> list[BrieflySubmitted]:
    """Write all new tasks or none, and return only their ids.

    Raises:
        Forbidden: Some of the ids belong to tasks of other keys.
    """
    created = _submit(connection, new)
    if refused := _of_others(connection, created, new):
        message = "is the id of a task that another key submitted: use another id"
        raise Forbidden(errors=[FieldError(field=f"items[{place}].id", message=message) for place in refused])
    return [
        BrieflySubmitted(row.id, created=True)
        if row
        else BrieflySubmitted(str(submission.task.id), created=False)
        for row, submission in zip(created, new, strict=True)
    ]


def _submit(connection: SqlConnection, new: Sequence[TaskSubmission]) -> Sequence[rows.AnyRow | None]:
    """Write new tasks, and return the row of each, or None if its id already exists."""
    tasks = [submission.task for submission in new]
    values = rows.columns(
        tasks, "id", "priority", "not_before", "timeout_seconds", "max_attempts", "retry_backoff_seconds"
    )
    values["needs"] = [task.needs for task in tasks]
    values["payload"] = [task.payload for task in tasks]
    values["created_by"] = rows.column(submission.by for submission in new)
    values["trace_context"] = rows.column(
        submission.trace_context and submission.trace_context.text for submission in new
    )
    if values["id"] is None:
        # The rows have the order in which the statement inserted them.
        return connection.execute(SUBMIT, values).all()
    written = connection.execute(SUBMIT_WITH_IDS, values).all()
    ids = [row.id for row in written]
    chosen = [id_ for id_, task in zip(ids, tasks, strict=True) if task.id and id_ is not None]
    ended = set(connection.execute(DELETE_ENDED, {"ids": chosen}).scalars()) if chosen else set()
    return [None if id_ is None or id_ in ended else row for id_, row in zip(ids, written, strict=True)]


def _new_task(new: NewTask, created: rows.AnyRow) -> Task:
    """Return a new task. PostgreSQL need not return the values that the broker has just sent."""
    return Task(
        **_CREATED.of(created),
        needs=new.needs,
        payload=new.payload,
        priority=new.priority,
        attempt=0,
        max_attempts=new.max_attempts,
        retry_backoff_seconds=new.retry_backoff_seconds,
        timeout_seconds=new.timeout_seconds,
        not_before=new.not_before and new.not_before.astimezone(UTC),
        work_id=None,
        remark=None,
        result=NULL,
        error=None,
        ended_at=None,
    )


def _of_others(
    connection: SqlConnection, created: Sequence[rows.AnyRow | None], new: Sequence[TaskSubmission]
) -> list[int]:
    """Return the positions of the submissions to refuse, because another key's task has their id."""
    known = [place for place, row in enumerate(created) if not row and not new[place].any_owner]
    if not known:
        return []
    owners = ownership.of_tasks(connection, [str(new[place].task.id) for place in known])
    return [
        place
        for place, owner in zip(known, owners, strict=True)
        if owner is not None and owner.key != new[place].by
    ]
