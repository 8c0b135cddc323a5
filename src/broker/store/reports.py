"""Reports on work: write and read them. When the work ends, `completion` moves them to the archive."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text

from broker.schemas.limits import MOST_LATEST_REPORTS
from broker.schemas.work import NewReport, Report, ReportPage
from broker.store import ended_work, leases, ownership, rows
from broker.store.ownership import Token
from broker.store.pages import bounded, cut, met, unseal
from broker.store.rows import Columns
from broker.store.sql_connection import SqlConnection
from broker.store.steps import one_statement
from broker.trace_context import TraceContext

# The maximum size and number of the reports in one archive record. Without limits, a record could become too
# large to write, and the work could not end.
_MOST_REPORT_BYTES = 128 * 2**20
_MOST_REPORTS = 100_000
# The bytes of a report in the record apart from its message and data: names, id, time and progress.
_REPORT_OVERHEAD = 256

REPORT = text(f"""
with locked as materialized (
    select * from work where id = any(cast(:work_id as uuid[])) order by id for no key update
),
tasks_of_work as materialized (
    select id, timeout_seconds, trace_context from tasks where id = any(array(select task_id from locked))
),
{leases.locked("array(select tool_id from locked)")},
requested as materialized (
    select u.place, u.work_id, locked.tool_id, coalesce(u.id, uuid7()) as id, u.progress, u.message, u.data,
           built.size,
           locked.report_bytes + sum(built.size) over so_far <= {_MOST_REPORT_BYTES}
           and locked.report_count + count(*) over so_far <= {_MOST_REPORTS} as fits
    from unnest(cast(:work_id as uuid[]), cast(:id as uuid[]), cast(:progress as double precision[]),
                cast(:message as text[]), cast(:data as json[]), {ownership.HOLDERS}) with ordinality
         as u (work_id, id, progress, message, data, token_tool, token_hash, place)
    join locked on locked.id = u.work_id
    join locked_leases l on l.tool_id = locked.tool_id
    cross join lateral (
        select octet_length(cast(u.data as text))
               + coalesce(octet_length(cast(to_json(u.message) as text)), 0) + {_REPORT_OVERHEAD} as size
    ) built
    where {ownership.is_current("u", "locked.tool_id", "l.token_hash")}
    window so_far as (partition by u.work_id order by u.place)
),
written as (
    insert into work_reports (work_id, id, progress, message, data, size)
    select work_id, id, progress, message, data, size from requested where fits order by place
    on conflict (work_id, id) do nothing
    returning work_id, seq, id, progress, size
),
latest as (
    select work_id, cast(count(*) as integer) as reports,
           (array_agg(progress order by seq desc) filter (where progress is not null))[1] as progress,
           sum(size) as bytes
    from written
    group by work_id
),
-- One update for the report and the start.
updated as (
    update work w
    set version = w.version + latest.reports, progress = coalesce(latest.progress, w.progress),
        report_bytes = w.report_bytes + latest.bytes, report_count = w.report_count + latest.reports,
        state = 'running', started_at = coalesce(w.started_at, now()),
        deadline_at = case when w.state = 'running' then w.deadline_at
                           else now() + make_interval(secs => t.timeout_seconds) end
    from latest, locked, tasks_of_work t
    where w.id = latest.work_id and w.id = any(cast(:work_id as uuid[])) and locked.id = latest.work_id
      and t.id = locked.task_id
),
{leases.renewed("array(select tool_id from requested)")}
select requested.place, requested.id,
       written.id is not null
       and requested.place = min(requested.place) over (partition by requested.work_id, requested.id)
           as created,
       locked.cancel_requested, renewed.expires_at,
       requested.fits or written.id is not null or exists (
           select from work_reports r where r.work_id = requested.work_id and r.id = requested.id
       ) as is_stored,
       t.trace_context
from requested
join locked on locked.id = requested.work_id
join tasks_of_work t on t.id = locked.task_id
join renewed on renewed.tool_id = locked.tool_id
left join written on written.work_id = requested.work_id and written.id = requested.id
""")

_REPORT = Columns(id="id", at="at", progress="progress", message="message", data="data")
# Reports of an older version have no size.
_SIZE = f"coalesce(size, {rows.estimated('data')} + coalesce(octet_length(message), 0))"
_LATEST = f"select * from work_reports where work_id = :work_id order by seq desc limit {MOST_LATEST_REPORTS}"
LATEST = text(f"""
select {_REPORT}
from ({bounded(_LATEST, size=_SIZE, order="seq desc")}) r
order by seq
""")
# Reports are only added, under the lock of their work. So a page can begin at the number of a report.
_PAGE = """
select * from work_reports where work_id = :work_id order by seq limit :limit offset :after"""
PAGE = text(f"""
select {_REPORT}, met
from ({bounded(_PAGE, size=_SIZE, order="seq")}) r
""")

IS_UNDER_WAY = text("select id from work where id = :work_id")


class ReportOf(NamedTuple):
    """A report, its work, and the token of the request."""

    work_id: UUID
    report: NewReport
    token: Token | None = None


class WrittenReport(NamedTuple):
    """The result of writing a report.

    Args:
        created: Whether this request wrote the report.
        is_stored: Whether the report is stored. If not, the work has too many reports.
        trace_context: The trace in which the task was submitted, if any.
    """

    id: UUID
    created: bool
    cancel_requested: bool
    lease_expires_at: datetime
    is_stored: bool
    trace_context: TraceContext | None


@one_statement()
def write(connection: SqlConnection, reports: Sequence[ReportOf]) -> list[WrittenReport | None]:
    """Write reports in order, and return the result of each.

    The result is None if the work is not under way or the token is invalid. The first report starts the work.
    If a report's id is already stored, the report is not written again.
    """
    values = rows.columns((report.report for report in reports), "id", "progress", "message") | {
        "work_id": [report.work_id for report in reports],
        "data": [report.report.data for report in reports],
        **ownership.token_columns(report.token for report in reports),
    }
    written = {
        row.place: WrittenReport(
            id=row.id,
            created=row.created,
            cancel_requested=row.cancel_requested,
            lease_expires_at=row.expires_at,
            is_stored=row.is_stored,
            trace_context=TraceContext.read(row.trace_context),
        )
        for row in connection.execute(REPORT, values)
    }
    return [written.get(place) for place in range(1, len(reports) + 1)]


def latest(connection: SqlConnection, work_id: UUID) -> list[Report]:
    """Return the latest reports on work under way that fit on a page, in order."""
    return [Report(**row._asdict()) for row in connection.execute(LATEST, {"work_id": work_id})]


def page(connection: SqlConnection, work_id: UUID, *, limit: int, after: str | None) -> ReportPage | None:
    """Return a page of the reports on work, under way or ended, in order, or None for unknown work."""
    begin = unseal(after, int, field="after") if after is not None else 0
    items: Sequence[Report]
    if connection.execute(IS_UNDER_WAY, {"work_id": work_id}).one_or_none() is not None:
        values = {"work_id": work_id, "limit": limit + 1, "after": begin}
        read = connection.execute(PAGE, values).all()
        items, of = [Report(**_REPORT.of(row)) for row in read], met(read)
    elif (ended := ended_work.reports(connection, work_id, begin=begin, limit=limit + 1)) is not None:
        items, of = ended
    else:
        return None
    on_page, onward = cut(items, limit, key=lambda _: begin + min(limit, len(items)), of=of)
    return ReportPage(items=list(on_page), next=onward)
