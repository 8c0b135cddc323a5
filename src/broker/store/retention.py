"""Retention: the archive's partitions, made before they are needed and dropped when they are old.

A partition holds the work that was assigned in a month. It goes when its last record has ended longer ago
than records are kept.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, Row, text

# This month and the next three: so that the partition is there long before it is needed.
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

# Of a task whose last record goes nothing is left: its id is free again.
FORGET_ENDED = text("""
delete from ended_tasks
where task_id = any(cast(:task_ids as text[])) and work_id = any(cast(:work_ids as uuid[]))
""")

# Records that are in no month's partition: from before there was one for it, or from after it went.
DELETE_REST = text("""
delete from work_archive_rest
where work_id = any(array(
    select work_id
    from work_archive_rest
    where ended_at < now() - make_interval(days => :days)
    order by ended_at
    limit :batch))
returning task_id, work_id
""")

# Readers of the archive hold its lock; who completes work queues up behind us meanwhile.
PATIENCE = text("set local lock_timeout = '200ms'")

_FIRST = UUID(int=0)


class Retention:
    """What becomes of the archive with time.

    Args:
        days: How long records are kept at least; None: for ever.
    """

    def __init__(self, days: int | None) -> None:
        self._days = days
        # How far the oldest partition has been gone through.
        self._after = _FIRST

    def keep(self, connection: Connection, batch: int) -> int:
        """Make the partitions that are needed soon, and do a batch of what it takes to drop old ones.

        Args:
            connection: In an open transaction.
            batch: How many records to forget at most.

        Returns:
            How much was done; 0: all of it.
        """
        connection.execute(PATIENCE)
        create_partitions(connection)
        if self._days is None:
            return 0
        if (oldest := _expired(connection, self._days)) is None:
            return self._delete_rest(connection, batch)
        records = connection.execute(
            text(
                f"select task_id, work_id from {oldest} where work_id > :after order by work_id limit :batch"
            ),
            {"after": self._after, "batch": batch},
        ).all()
        if records:
            _forget(connection, records)
            self._after = records[-1].work_id
            return len(records)
        self._after = _FIRST
        if _is_remembered(connection, oldest):
            # What was given up on the way there was not forgotten after all.
            return 1
        return self._drop(connection, oldest, self._days)

    def _drop(self, connection: Connection, partition: str, days: int) -> int:
        connection.execute(text(f"alter table work_archive detach partition {partition}"))
        # Nothing comes in any more; what came in at the last moment shall stay.
        if not _is_old(connection, partition, days):
            raise _RecordedMeanwhile
        connection.execute(text(f"drop table {partition}"))
        return 1

    def _delete_rest(self, connection: Connection, batch: int) -> int:
        records = connection.execute(DELETE_REST, {"days": self._days, "batch": batch}).all()
        if records:
            _forget(connection, records)
        return len(records)


class _RecordedMeanwhile(Exception):
    """Work has ended whose record belongs to a partition that was to be dropped; it stays."""


def create_partitions(connection: Connection) -> None:
    """Make the partitions that the archive needs soon."""
    connection.execute(CREATE)


def _expired(connection: Connection, days: int) -> str | None:
    """The oldest partition that no record holds back any more."""
    past = connection.execute(PAST_MONTHS, {"days": days}).scalars()
    return next((name for name in past if _is_old(connection, name, days)), None)


def _is_old(connection: Connection, partition: str, days: int) -> bool:
    """Whether the newest record of a partition is old."""
    newest = text(f"select max(ended_at) >= now() - make_interval(days => :days) from {partition}")
    return not connection.execute(newest, {"days": days}).scalar_one()


def _is_remembered(connection: Connection, partition: str) -> bool:
    """Whether the end of some task is still looked up in a partition."""
    remembered = text(
        f"select exists (select from {partition} r join ended_tasks e using (task_id, work_id))"
    )
    return bool(connection.execute(remembered).scalar_one())


def _forget(connection: Connection, records: Sequence[Row[tuple[str, UUID]]]) -> None:
    values = {
        "task_ids": [record.task_id for record in records],
        "work_ids": [record.work_id for record in records],
    }
    connection.execute(FORGET_ENDED, values)
