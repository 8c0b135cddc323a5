"""The archive: how every attempt ended, with all that was said about it."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple, get_args
from uuid import UUID

from msgspec import Raw
from sqlalchemy import Connection, TextClause, text

from broker.schemas.archive import ArchivePage, ArchiveRecord
from broker.schemas.states import Outcome
from broker.schemas.tasks import Task
from broker.schemas.work import Report, WorkStatus, WorkWithReports
from broker.store import rows
from broker.store.engine import one_statement
from broker.store.group_commit import LATER
from broker.store.pages import MOST_BYTES, bounded, cut, is_cut, kept, last_examined, met, unseal
from broker.store.records import read_late, read_report, read_task, read_tool
from broker.store.rows import Columns, alike

# `a` is the record.
RECORD = Columns(
    **alike("a", "work_id", "task_id", "tool_id", "task", "tool", "attempt", "outcome", "result", "error"),
    **alike("a", "late", "reports", "assigned_at", "started_at", "ended_at"),
)

_ESTIMATED = rows.estimated("r.task", "r.tool", "r.result", "r.reports", "r.late")
#: The size of a record `r` in a response: as it was stored, else estimated.
SIZE = f"coalesce(r.bytes, {_ESTIMATED}) + coalesce(octet_length(r.error), 0)"

STATUS = text("""
select outcome as state, version, cancel_requested
from work_archive
where work_id = :work_id and tool_id is not null
""")
# As many of them as a response has room for.
_FIND = "select * from work_archive where work_id = any(cast(:ids as uuid[]))"
FIND = text(f"select {RECORD}, a.met from ({bounded(_FIND, size=SIZE, order='work_id')}) a")

TOLD = text("""
select work_id, outcome, said
from work_archive
where work_id = any(cast(:ids as uuid[])) and tool_id is not null
""")

TOOLS_OF = text("""
select distinct tool_id from work_archive where work_id = any(cast(:ids as uuid[])) and tool_id is not null
""")

KEEP_LATE = text(f"""
with locked as materialized (
    select work_id, outcome, late
    from work_archive
    where work_id = any(cast(:work_id as uuid[]))
    order by work_id
    for no key update
)
update work_archive a
set late = json_build_object('outcome', 'succeeded', 'result', u.result, 'error', u.error, 'at', now()),
    bytes = a.bytes + {rows.printed("u.result")}
from unnest(cast(:work_id as uuid[]), cast(:result as json[]), cast(:error as text[]))
     as u (work_id, result, error)
join locked on locked.work_id = u.work_id
where a.work_id = u.work_id and a.work_id = any(cast(:work_id as uuid[]))
  and locked.late is null and locked.outcome <> 'succeeded'
""")

_ORDER = "ended_at desc, work_id desc"
# Literals, so that the planner sees that an index of some outcomes has them.
_OF_OUTCOME = {outcome: f"outcome = '{outcome}'" for outcome in get_args(Outcome)}
# The filters that have an index in the order of the list, those that leave the fewest records in front.
_INDEXED = ("task_id", "tool_id", "outcome", "created_by")
_SPAN = {"since": "ended_at >= :since", "until": "ended_at < :until"}


@cache
def _listing(outcome: str | None, given: frozenset[str]) -> TextClause:
    """Return the statement for a list with some of the filters.

    An index finds the records that match the first of them, in their order. The others are checked for a
    bounded number of these.
    """
    keep = {name: f"{name} = :{name}" for name in _INDEXED if name in given}
    if outcome is not None:
        keep["outcome"] = _OF_OUTCOME[outcome]
    # Most records have succeeded: the index has the others.
    indexed = [name for name in keep if name != "outcome" or outcome != "succeeded"]
    by_index = [keep.pop(name) for name in indexed[:1]]
    by_index += [condition for name, condition in _SPAN.items() if name in given]
    by_index.append("(ended_at, work_id) < (:before_at, :before_id)")
    records = f"select * from work_archive where {' and '.join(by_index)}"
    conditions = tuple(keep.values())
    return text(f"""
with page as materialized (
    {bounded(kept(records, conditions, order=_ORDER), size=SIZE, order=_ORDER, most=":most_bytes")}
),
examined as materialized ({last_examined(records, conditions, order=_ORDER, key="ended_at, work_id")})
select {RECORD}, a.met, examined.ended_at as examined_at, examined.work_id as examined_id
from (select) always
left join page a on true
left join examined on true
order by a.ended_at desc, a.work_id desc
""")


# PostgreSQL splits the reports once: they may be 128 MiB. It then looks for the last progress from their end.
AS_WORK = text("""
with split as materialized (
    select element.report, element.place
    from work_archive
    cross join lateral json_array_elements(reports) with ordinality as element (report, place)
    where work_id = :work_id and tool_id is not null
),
backwards as (select report from split order by place desc offset 0)
select work_id, task_id, tool_id, attempt, outcome, task, cancel_requested, version,
       assigned_at, started_at, deadline_at,
       (select count(*) from split) as report_count,
       (select cast(report ->> 'progress' as double precision)
        from backwards
        where report ->> 'progress' is not null
        limit 1) as progress
