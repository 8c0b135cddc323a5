"""What an assigner looks at: the available tasks and tools, and what is new among them.

The cursor is exact whatever order transactions commit in. A row carries the transaction that last
changed its availability; the cursor carries the snapshot that the last reading saw (PostgreSQL's own
`pg_snapshot`). New is what that snapshot did not see: also what was written before the reading, but
committed after it. A long transaction elsewhere neither hides a row nor makes anyone spin.

A reading that does not fit on a page goes on in the order of the offer, from where the last page
ended. Its cursor keeps the snapshot from before its first page, so that whatever changes meanwhile,
behind the reader's back, is new to the next reading.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import Struct
from sqlalchemy import Connection, Row, TextClause, text

from broker.errors import CursorExpired
from broker.schemas.candidates import Candidates
from broker.schemas.tasks import Task
from broker.schemas.tools import Tool
from broker.store import rows
from broker.store.group_commit import LATER
from broker.store.pages import MOST_BYTES, bounded, met, seal, unseal

# The home of a cursor: this cluster, its timeline (a restore from a backup begins a new one), this start of
# its server (a copy of its files that is put back has another history from then on; and after a crash the
# numbers of transactions that had written nothing are given again), this database, and these tables (a dump
# that is read in again makes new ones).
SNAPSHOT = text("""
select cast(pg_current_snapshot() as text) as reading,
       md5(concat_ws('/', (select system_identifier from pg_control_system()),
                     substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
                     extract(epoch from pg_postmaster_start_time()),
                     (select oid from pg_database where datname = current_database()),
                     pg_relation_filenode('tasks'), pg_relation_filenode('tools'))) as home
""")


def _new(available: str) -> str:
    """SQL for the rows that became available, or changed, after one snapshot and before a later one.

    What a snapshot has not seen are the transactions in progress, which it lists, and those that came later.
    Each of the two is a range of the index on `changed`: the cost is that of the new rows. A range from
    the oldest transaction in progress on grows for as long as any transaction in the cluster stays open.

    What changed since the reading began is left to the next one, which would return it again. A transaction
    that is still to come has changed nothing: its rows come from the dump of a database with more history,
    and would be new at each reading.

    Args:
        available: The table, and the condition by which its rows are available.
    """
    seen, reading = (f"cast(cast(:{name} as text) as pg_snapshot)" for name in ("seen", "reading"))
    return f"""
    select *
    from (
        (select * from {available}
           and changed = any(array(select pg_snapshot_xip({seen})))
           and pg_visible_in_snapshot(changed, {reading})
         limit :limit)
        union all
        (select * from {available}
           and changed >= pg_snapshot_xmax({seen}) and changed < pg_snapshot_xmax({reading})
           and pg_visible_in_snapshot(changed, {reading})
         order by changed
         limit :limit)
    ) unseen
    limit :limit"""


NEW_TASKS = text(f"""
select {rows.TASK}, t.met
from ({bounded(_new("tasks where state = 'available'"), size=rows.task_size("r"), order="changed")}) t
left join work w on false
order by -cast(t.priority as integer), t.seq
""")

NEW_TOOLS = text(f"""
with new as materialized (
    {bounded(_new("tools where available"), size=rows.tool_bytes("r"), order="changed")}
)
select {rows.TOOL}, t.met
from new t
join tool_leases l on l.tool_id = t.id and l.tool_id = any(array(select id from new))
order by t.id
""")

# The same on the way through all of them; rows from a dump belong to the first reading.
_UNREAD = """
    (cast(:seen as text) is null
     or not pg_visible_in_snapshot(t.changed, cast(cast(:seen as text) as pg_snapshot)))
    and (pg_visible_in_snapshot(t.changed, cast(cast(:reading as text) as pg_snapshot))
         or cast(:seen as text) is null and t.changed >= pg_snapshot_xmax(pg_current_snapshot()))"""

_WALK_TASKS = f"""
select *
from tasks t
where t.state = 'available' and (-cast(t.priority as integer), t.seq) > (:rank, :seq) and {_UNREAD}
order by -cast(t.priority as integer), t.seq
limit :limit"""
WALK_TASKS = text(f"""
select {rows.TASK}, t.seq, t.met
from ({bounded(_WALK_TASKS, size=rows.task_size("r"), order="-cast(priority as integer), seq")}) t
left join work w on false
order by -cast(t.priority as integer), t.seq
""")

_WALK_TOOLS = f"""
select *
from tools t
where t.available and t.id > :id and {_UNREAD}
order by t.id
limit :limit"""
WALK_TOOLS = text(f"""
with page as materialized ({bounded(_WALK_TOOLS, size=rows.tool_bytes("r"), order="id")})
select {rows.TOOL}, t.met
from page t
join tool_leases l on l.tool_id = t.id and l.tool_id = any(array(select id from page))
order by t.id
""")

_FIRST_TASK = (-(2**15) - 1, -1)
_FIRST_TOOL = ""


class Cursor(Struct, array_like=True, kw_only=True):
    """Where a reading of the candidates goes on.

    Args:
        home: The database that the snapshots are of.
        seen: The snapshot whose rows the client has; none: it has none.
        reading: In the middle of a reading: the snapshot from before its first page.
        task: In the middle of a reading: the rank and number of the last task; none: it had them all.
        tool: The same for tools: the last one's id.
    """

    home: str
    seen: str | None = None
    reading: str | None = None
    task: tuple[int, int] | None = None
    tool: str | None = None


class Asked(NamedTuple):
    """What an assigner asks for: the last answer's cursor, if it has one, and how much of each it takes."""

    cursor: str | None
    limit: int


