"""Work: starting, reading."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple
from uuid import UUID

from msgspec.structs import asdict
from sqlalchemy import Connection, TextClause, text

from broker.schemas.work import Work, WorkPage, WorkStatus, WorkWithReports
from broker.store import ended_work, leases, ownership, reports, rows
from broker.store.group_commit import LATER
from broker.store.ownership import Token
from broker.store.pages import bounded, fits, is_cut, kept, last_examined, read_listed, unseal
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

# A tool that has none comes with nulls, one that is unknown not at all.
ASSIGNED_TO = text(f"""
with assigned as materialized (
    select * from work where tool_id = any(cast(:tool_ids as text[])) and state = 'assigned'
),
their_tasks as materialized (
    select id, needs, payload, {rows.task_bytes("t")} as bytes
    from tasks t
    where id = any(array(select task_id from assigned))
),
sized as (
    select w.*, {fits("t.bytes", order="w.tool_id, w.assigned_at, w.id")} as fits
    from assigned w
    join their_tasks t on t.id = w.task_id
)
select {rows.WORK}, o.id as tool, w.fits, o.offline, o.token_hash, l.lease_seconds,
       cast(extract(epoch from statement_timestamp() - w.assigned_at) as double precision) as since_seconds
from tools o
join tool_leases l on l.tool_id = o.id and l.tool_id = any(cast(:tool_ids as text[]))
left join sized w on w.tool_id = o.id
left join their_tasks t on t.id = w.task_id and w.fits
where o.id = any(cast(:tool_ids as text[]))
order by o.id, w.assigned_at, w.id
""")

TOOLS_WITH_NEWS = text("""
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
def _listing(given: frozenset[str]) -> TextClause:
    """Return the statement for a list with some of the filters.

    The state has no index: that work starts and is reported on would be written to it, too.
    """
    keep = {name: condition for name, condition in _FILTERS.items() if name in given}
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
join their_tasks t on t.id = w.task_id
left join locked_leases l on l.tool_id = w.tool_id"""
# What is read of a row that is locked is its latest version, also where that was written while this waited.
START = text(f"""
with locked as materialized (
    select * from work where id = any(cast(:ids as uuid[])) order by id for no key update
),
their_tasks as materialized (
    select * from tasks where id = any(array(select task_id from locked))
),
{leases.locked("array(select tool_id from locked)")},
asked as materialized (
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
    from locked, their_tasks t
    where w.id = locked.id and w.id = any(cast(:ids as uuid[])) and locked.state = 'assigned'
      and t.id = locked.task_id and locked.id in (select id from asked)
    returning w.*
),
{leases.renewed("array(select tool_id from asked)")}
{bounded(_STARTED, size="r.bytes", order="id")}
""")

_FIRST = UUID(int=0)


class Start(NamedTuple):
    """Work to start, and the token that the request came with."""

    work_id: UUID
    token: Token | None = None


class Started(NamedTuple):
    """Work that runs, and the trace that its task was submitted in, if any."""

    work: Work
    trace_context: TraceContext | None


class Seen(NamedTuple):
    """Work with its reports, and the trace that its task was submitted in, if any; ended work has none."""

    work: WorkWithReports | WorkStatus
    trace_context: TraceContext | None


class InHand(NamedTuple):
    """The work that waits for a tool.

    Args:
        items: The work, the oldest first.
        offline: Whether the tool is taken to be offline.
        token_hash: The hash of the tool's token.
        lease_seconds: How long its lease is.
        since_seconds: How long the oldest has been assigned; None: there is none.
    """

    items: list[Work]
    offline: bool
    token_hash: bytes | None
    lease_seconds: float
    since_seconds: float | None


class WorkFilter(NamedTuple):
    """Which of the work under way is asked for; none of it: all."""

    tool_id: str | None = None
    task_id: str | None = None
    state: str | None = None
    registered_by: str | None = None


@one_statement()
def start(connection: Connection, starts: Sequence[Start]) -> list[Started | None]:
    """Start work; for each the work as it is now, None where it is not under way or the token is void."""
    values = {
        "ids": [start.work_id for start in starts],
        **ownership.token_columns(start.token for start in starts),
    }
    page = connection.execute(START, values).all()
    # To start it again returns it, and changes nothing.
    missing = LATER if is_cut(page) else None
    found: dict[UUID, tuple[Started, Token]] = {}
    for row in page:
        work = rows.work(row)
        started = Started(work, TraceContext.read(row.trace_context))
        found[work.id] = started, Token(work.tool_id, row.token_hash)

    def of(start: Start) -> Started | None:
        started, current = found.get(start.work_id, (missing, None))
        return None if ownership.is_void(start.token, current) else started

    return [of(start) for start in starts]


def assigned_to(connection: Connection, tool_ids: Sequence[str]) -> list[InHand | None]:
    """Return for each tool the work that it did not start yet, the oldest first; None: unknown.

    A response has room for the first of it. The rest is in the next ones, when the tool has started these.
    """
    found: dict[str, InHand] = {}
    without_room: set[str] = set()
    for row in connection.execute(ASSIGNED_TO, {"tool_ids": tool_ids}):
        tool_id = row.tool
        if (in_hand := found.get(tool_id)) is None:
            in_hand = found[tool_id] = InHand(
                [], row.offline, row.token_hash, row.lease_seconds, row.since_seconds
            )
        if row.fits:
            in_hand.items.append(rows.work(row))
        elif row.id is not None and not in_hand.items:
            without_room.add(tool_id)
    return [LATER if tool_id in without_room else found.get(tool_id) for tool_id in tool_ids]


def tools_with_news(connection: Connection, tool_ids: Sequence[str]) -> list[str]:
    """Those of the tools that have work to start, or are no more."""
    return list(connection.execute(TOOLS_WITH_NEWS, {"ids": tool_ids}).scalars())


def listing(which: WorkFilter) -> TextClause:
    """Return the statement for a page of a list."""
    return _listing(frozenset(name for name, value in which._asdict().items() if value is not None))


def page(connection: Connection, which: WorkFilter, *, limit: int, after: str | None) -> WorkPage:
    """Some of the work under way, in the order of its assignment."""
    begin = unseal(after, UUID, field="after") if after is not None else _FIRST
    values = which._asdict() | {"after": begin}
    items, onward = read_listed(connection, listing(which), values, limit, key=lambda row: row.id)
    return WorkPage(items=[rows.work(row) for row in items], next=onward)


def with_reports(connection: Connection, work_id: UUID) -> Seen | None:
    """Return work with its latest reports, under way or ended (its state is the outcome then).

    They are at most 1,000, and fewer where they are more than a page has room for.
    """
    found = connection.execute(BY_IDS, {"ids": [work_id]}).one_or_none()
    if found is None:
        ended = ended_work.as_work(connection, work_id, reports.MOST_LATEST)
        return Seen(ended, None) if ended else None
    work = WorkWithReports(
        **asdict(rows.work(found)),
        reports=reports.latest(connection, work_id),
        report_count=found.report_count,
    )
    return Seen(work, TraceContext.read(found.trace_context))


def status(connection: Connection, work_id: UUID) -> Seen | None:
    """Return what a watcher needs to know of work, under way or ended; None: it is unknown."""
    row = connection.execute(STATUS, {"work_id": work_id}).one_or_none()
    if row is None:
        ended = ended_work.status(connection, work_id)
        return Seen(ended, None) if ended else None
    return Seen(WorkStatus(**row._asdict()), None)
