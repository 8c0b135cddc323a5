"""History: how many attempts ended in a time range, with which outcome, and how long they waited and ran."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text

from broker.schemas.overview import Bucket, History

#: If a range has more records, the oldest are left out.
MOST_RECORDS = 200_000

_DEFAULT_RANGE = timedelta(hours=1)
# There are no records before.
_EARLIEST = datetime.min.replace(tzinfo=UTC) + _DEFAULT_RANGE

NOW = text("select now()")

READ = text(f"""
with ended as materialized (
    select ended_at, outcome, attempt, assigned_at, started_at, waiting_since
    from work_archive
    where ended_at >= :since and ended_at < :until and tool_id is not null
    order by ended_at desc, work_id desc
    limit {MOST_RECORDS + 1}
)
select floor(extract(epoch from ended_at - :since) / :seconds) as bucket, count(*) as records,
       count(*) filter (where outcome = 'succeeded') as succeeded,
       count(*) filter (where outcome = 'failed') as failed,
       count(*) filter (where outcome = 'cancelled') as cancelled,
       count(*) filter (where outcome = 'released') as released,
       count(*) filter (where outcome = 'lost') as lost,
       count(*) filter (where outcome = 'timed_out') as timed_out,
       percentile_cont(array[0.5, 0.95]) within group (
           order by case when attempt = 1
                         then greatest(extract(epoch from assigned_at - waiting_since), 0) end) as wait,
       percentile_cont(array[0.5, 0.95]) within group (
           order by extract(epoch from ended_at - started_at)) as run
from ended
group by bucket
""")


def read(connection: Connection, since: datetime | None, until: datetime | None, buckets: int) -> History:
    """Return what ended in each part of a time range.

    Args:
        connection: The database.
        since: The first moment; None: an hour before the end.
        until: The first moment after the range; None: now.
        buckets: The number of parts.

    Returns:
        The parts; there are none if the range ends before it begins.
    """
    until = until or connection.execute(NOW).scalar_one()
    since = since or max(until, _EARLIEST) - _DEFAULT_RANGE
    if since >= until:
        return History(since=since, until=until, bucket_seconds=0, complete=True, items=[])
    seconds = (until - since).total_seconds() / buckets
    values = {"since": since, "until": until, "seconds": seconds}
    by_number = {int(row.bucket): row for row in connection.execute(READ, values)}
    items = []
    for number in range(buckets):
        row = by_number.get(number)
        wait = (row.wait if row else None) or (None, None)
        run = (row.run if row else None) or (None, None)
        items.append(
            Bucket(
                at=since + timedelta(seconds=number * seconds),
                succeeded=row.succeeded if row else 0,
                failed=row.failed if row else 0,
                cancelled=row.cancelled if row else 0,
                released=row.released if row else 0,
                lost=row.lost if row else 0,
                timed_out=row.timed_out if row else 0,
                wait_median_seconds=wait[0],
                wait_p95_seconds=wait[1],
                run_median_seconds=run[0],
                run_p95_seconds=run[1],
            )
        )
    records = sum(row.records for row in by_number.values())
    return History(
        since=since, until=until, bucket_seconds=seconds, complete=records <= MOST_RECORDS, items=items
    )
