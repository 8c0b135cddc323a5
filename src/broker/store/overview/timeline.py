"""The timeline: which tool was at what, and when."""

from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from broker.schemas.overview import Attempted, Timeline

# What was under way at the end of a span ended after it. It is looked for among so many: those that were
# assigned last before the end.
_ASSIGNED_LAST = 20_000

# The driver tells the first and the last moment that Python knows as endless times, of which no id is.
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)

_COLUMNS = "work_id, task_id, tool_id, attempt, outcome, assigned_at, started_at, ended_at"
_OF_WHOM = """
      and tool_id is not null
      and (cast(:tool_id as text) is null or tool_id = :tool_id)
      and (cast(:task_id as text) is null or task_id = :task_id)"""

# An id of work is of the moment of its assignment, so that by it the partitions are few.
READ = text(f"""
(select {_COLUMNS}
 from work_archive
 where (cast(:since as timestamptz) is null or ended_at >= :since)
   and (cast(:until as timestamptz) is null or ended_at < :until)
   {_OF_WHOM}
 order by ended_at desc, work_id desc
 limit :limit)
union all
(select {_COLUMNS}
 from (select {_COLUMNS}
       from work_archive
       where work_id < uuid7_floor(:until)
         {_OF_WHOM}
       order by work_id desc
       limit {_ASSIGNED_LAST}) lately
 where ended_at >= :until
 limit :limit)
order by ended_at desc, work_id desc
limit :limit
""")


class TimelineRange(NamedTuple):
    """Which attempts are asked for: those that were under way in a span of time. None of it: all."""

    since: datetime | None = None
    until: datetime | None = None
    tool_id: str | None = None
    task_id: str | None = None


def read(connection: Connection, span: TimelineRange, limit: int) -> Timeline:
    """Attempts that have ended, those that ended last first."""
    until = None if span.until is None else min(max(span.until, _EARLIEST), _LATEST)
    found = connection.execute(READ, span._asdict() | {"until": until, "limit": limit + 1}).all()
    items = [Attempted(**row._asdict()) for row in found[:limit]]
    return Timeline(complete=len(found) <= limit, items=items)
