"""Chores: handle rows that come due by the database's clock.

A chore runs in bounded batches. A batch skips rows that another transaction has locked, so any number of
processes may do the same chore. An advisory lock makes them take turns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import TextClause, text

from broker.store import completion, rows
from broker.store.completion import Ending
from broker.store.sql_connection import SqlConnection, SqlRow

# If a chore finds a row this much too late, no process did the chore when the row came due. Then no tool
# could send a heartbeat at that time either.
_LATE_SECONDS = 3.0
# The longest extension that a tool gets after the service was unreachable.
_MOST_EXTENSION_SECONDS = 300.0
# Longer than any lease.
_LONG_SECONDS = 1e9

# The first number must differ from those of other advisory locks.
TURN = text("select pg_try_advisory_xact_lock(7022026, :chore)")

DUE_TASKS = text("""
select id from tasks
where state = 'scheduled' and due_at <= now() and id <> all(cast(:skipped as text[]))
order by due_at
limit :batch
for update skip locked
""")
MAKE_AVAILABLE = text("""
update tasks
set state = 'available', due_at = null, changed = pg_current_xact_id()
where id = any(cast(:ids as text[]))
""")
TASKS_NEXT = text("""
select cast(extract(epoch from min(due_at) - clock_timestamp()) as double precision)
from tasks
where state = 'scheduled' and id <> all(cast(:skipped as text[]))
""")

# The statement uses the database's clock, because the broker's clock may jump. It detects lateness itself,
# because the broker's machine may have been asleep. A row that came due during the chore is not late.
_EXTENDED_UNTIL = """
    now() - make_interval(secs => case when {due_at} < now() - make_interval(secs => :late_seconds)
                                            and {due_at} > coalesce(cast(:handled_until as timestamptz),
                                                                    '-infinity')
                                       then 0 else :reachable_seconds end)
          + make_interval(secs => least(l.lease_seconds, :most_extension_seconds))"""

# Little work is under way at any time. An index on the deadline would cost each start more than this
# occasional statement costs.
EXTEND_DEADLINES = text(f"""
with due as materialized (
    select id, tool_id, deadline_at
    from work
    where state = 'assigned' and deadline_at <= now()
    order by id
    for no key update skip locked
),
extended as materialized (
    select due.id, due.deadline_at, {_EXTENDED_UNTIL.format(due_at="due.deadline_at")} as until
    from due
    join tool_leases l on l.tool_id = due.tool_id and l.tool_id = any(array(select tool_id from due))
)
update work w
set deadline_at = extended.until
from extended
where w.id = extended.id and w.id = any(array(select id from extended))
  and extended.until > extended.deadline_at
""")
NOW = text("select clock_timestamp()")


def _locked_tasks_of(work: str) -> str:
    """Return a CTE that locks the tasks of the CTE `work`, each with its size."""
    return f"""locked_tasks as materialized (
    select id, {rows.task_bytes("t")} as bytes
    from tasks t
    where id = any(array(select task_id from {work}))
    order by id
    for update skip locked
)"""


OVERDUE = text(f"""
with overdue as materialized (
    select id, task_id, state, deadline_at, report_bytes
    from work
    where deadline_at <= now() and id <> all(cast(:skipped as uuid[]))
    order by deadline_at
    limit :batch
    for update skip locked
),
{_locked_tasks_of("overdue")}
select o.id, o.report_bytes + t.bytes as size, o.state
from overdue o
join locked_tasks t on t.id = o.task_id
order by o.deadline_at
""")
WORK_NEXT = text("""
select cast(extract(epoch from min(deadline_at) - clock_timestamp()) as double precision)
from work
where id <> all(cast(:skipped as uuid[]))
""")

EXTEND_LEASES = text(f"""
with extended as materialized (
    select l.tool_id, l.expires_at, {_EXTENDED_UNTIL.format(due_at="l.expires_at")} as until
    from tool_leases l
    join tools t on t.id = l.tool_id
    where l.expires_at <= now() and not t.offline
    order by l.tool_id
    for no key update of l skip locked
)
update tool_leases l
set expires_at = extended.until
from extended
where l.tool_id = extended.tool_id and l.tool_id = any(array(select tool_id from extended))
  and extended.until > extended.expires_at
