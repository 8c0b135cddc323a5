"""Live tasks: submit, read and retry them, and write remarks on them."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from sqlalchemy import TextClause, text

from broker.errors import Forbidden
from broker.schemas.problems import FieldError
from broker.schemas.tasks import NewTask, Task, TaskPage, TaskRemark
from broker.store import ended_tasks, ownership, rows
from broker.store.group_commit import LATER
from broker.store.pages import bounded, is_cut, kept, last_examined, read_listed, unseal
from broker.store.sql_connection import SqlConnection
from broker.store.steps import one_statement
from broker.trace_context import TraceContext

# Tasks get their `seq` in the order of submission, but the statement writes them in the order of their ids.
# So two submissions with the same ids cannot cause a deadlock.
_SUBMIT = f"""
with requested as materialized (
    select a.place, nextval('tasks_seq_seq') as seq,
           coalesce(a.id, cast(uuid7() as text)) as id, a.needs, a.payload, a.priority,
           a.not_before, a.timeout_seconds, a.max_attempts, a.retry_backoff_seconds, a.created_by,
           a.trace_context
    from (select *
          from unnest(cast(:id as text[]), cast(:needs as jsonb[]), cast(:payload as json[]),
                      cast(:priority as smallint[]), cast(:not_before as timestamptz[]),
                      cast(:timeout_seconds as double precision[]), cast(:max_attempts as integer[]),
                      cast(:retry_backoff_seconds as double precision[]), cast(:created_by as text[]),
                      cast(:trace_context as text[]))
               with ordinality
               as u (id, needs, payload, priority, not_before, timeout_seconds, max_attempts,
                     retry_backoff_seconds, created_by, trace_context, place)
          order by place) a
),
created as (
    insert into tasks as t (id, seq, needs, payload, priority, state, due_at, not_before, timeout_seconds,
                            max_attempts, retry_backoff_seconds, created_by, trace_context, bytes)
    overriding system value
    select id, seq, needs, payload, priority,
           case when not_before > now() then 'scheduled' else 'available' end,
           case when not_before > now() then not_before end,
           not_before, timeout_seconds, max_attempts, retry_backoff_seconds, created_by, trace_context,
           {rows.printed("needs")} + {rows.printed("payload")}
    from requested
    order by id collate "C", seq
    on conflict (id) do nothing
    returning t.*
)
"""
SUBMIT = text(f"""{_SUBMIT}
select {rows.TASK}
from requested
left join created t on t.seq = requested.seq
left join work w on false
order by requested.place
""")
# This statement returns only ids, for requests whose response contains no tasks.
SUBMIT_BRIEFLY = text(f"""{_SUBMIT}
select t.id
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

_BY_IDS = "select * from tasks where id = any(cast(:ids as text[]))"
BY_IDS = text(f"""
with page as materialized ({bounded(_BY_IDS, size=rows.task_size("r"), order="id")})
select {rows.TASK}, t.met
from page t
left join work w on w.id = t.work_id and w.id = any(array(select work_id from page))
""")

# The tasks whose waiting requests can return: those that have ended or failed.
READY = text("""
select u.id
from unnest(cast(:ids as text[])) as u (id)
where u.id not in (select id from tasks where state <> 'failed' and id = any(cast(:ids as text[])))
""")

# The states with an index in the order of `seq`. The index of available tasks has their order.
_SCHEDULED, _FAILED, _ASSIGNED = "state = 'scheduled'", "state = 'failed'", "state = 'assigned'"
_BY_STATE = {"scheduled": _SCHEDULED, "failed": _FAILED, "assigned": _ASSIGNED, "running": _ASSIGNED}
_FILTERS = {
    "created_by": "created_by = :created_by",
    "needs": "needs @> cast(:needs as jsonb)",
    "older_than_seconds": """
        created_at < now() - make_interval(secs => cast(:older_than_seconds as double precision))""",
}
# The work of an assigned task determines whether the task is `assigned` or `running`.
_STATE_OF_WORK = "(select w.state from work w where w.id = t.work_id) = :state"


@cache
def _listing(state: str | None, names: frozenset[str]) -> TextClause:
    """Return the statement for a list with some of the filters.

    An index finds the tasks of one state or of one key. The statement checks the other conditions for a
    bounded number of these tasks, because each further index would slow down every submission and assignment.
    A GIN index on `needs` would cost a third more WAL for each task, and thousands of entries if the needs
    are large.
    """
    keep = [condition for name, condition in _FILTERS.items() if name in names]
    by_index = _BY_STATE.get(state or "", "true")
    if by_index == "true" and "created_by" in names:
        by_index = keep.pop(0)
    if state == "available":
        keep.append("state = 'available'")
    elif by_index == _ASSIGNED:
        keep.append(_STATE_OF_WORK)
    tasks = f"select * from tasks where {by_index} and seq > :after"
    return text(f"""
with page as materialized ({bounded(kept(tasks, keep, order="seq"), size=rows.task_size("r"), order="seq")}),
examined as materialized ({last_examined(tasks, keep, order="seq", key="seq")})
select {rows.TASK}, t.seq, t.met, examined.seq as examined
from (select) always
left join page t on true
left join examined on true
left join work w on w.id = t.work_id and w.id = any(array(select work_id from page))
order by t.seq
""")


