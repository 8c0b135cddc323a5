"""Assignment: making work of pairs of a task and a tool."""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from broker.schemas import Pair, PairStatus, Work
from broker.store import archive, rows

# Everyone who locks more than one kind of row locks work first, then tasks, then tools, each in
# the order of their ids: so nobody waits in a circle.
LOCK = text("""
with locked_tasks as materialized (
    select id, state from tasks where id = any(cast(:task_ids as text[])) order by id for no key update
),
locked_tools as materialized (
    select id, case when draining or offline then 0 else capacity - load end as room
    from tools
    where id = any(cast(:tool_ids as text[])) and (select count(*) from locked_tasks) >= 0
    order by id
    for no key update
)
select id, state, cast(null as integer) as room from locked_tasks
union all
select id, null, room from locked_tools
""")

_ASSIGN = """
with pair as (
    select * from unnest(cast(:task_ids as text[]), cast(:tool_ids as text[])) as p (task_id, tool_id)
),
-- They are locked and known to be available. `is true` keeps the check away from the indexes of all that is:
-- a plan from a time when that was little would go through the whole backlog.
taken as (
    update tasks t
    set state = 'assigned', work_id = uuid7(), remark = null, remark_at = null, changed = pg_current_xact_id()
    from pair p
    where t.id = p.task_id and t.id = any(cast(:task_ids as text[])) and (t.state = 'available') is true
    returning t.*, p.tool_id
),
loaded as (
    update tools t
    set load = t.load + n.works, changed = pg_current_xact_id()
    from (select tool_id, cast(count(*) as integer) as works from taken group by tool_id) n
    where t.id = n.tool_id and t.id = any(cast(:tool_ids as text[]))
),
assigned as (
    insert into work (id, task_id, tool_id, attempt, deadline_at)
    select taken.work_id, taken.id, taken.tool_id, taken.attempt + 1,
           now() + make_interval(secs => t.lease_seconds)
    from taken
    join tools t on t.id = taken.tool_id and t.id = any(cast(:tool_ids as text[]))
    returning *
)
"""
ASSIGN = text(f"{_ASSIGN} select {rows.WORK} from assigned w join taken t on t.id = w.task_id")
# For those who do not read the work: it is as long as its task.
ASSIGN_BRIEFLY = text(f"{_ASSIGN} select id, task_id, tool_id from assigned")

OF_PAIRS = text(f"""
select {rows.WORK}
from unnest(cast(:task_ids as text[]), cast(:tool_ids as text[])) as p (task_id, tool_id)
join work w
  on w.task_id = p.task_id and w.tool_id = p.tool_id and w.task_id = any(cast(:task_ids as text[]))
join tasks t on t.id = w.task_id and t.id = any(cast(:task_ids as text[]))
""")

Key = tuple[str, str]
Told = TypeVar("Told")


class Assigned(NamedTuple, Generic[Told]):
    """What became of a pair, and its work where it has some."""

    status: PairStatus
    work: Told | None


def assign(connection: Connection, pairs: Sequence[Pair]) -> list[Assigned[Work]]:
    """Make work of pairs, each for itself; an earlier pair wins over a later one.

    Args:
        connection: In an open transaction.
        pairs: Tasks and tools.

    Returns:
        For each pair what became of it.
    """
    return _assign(connection, ASSIGN, pairs, rows.work)


def assign_briefly(connection: Connection, pairs: Sequence[Pair]) -> list[Assigned[UUID]]:
    """The same; of the work only the ids are told."""
    return _assign(connection, ASSIGN_BRIEFLY, pairs, _id)


def _assign(
    connection: Connection, statement: TextClause, pairs: Sequence[Pair], read: Callable[[rows.AnyRow], Told]
) -> list[Assigned[Told]]:
    keys = [(pair.task_id, pair.tool_id) for pair in pairs]
    named = {"task_ids": [key[0] for key in keys], "tool_ids": [key[1] for key in keys]}
    locked = connection.execute(LOCK, named).all()
    states = {id_: state for id_, state, _ in locked if state is not None}
    room = {id_: left for id_, _, left in locked if left is not None}
    # What is locked stays as it is: the pairs are gone through one by one, and written as a set.
    statuses = decide(keys, states, room)

    def work_of(status: PairStatus, statement: TextClause) -> dict[Key, Told]:
        """The work of the pairs of this status, by a statement that makes it or finds it."""
        those = list(dict.fromkeys(key for key, each in zip(keys, statuses, strict=True) if each == status))
        if not those:
            return {}
        values = {"task_ids": [key[0] for key in those], "tool_ids": [key[1] for key in those]}
        return {(row[1], row[2]): read(row) for row in connection.execute(statement, values)}

    works = work_of("assigned", statement)
    there = work_of("task_unavailable", OF_PAIRS)
    missing = [key[0] for key, status in zip(keys, statuses, strict=True) if status == "task_not_found"]
    ended = archive.has_ended(connection, missing) if missing else set()

    def answer(key: Key, status: PairStatus) -> Assigned[Told]:
        if key in there:
            return Assigned("exists", there[key])
        if status in ("assigned", "exists"):
            return Assigned(status, works[key])
        return Assigned("task_unavailable" if key[0] in ended else status, None)

    return [answer(key, status) for key, status in zip(keys, statuses, strict=True)]


def decide(keys: Sequence[Key], states: Mapping[str, str], room: Mapping[str, int]) -> list[PairStatus]:
    """What becomes of each pair, taken one after the other.

    Args:
        keys: Pairs of a task's and a tool's id; one that was assigned before in the same set `exists`.
        states: The states of the tasks that there are.
        room: How much more work the tools that there are can take.
    """
    left = dict(room)
    taken: dict[str, str] = {}
    statuses: list[PairStatus] = []
    for task_id, tool_id in keys:
        status: PairStatus = "assigned"
        if taken.get(task_id) == tool_id:
            status = "exists"
        elif task_id not in states:
            status = "task_not_found"
        elif states[task_id] != "available" or task_id in taken:
            status = "task_unavailable"
        elif tool_id not in left:
            status = "tool_not_found"
        elif left[tool_id] < 1:
            status = "tool_unavailable"
        else:
            taken[task_id] = tool_id
            left[tool_id] -= 1
        statuses.append(status)
    return statuses


def _id(row: rows.AnyRow) -> UUID:
    id_: UUID = row[0]
    return id_
