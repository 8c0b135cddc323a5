"""Candidates: the available tasks and tools, and which of them are new to an assigner.

The cursor is exact, in whatever order transactions commit. Each row holds the id of the transaction that last
changed its availability. The cursor holds the snapshot of the last read (PostgreSQL's `pg_snapshot`). A
row is new if that snapshot did not see it, even if the row was written before the read and committed after
it. A long transaction of another session neither hides a row nor returns it repeatedly.

A read may need several pages. Each page continues in the order of the tasks where the last page ended. The
cursor keeps the snapshot from before the first page. So a row that changes in between is new to the next
read.
"""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct
from sqlalchemy import TextClause, text

from broker.errors import CursorExpired
from broker.schemas.candidates import Candidates
from broker.schemas.tasks import Task
from broker.schemas.tools import ToolStatus
from broker.store import rows
from broker.store.group_commit import LATER
from broker.store.pages import MOST_BYTES, bounded, met, seal, unseal
from broker.store.sql_connection import SqlConnection

# The home of a cursor: the cluster, its timeline (a restore from a backup begins a new one), the start of its
# server, the database, and the tables (a restored dump creates new ones). The start of the server counts for
# two reasons: restored copies of its files have another history, and after a crash PostgreSQL reuses the ids
# of transactions that wrote nothing.
_MOMENT = """
select cast(pg_current_snapshot() as text) as reading,
       md5(concat_ws('/', (select system_identifier from pg_control_system()),
                     substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
                     extract(epoch from pg_postmaster_start_time()),
                     (select oid from pg_database where datname = current_database()),
                     pg_relation_filenode('tasks'), pg_relation_filenode('tools'))) as home
"""
SNAPSHOT = text(_MOMENT)


def _new(available: str) -> str:
    """Return SQL for the rows that became available, or changed, after a snapshot.

    A snapshot has not seen two groups of transactions: those in progress, which it lists, and the later ones.
    Each group is a range of the index on `changed`, so the cost of the query depends only on the number of
    new rows. A single range, from the oldest transaction in progress on, would grow while any transaction in
    the cluster stays open.

    Rows with the ids of future transactions come from the dump of a database with a longer history. They
    would be new to each read.

    Args:
        available: The table, and the condition by which its rows are available.
    """
    seen = "cast(cast(:seen as text) as pg_snapshot)"
    return f"""
    select *
    from (
        (select * from {available}
           and changed = any(array(select pg_snapshot_xip({seen})))
         limit :limit)
        union all
        (select * from {available}
           and changed >= pg_snapshot_xmax({seen}) and changed < pg_snapshot_xmax(pg_current_snapshot())
         order by changed
         limit :limit)
    ) unseen
    limit :limit"""


_AVAILABLE_TASKS = f"tasks t where state = 'available' and {rows.without_work('t')}"
_NEW_TASKS = bounded(_new(_AVAILABLE_TASKS), size=rows.task_size("r"), order="changed")
_NEW_TOOLS = bounded(_new("tools where available"), size=rows.tool_bytes("r"), order="changed")
_TOOL = rows.tool_columns("o")

# The new tasks and tools that fit in one response, side by side: the first row has the first task and the
# first tool, and so on. One statement takes less time than three, and its snapshot covers all rows.
NEW = text(f"""
with moment as materialized ({_MOMENT}),
task_page as materialized (
    select *, row_number() over (order by {rows.offer_order()}) as place from ({_NEW_TASKS}) r
),
tool_page as materialized (
    select *, row_number() over (order by id) as place from ({_NEW_TOOLS}) r
)
select moment.reading, moment.home, t.met as tasks_met, o.met as tools_met, {rows.TASK}, {_TOOL.values}
from moment
left join (task_page t full join tool_page o on o.place = t.place) on true
left join tool_leases l on l.tool_id = o.id and l.tool_id = any(array(select id from tool_page))
left join work w on false
order by coalesce(t.place, o.place)
""")
# The positions of their columns.
_TASK_AT, _TOOL_AT = 4, 4 + len(rows.TASK)


def _tasks(tasks: str, order: str) -> TextClause:
    """Return the statement for the tasks that fit in one response, in their order."""
    return text(f"""
select {rows.TASK}, t.seq, t.met
from ({bounded(tasks, size=rows.task_size("r"), order=order)}) t
left join work w on false
order by {rows.offer_order("t")}
""")


def _tools(tools: str, order: str) -> TextClause:
    """Return the statement for the tools that fit in one response, in the order of their ids."""
    return text(f"""
with page as materialized ({bounded(tools, size=rows.tool_bytes("r"), order=order)})
select {rows.TOOL}, t.met
from page t
join tool_leases l on l.tool_id = t.id and l.tool_id = any(array(select id from page))
order by t.id
""")


# The condition for a read of all rows. Rows from a dump belong to the first read.
_UNREAD = """
    (cast(:seen as text) is null
     or not pg_visible_in_snapshot(t.changed, cast(cast(:seen as text) as pg_snapshot)))
    and (pg_visible_in_snapshot(t.changed, cast(cast(:reading as text) as pg_snapshot))
         or cast(:seen as text) is null and t.changed >= pg_snapshot_xmax(pg_current_snapshot()))"""

