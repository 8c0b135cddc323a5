"""History: how much has ended, how it has, and how long it had waited and run, over a span of time."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text

from broker.schemas.overview import Bucket, History

#: Of a span that has more, the oldest are left out.
MOST_RECORDS = 200_000

_DEFAULT_SPAN = timedelta(hours=1)
# There is nothing before.
_EARLIEST = datetime.min.replace(tzinfo=UTC) + _DEFAULT_SPAN

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
    """What ended in each part of a span of time.

    Args:
        connection: The database.
        since: The first moment; None: an hour before its end.
        until: The first moment after it; None: now.
        buckets: How many parts it has.

    Returns:
        Its parts; none of a span that ends before it begins.
    """
    until = until or connection.execute(NOW).scalar_one()
    since = since or max(until, _EARLIEST) - _DEFAULT_SPAN
    if since >= until:
        return History(since=since, until=until, bucket_seconds=0, complete=True, items=[])
    seconds = (until - since).total_seconds() / buckets
    values = {"since": since, "until": until, "seconds": seconds}
    found = {int(row.bucket): row for row in connection.execute(READ, values)}
    items = []
    for number in range(buckets):
        row = found.get(number)
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
    records = sum(row.records for row in found.values())
    return History(
        since=since, until=until, bucket_seconds=seconds, complete=records <= MOST_RECORDS, items=items
    )
