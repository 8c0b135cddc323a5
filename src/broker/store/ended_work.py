"""Ended work, as the archive has it: its outcome, its reports, and a late result."""

from collections.abc import Collection, Mapping
from uuid import UUID

from msgspec import Raw
from sqlalchemy import text

from broker.schemas.work import Report, WorkStatus, WorkWithReports
from broker.store import records, rows
from broker.store.pages import bounded, met
from broker.store.sql_connection import SqlConnection

STATUS = text("""
select outcome as state, version, cancel_requested
from work_archive
where work_id = :work_id and tool_id is not null
""")

OUTCOMES = text("""
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

# Split the reports only once, because they may have 128 MiB. Then search for the last progress from the end.
AS_WORK = text("""
with split as materialized (
    select element.report, element.place
    from work_archive
    cross join lateral json_array_elements(reports) with ordinality as element (report, place)
    where work_id = :work_id and tool_id is not null
),
backwards as (select report from split order by place desc offset 0)
select work_id as id, task_id, tool_id, attempt, outcome as state, needs, payload, cancel_requested, version,
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


def outcomes(connection: SqlConnection, work_ids: Collection[UUID]) -> dict[UUID, tuple[str, str | None]]:
    """Return the outcome of each ended work, and the outcome that its tool reported if the two differ.

    Records of tasks that were cancelled before they had work do not count.
    """
    return {
        row.work_id: (row.outcome, row.said) for row in connection.execute(OUTCOMES, {"ids": list(work_ids)})
    }


def tools_of(connection: SqlConnection, work_ids: Collection[UUID]) -> list[str]:
    """Return the tools of ended work."""
    return list(connection.execute(TOOLS_OF, {"ids": list(work_ids)}).scalars())


def keep_late(connection: SqlConnection, results: Mapping[UUID, tuple[Raw, str | None]]) -> None:
    """Store the first result and error that a tool reports after its work has ended."""
    values = {
        "work_id": list(results),
        "result": [result for result, _ in results.values()],
        "error": [error for _, error in results.values()],
    }
    connection.execute(KEEP_LATE, values)


def as_work(connection: SqlConnection, work_id: UUID, latest: int) -> WorkWithReports | None:
    """Return ended work, whose state is the outcome, with at most `latest` of its latest reports."""
    row = connection.execute(AS_WORK, {"work_id": work_id}).one_or_none()
    if row is None:
        return None
    values = {"work_id": work_id, "after": row.report_count - latest, "until": row.report_count}
    reports = [records.REPORT.decode(row.report) for row in connection.execute(LATEST_REPORTS, values)]
    return rows.fill(WorkWithReports, row, reports=reports)


def status(connection: SqlConnection, work_id: UUID) -> WorkStatus | None:
    """Return the status of ended work, whose state is the outcome, or None for unknown work."""
    row = connection.execute(STATUS, {"work_id": work_id}).one_or_none()
    return WorkStatus(**row._asdict()) if row else None


def reports(
    connection: SqlConnection, work_id: UUID, *, begin: int, limit: int
) -> tuple[list[Report], int] | None:
    """Return the reports on ended work from the number `begin` on that fit on a page.

    Returns:
        The reports, and how many there are within the limit; None if no such work has ended.
    """
    values = {"work_id": work_id, "after": begin, "until": begin + limit}
    page = connection.execute(REPORTS, values).all()
    if not page and not outcomes(connection, [work_id]):
        return None
    return [records.REPORT.decode(row.report) for row in page], met(page)