""")
# A tool that is offline still has work if one batch was not enough to end all of it.
_HAS_WORK = """
t.load > (select count(*) from work w where w.tool_id = t.id and w.id = any(cast(:skipped as uuid[])))"""
# The tools whose leases expired first, and whose work together fills a batch. There is at least one tool.
EXPIRED_LEASES = text(f"""
with expired as materialized (
    select t.id, t.load, t.offline, l.expires_at
    from tool_leases l
    join tools t on t.id = l.tool_id
    where l.expires_at <= now() and (not t.offline or {_HAS_WORK})
    order by l.expires_at
    limit :batch
    for update skip locked
)
select id, load, offline
from (select *, sum(load) over (order by expires_at, id) - load as before from expired) s
where before < :batch
order by expires_at, id
""")
# A locked tool gets no more work. If the number of rows equals its load, the rows are all of its work.
WORK_OF_TOOLS = text(f"""
with locked_work as materialized (
    select id, task_id, tool_id, report_bytes
    from work
    where tool_id = any(cast(:tool_ids as text[]))
    order by id
    for update skip locked
),
{_locked_tasks_of("locked_work")}
select w.id, w.report_bytes + t.bytes as size, w.tool_id
from locked_work w
join locked_tasks t on t.id = w.task_id
order by w.id
""")
TAKE_OFFLINE = text("""
update tools set offline = true, changed = pg_current_xact_id() where id = any(cast(:ids as text[]))
""")
# A lease that a tool renews in the meantime lasts at least as long as the shortest lease.
LEASES_NEXT = text(f"""
select least(cast(extract(epoch from min(l.expires_at) - clock_timestamp()) as double precision),
             min(l.lease_seconds))