_UNREAD_TASKS = f"""
select *
from {_AVAILABLE_TASKS} and ({rows.offer_order("t")}) > (:rank, :seq) and {_UNREAD}
order by {rows.offer_order("t")}
limit :limit"""
_UNREAD_TOOLS = f"""
select *
from tools t
where t.available and t.id > :id and {_UNREAD}
order by t.id
limit :limit"""
WALK_TASKS = _tasks(_UNREAD_TASKS, order=rows.offer_order())
WALK_TOOLS = _tools(_UNREAD_TOOLS, order="id")

_FIRST_TASK = (-(2**15) - 1, -1)
_FIRST_TOOL = ""


class Cursor(Struct, array_like=True, kw_only=True):
    """The position of a client in the candidates.

    Args:
        home: The database of the snapshots.
        seen: The snapshot whose rows the client has. None if the client has no rows.
        reading: During a read of several pages, the snapshot from before its first page.
        task: During a read, the rank and `seq` of the last task. None if all tasks were read.
        tool: During a read, the id of the last tool. None if all tools were read.
    """

    home: str
    seen: str | None = None
    reading: str | None = None
    task: tuple[int, int] | None = None
    tool: str | None = None


class CandidatesRequest(NamedTuple):
    """The cursor of the assigner's last response, if any, and the maximum number of tasks and of tools."""

    cursor: str | None
    limit: int


def read(connection: SqlConnection, requests: Sequence[CandidatesRequest]) -> list[Candidates]:
    """Return the candidates for each request. Equal requests share them."""
    by_request: dict[CandidatesRequest, Candidates] = {}
    size = 0
    for each in dict.fromkeys(requests):
        if size > MOST_BYTES:
            by_request[each] = LATER
            continue
        page = by_request[each] = candidates(connection, each.cursor, each.limit)
        size += sum(len(task.needs) + len(task.payload) for task in page.tasks)
        size += sum(len(tool.skills) for tool in page.tools)
    return [by_request[each] for each in requests]


def candidates(connection: SqlConnection, cursor: str | None, limit: int) -> Candidates:
    """Return the available tasks and tools, at most `limit` of each. With a cursor, return only new ones.

    Raises:
        ValidationFailed: The cursor is not a cursor of a broker.
        CursorExpired: The cursor belongs to another database.
    """
    position = unseal(cursor, Cursor, field="cursor") if cursor is not None else None
    if position is not None and position.reading is None:
        return _read_new(connection, position, limit)
    # Read the snapshot first: it covers all rows that the page returns, and later changes are new to the next
    # read.
    moment = connection.execute(SNAPSHOT).one()
    if position is None:
        position = Cursor(home=moment.home, reading=moment.reading, task=_FIRST_TASK, tool=_FIRST_TOOL)
    elif position.home != moment.home:
        raise CursorExpired
    page = _walk(connection, position, limit)
    if cursor is not None and not (page.tasks or page.tools or page.more):
        # The rest of this read is no longer available. A waiting request now waits for new rows.
        return candidates(connection, page.cursor, limit)
    return page


def _read_new(connection: SqlConnection, position: Cursor, limit: int) -> Candidates:
    """Return the new tasks and tools. If they do not fit, return a page, in their order."""
    read = connection.execute(NEW, {"seen": position.seen, "limit": limit + 1})
    if position.home != read[0].home:
        raise CursorExpired
    tasks = [rows.task(row[_TASK_AT:]) for row in read if row.tasks_met is not None]
    tools = [ToolStatus(**_TOOL.of(row[_TOOL_AT:])) for row in read if row.tools_met is not None]
    are_all_tasks = max(row.tasks_met or 0 for row in read) <= min(limit, len(tasks))
    are_all_tools = max(row.tools_met or 0 for row in read) <= min(limit, len(tools))
    onward = Cursor(
        home=position.home,
        seen=position.seen,
        reading=read[0].reading,
        task=None if are_all_tasks else _FIRST_TASK,
        tool=None if are_all_tools else _FIRST_TOOL,
    )
    return _walk(connection, onward, limit, tasks if are_all_tasks else [], tools if are_all_tools else [])


def _walk(
    connection: SqlConnection,
    position: Cursor,
    limit: int,
    tasks: list[Task] | None = None,
    tools: list[ToolStatus] | None = None,
) -> Candidates:
    """Return a page of candidates. Tasks or tools that were all read already, if any, are part of it."""
    tasks, tools = tasks or [], tools or []
    if position.task is not None:
        rank, seq = position.task
        page, has_more = _page(connection, WALK_TASKS, position, limit, rank=rank, seq=seq)
        tasks = list(map(rows.task, page))
        position.task = (-page[-1].priority, page[-1].seq) if has_more else None
    if position.tool is not None:
        page, has_more = _page(connection, WALK_TOOLS, position, limit, id=position.tool)
        tools = list(map(rows.tool, page))
        position.tool = page[-1].id if has_more else None
    more = position.task is not None or position.tool is not None
    onward = position if more else Cursor(home=position.home, seen=position.reading)
    return Candidates(cursor=seal(onward), tasks=tasks, tools=tools, more=more)


def _page(
    connection: SqlConnection, statement: TextClause, position: Cursor, limit: int, **after: object
) -> tuple[Sequence[rows.AnyRow], bool]:
    """Return the rows of a page, and whether there are further rows."""
    values = {"seen": position.seen, "reading": position.reading, "limit": limit + 1}
    read = connection.execute(statement, values | after).all()
    return read[:limit], met(read) > min(limit, len(read))
