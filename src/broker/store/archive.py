"""The archive: a record of each ended attempt, with its task, its tool and all reports."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple, get_args
from uuid import UUID

from sqlalchemy import TextClause, text

from broker.schemas.archive import ArchivePage, ArchiveRecord
from broker.schemas.states import Outcome
from broker.schemas.tasks import Task
from broker.schemas.tools import ToolStatus
from broker.store import records, rows
from broker.store.group_commit import LATER
from broker.store.pages import MOST_BYTES, bounded, cut, is_cut, kept, last_examined, met, unseal
from broker.store.rows import Columns, alike
from broker.store.sql_connection import SqlConnection
from broker.store.steps import one_statement

# `a` is the record. Its row has the columns of the record itself, then those of the task and of the tool.
_RECORD = Columns(
    **alike("a", "work_id", "task_id", "tool_id", "attempt", "outcome", "result", "error"),
    **alike("a", "late", "reports", "assigned_at", "started_at", "ended_at"),
)
_TASK = Columns(
    id="a.task_id",
    **alike("a", "needs", "payload", "priority"),
    state="a.task_state",
    attempt="a.task_attempt",
    **alike("a", "max_attempts", "retry_backoff_seconds", "timeout_seconds", "not_before"),
    created_at="a.submitted_at",
    work_id="case when a.tool_id is not null then a.work_id end",
    remark="a.remark",
    result="coalesce(a.task_result, 'null')",
    error="a.task_error",
    ended_at="a.task_ended_at",
)
_TOOL = Columns(
    id="a.tool_id",
    **alike("a", "skills", "capacity", "load"),
    state="a.tool_state",
    **alike("a", "lease_seconds", "lease_expires_at", "registered_at", "seen_at"),
)
#: The select list of a record, for the function `record`.
RECORD = f"{_RECORD}, {_TASK.values}, {_TOOL.values}"

#: The columns that keep the task of a record: `t` is the task.
KEPT_TASK = Columns(
    **alike("t", "needs", "payload", "priority", "max_attempts", "retry_backoff_seconds"),
    task_attempt="t.attempt",
    **alike("t", "timeout_seconds", "not_before"),
    task_error="t.error",
    created_by="t.created_by",
    submitted_at="t.created_at",
    waiting_since="greatest(t.created_at, t.not_before)",
)
#: The columns that keep the tool of a record: `o` is the tool, and `l` its lease.
KEPT_TOOL = Columns(
    **alike("o", "skills", "capacity", "load", "registered_at", "registered_by"),
    tool_state=rows.tool_state("o"),
    lease_seconds="l.lease_seconds",
    lease_expires_at="l.expires_at",
    seen_at="l.seen_at",
)


def record_size(record: str) -> str:
    """Return SQL for the size of the row `record` in a response: the stored size, or else an estimate."""
    names = ("needs", "payload", "task_result", "skills", "result", "reports", "late")
    values = (f"{record}.{name}" for name in names)
    return f"coalesce({record}.bytes, {rows.estimated(*values)}) + coalesce(octet_length({record}.error), 0)"


SIZE = record_size("r")

# The records that fit in one response.
_FIND = "select * from work_archive where work_id = any(cast(:ids as uuid[]))"
FIND = text(f"select {RECORD}, a.met from ({bounded(_FIND, size=SIZE, order='work_id')}) a")


_ORDER = "ended_at desc, work_id desc"
# Literals: the planner can then use the index that covers only some outcomes.
_OF_OUTCOME = {outcome: f"outcome = '{outcome}'" for outcome in get_args(Outcome)}
# The filters that have an index in the order of the list, the most selective first.
_INDEXED = ("task_id", "tool_id", "outcome", "created_by")
_RANGE = {"since": "ended_at >= :since", "until": "ended_at < :until"}


@cache
def _listing(outcome: str | None, names: frozenset[str]) -> TextClause:
    """Return the statement that lists records with these filters.

    The statement finds the records for the first filter through an index, newest first. It checks the other
    filters for a bounded number of these records.
    """
    keep = {name: f"{name} = :{name}" for name in _INDEXED if name in names}
    if outcome is not None:
        keep["outcome"] = _OF_OUTCOME[outcome]
    # Most records have the outcome `succeeded`. So the index contains only records with other outcomes.
    indexed = [name for name in keep if name != "outcome" or outcome != "succeeded"]
    by_index = [keep.pop(name) for name in indexed[:1]]
    by_index += [condition for name, condition in _RANGE.items() if name in names]
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


# If the record was the last one of an ended task, the task's id becomes free.
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


# The position before the newest record.
_END_OF_TIME = (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))


class ArchiveFilter(NamedTuple):
    """A filter for records; None in a field selects all. The range includes `since` and excludes `until`."""

    task_id: str | None = None
    tool_id: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    created_by: str | None = None


def find(connection: SqlConnection, work_ids: Sequence[UUID]) -> list[ArchiveRecord | None]:
    """Return the record of each work item, or None for unknown work."""
    page = connection.execute(FIND, {"ids": list(set(work_ids))}).all()
    by_id = {row.work_id: record(row) for row in page}
    unknown = LATER if is_cut(page) else None
    return [by_id.get(id_, unknown) for id_ in work_ids]


def listing(filters: ArchiveFilter) -> TextClause:
    """Return the statement for a page of a list."""
    names = (name for name in (*_INDEXED, *_RANGE) if getattr(filters, name) is not None)
    return _listing(filters.outcome, frozenset(names))


def page(
    connection: SqlConnection,
    filters: ArchiveFilter,
    *,
    limit: int,
    after: str | None,
    most_bytes: int = MOST_BYTES,
) -> ArchivePage:
    """Return a page of the records, the newest first.

    All records except the last one have at most `most_bytes` of JSON values together.
    """
    at, id_ = unseal(after, tuple[datetime, UUID], field="after") if after is not None else _END_OF_TIME
    values = {"before_at": at, "before_id": id_, "limit": limit + 1, "most_bytes": most_bytes}
    first, *more = connection.execute(listing(filters), filters._asdict() | values).all()
    read = [row for row in (first, *more) if row.work_id is not None]
    examined = None if first.examined_id is None else (first.examined_at, first.examined_id)
    items, onward = cut(
        read, limit, key=lambda row: (row.ended_at, row.work_id), of=met(read), examined=examined
    )
    return ArchivePage(items=list(map(record, items)), next=onward)


@one_statement()
def delete(connection: SqlConnection, work_ids: Sequence[UUID]) -> list[bool]:
    """Delete records, and return for each id whether there was one.

    When the last record of a task is deleted, the task is unknown.
    """
    deleted = set(connection.execute(DELETE, {"ids": list(work_ids)}).scalars())
    return [id_ in deleted for id_ in work_ids]


def record(row: Sequence[Any]) -> ArchiveRecord:
    """Return the record of a row that begins with the columns of `RECORD`.

    The reports stay JSON: they are stored as responses show them, and may have 128 MiB.
    """
    own = _RECORD.of(row)
    late = own.pop("late")
    return ArchiveRecord(
        **own,
        task=Task(**_TASK.of(row[len(_RECORD) :])),
        tool=None if own["tool_id"] is None else ToolStatus(**_TOOL.of(row[len(_RECORD) + len(_TASK) :])),
        late=None if late is None else records.LATE_RESULT.decode(late),
    )
