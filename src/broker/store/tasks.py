"""Live tasks: read and retry them, and write remarks on them."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from sqlalchemy import TextClause, text

from broker.schemas.tasks import Task, TaskPage, TaskRemark
from broker.store import ended_tasks, rows
from broker.store.group_commit import LATER
from broker.store.pages import bounded, is_cut, kept, last_examined, read_listed, unseal
from broker.store.sql_connection import SqlConnection
from broker.store.steps import one_statement

_BY_IDS = "select * from tasks where id = any(cast(:ids as text[]))"
BY_IDS = text(f"""
with page as materialized ({bounded(_BY_IDS, size=rows.task_size("r"), order="id")})
select {rows.TASK}, t.met
from page t
left join work w on w.task_id = t.id and w.task_id = any(array(select id from page))
""")

# The tasks whose waiting requests can return: those that have ended or failed.
READY = text("""
select u.id
from unnest(cast(:ids as text[])) as u (id)
where u.id not in (select id from tasks where state <> 'failed' and id = any(cast(:ids as text[])))
""")

# The conditions by which an index finds the tasks of a state. Little work is under way at any time, so the
# statement sorts the tasks of all of it.
_WITH_WORK = "id = any(array(select task_id from work where state = :state))"
_BY_STATE = {
    "scheduled": "state = 'scheduled'",
    "failed": "state = 'failed'",
    "assigned": _WITH_WORK,
    "running": _WITH_WORK,
}
_FILTERS = {
    "created_by": "created_by = :created_by",
    "needs": "needs @> cast(:needs as jsonb)",
    "older_than_seconds": """
        created_at < now() - make_interval(secs => cast(:older_than_seconds as double precision))""",
}


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
        keep.append(f"state = 'available' and {rows.without_work('t')}")
    tasks = f"select * from tasks where {by_index} and seq > :after"
    return text(f"""
with page as materialized ({bounded(kept(tasks, keep, order="seq"), size=rows.task_size("r"), order="seq")}),
examined as materialized ({last_examined(tasks, keep, order="seq", key="seq")})
select {rows.TASK}, t.seq, t.met, examined.seq as examined
from (select) always
left join page t on true
left join examined on true
left join work w on w.task_id = t.id and w.task_id = any(array(select id from page))
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
    where t.id = requested.task_id and t.id = any(cast(:task_id as text[]))
      and requested.task_id not in (select task_id from work where task_id = any(cast(:task_id as text[])))
)
select id from locked
""")


RETRY = text(f"""
with locked as materialized (
    select id, state from tasks where id = any(cast(:ids as text[])) order by id for no key update
)
update tasks t
set state = 'available', attempt = 0, ended_at = null, result = null, error = null,
    bytes = {rows.printed("t.needs")} + {rows.printed("t.payload")}, due_at = null,
    changed = pg_current_xact_id()
from locked
where t.id = locked.id and t.id = any(cast(:ids as text[])) and locked.state = 'failed'
""")


class TaskFilter(NamedTuple):
    """A filter for live tasks. None in a field selects all."""

    state: str | None = None
    needs: str | None = None
    older_than_seconds: float | None = None
    created_by: str | None = None


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
