"""History: the attempts that ended in a time range, counted by outcome, with waiting and running times."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from broker.schemas.overview import Bucket, History
from broker.schemas.states import OUTCOMES
from broker.store import rows
from broker.store.sql_connection import SqlConnection

#: If a range has more records, the oldest are left out.
MOST_RECORDS = 200_000

_DEFAULT_RANGE = timedelta(hours=1)
# No record is earlier.
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
       {rows.counted("outcome", OUTCOMES)},
       percentile_cont(array[0.5, 0.95]) within group (
           order by case when attempt = 1
                         then greatest(extract(epoch from assigned_at - waiting_since), 0) end) as wait,
       percentile_cont(array[0.5, 0.95]) within group (
           order by extract(epoch from ended_at - started_at)) as run
from ended
group by bucket
""")


def read(connection: SqlConnection, since: datetime | None, until: datetime | None, buckets: int) -> History:
    """Return the attempts that ended in each part of a time range. The default range is the last hour.

    If the range ends before it begins, it has no parts.
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
                **{outcome: getattr(row, outcome, 0) for outcome in OUTCOMES},
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
