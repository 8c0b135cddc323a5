"""Assignment: create work for pairs of a task and a tool."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import TextClause, text

from broker.schemas.candidates import Pair, PairStatus
from broker.schemas.work import Work
from broker.store import ended_tasks, rows
from broker.store.group_commit import LATER
from broker.store.pages import bounded, fits, is_cut
from broker.store.sql_connection import SqlConnection
from broker.store.steps import one_statement

# A locked row is read in its latest version and does not change any more. So the statement can first decide
# the result of each pair, and then write all of them as a set. A set has each task only once. If a tool has
# too little free capacity, the first pairs with an available task get it.
_ASSIGN = f"""
with pair as (
    select *
    from unnest(cast(:task_ids as text[]), cast(:tool_ids as text[])) with ordinality
         as p (task_id, tool_id, place)
),
locked_tasks as materialized (
    select id, state, {rows.task_bytes("t")} as bytes
    from tasks t
    where id = any(cast(:task_ids as text[]))
    order by id
    for no key update
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
    select p.*, o.lease_seconds, o.token_hash, {{is_read}} as is_read,
           case when t.id is null then 'task_not_found'
                when t.state <> 'available' then 'task_unavailable'
                when o.id is null then 'tool_not_found'
                when row_number() over (partition by p.tool_id, t.state = 'available' order by p.place)
                     > o.room then 'tool_unavailable'
                when not ({{has_room}}) then 'later'
                else 'assigned' end as status
    from pair p
    left join locked_tasks t on t.id = p.task_id
    left join locked_tools o on o.id = p.tool_id
),
-- PostgreSQL checks a row twice, first in the version that the statement saw when it began. In that version
-- the task may have been scheduled, or failed.
now_assigned as (
    update tasks t
    set state = 'assigned', work_id = uuid7(), due_at = null, ended_at = null,
        remark = null, remark_at = null, changed = pg_current_xact_id()
    from judged j
    where t.id = j.task_id and t.id = any(cast(:task_ids as text[])) and j.status = 'assigned'
    returning t.*, j.tool_id, j.lease_seconds
),
loaded as (
    update tools t
    set load = t.load + n.works, changed = pg_current_xact_id()
    from (select tool_id, cast(count(*) as integer) as works from now_assigned group by tool_id) n
    where t.id = n.tool_id and t.id = any(cast(:tool_ids as text[]))
),
assigned as (
    insert into work (id, task_id, tool_id, attempt, deadline_at)
    select work_id, id, tool_id, attempt + 1, now() + make_interval(secs => lease_seconds)
    from now_assigned
    returning *
)
"""
_NEW_WORK = f"""
select {rows.WORK}, j.status, j.is_read, j.token_hash, j.lease_seconds
from judged j
left join assigned w on w.task_id = j.task_id
left join now_assigned t on t.id = j.task_id and j.is_read
order by j.place
"""
ASSIGN = text(_ASSIGN.format(has_room=fits("t.bytes", order="p.place"), is_read="true") + _NEW_WORK)
# For clients that do not read the work, which is as large as its task.
ASSIGN_BRIEFLY = text(f"""{_ASSIGN.format(has_room="true", is_read="false")}
select w.id, j.status from judged j left join assigned w on w.task_id = j.task_id order by j.place
""")
# For such clients, if tools wait for the work. It reads what fits in one response.
_IS_AWAITED = "p.tool_id = any(cast(:waiting as text[]))"
_AWAITED_FITS = fits(f"case when {_IS_AWAITED} then t.bytes end", order="p.place")
ASSIGN_TO_WAITING = text(
    _ASSIGN.format(has_room="true", is_read=f"{_IS_AWAITED} and {_AWAITED_FITS}") + _NEW_WORK
)

_OF_PAIRS = """
from unnest(cast(:task_ids as text[]), cast(:tool_ids as text[])) as p (task_id, tool_id)
join work w
  on w.task_id = p.task_id and w.tool_id = p.tool_id and w.task_id = any(cast(:task_ids as text[]))"""
_WORK_OF_PAIRS = f"""
select {rows.WORK}, {rows.task_bytes("t")} as bytes {_OF_PAIRS}
join tasks t on t.id = w.task_id and t.id = any(cast(:task_ids as text[]))"""
OF_PAIRS = text(bounded(_WORK_OF_PAIRS, size="r.bytes", order="id"))
OF_PAIRS_BRIEFLY = text(f"select w.id, w.task_id, w.tool_id, false as is_read, 0 as met {_OF_PAIRS}")

# The status of a pair that must wait for the next set. No client sees it.
_LATER = "later"

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
        for key, row in zip(run, connection.execute(statement, _values(run) | values), strict=True):
            work = read(row) if row.status == "assigned" else None
            tool = None if work is None else ToolOfWork(row.token_hash, row.lease_seconds, began_at)
            first[key] = Assigned(row.status, row.id, work, tool)
            if row.status == _LATER:
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
