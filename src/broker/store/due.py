"""What comes due by time alone, by the database's clock.

Each kind of it is a chore, done in bounded batches. A batch waits for nobody: what others have locked is
left to the next one. So any number of processes may do the same chore; by an advisory lock they take turns.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from broker.store import completion
from broker.store.completion import Ending

# What is found due only so late was due while nobody looked, and nobody could be heard.
_LATE_SECONDS = 3.0
# How long at most a tool is given to be heard again when the service was away.
_HEARING_SECONDS = 300.0
# Longer than any lease.
_LONG_SECONDS = 1e9

# The numbers are only to be nobody else's.
TURN = text("select pg_try_advisory_xact_lock(7022026, :chore)")

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
TASKS_NEXT = text("""
select cast(extract(epoch from min(due_at) - clock_timestamp()) as double precision)
from tasks
where state = 'scheduled'
""")

# By the database's clock. Its own may jump, and a machine may sleep: then the service looks late.
_HEARD_UNTIL = """
    now() - make_interval(secs => case when {due_at} < now() - make_interval(secs => :late_seconds)
                                       then 0 else :here_seconds end)
          + make_interval(secs => least(l.lease_seconds, :hearing_seconds))"""

# Work is under way for a while and there is little of it at any time: an index on its deadline would cost
# each start more than this reading costs now and then.
EXTEND_DEADLINES = text(f"""
with due as materialized (
    select id, tool_id, deadline_at
    from work
    where state = 'assigned' and deadline_at <= now()
    order by id
    for no key update skip locked
),
heard as materialized (
    select due.id, due.deadline_at, {_HEARD_UNTIL.format(due_at="due.deadline_at")} as until
    from due
    join tool_leases l on l.tool_id = due.tool_id and l.tool_id = any(array(select tool_id from due))
)
update work w
set deadline_at = heard.until
from heard
where w.id = heard.id and w.id = any(array(select id from heard)) and heard.until > heard.deadline_at
""")
OVERDUE = text("""
with overdue as materialized (
    select id, task_id, state
    from work
    where deadline_at <= now()
    order by deadline_at
    limit :batch
    for update skip locked
),
locked_tasks as materialized (
    select id from tasks where id = any(array(select task_id from overdue)) order by id for update skip locked
)
select o.id, o.state from overdue o join locked_tasks t on t.id = o.task_id
""")
WORK_NEXT = text("""
select cast(extract(epoch from min(deadline_at) - clock_timestamp()) as double precision) from work
""")

EXTEND_LEASES = text(f"""
with heard as materialized (
    select l.tool_id, l.expires_at, {_HEARD_UNTIL.format(due_at="l.expires_at")} as until
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
# As many tools as have a batch of work together, at least one.
SILENT = text("""
with silent as materialized (
    select t.id, t.load, l.expires_at
    from tool_leases l
    join tools t on t.id = l.tool_id
    where l.expires_at <= now() and not t.offline
    order by l.expires_at
    limit :batch
    for update skip locked
)
select id, load
from (select id, load, sum(load) over (order by expires_at, id) - load as before from silent) s
where before < :batch
""")
# A tool that is locked gets no more work; what it has is complete when its load says so.
THEIR_WORK = text("""
with locked_work as materialized (
    select id, task_id, tool_id
    from work
    where tool_id = any(cast(:tool_ids as text[]))
    order by id
    for update skip locked
),
locked_tasks as materialized (
    select id
    from tasks
    where id = any(array(select task_id from locked_work))
    order by id
    for update skip locked
)
select w.tool_id, w.id from locked_work w join locked_tasks t on t.id = w.task_id
""")
TAKE_OFFLINE = text("""
update tools set offline = true, changed = pg_current_xact_id() where id = any(cast(:ids as text[]))
""")
# A lease that is renewed meanwhile ends no sooner than the shortest of them lasts.
LEASES_NEXT = text("""
select least(cast(extract(epoch from min(l.expires_at) - clock_timestamp()) as double precision),
             min(l.lease_seconds))
from tool_leases l
join tools t on t.id = l.tool_id
where not t.offline
""")


Do = Callable[[Connection, int], int]
Forgive = Callable[[Connection, float], None]


class Chore(NamedTuple):
    """Something that comes due by time.

    Args:
        name: What notifications call it.
        number: Which turn to wait for.
        do: Does a batch; of how many rows.
        next: Asks how many seconds there are until there is something to do.
        forgive: Gives more time to those who could not be heard, where that matters; given for how many
            seconds the service has been there.
    """

    name: str
    number: int
    do: Do
    next: TextClause
    forgive: Forgive | None = None


def in_turn(connection: Connection, number: int, do: Do, batch: int) -> int:
    """Do a batch of a chore, unless another process is at it; of how many rows."""
    if not connection.execute(TURN, {"chore": number}).scalar_one():
        return 0
    return do(connection, batch)


def make_available(connection: Connection, batch: int) -> int:
    """Offer the scheduled tasks whose time has come; how many these were."""
    return len(connection.execute(MAKE_AVAILABLE, {"batch": batch}).all())


def end_overdue(connection: Connection, batch: int) -> int:
    """End the work that was not started in time, or runs past its time; how much that was."""
    overdue = connection.execute(OVERDUE, {"batch": batch}).all()
    if overdue:
        completion.end(connection, [_overdue(*row) for row in overdue])
    return len(overdue)


def take_offline(connection: Connection, batch: int) -> int:
    """Take tools offline that were silent for longer than their leases, and their work from them.

    Returns:
        How many tools that were.
    """
    silent = {row[0]: row[1] for row in connection.execute(SILENT, {"batch": batch})}
    if not silent:
        return 0
    held: dict[str, list[UUID]] = {id_: [] for id_ in silent}
    for tool_id, work_id in connection.execute(THEIR_WORK, {"tool_ids": list(silent)}):
        held[tool_id].append(work_id)
    gone = [id_ for id_, work_ids in held.items() if len(work_ids) == silent[id_]]
    if work_ids := [work_id for id_ in gone for work_id in held[id_]]:
        completion.end(
            connection, [Ending(work_id, "lost", error="The tool fell silent.") for work_id in work_ids]
        )
    connection.execute(TAKE_OFFLINE, {"ids": gone})
    return len(gone)


def forgive_late_starts(connection: Connection, here_seconds: float) -> None:
    """Give tools the time of a lease since the service is there to start what they could not.

    How long work runs is not forgiven: that needs no service.
    """
    connection.execute(EXTEND_DEADLINES, _forgiving(here_seconds))


def forgive_silence(connection: Connection, here_seconds: float) -> None:
    """Give tools the time of a lease since the service is there to be heard again.

    Args:
        connection: In an open transaction.
        here_seconds: For how long it has been there.
    """
    connection.execute(EXTEND_LEASES, _forgiving(here_seconds))


def seconds_to_next(connection: Connection, chore: Chore) -> float | None:
    """How long until there is something to do; None: there is nothing in sight."""
    seconds: float | None = connection.execute(chore.next).scalar_one()
    return seconds


TASKS = Chore("tasks", 1, make_available, TASKS_NEXT)
WORK = Chore("work", 2, end_overdue, WORK_NEXT, forgive_late_starts)
LEASES = Chore("tools", 3, take_offline, LEASES_NEXT, forgive_silence)
CHORES: Sequence[Chore] = (TASKS, WORK, LEASES)


def _forgiving(here_seconds: float) -> dict[str, float]:
    return {
        "late_seconds": _LATE_SECONDS,
        "here_seconds": min(here_seconds, _LONG_SECONDS),
        "hearing_seconds": _HEARING_SECONDS,
    }


def _overdue(work_id: UUID, state: str) -> Ending:
    if state == "assigned":
        return Ending(work_id, "lost", error="The tool did not start it in time.")
    return Ending(work_id, "timed_out", error="It ran past its time.")