REMARK = text("""
with requested as (
    select distinct on (u.task_id) u.task_id, u.remark
    from unnest(cast(:task_id as text[]), cast(:text as text[])) with ordinality as u (task_id, remark, place)
    order by u.task_id, u.place desc
),
locked as materialized (
    select id from tasks where id in (select task_id from requested) order by id for no key update
),
-- An assigned task needs no remark on why it waits.
remarked as (
    update tasks t set remark = requested.remark, remark_at = now()
    from requested join locked on locked.id = requested.task_id
    where t.id = requested.task_id and t.id = any(cast(:task_id as text[])) and t.state <> 'assigned'
)
select id from locked
""")


RETRY = text(f"""
with locked as materialized (
    select id, state from tasks where id = any(cast(:ids as text[])) order by id for no key update
)
update tasks t
set state = 'available', attempt = 0, ended_at = null, result = null, error = null, work_id = null,
    bytes = {rows.printed("t.needs")} + {rows.printed("t.payload")}, due_at = null,
    changed = pg_current_xact_id()
from locked
where t.id = locked.id and t.id = any(cast(:ids as text[])) and locked.state = 'failed'
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


class TaskFilter(NamedTuple):
    """A filter for live tasks. None in a field selects all."""

    state: str | None = None
    needs: str | None = None
    older_than_seconds: float | None = None
    created_by: str | None = None


def _without_id(new: TaskSubmission) -> bool:
    return new.task.id is None


@one_statement(_without_id)
def submit(connection: SqlConnection, new: Sequence[TaskSubmission]) -> list[Submitted]:
    """Write new tasks, which become available in this order, and return them.

    If a live or ended task already has the id, return that task unchanged.
    """
    created = _submit(connection, SUBMIT, new)
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
            return Submitted(rows.task(row), created=True)
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
    created = _submit(connection, SUBMIT_BRIEFLY, new)
    if refused := _of_others(connection, created, new):
        message = "is the id of a task that another key submitted: use another id"
        raise Forbidden(errors=[FieldError(field=f"items[{place}].id", message=message) for place in refused])
    return [
        BrieflySubmitted(row.id, created=True)
        if row
        else BrieflySubmitted(str(submission.task.id), created=False)
        for row, submission in zip(created, new, strict=True)
    ]


def _submit(
    connection: SqlConnection, statement: TextClause, new: Sequence[TaskSubmission]
) -> Sequence[rows.AnyRow | None]:
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
    written = connection.execute(statement, values).all()
    if all(task.id is None for task in tasks):
        return written
    ids = [row.id for row in written]
    chosen = [id_ for id_, task in zip(ids, tasks, strict=True) if task.id and id_ is not None]
    ended = set(connection.execute(DELETE_ENDED, {"ids": chosen}).scalars()) if chosen else set()
    return [None if id_ is None or id_ in ended else row for id_, row in zip(ids, written, strict=True)]


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


def find(connection: SqlConnection, ids: Sequence[str]) -> list[Task | None]:
    """Return the task of each id, live or ended, or None for an unknown id."""
    live = connection.execute(BY_IDS, {"ids": list(set(ids))}).all()
    by_id: dict[str, Task | None] = {task.id: task for task in map(rows.task, live)}
    if missing := set(ids) - by_id.keys():
        by_id |= ended_tasks.find(connection, missing)
    unknown = LATER if is_cut(live) else None
    return [by_id.get(id_, unknown) for id_ in ids]


def ready_tasks(connection: SqlConnection, ids: Sequence[str]) -> list[str]:
    """Return the ids of the tasks that have ended or failed, or are unknown."""
    return list(connection.execute(READY, {"ids": ids}).scalars())


def listing(filters: TaskFilter) -> TextClause:
    """Return the statement for a page of a list."""
    names = (name for name in _FILTERS if getattr(filters, name) is not None)
    return _listing(filters.state, frozenset(names))


def page(connection: SqlConnection, filters: TaskFilter, *, limit: int, after: str | None) -> TaskPage:
    """Return a page of the live tasks, in the order of their submission."""
    begin = unseal(after, int, field="after") if after is not None else -1
    values = filters._asdict() | {"after": begin}
    items, onward = read_listed(connection, listing(filters), values, limit, key=lambda row: row.seq)
    return TaskPage(items=[rows.task(row) for row in items], next=onward)


@one_statement()
def remark(connection: SqlConnection, remarks: Sequence[TaskRemark]) -> list[bool]:
    """Write the assigner's remarks, and return for each whether the task is live."""
    known = set(connection.execute(REMARK, rows.columns(remarks, "task_id", "text")).scalars())
    return [remark.task_id in known for remark in remarks]


@one_statement()
def retry(connection: SqlConnection, ids: Sequence[str]) -> list[Task | None]:
    """Offer failed tasks again, counting attempts from zero. Return each task, or None if unknown."""
    connection.execute(RETRY, {"ids": list(ids)})
    return find(connection, ids)
