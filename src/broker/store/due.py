"""What comes due by time alone, by the database's clock."""

from sqlalchemy import Connection, text

MAKE_AVAILABLE = text("""
with due as materialized (
    select id from tasks
    where state = 'scheduled' and due_at <= now()
    order by due_at
    limit :batch
    for update skip locked
)
update tasks t
set state = 'available', due_at = null, changed = pg_current_xact_id()
from due
where t.id = due.id and t.id = any(array(select id from due))
returning t.id
""")

SECONDS_TO_NEXT = text("""
select cast(extract(epoch from min(due_at) - clock_timestamp()) as double precision)
from tasks
where state = 'scheduled'
""")


def make_available(connection: Connection, *, batch: int) -> int:
    """Offer the scheduled tasks whose time has come; how many these were, at most a batch."""
    return len(connection.execute(MAKE_AVAILABLE, {"batch": batch}).all())


def seconds_to_next(connection: Connection) -> float | None:
    """How long until the next scheduled task is due; None: there is none."""
    seconds: float | None = connection.execute(SECONDS_TO_NEXT).scalar_one()
    return seconds