def read(connection: Connection, asked: Sequence[Asked]) -> list[Candidates]:
    """Return what each of the assigners asks for; those that ask for the same share it."""
    found: dict[Asked, Candidates] = {}
    size = 0
    for each in dict.fromkeys(asked):
        if size > MOST_BYTES:
            found[each] = LATER
            continue
        page = found[each] = candidates(connection, *each)
        size += sum(len(task.needs) + len(task.payload) for task in page.tasks)
        size += sum(len(tool.skills) for tool in page.tools)
    return [found[each] for each in asked]


def candidates(connection: Connection, cursor: str | None, limit: int) -> Candidates:
    """The available tasks and tools; with a cursor, those that are new since.

    Args:
        connection: To the database; a transaction is not needed.
        cursor: The last answer's cursor, to go on from.
        limit: At most this many tasks, and this many tools.

    Raises:
        ValidationFailed: The cursor is garbled.
        CursorExpired: The cursor is of another database.
    """
    given = unseal(cursor, Cursor, field="cursor") if cursor is not None else None
    # Before anything else: what is told has changed by then, and what changes later is new to the next.
    moment = connection.execute(SNAPSHOT).one()
    home, snapshot = moment.home, moment.reading
    if given is not None and given.home != home:
        raise CursorExpired
    here = given or Cursor(home=home, reading=snapshot, task=_FIRST_TASK, tool=_FIRST_TOOL)

    tasks: list[Task] = []
    tools: list[Tool] = []
    if here.reading is None:
        here = Cursor(home=home, seen=here.seen, reading=snapshot)
        new = _read_new(connection, NEW_TASKS, here, limit)
        tasks = [rows.task(row) for row in new]
        new_tools = _read_new(connection, NEW_TOOLS, here, limit)
        tools = [rows.tool(row) for row in new_tools]
        # More than a page of them: they are read page by page, in the order of the offer.
        here.task = _FIRST_TASK if _is_cut(new, limit) else None
        here.tool = _FIRST_TOOL if _is_cut(new_tools, limit) else None
    if here.task is not None:
        tasks, here.task = _walk_tasks(connection, here, *here.task, limit)
    if here.tool is not None:
        tools, here.tool = _walk_tools(connection, here, here.tool, limit)

    more = here.task is not None or here.tool is not None
    onward = here if more else Cursor(home=home, seen=here.reading)
    if given is not None and given.reading is not None and not (tasks or tools or more):
        # What was left of a reading is gone; who waits, waits for what is new since it began.
        return candidates(connection, seal(onward), limit)
    return Candidates(cursor=seal(onward), tasks=tasks, tools=tools, more=more)


def _read_new(connection: Connection, statement: TextClause, here: Cursor, limit: int) -> Sequence[Row[Any]]:
    values = {"seen": here.seen, "reading": here.reading, "limit": limit + 1}
    return connection.execute(statement, values).all()


def _walk_tasks(
    connection: Connection, here: Cursor, rank: int, seq: int, limit: int
) -> tuple[list[Task], tuple[int, int] | None]:
    values = {"rank": rank, "seq": seq, "seen": here.seen, "reading": here.reading, "limit": limit + 1}
    found = connection.execute(WALK_TASKS, values).all()
    page = [rows.task(row) for row in found[:limit]]
    onward = (-page[-1].priority, found[len(page) - 1].seq) if _is_cut(found, limit) else None
    return page, onward


def _is_cut(found: Sequence[Row[Any]], limit: int) -> bool:
    """Return whether there are more tasks, or tools, than a page holds."""
    return met(found) > min(limit, len(found))


def _walk_tools(
    connection: Connection, here: Cursor, after: str, limit: int
) -> tuple[list[Tool], str | None]:
    values = {"id": after, "seen": here.seen, "reading": here.reading, "limit": limit + 1}
    found = connection.execute(WALK_TOOLS, values).all()
    page = [rows.tool(row) for row in found[:limit]]
    return page, page[-1].id if _is_cut(found, limit) else None
