"""Chores: what comes due by time alone, by the database's clock.

A chore runs in bounded batches. A batch leaves rows that another transaction has locked to the next batch, so
any number of processes may do the same chore. An advisory lock makes them take turns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Row, TextClause, text

from broker.store import completion, rows
from broker.store.completion import Ending

# If a chore finds a row this much too late, no process did the chore when the row came due, and no tool could
# send a heartbeat.
_LATE_SECONDS = 3.0
# The longest time for a tool to send a heartbeat after the service was away.
_MOST_EXTENSION_SECONDS = 300.0
# Longer than any lease.
_LONG_SECONDS = 1e9

# The first number only has to differ from those of other advisory locks.
TURN = text("select pg_try_advisory_xact_lock(7022026, :chore)")

DUE_TASKS = text("""
select id from tasks
where state = 'scheduled' and due_at <= now() and id <> all(cast(:aside as text[]))
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
where state = 'scheduled' and id <> all(cast(:aside as text[]))
""")

# By the database's clock: the broker's own clock may jump, and its machine may sleep, so that it is late. It
# is not late for a row that came due while it did the chore.
_EXTENDED_UNTIL = """
    now() - make_interval(secs => case when {due_at} < now() - make_interval(secs => :late_seconds)
                                            and {due_at} > coalesce(cast(:watched_until as timestamptz),
                                                                    '-infinity')
                                       then 0 else :here_seconds end)
          + make_interval(secs => least(l.lease_seconds, :most_extension_seconds))"""

# There is little work under way at any time. An index on the deadline would cost each start more than this
# statement costs from time to time.
EXTEND_DEADLINES = text(f"""
with due as materialized (
    select id, tool_id, deadline_at
    from work
    where state = 'assigned' and deadline_at <= now()
    order by id
    for no key update skip locked
),
heard as materialized (
    select due.id, due.deadline_at, {_EXTENDED_UNTIL.format(due_at="due.deadline_at")} as until
    from due
    join tool_leases l on l.tool_id = due.tool_id and l.tool_id = any(array(select tool_id from due))
)
update work w
set deadline_at = heard.until
from heard
where w.id = heard.id and w.id = any(array(select id from heard)) and heard.until > heard.deadline_at
""")
NOW = text("select clock_timestamp()")


def _locked_tasks_of(work: str) -> str:
    """Return the part of a statement that locks the tasks of the part `work`, each with its size."""
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
    where deadline_at <= now() and id <> all(cast(:aside as uuid[]))
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
where id <> all(cast(:aside as uuid[]))
""")

