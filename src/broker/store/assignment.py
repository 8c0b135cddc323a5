"""Assignment: create work for pairs of a task and a tool."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import TextClause, text

from broker.schemas.candidates import Pair, PairStatus
from broker.schemas.work import Work
from broker.store import ended_tasks, new_ids, rows
from broker.store.group_commit import LATER
from broker.store.pages import bounded, fits, is_cut
from broker.store.sql_connection import SqlConnection
from broker.store.steps import one_statement


def _assign_statement(
    of_task: str, returning: str, *, is_read: str = "true", has_room: str = "true"
) -> TextClause:
    """Return the statement that creates work for a set of pairs. A set has each task only once.

    A locked row is read in its latest version and does not change any more. So the statement first decides
    the result of each pair, and then writes all of them as a set. If a tool has too little free capacity, the
    first pairs with an available task get it.

    The statement does not see work that another one writes while it waits for a lock. Then the insert finds
    the work, and the status of the pair is `overtaken`.

    Args:
        of_task: Further columns to read of each task.
        returning: The columns to return: `w` is the work, and `t` the task.
        is_read: An SQL condition: the statement returns the task of a pair.
        has_room: An SQL condition: a pair fits in the response.
    """
    return text(f"""
with {new_ids.CTE},
pair as (
    select *
    from unnest(cast(:task_ids as text[]), cast(:tool_ids as text[])) with ordinality
         as p (task_id, tool_id, place)
),
locked_tasks as materialized (
    select id, state, attempt, {of_task}
    from tasks t
    where id = any(cast(:task_ids as text[]))
    order by id
    for no key update
),
with_work as materialized (
    select task_id from work where task_id = any(cast(:task_ids as text[]))
),
task as materialized (
    select *, state = 'available' and id not in (select task_id from with_work) as is_available
    from locked_tasks
),
locked_tools as materialized (
    select o.id, o.token_hash, l.lease_seconds,
           case when o.draining or o.offline then 0 else o.capacity - o.load end as room
    from tools o
    join tool_leases l on l.tool_id = o.id and l.tool_id = any(cast(:tool_ids as text[]))
    where o.id = any(cast(:tool_ids as text[])) and (select count(*) from locked_tasks) >= 0
    order by o.id
    for no key update of o
),
judged as materialized (
    select p.*, t.attempt, o.lease_seconds, o.token_hash, {is_read} as is_read,
           case when t.id is null then 'task_not_found'
                when not t.is_available then 'task_unavailable'
                when o.id is null then 'tool_not_found'
                when row_number() over (partition by p.tool_id, t.is_available order by p.place)
                     > o.room then 'tool_unavailable'
                when not ({has_room}) then 'later'
                else 'assigned' end as status
    from pair p
    left join task t on t.id = p.task_id
    left join locked_tools o on o.id = p.tool_id
),
assigned as (
    insert into work (id, task_id, tool_id, attempt, deadline_at)
    select {new_ids.NEW_ID}, task_id, tool_id, attempt + 1, now() + make_interval(secs => lease_seconds)
    from judged, new_ids
    where status = 'assigned'
    on conflict (task_id) do nothing
    returning *
),
loaded as (
    update tools t
    set load = t.load + n.works, changed = pg_current_xact_id()
    from (select tool_id, cast(count(*) as integer) as works from assigned group by tool_id) n
    where t.id = n.tool_id and t.id = any(cast(:tool_ids as text[]))
)
select {returning},
       case when j.status = 'assigned' and w.id is null then 'overtaken' else j.status end as status