from work_archive
where work_id = :work_id and tool_id is not null
""")

_REPORTS = """
select element.report, element.place
from work_archive a
cross join lateral json_array_elements(a.reports) with ordinality as element (report, place)
where a.work_id = :work_id and a.tool_id is not null and place > :after and place <= :until"""
_REPORT_SIZE = "octet_length(cast(report as text))"
REPORTS, LATEST_REPORTS = (
    text(f"select report, met from ({bounded(_REPORTS, size=_REPORT_SIZE, order=order)}) r order by place")
    for order in ("place", "place desc")
)

# Its task is then forgotten, where this was its last word.
DELETE = text("""
with gone as (
    delete from work_archive where work_id = any(cast(:ids as uuid[])) returning work_id, task_id
),
forgotten as (
    delete from ended_tasks e
    using gone
    where e.task_id = gone.task_id and e.work_id = gone.work_id
      and e.task_id = any(array(select task_id from gone))
)
select work_id from gone
""")

HAS_ENDED = text("select task_id from ended_tasks where task_id = any(cast(:ids as text[]))")

_ENDED_TASKS = f"""
select e.task_id, r.task, r.outcome, coalesce(e.attempt, r.attempt) as attempt, r.result, r.error,
       coalesce(e.ended_at, r.ended_at) as ended_at, r.work_id, {SIZE} as size
from ended_tasks e
join work_archive r
  on r.work_id = e.work_id
 and r.work_id = any(array(select work_id from ended_tasks where task_id = any(cast(:ids as text[]))))
