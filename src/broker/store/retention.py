"""Retention: create the archive's partitions before they are needed, and drop them when they are old.

A partition has the work that was assigned in one month. The broker drops it when all of its records are older
than the retention time. Each batch is a transaction: it reads the next records of the oldest partition by
their ids, deletes their rows in `ended_tasks`, and stores its progress. So the cost of a batch does not
depend on the number of ended tasks, and a failing batch undoes only itself.
"""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import TextClause, text

from broker.store.pages import bounded
from broker.store.sql_connection import SqlConnection

# This month and the next three. A partition must exist long before it is needed.
CREATE = text("""
select create_archive_partition(cast(month as date))
from generate_series(date_trunc('month', now() at time zone 'UTC'),
                     date_trunc('month', now() at time zone 'UTC') + interval '3 months',
                     interval '1 month') as month
""")

PAST_MONTHS = text("""
select c.relname
from pg_inherits i
join pg_class c on c.oid = i.inhrelid
where i.inhparent = cast('work_archive' as regclass) and c.relname ~ '^work_archive_[0-9]{4}_[0-9]{2}$'
  and to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month'
      <= (now() at time zone 'UTC') - make_interval(days => :days)
order by c.relname
""")

# When the last record of a task is deleted, the task's id becomes free.
FORGET_ENDED = text("""
delete from ended_tasks
where task_id = any(cast(:task_ids as text[])) and work_id = any(cast(:work_ids as uuid[]))
""")

# Records outside the partitions of months: written before their partition existed, or after it was dropped.
# Deleting large records takes long, so a batch is limited by their stored size.
_REST = """
    select *
    from work_archive_rest
    where ended_at < now() - make_interval(days => :days)
    order by ended_at
    limit :batch"""
_STORED = "pg_column_size(r.payload) + pg_column_size(r.result) + pg_column_size(r.reports)"
DELETE_REST = text(f"""
delete from work_archive_rest
where work_id = any(array(select work_id from ({bounded(_REST, size=_STORED, order="ended_at")}) oldest))
returning task_id, work_id
""")

# The position where the last batch ended. No row if that was in another partition, or if the partition has
# got newer records since.
PROGRESS = text("""
select after from retention_progress where partition = :partition and newest is not distinct from :newest
""")
KEEP_PROGRESS = text("""
insert into retention_progress (partition, newest, after) values (:partition, :newest, :after)
on conflict (id) do update
set partition = excluded.partition, newest = excluded.newest, after = excluded.after
""")

# Readers lock the archive. While this transaction waits for them, completions wait for this transaction.
PATIENCE = text("set local lock_timeout = '200ms'")

_FIRST = UUID(int=0)


class _Expired(NamedTuple):
    """A partition with only old records, and when the newest one ended, or None without records."""

    partition: str
    newest: datetime | None


class Retention:
    """Maintains the partitions of the archive.

    Args:
        days: The minimum time to keep records, in days; None means forever.
    """

    def __init__(self, days: int | None) -> None:
        self._days = days

    def keep(self, connection: SqlConnection, batch: int) -> int:
        """Create the partitions that are needed soon, and run a batch of the removal of old ones.

        Returns:
            The number of records or partitions in the batch; 0 if nothing is left to do.
        """
        connection.execute(PATIENCE)
        create_partitions(connection)
        if self._days is None:
            return 0
        if (oldest := _expired(connection, self._days)) is None:
            records = connection.execute(DELETE_REST, {"days": self._days, "batch": batch}).all()
        else:
            after = connection.execute(PROGRESS, oldest._asdict()).scalar_one_or_none() or _FIRST
            values = {"after": after, "batch": batch}
            records = connection.execute(records_of(oldest.partition), values).all()
            if not records:
                _drop(connection, oldest.partition, self._days)
                return 1
            connection.execute(KEEP_PROGRESS, oldest._asdict() | {"after": records[-1].work_id})
        if records:
            ids = {
                "task_ids": [record.task_id for record in records],
                "work_ids": [record.work_id for record in records],
            }
            connection.execute(FORGET_ENDED, ids)
        return len(records)


class _RecordedMeanwhile(Exception):
    """A partition got a record just before its removal, so it stays."""


def create_partitions(connection: SqlConnection) -> None:
    """Create the partitions that the archive needs soon."""
    connection.execute(CREATE)


def records_of(partition: str) -> TextClause:
    """Return the statement that reads the next records of a partition."""
    return text(
        f"select task_id, work_id from {partition} where work_id > :after order by work_id limit :batch"
    )


def newest_of(partition: str) -> TextClause:
    """Return the statement that reads when a partition's newest record ended, and whether that is old."""
    return text(f"""
        select max(ended_at) as newest,
               coalesce(max(ended_at) < now() - make_interval(days => :days), true) as is_old
        from {partition}""")


def _expired(connection: SqlConnection, days: int) -> _Expired | None:
    """Return the oldest partition whose records are all old."""
    for partition in connection.execute(PAST_MONTHS, {"days": days}).scalars():
        end = connection.execute(newest_of(partition), {"days": days}).one()
        if end.is_old:
            return _Expired(partition, end.newest)
    return None


def _drop(connection: SqlConnection, partition: str, days: int) -> None:
    connection.execute(text(f"alter table work_archive detach partition {partition}"))
    # From now on, the partition gets no records. If it got one at the last moment, it must stay.
    if not connection.execute(newest_of(partition), {"days": days}).one().is_old:
        raise _RecordedMeanwhile
    connection.execute(text(f"drop table {partition}"))