from judged j
left join assigned w on w.task_id = j.task_id
left join locked_tasks t on t.id = j.task_id and j.is_read
order by j.place
""")


_WITH_BODY = f"needs, payload, {rows.task_bytes('t')} as bytes"
_NEW_WORK = f"{rows.WORK}, j.is_read, j.token_hash, j.lease_seconds"
ASSIGN = _assign_statement(_WITH_BODY, _NEW_WORK, has_room=fits("t.bytes", order="p.place"))
# For clients that do not read the work, which is as large as its task.
ASSIGN_BRIEFLY = _assign_statement("bytes", "w.id", is_read="false")
# For such clients, if tools wait for the work. It reads what fits in one response.
_IS_AWAITED = "p.tool_id = any(cast(:waiting as text[]))"
_AWAITED_FITS = fits(f"case when {_IS_AWAITED} then t.bytes end", order="p.place")
ASSIGN_TO_WAITING = _assign_statement(_WITH_BODY, _NEW_WORK, is_read=f"{_IS_AWAITED} and {_AWAITED_FITS}")

_OF_PAIRS = """
from unnest(cast(:task_ids as text[]), cast(:tool_ids as text[])) as p (task_id, tool_id)
join work w
  on w.task_id = p.task_id and w.tool_id = p.tool_id and w.task_id = any(cast(:task_ids as text[]))"""
_WORK_OF_PAIRS = f"""
select {rows.WORK}, {rows.task_bytes("t")} as bytes {_OF_PAIRS}
join tasks t on t.id = w.task_id and t.id = any(cast(:task_ids as text[]))"""
OF_PAIRS = text(bounded(_WORK_OF_PAIRS, size="r.bytes", order="id"))
OF_PAIRS_BRIEFLY = text(f"select w.id, w.task_id, w.tool_id, false as is_read, 0 as met {_OF_PAIRS}")

# The status of a pair that must wait for the next set, and of a pair whose task another assigner has just
# assigned. No client sees them.
_LATER, _OVERTAKEN = "later", "overtaken"

PairKey = tuple[str, str]


class WaitingPair(NamedTuple):
    """A pair, and whether a request waits for the work of its tool."""

    task_id: str
    tool_id: str
    is_awaited: bool


class ToolOfWork(NamedTuple):
    """The facts about the tool of new work that a request which waits for the work needs.

    `began_at` is when the assignment began, by `time.monotonic`.
    """

    token_hash: bytes | None
    lease_seconds: float
    began_at: float


class Assigned(NamedTuple):
    """The result of a pair, with the id of its work, if any.

    `work` is None if the step did not read it, and `tool` if the step did not create it.
    """

    status: PairStatus
    work_id: UUID | None = None
    work: Work | None = None
    tool: ToolOfWork | None = None


@one_statement()
def assign(connection: SqlConnection, pairs: Sequence[Pair]) -> list[Assigned]:
    """Create work for pairs, and return the result of each. An earlier pair wins over a later one."""
    return _assign(connection, ASSIGN, OF_PAIRS, pairs, rows.work)


@one_statement()
def assign_briefly(connection: SqlConnection, pairs: Sequence[Pair]) -> list[Assigned]:
    """Create work for pairs, and return the result of each, with only the id of the work."""
    return _assign(connection, ASSIGN_BRIEFLY, OF_PAIRS_BRIEFLY, pairs, lambda _: None)


@one_statement()
def assign_to_waiting(connection: SqlConnection, pairs: Sequence[WaitingPair]) -> list[Assigned]:
    """Do the same as `assign_briefly`, and read the new work that requests wait for, as far as it fits."""
    waiting = list({pair.tool_id for pair in pairs if pair.is_awaited})

    def read(row: rows.AnyRow) -> Work | None:
        return rows.work(row) if row.is_read else None

    return _assign(connection, ASSIGN_TO_WAITING, OF_PAIRS_BRIEFLY, pairs, read, waiting=waiting)


def _assign(
    connection: SqlConnection,
    statement: TextClause,
    of_pairs: TextClause,
    pairs: Sequence[Pair] | Sequence[WaitingPair],
    read: Callable[[rows.AnyRow], Work | None],
    **values: list[str],
) -> list[Assigned]:
    keys = [(pair.task_id, pair.tool_id) for pair in pairs]
    first: dict[PairKey, Assigned] = {}
    later: dict[PairKey, Assigned] = {}
    for run in runs(keys):
        began_at = time.monotonic()
        for key, row in _execute(connection, statement, run, values):
            status: Any = "task_unavailable" if row.status == _OVERTAKEN else row.status
            work = read(row) if status == "assigned" else None
            tool = None if work is None else ToolOfWork(row.token_hash, row.lease_seconds, began_at)
            first[key] = Assigned(status, row.id, work, tool)
            if status == _LATER:
                later[key] = LATER
    statuses = repeated(keys, {key: assigned.status for key, assigned in first.items()})

    refused = [key for key, status in zip(keys, statuses, strict=True) if status == "task_unavailable"]
    existing: dict[PairKey, Assigned] = {}
    if refused:
        page = connection.execute(of_pairs, _values(refused)).all()
        existing = {(row.task_id, row.tool_id): Assigned("exists", row.id, read(row)) for row in page}
        if is_cut(page):
            later |= dict.fromkeys(refused, LATER)
    missing = [key[0] for key, status in zip(keys, statuses, strict=True) if status == "task_not_found"]
    ended = ended_tasks.has_ended(connection, missing) if missing else set()

    def result(key: PairKey, status: PairStatus) -> Assigned:
        if key in existing:
            return existing[key]
        if key in later:
            return later[key]
        if status == "task_not_found" and key[0] in ended:
            return Assigned("task_unavailable")
        return first[key] if status == first[key].status else Assigned(status, *first[key][1:3])

    return [result(key, status) for key, status in zip(keys, statuses, strict=True)]


def _execute(
    connection: SqlConnection,
    statement: TextClause,
    keys: Sequence[PairKey],
    values: dict[str, list[str]],
) -> Iterator[tuple[PairKey, rows.AnyRow]]:
    """Execute the statement for a set of pairs, and yield each pair with its row.

    The tool of an overtaken pair still has the capacity that the pair would have used. So pairs for which the
    tool had too little capacity run again.
    """
    judged = list(zip(keys, connection.execute(statement, _values(keys) | values), strict=True))
    overtaken = {key[1] for key, row in judged if row.status == _OVERTAKEN}
    again = [key for key, row in judged if row.status == "tool_unavailable" and key[1] in overtaken]
    if again:
        judged += _execute(connection, statement, again, values)
    yield from judged


def runs(keys: Iterable[PairKey]) -> Iterator[list[PairKey]]:
    """Yield the pairs in order and without repetitions, in sets that have each task only once."""
    run: dict[str, PairKey] = {}
    for key in dict.fromkeys(keys):
        if key[0] in run:
            yield list(run.values())
            run = {}
        run[key[0]] = key
    if run:
        yield list(run.values())


def repeated(keys: Sequence[PairKey], first: Mapping[PairKey, PairStatus]) -> list[PairStatus]:
    """Return the status of each pair. That of a repeated pair follows from its status the first time."""
    seen: set[PairKey] = set()
    assigned: set[str] = set()
    statuses: list[PairStatus] = []
    for key in keys:
        status = first[key]
        if key in seen and status == "assigned":
            status = "exists"
        elif key in seen and key[0] in assigned:
            status = "task_unavailable"
        elif status == "assigned":
            assigned.add(key[0])
        seen.add(key)
        statuses.append(status)
    return statuses


def _values(keys: Sequence[PairKey]) -> dict[str, list[str]]:
    return {"task_ids": [key[0] for key in keys], "tool_ids": [key[1] for key in keys]}