from tool_leases l
join tools t on t.id = l.tool_id
where not t.offline or {_HAS_WORK}
""")


@dataclass
class BatchIds:
    """The ids of tasks or work that a batch must skip, and the ids that it changes, which the batch sets."""

    skipped: Sequence[Any] = ()
    changed: list[Any] = field(default_factory=list)


BatchStep = Callable[[SqlConnection, int, BatchIds], int]
Extend = Callable[[SqlConnection, float, datetime | None], datetime]


class Chore(NamedTuple):
    """A chore: how to handle one kind of rows that come due.

    Args:
        name: Its name in notifications and metrics.
        number: The number of its advisory lock.
        do: Handles a batch, and returns its number of rows.
        next: The statement that returns the seconds until the next row comes due.
        extend: Gives tools more time for requests that they could not send while the service was unreachable.
    """

    name: str
    number: int
    do: BatchStep
    next: TextClause
    extend: Extend | None = None


def in_turn(
    connection: SqlConnection, number: int, do: Callable[..., int], batch: int, *ids: BatchIds
) -> int:
    """Handle a batch of a chore, unless another process handles one, and return its number of rows."""
    if not connection.execute(TURN, {"chore": number}).scalar_one():
        return 0
    return do(connection, batch, *ids)


def make_available(connection: SqlConnection, batch: int, ids: BatchIds | None = None) -> int:
    """Make due tasks available, and return their number."""
    ids = ids or BatchIds()
    ids.changed[:] = connection.execute(DUE_TASKS, {"batch": batch, "skipped": list(ids.skipped)}).scalars()
    if ids.changed:
        connection.execute(MAKE_AVAILABLE, {"ids": ids.changed})
    return len(ids.changed)


def end_overdue(connection: SqlConnection, batch: int, ids: BatchIds | None = None) -> int:
    """End work that was not started in time or ran too long, and return the number of work items."""
    ids = ids or BatchIds()
    works = connection.execute(OVERDUE, {"batch": batch, "skipped": list(ids.skipped)}).all()
    overdue = next(completion.parts(works), [])
    ids.changed[:] = [row.id for row in overdue]
    if overdue:
        completion.end(connection, [_overdue(row.id, row.state) for row in overdue])
    return len(overdue)


def take_offline(connection: SqlConnection, batch: int, ids: BatchIds | None = None) -> int:
    """Set tools with expired leases offline, end their work as lost, and return the number of tools.

    If the tools have more work than fits in a batch, in rows or bytes, the next batch ends the rest. In
    between, an offline tool gets no more work, and a tool that reconnects keeps its remaining work.
    """
    ids = ids or BatchIds()
    tools = connection.execute(EXPIRED_LEASES, {"batch": batch, "skipped": list(ids.skipped)})
    expired = {row.id: row for row in tools}
    if not expired:
        return 0
    held: dict[str, list[SqlRow]] = {id_: [] for id_ in expired}
    for row in connection.execute(WORK_OF_TOOLS, {"tool_ids": list(expired)}):
        held[row.tool_id].append(row)
    skipped = set(ids.skipped)
    # If another transaction has locked a row of a tool, the tool may be sending a heartbeat now.
    gone = {id_: work for id_, work in held.items() if len(work) == expired[id_].load}
    # At most a batch of work for each tool.
    works = ([row for row in work if row.id not in skipped][:batch] for work in gone.values())
    lost = next(completion.parts([row for work in works for row in work]), [])
    ids.changed[:] = [row.id for row in lost]
    if lost:
        completion.end(
            connection, [Ending(row.id, "lost", error="The tool's lease expired.") for row in lost]
        )
    newly = [id_ for id_ in gone if not expired[id_].offline]
    connection.execute(TAKE_OFFLINE, {"ids": newly})
    return len(newly)


def extend_deadlines(
    connection: SqlConnection, reachable_seconds: float, handled_until: datetime | None = None
) -> datetime:
    """Give tools more time to start work. Time limits of running work stay: they do not need the service."""
    return _extend(connection, EXTEND_DEADLINES, reachable_seconds, handled_until)


def extend_leases(
    connection: SqlConnection, reachable_seconds: float, handled_until: datetime | None = None
) -> datetime:
    """Give tools more time to renew their leases."""
    return _extend(connection, EXTEND_LEASES, reachable_seconds, handled_until)


def _extend(
    connection: SqlConnection, extend: TextClause, reachable_seconds: float, handled_until: datetime | None
) -> datetime:
    """Give tools the length of a lease, from the service's return on, for requests that they could not send.

    Args:
        connection: The database.
        extend: The statement that extends deadlines or leases.
        reachable_seconds: How long the service has been reachable again, in seconds.
        handled_until: The database's time until which the service did the chore, or None if unknown.

    Returns:
        The database's time.
    """
    connection.execute(extend, _extension(reachable_seconds, handled_until))
    now: datetime = connection.execute(NOW).scalar_one()
    return now


def seconds_to_next(connection: SqlConnection, chore: Chore, skipped: Sequence[Any] = ()) -> float | None:
    """Return the seconds until the next row comes due, without skipped rows, or None if there is no row."""
    seconds: float | None = connection.execute(chore.next, {"skipped": list(skipped)}).scalar_one()
    return seconds


TASKS = Chore("tasks", 1, make_available, TASKS_NEXT)
WORK = Chore("work", 2, end_overdue, WORK_NEXT, extend_deadlines)
LEASES = Chore("tools", 3, take_offline, LEASES_NEXT, extend_leases)
CHORES: Sequence[Chore] = (TASKS, WORK, LEASES)


def _extension(reachable_seconds: float, handled_until: datetime | None = None) -> dict[str, object]:
    return {
        "handled_until": handled_until,
        "late_seconds": _LATE_SECONDS,
        "reachable_seconds": min(reachable_seconds, _LONG_SECONDS),
        "most_extension_seconds": _MOST_EXTENSION_SECONDS,
    }


def _overdue(work_id: UUID, state: str) -> Ending:
    if state == "assigned":
        return Ending(work_id, "lost", error="The tool did not start the work in time.")
    return Ending(work_id, "timed_out", error="The work ran longer than the task's timeout_seconds.")
