"""Work under way: start it and read it."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple
from uuid import UUID

from msgspec.structs import asdict
from sqlalchemy import TextClause, text

from broker.schemas.limits import MOST_LATEST_REPORTS
from broker.schemas.work import Work, WorkPage, WorkStatus, WorkWithReports
from broker.store import ended_work, leases, ownership, reports, rows
from broker.store.group_commit import LATER
from broker.store.ownership import Token
from broker.store.pages import bounded, fits, is_cut, kept, last_examined, read_listed, unseal
from broker.store.sql_connection import SqlConnection
from broker.store.steps import one_statement
from broker.trace_context import TraceContext

BY_IDS = text(f"""
select {rows.WORK}, t.trace_context, w.report_count
from work w
join tasks t
  on t.id = w.task_id and t.id = any(array(select task_id from work where id = any(cast(:ids as uuid[]))))
where w.id = any(cast(:ids as uuid[]))
""")

STATUS = text("""
select state, version, cancel_requested from work where id = :work_id
""")

# A tool without work has one row of nulls. An unknown tool has no row.
ASSIGNED_TO = text(f"""
with assigned as materialized (
    select * from work where tool_id = any(cast(:tool_ids as text[])) and state = 'assigned'
),
tasks_of_work as materialized (
    select id, needs, payload, {rows.task_bytes("t")} as bytes
    from tasks t
    where id = any(array(select task_id from assigned))
),
sized as (
    select w.*, {fits("t.bytes", order="w.tool_id, w.assigned_at, w.id")} as fits
    from assigned w
    join tasks_of_work t on t.id = w.task_id
)
select {rows.WORK}, o.id as tool, w.fits, o.offline, o.token_hash, l.lease_seconds,
       cast(extract(epoch from statement_timestamp() - w.assigned_at) as double precision) as since_seconds
from tools o
join tool_leases l on l.tool_id = o.id and l.tool_id = any(cast(:tool_ids as text[]))
left join sized w on w.tool_id = o.id
left join tasks_of_work t on t.id = w.task_id and w.fits
where o.id = any(cast(:tool_ids as text[]))
order by o.id, w.assigned_at, w.id
""")

TOOLS_READY = text("""
select u.id
from unnest(cast(:ids as text[])) as u (id)
where u.id in (select tool_id from work where state = 'assigned' and tool_id = any(cast(:ids as text[])))
   or u.id not in (select id from tools where id = any(cast(:ids as text[])))
""")

_FILTERS = {
    "task_id": "task_id = :task_id",
    "tool_id": "tool_id = :tool_id",
    "state": "state = :state",
    "registered_by": "tool_id in (select id from tools where registered_by = :registered_by)",
}
_INDEXED = ("task_id", "tool_id")
_PAGE = f"""
select {rows.WORK}, {rows.task_bytes("t")} as bytes
from page w
join tasks t on t.id = w.task_id and t.id = any(array(select task_id from page))"""


@cache
def _listing(names: frozenset[str]) -> TextClause:
    """Return the statement for a list with some of the filters.

    The state has no index: each start and report would write to it, too.
    """
    keep = {name: condition for name, condition in _FILTERS.items() if name in names}
    by_index = [keep.pop(name) for name in _INDEXED if name in keep][:1]
    works = f"select * from work where {' and '.join([*by_index, 'id > :after'])}"
    conditions = tuple(keep.values())
    return text(f"""
