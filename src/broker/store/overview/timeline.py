"""The timeline: the work of each tool over time."""

from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import text

from broker.schemas.overview import EndedAttempt, Timeline
from broker.store.sql_connection import SqlConnection

# Attempts that were under way at the end of a range ended after it. The statement searches for them among
# this many attempts that were assigned last before the end.
_ASSIGNED_LAST = 20_000

# Limit the times of a range: the driver sends Python's first and last times as infinite, and PostgreSQL
# cannot compute a work id from an infinite time.
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)

_COLUMNS = "work_id, task_id, tool_id, attempt, outcome, assigned_at, started_at, ended_at"
_OF_TOOL_OR_TASK = """
      and tool_id is not null
      and (cast(:tool_id as text) is null or tool_id = :tool_id)
      and (cast(:task_id as text) is null or task_id = :task_id)"""

# A work id contains the time of its assignment, so a condition on it leaves only a few partitions.
READ = text(f"""
(select {_COLUMNS}
 from work_archive
 where (cast(:since as timestamptz) is null or ended_at >= :since)
   and (cast(:until as timestamptz) is null or ended_at < :until)
   {_OF_TOOL_OR_TASK}
 order by ended_at desc, work_id desc
 limit :limit)
union all
(select {_COLUMNS}
 from (select {_COLUMNS}
       from work_archive
       where work_id < uuid7_floor(:until)
         {_OF_TOOL_OR_TASK}
       order by work_id desc
       limit {_ASSIGNED_LAST}) lately
 where ended_at >= :until
 limit :limit)
order by ended_at desc, work_id desc
limit :limit
""")


class TimelineRange(NamedTuple):
    """A filter for attempts that were under way in a time range. None in a field selects all."""

    since: datetime | None = None
    until: datetime | None = None
    tool_id: str | None = None
    task_id: str | None = None


def read(connection: SqlConnection, time_range: TimelineRange, limit: int) -> Timeline:
    """Return ended attempts, the latest first."""
    until = None if time_range.until is None else min(max(time_range.until, _EARLIEST), _LATEST)
    attempts = connection.execute(READ, time_range._asdict() | {"until": until, "limit": limit + 1}).all()
    items = [EndedAttempt(**row._asdict()) for row in attempts[:limit]]
    return Timeline(complete=len(attempts) <= limit, items=items)