EXTEND_LEASES = text(f"""
with heard as materialized (
    select l.tool_id, l.expires_at, {_EXTENDED_UNTIL.format(due_at="l.expires_at")} as until
    from tool_leases l
    join tools t on t.id = l.tool_id
    where l.expires_at <= now() and not t.offline
    order by l.tool_id
    for no key update of l skip locked
)
update tool_leases l
set expires_at = heard.until
from heard
where l.tool_id = heard.tool_id and l.tool_id = any(array(select tool_id from heard))
  and heard.until > heard.expires_at
""")
# A tool that is offline still has work if one batch was not enough to end all of it.
_HAS_WORK = """
t.load > (select count(*) from work w where w.tool_id = t.id and w.id = any(cast(:aside as uuid[])))"""
# The first tools that have a batch of work together, and at least one.
SILENT = text(f"""
with silent as materialized (
    select t.id, t.load, t.offline, l.expires_at
    from tool_leases l
    join tools t on t.id = l.tool_id
    where l.expires_at <= now() and (not t.offline or {_HAS_WORK})
    order by l.expires_at
    limit :batch
    for update skip locked
)
select id, load, offline
from (select *, sum(load) over (order by expires_at, id) - load as before from silent) s
where before < :batch
order by expires_at, id
""")
# A locked tool gets no more work. The rows are all of its work if they are as many as its load.
THEIR_WORK = text(f"""
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
# A lease that is renewed meanwhile lasts at least as long as the shortest lease.
LEASES_NEXT = text(f"""
select least(cast(extract(epoch from min(l.expires_at) - clock_timestamp()) as double precision),
             min(l.lease_seconds))
from tool_leases l
join tools t on t.id = l.tool_id
where not t.offline or {_HAS_WORK}
""")


@dataclass
class Tries:
    """The ids of the tasks or work that a batch skips, and of those that it changes, which the batch sets."""

    aside: Sequence[Any] = ()
    ids: list[Any] = field(default_factory=list)


BatchStep = Callable[[Connection, int, Tries], int]
Forgive = Callable[[Connection, float, datetime | None], datetime]


class Chore(NamedTuple):
    """A kind of rows that come due by time.

    Args:
        name: Its name in notifications.
        number: The number of its advisory lock.
        do: Does a batch, and returns its number of rows.
        next: The statement that returns in how many seconds the next row comes due.
        forgive: Gives tools more time for what they could not do while the service was away.
    """

    name: str
    number: int
    do: BatchStep
    next: TextClause
    forgive: Forgive | None = None


def in_turn(connection: Connection, number: int, do: Callable[..., int], batch: int, *tries: Tries) -> int:
    """Do a batch of a chore unless another process does one, and return its number of rows."""
    if not connection.execute(TURN, {"chore": number}).scalar_one():
        return 0
    return do(connection, batch, *tries)


def make_available(connection: Connection, batch: int, tries: Tries | None = None) -> int:
    """Make the scheduled tasks available that are due, and return how many."""
    tries = tries or Tries()
    tries.ids[:] = connection.execute(DUE_TASKS, {"batch": batch, "aside": list(tries.aside)}).scalars()
    if tries.ids:
        connection.execute(MAKE_AVAILABLE, {"ids": tries.ids})
    return len(tries.ids)


def end_overdue(connection: Connection, batch: int, tries: Tries | None = None) -> int:
    """End the work that was not started in time or runs too long, and return how much."""
    tries = tries or Tries()
    works = connection.execute(OVERDUE, {"batch": batch, "aside": list(tries.aside)}).all()
    overdue = next(completion.parts(works), [])
    tries.ids[:] = [row.id for row in overdue]
    if overdue:
        completion.end(connection, [_overdue(row.id, row.state) for row in overdue])
    return len(overdue)


def take_offline(connection: Connection, batch: int, tries: Tries | None = None) -> int:
    """Set tools offline whose leases have expired, end their work as lost, and return how many tools.

    If there is more work than a batch may have, in rows or bytes, the next batch ends the rest: a tool that
    is offline gets no more work, and one that comes back keeps what it still has.
    """
    tries = tries or Tries()
    tools = connection.execute(SILENT, {"batch": batch, "aside": list(tries.aside)})
    silent = {row.id: row for row in tools}
    if not silent:
        return 0
    held: dict[str, list[Row[Any]]] = {id_: [] for id_ in silent}
    for row in connection.execute(THEIR_WORK, {"tool_ids": list(silent)}):
        held[row.tool_id].append(row)
    aside = set(tries.aside)
    # If another transaction has locked a row of a tool, the tool may be sending a heartbeat now.
    gone = {id_: work for id_, work in held.items() if len(work) == silent[id_].load}
    # No more than a batch of each tool.
    works = ([row for row in work if row.id not in aside][:batch] for work in gone.values())
    lost = next(completion.parts([row for work in works for row in work]), [])
    tries.ids[:] = [row.id for row in lost]
    if lost:
        completion.end(
            connection, [Ending(row.id, "lost", error="The tool's lease expired.") for row in lost]
        )
    newly = [id_ for id_ in gone if not silent[id_].offline]
    connection.execute(TAKE_OFFLINE, {"ids": newly})
    return len(newly)


def forgive_late_starts(
    connection: Connection, here_seconds: float, watched_until: datetime | None = None
) -> datetime:
    """Give tools more time to start work, as `_forgive` does; how long work runs needs no service."""
    return _forgive(connection, EXTEND_DEADLINES, here_seconds, watched_until)


def forgive_silence(
    connection: Connection, here_seconds: float, watched_until: datetime | None = None
) -> datetime:
    """Give tools more time to renew their leases, as `_forgive` does."""
    return _forgive(connection, EXTEND_LEASES, here_seconds, watched_until)


def _forgive(
    connection: Connection, extend: TextClause, here_seconds: float, watched_until: datetime | None
) -> datetime:
    """Give tools the time of a lease, counted from when the service came back, for what they could not do.

    Args:
        connection: The database.
        extend: The statement that extends deadlines or leases.
        here_seconds: How long the service has been back, in seconds.
        watched_until: Until when the service did the chore, by the database's clock; None: unknown.

    Returns:
        The time by the database's clock.
    """
    connection.execute(extend, _forgiving(here_seconds, watched_until))
    now: datetime = connection.execute(NOW).scalar_one()
    return now


def seconds_to_next(connection: Connection, chore: Chore, aside: Sequence[Any] = ()) -> float | None:
    """Return in how many seconds the next row comes due, except those to skip; None: there is none."""
    seconds: float | None = connection.execute(chore.next, {"aside": list(aside)}).scalar_one()
    return seconds


TASKS = Chore("tasks", 1, make_available, TASKS_NEXT)
WORK = Chore("work", 2, end_overdue, WORK_NEXT, forgive_late_starts)
LEASES = Chore("tools", 3, take_offline, LEASES_NEXT, forgive_silence)
CHORES: Sequence[Chore] = (TASKS, WORK, LEASES)


def _forgiving(here_seconds: float, watched_until: datetime | None = None) -> dict[str, object]:
    return {
        "watched_until": watched_until,
        "late_seconds": _LATE_SECONDS,
        "here_seconds": min(here_seconds, _LONG_SECONDS),
        "most_extension_seconds": _MOST_EXTENSION_SECONDS,
    }


def _overdue(work_id: UUID, state: str) -> Ending:
    if state == "assigned":
        return Ending(work_id, "lost", error="The tool did not start the work in time.")
    return Ending(work_id, "timed_out", error="The work ran longer than the task's timeout_seconds.")