with page as materialized ({kept(works, conditions, order="id")}),
examined as materialized ({last_examined(works, conditions, order="id", key="id")})
select w.*, examined.id as examined
from (select) always
left join ({bounded(_PAGE, size="r.bytes", order="id")}) w on true
left join examined on true
order by w.id
""")


_STARTED = f"""
select {rows.WORK}, t.trace_context, l.token_hash, {rows.task_bytes("t")} as bytes
from (select * from started union all select * from locked where id not in (select id from started)) w
join tasks_of_work t on t.id = w.task_id
left join locked_leases l on l.tool_id = w.tool_id"""
# The statement reads locked rows in their latest version, even if that was written while it waited for the
# lock.
START = text(f"""
with locked as materialized (
    select * from work where id = any(cast(:ids as uuid[])) order by id for no key update
),
tasks_of_work as materialized (
    select * from tasks where id = any(array(select task_id from locked))
),
{leases.locked("array(select tool_id from locked)")},
requested as materialized (
    select locked.id, locked.tool_id
    from unnest(cast(:ids as uuid[]), {ownership.HOLDERS}) as u (id, token_tool, token_hash)
    join locked on locked.id = u.id
    left join locked_leases l on l.tool_id = locked.tool_id
    where {ownership.is_current("u", "locked.tool_id", "l.token_hash")}
),
started as (
    update work w
    set state = 'running', started_at = now(), version = w.version + 1,
        deadline_at = now() + make_interval(secs => t.timeout_seconds)
    from locked, tasks_of_work t
    where w.id = locked.id and w.id = any(cast(:ids as uuid[])) and locked.state = 'assigned'
      and t.id = locked.task_id and locked.id in (select id from requested)
    returning w.*
),
{leases.renewed("array(select tool_id from requested)")}
{bounded(_STARTED, size="r.bytes", order="id")}
""")

_FIRST = UUID(int=0)


class Start(NamedTuple):
    """A request to start work, and its token."""

    work_id: UUID
    token: Token | None = None


class Started(NamedTuple):
    """Running work, and the trace in which its task was submitted, if there is one."""

    work: Work
    trace_context: TraceContext | None


class TracedWork(NamedTuple):
    """Work, and the trace in which its task was submitted. Without a trace, and for ended work, None."""

    work: WorkWithReports | WorkStatus
    trace_context: TraceContext | None


class AssignedWork(NamedTuple):
    """The work that is assigned to a tool and not started, the oldest first, and facts about the tool.

    `since_seconds` is the time since the assignment of the oldest work, or None without work.
    """

    items: list[Work]
    offline: bool
    token_hash: bytes | None
    lease_seconds: float
    since_seconds: float | None


class WorkFilter(NamedTuple):
    """A filter for work under way. None in a field selects all."""

    tool_id: str | None = None
    task_id: str | None = None
    state: str | None = None
    registered_by: str | None = None


@one_statement()
def start(connection: SqlConnection, starts: Sequence[Start]) -> list[Started | None]:
    """Start work, and return it. For work that is not under way, or an invalid token, the result is None."""
    values = {
        "ids": [start.work_id for start in starts],
        **ownership.token_columns(start.token for start in starts),
    }
    page = connection.execute(START, values).all()
    # Starting running work again returns it and changes nothing.
    missing = LATER if is_cut(page) else None
    by_id: dict[UUID, tuple[Started, Token]] = {}
    for row in page:
        work = rows.work(row)
        started = Started(work, TraceContext.read(row.trace_context))
        by_id[work.id] = started, Token(work.tool_id, row.token_hash)

    def result(start: Start) -> Started | None:
        started, current = by_id.get(start.work_id, (missing, None))
        return None if ownership.is_void(start.token, current) else started

    return [result(start) for start in starts]


def assigned_to(connection: SqlConnection, tool_ids: Sequence[str]) -> list[AssignedWork | None]:
    """Return the work that each tool has not started, the oldest first, or None for an unknown tool.

    If not all of the work fits in one response, the rest follows when the tool has started the first part.
    """
    by_tool: dict[str, AssignedWork] = {}
    without_room: set[str] = set()
    for row in connection.execute(ASSIGNED_TO, {"tool_ids": tool_ids}):
        tool_id = row.tool
        if (assigned := by_tool.get(tool_id)) is None:
            assigned = by_tool[tool_id] = AssignedWork(
                [], row.offline, row.token_hash, row.lease_seconds, row.since_seconds
            )
        if row.fits:
            assigned.items.append(rows.work(row))
        elif row.id is not None and not assigned.items:
            without_room.add(tool_id)
    return [LATER if tool_id in without_room else by_tool.get(tool_id) for tool_id in tool_ids]


def ready_tools(connection: SqlConnection, tool_ids: Sequence[str]) -> list[str]:
    """Return the ids of the tools that have work to start, or no longer exist."""
    return list(connection.execute(TOOLS_READY, {"ids": tool_ids}).scalars())


def listing(filters: WorkFilter) -> TextClause:
    """Return the statement for a page of a list."""
    return _listing(frozenset(name for name, value in filters._asdict().items() if value is not None))


def page(connection: SqlConnection, filters: WorkFilter, *, limit: int, after: str | None) -> WorkPage:
    """Return a page of the work under way, in the order of its assignment."""
    begin = unseal(after, UUID, field="after") if after is not None else _FIRST
    values = filters._asdict() | {"after": begin}
    items, onward = read_listed(connection, listing(filters), values, limit, key=lambda row: row.id)
    return WorkPage(items=[rows.work(row) for row in items], next=onward)


def with_reports(connection: SqlConnection, work_id: UUID) -> TracedWork | None:
    """Return work with its latest reports. The state of ended work is its outcome.

    The result has at most `MOST_LATEST_REPORTS` reports, and fewer if they do not fit on a page.
    """
    row = connection.execute(BY_IDS, {"ids": [work_id]}).one_or_none()
    if row is None:
        ended = ended_work.as_work(connection, work_id, MOST_LATEST_REPORTS)
        return TracedWork(ended, None) if ended else None
    work = WorkWithReports(
        **asdict(rows.work(row)),
        reports=reports.latest(connection, work_id),
        report_count=row.report_count,
    )
    return TracedWork(work, TraceContext.read(row.trace_context))


def status(connection: SqlConnection, work_id: UUID) -> TracedWork | None:
    """Return the status of work, under way or ended, or None for unknown work."""
    row = connection.execute(STATUS, {"work_id": work_id}).one_or_none()
    work = WorkStatus(**row._asdict()) if row else ended_work.status(connection, work_id)
    return TracedWork(work, None) if work else None
