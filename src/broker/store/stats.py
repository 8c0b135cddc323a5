"""Statistics: the number of tasks, tools and work items, and the events of the last minute.

The database stores no counters, so statistics cost writes nothing. One statement reads everything at the same
moment: it counts tasks in the index of each state, the few tools and work items row by row, and the last
minute in the archive.
"""

from typing import NamedTuple

from sqlalchemy import text

from broker.schemas.states import OUTCOMES, TOOL_STATES, WORK_STATES
from broker.schemas.stats import LastMinute, Stats, TaskCounts, ToolCounts, WorkCounts
from broker.store import rows
from broker.store.sql_connection import SqlConnection

_SINCE = "now() - interval '1 minute'"

# `seq` numbers follow the order of submission: the newest task that is a minute old comes right before the
# newer ones. A task that was submitted and ended within this minute counts once, by the record that ended it.
READ = text(f"""
select now() as at,
       (select count(*) from tasks where state = 'scheduled') as scheduled,
       waiting.available, work.assigned, work.running,
       (select count(*) from tasks where state = 'failed') as failed,
       tools.idle, tools.busy, tools.draining, tools.offline, tools.room,
       work.cancel_requested,
       submitted_live.count + ended.submitted as submitted,
       ended.succeeded, ended.failed as ended_failed, ended.cancelled, ended.released, ended.lost,
       ended.timed_out,
       (select cast(extract(epoch from now() - created_at) as double precision)
        from tasks where seq = waiting.oldest) as oldest_seconds,
       (select seen_at from assigner where id) as assigner_seen_at
from (
    select count(*) as available, min(seq) as oldest
    from tasks
    where state = 'available'
      and seq not in (select seq from tasks where id = any(array(select task_id from work)))
) waiting
cross join (
    select {rows.counted("state", WORK_STATES)},
           count(*) filter (where cancel_requested) as cancel_requested
    from work
) work
cross join (
    select {rows.counted("state", TOOL_STATES)},
           coalesce(sum(capacity - load) filter (where available), 0) as room
    from (select capacity, load, available, {rows.TOOL_STATE} as state from tools t) t
) tools
cross join (
    select count(*) as count
    from tasks
    where seq > coalesce(
        (select seq from tasks where created_at <= {_SINCE} order by seq desc limit 1), 0)
) submitted_live
cross join (
    select {rows.counted("outcome", OUTCOMES)},
           count(*) filter (
               where outcome in ('succeeded', 'cancelled') and submitted_at > {_SINCE}) as submitted
    from work_archive
    where ended_at > {_SINCE}
) ended
""")


# In every database of the server, PostgreSQL keeps each row that was deleted or updated since the oldest
# transaction began. It shows the transactions of other users only to members of pg_read_all_stats.
SERVER = text("""
select pg_notification_queue_usage() as queue_usage,
       (select cast(coalesce(extract(epoch from clock_timestamp() - min(began)), 0) as double precision)
        from (select xact_start as began
              from pg_stat_activity
              where backend_type = 'client backend'
                and (backend_xid is not null or backend_xmin is not null)
              union all
              select prepared from pg_prepared_xacts) open_transactions) as oldest_transaction_seconds
""")


class ServerState(NamedTuple):
    """The fill level of the server's notification queue, 0 to 1, and the age of its oldest transaction."""

    queue_usage: float
    oldest_transaction_seconds: float


def read_with_server(connection: SqlConnection) -> tuple[Stats, ServerState]:
    """Return the statistics, and the state of the server."""
    return read(connection), ServerState(**connection.execute(SERVER).one()._asdict())


def read(connection: SqlConnection) -> Stats:
    """Return the number of tasks, tools and work items, and the events of the last minute."""
    row = connection.execute(READ).one()
    return Stats(
        at=row.at,
        tasks=rows.fill(TaskCounts, row),
        tools=rows.fill(ToolCounts, row),
        work=rows.fill(WorkCounts, row),
        last_minute=rows.fill(LastMinute, row, failed=row.ended_failed),
        # A task that was written as this statement began may be slightly newer than it.
        oldest_available_seconds=None if row.oldest_seconds is None else max(0.0, row.oldest_seconds),
        assigner_seen_at=row.assigner_seen_at,
    )