where e.task_id = any(cast(:ids as text[]))"""
ENDED_TASKS = text(bounded(_ENDED_TASKS, size="r.size", order="task_id"))

# A task that had no work leaves a record all the same, with a work id of its own.
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

# What a page that begins at the newest begins before.
_END_OF_TIME = (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))


class ArchiveFilter(NamedTuple):
    """Which records are asked for; none of it: all. `since` belongs to the range, `until` does not."""

    task_id: str | None = None
    tool_id: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    created_by: str | None = None


def find(connection: Connection, work_ids: Sequence[UUID]) -> list[ArchiveRecord | None]:
    """Return for each of these works its record; None: unknown."""
    page = connection.execute(FIND, {"ids": list(set(work_ids))}).all()
    found = {row.work_id: record(RECORD.of(row)) for row in page}
    unknown = LATER if is_cut(page) else None
    return [found.get(id_, unknown) for id_ in work_ids]


def told(connection: Connection, work_ids: Collection[UUID]) -> dict[UUID, tuple[str, str | None]]:
    """For each of these works its outcome, and what its tool said where that was something else.

    What a task without work has left is no work.
    """
    return {row.work_id: (row.outcome, row.said) for row in connection.execute(TOLD, {"ids": list(work_ids)})}


def tools_of(connection: Connection, work_ids: Collection[UUID]) -> list[str]:
    """The tools that had these works, which have ended."""
    return list(connection.execute(TOOLS_OF, {"ids": list(work_ids)}).scalars())


def keep_late(connection: Connection, results: Mapping[UUID, tuple[Raw, str | None]]) -> None:
    """Keep what tools say of work that ended without them: a result, and an error; the first stays."""
    values = {
        "work_id": list(results),
        "result": [result for result, _ in results.values()],
        "error": [error for _, error in results.values()],
    }
    connection.execute(KEEP_LATE, values)


def listing(which: ArchiveFilter) -> TextClause:
    """Return the statement for a page of a list."""
    given = (name for name in (*_INDEXED, *_SPAN) if getattr(which, name) is not None)
    return _listing(which.outcome, frozenset(given))


def page(
    connection: Connection,
    which: ArchiveFilter,
    *,
    limit: int,
    after: str | None,
    most_bytes: int = MOST_BYTES,
) -> ArchivePage:
    """Return some of the records, the newest first.

    Args:
        connection: The database.
        which: The filter.
        limit: The most records.
        after: Where the last page ended.
        most_bytes: The most bytes of JSON values beside the last record.
    """
    at, id_ = unseal(after, tuple[datetime, UUID], field="after") if after is not None else _END_OF_TIME
    values = which._asdict() | {
        "before_at": at,
        "before_id": id_,
        "limit": limit + 1,
        "most_bytes": most_bytes,
    }
    first, *more = connection.execute(listing(which), values).all()
    found = [row for row in (first, *more) if row.work_id is not None]
    examined = None if first.examined_id is None else (first.examined_at, first.examined_id)
    items, onward = cut(
        found, limit, key=lambda row: (row.ended_at, row.work_id), of=met(found), examined=examined
    )
    return ArchivePage(items=[record(RECORD.of(row)) for row in items], next=onward)


def as_work(connection: Connection, work_id: UUID, latest: int) -> WorkWithReports | None:
    """Return ended work in the form of work under way: its state is the outcome.

    Args:
        connection: To the database; a transaction is not needed.
        work_id: The work.
        latest: How many of its reports to return at most.
    """
    row = connection.execute(AS_WORK, {"work_id": work_id}).one_or_none()
    if row is None:
        return None
    task = read_task(row.task)
    values = {"work_id": work_id, "after": row.report_count - latest, "until": row.report_count}
    return WorkWithReports(
        id=row.work_id,
        task_id=row.task_id,
        tool_id=row.tool_id,
        attempt=row.attempt,
        state=row.outcome,
        needs=task.needs,
        payload=task.payload,
        progress=row.progress,
        cancel_requested=row.cancel_requested,
        version=row.version,
        assigned_at=row.assigned_at,
        started_at=row.started_at,
        deadline_at=row.deadline_at,
        reports=[read_report(row.report) for row in connection.execute(LATEST_REPORTS, values)],
        report_count=row.report_count,
    )


def status(connection: Connection, work_id: UUID) -> WorkStatus | None:
    """Return how ended work ended, its state being the outcome; None: there is none."""
    row = connection.execute(STATUS, {"work_id": work_id}).one_or_none()
    return WorkStatus(**row._asdict()) if row else None


def reports(
    connection: Connection, work_id: UUID, *, begin: int, limit: int
) -> tuple[list[Report], int] | None:
    """Return some of the reports on ended work, in order, as many as a page has room for.

    Args:
        connection: To the database; a transaction is not needed.
        work_id: The work.
        begin: How many to skip.
        limit: How many to return at most.

    Returns:
        The reports, and how many there are within the limit; None: no such work has ended.
    """
    values = {"work_id": work_id, "after": begin, "until": begin + limit}
    found = connection.execute(REPORTS, values).all()
    if not found and not told(connection, [work_id]):
        return None
    return [read_report(row.report) for row in found], met(found)


def has_ended(connection: Connection, task_ids: Collection[str]) -> set[str]:
    """Those of the tasks that have ended."""
    return set(connection.execute(HAS_ENDED, {"ids": list(task_ids)}).scalars())


def ended_tasks(connection: Connection, task_ids: Collection[str]) -> dict[str, Task]:
    """Return those of the tasks that have ended, by their ids; `LATER` where there was no room for some."""
    page = connection.execute(ENDED_TASKS, {"ids": list(task_ids)}).all()
    found: dict[str, Task] = dict.fromkeys(task_ids, LATER) if is_cut(page) else {}
    return found | {row.task_id: _ended_task(row) for row in page}


def record_deleted(connection: Connection, task_ids: Collection[str]) -> set[str]:
    """Delete those of the tasks that have no work, and record that; the ids of the deleted."""
    return set(connection.execute(RECORD_DELETED, {"ids": list(task_ids)}).scalars())


@one_statement()
def delete(connection: Connection, work_ids: Sequence[UUID]) -> list[bool]:
    """Delete records; for each whether there was one. A task that ended by it is not known any more."""
    gone = set(connection.execute(DELETE, {"ids": list(work_ids)}).scalars())
    return [id_ in gone for id_ in work_ids]


def record(columns: dict[str, Any]) -> ArchiveRecord:
    """Return a record from its columns, as `RECORD.of` returns them; the reports stay JSON.

    They are stored as responses show them, and may have 128 MiB.
    """
    tool, late = columns["tool"], columns["late"]
    columns["task"] = read_task(columns["task"])
    columns["tool"] = None if tool is None else read_tool(tool)
    columns["late"] = None if late is None else read_late(late)
    return ArchiveRecord(**columns)


def _ended_task(row: rows.AnyRow) -> Task:
    task = read_task(row.task)
    task.state, task.attempt, task.ended_at, task.work_id = (
        row.outcome,
        row.attempt,
        row.ended_at,
        row.work_id,
    )
    task.result, task.error = row.result, row.error
    return task
