"""Failures: the attempts that did not succeed, with their errors and last messages."""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import text

from broker.schemas.overview import Failure, Failures
from broker.store import archive, rows, summaries
from broker.store.pages import cut, unseal
from broker.store.sql_connection import SqlConnection

# PostgreSQL always reads all reports on an attempt. To limit the cost, the statement skips reports above
# the first size. It begins with the newest failures, and stops when the total reaches the second size.
_MOST_REPORT_BYTES = 2**20
_MOST_BYTES_IN_ALL = 8 * 2**20

_LAST_MESSAGE = """(
           select report ->> 'message'
           from json_array_elements(r.reports) with ordinality as element (report, place)
           where report ->> 'message' is not null
           order by place desc
           limit 1)"""

# The reports are neither larger than their record, whose payload may be large, nor than the estimate.
_SIZE = f"least({archive.SIZE}, {rows.estimated('r.reports')})"

READ = text(f"""
with page as materialized (
    select work_id, task_id, tool_id, attempt, outcome, error, ended_at, late is not null as late,
           reports, {_SIZE} as bytes
    from work_archive r
    where outcome in ('failed', 'timed_out', 'lost') and tool_id is not null
      and (ended_at, work_id) < (:before_at, :before_id)
      and (cast(:since as timestamptz) is null or ended_at >= :since)
    order by ended_at desc, work_id desc
    limit :limit
),
readable as materialized (
    select work_id, reports
    from (select work_id, reports,
                 sum(bytes) over (order by ended_at desc, work_id desc rows unbounded preceding) as so_far
          from page
          where bytes <= {_MOST_REPORT_BYTES}) r
    where so_far <= {_MOST_BYTES_IN_ALL}
),
live as materialized (
    select t.id, coalesce(w.state, t.state) as state
    from tasks t
    left join work w on w.task_id = t.id and w.task_id = any(array(select task_id from page))
    where t.id = any(array(select task_id from page))
),
ended as materialized (
    select task_id, work_id from ended_tasks where task_id = any(array(select task_id from page))
)
select p.work_id, p.task_id, p.tool_id, p.attempt, p.outcome,
       {summaries.cut_in_the_middle("p.error")} as error, p.ended_at, p.late,
       {summaries.cut(_LAST_MESSAGE)} as message, coalesce(live.state, a.outcome) as task_state
from page p
left join readable r on r.work_id = p.work_id
left join live on live.id = p.task_id
left join ended on ended.task_id = p.task_id
left join work_archive a on a.work_id = ended.work_id and a.work_id = any(array(select work_id from ended))
order by p.ended_at desc, p.work_id desc
""")

_LAST_ID = UUID(int=2**128 - 1)


def page(
    connection: SqlConnection,
    *,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    after: str | None,
) -> Failures:
    """Return a page of the attempts that failed, timed out or were lost, the newest first."""
    if after is not None:
        before_at, before_id = unseal(after, tuple[datetime, UUID], field="after")
    else:
        # Exclude all ids of the moment `until`, or include all ids of the latest moment.
        before_at = until if until is not None else datetime.max.replace(tzinfo=UTC)
        before_id = UUID(int=0) if until is not None else _LAST_ID
    values = {"since": since, "before_at": before_at, "before_id": before_id, "limit": limit + 1}
    read = connection.execute(READ, values).all()
    attempts, onward = cut(read, limit, key=lambda row: (row.ended_at, row.work_id))
    return Failures(items=[Failure(**row._asdict()) for row in attempts], next=onward)
