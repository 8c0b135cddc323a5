"""Tools: registering, reading, changing, deleting, and their leases."""

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from msgspec import UNSET, Raw
from msgspec.structs import asdict
from sqlalchemy import Connection, text

from broker.schemas import Heartbeat, NewTool, Tool, ToolChange, ToolPage
from broker.store import rows
from broker.store.engine import one_statement
from broker.store.pages import cut, unseal

REGISTER = text("""
insert into tools as t (id, skills, capacity, token_hash)
select id, skills, capacity, token_hash
from (select coalesce(u.id, cast(uuid7() as text)) as id, u.skills, u.capacity, u.token_hash
      from unnest(cast(:id as text[]), cast(:skills as jsonb[]), cast(:capacity as integer[]),
                  cast(:token_hash as bytea[])) as u (id, skills, capacity, token_hash)) asked
order by id collate "C"
on conflict (id) do update
set skills = excluded.skills, capacity = excluded.capacity, token_hash = excluded.token_hash,
    draining = false, offline = false, changed = pg_current_xact_id()
returning t.id, t.token_hash, t.xmax = 0 as created
""")

BEGIN_LEASES = text("""
insert into tool_leases as l (tool_id, lease_seconds, seen_at, expires_at)
select u.tool_id, u.lease_seconds, clock.now, clock.now + make_interval(secs => u.lease_seconds)
from unnest(cast(:ids as text[]), cast(:lease_seconds as double precision[])) as u (tool_id, lease_seconds)
cross join (select clock_timestamp() as now) clock
order by u.tool_id collate "C"
on conflict (tool_id) do update
set lease_seconds = excluded.lease_seconds, seen_at = excluded.seen_at, expires_at = excluded.expires_at
""")

BY_IDS = text(f"""
select {rows.TOOL}
from tools t
join tool_leases l on l.tool_id = t.id and l.tool_id = any(cast(:ids as text[]))
where t.id = any(cast(:ids as text[]))
""")

LIST = text(f"""
with page as materialized (
    select *
    from tools t
    where id > :after and (cast(:state as text) is null or {rows.TOOL_STATE} = :state)
    order by id
    limit :limit
)
select {rows.TOOL}
from page t
join tool_leases l on l.tool_id = t.id and l.tool_id = any(array(select id from page))
order by t.id
""")


def _locked_leases(tools: str) -> str:
    """The part of a statement that locks leases, in the order of their ids (`tools`: SQL for the array)."""
    return f"""
locked_leases as materialized (
    select tool_id from tool_leases where tool_id = any({tools}) order by tool_id for no key update
)"""


CHANGE = text(f"""
with asked as (
    select *
    from unnest(cast(:id as text[]), cast(:skills as jsonb[]), cast(:capacity as integer[]),
                cast(:lease_seconds as double precision[]), cast(:draining as boolean[]))
         as u (id, skills, capacity, lease_seconds, draining)
),
locked as materialized (
    select id from tools where id = any(cast(:id as text[])) order by id for no key update
),
{_locked_leases("array(select id from locked)")},
leases_changed as (
    update tool_leases l
    set lease_seconds = a.lease_seconds
    from asked a join locked_leases on locked_leases.tool_id = a.id
    where l.tool_id = a.id and l.tool_id = any(cast(:id as text[])) and a.lease_seconds is not null
)
update tools t
set skills = coalesce(a.skills, t.skills), capacity = coalesce(a.capacity, t.capacity),
    draining = coalesce(a.draining, t.draining), changed = pg_current_xact_id()
from asked a join locked on locked.id = a.id
where t.id = a.id and t.id = any(cast(:id as text[]))
""")

LOCK = text("select id, load from tools where id = any(cast(:ids as text[])) order by id for update")

DELETE = text("delete from tools where id = any(cast(:ids as text[])) and load = 0 returning id")


def renewed(tools: str) -> str:
    """The part of a statement that renews leases, as whatever a tool does renews its own.

    Leases are renewed in place: no index has what changes here. They run from when they are locked, not from
    when the statement began, which may have waited: so none ends sooner than somebody was told.

    Args:
        tools: SQL for the array of the tools' ids.
    """
    return f"""
{_locked_leases(tools)},
moment as materialized (
    select clock_timestamp() as now from (select count(*) from locked_leases) all_of_them
),
renewed as (
    update tool_leases l
    set seen_at = (select now from moment),
        expires_at = (select now from moment) + make_interval(secs => l.lease_seconds)
    from locked_leases
    where l.tool_id = locked_leases.tool_id and l.tool_id = any({tools})
    returning l.tool_id, l.expires_at, l.lease_seconds
)"""


_ASKED = renewed("cast(:ids as text[])")
RENEW = text(f"with {_ASKED} select tool_id, lease_seconds from renewed")

HEARTBEAT = text(f"""
with {_ASKED}
select tool_id, expires_at,
       array(select w.id
             from work w
             where w.tool_id = renewed.tool_id and w.cancel_requested
             order by w.assigned_at, w.id) as to_cancel
from renewed
""")


class Registration(NamedTuple):
    """A tool that registers, and the token it will be known by."""

    tool: NewTool
    token: str


class Registered(NamedTuple):
    """A tool, and whether this registration made it."""

    tool: Tool
    created: bool


class Change(NamedTuple):
    """A tool's id, and what to change of it."""

    id: str
    change: ToolChange


def hashed(token: str) -> bytes:
    """A token as it is kept: it is long and random, so a plain hash is as hard to undo as it is."""
    return sha256(token.encode()).digest()


def register(connection: Connection, new: Sequence[Registration]) -> list[Registered]:
    """Enter tools; one that is there already is updated, its old token void.

    Of several with the same id the last one is entered: only its token is good.
    """
    # What registers without an id is known by its token until it has one.
    last = {registration.tool.id or registration.token: registration for registration in new}
    tokens = {key: hashed(registration.token) for key, registration in last.items()}
    values = rows.columns((each.tool for each in last.values()), "id", "capacity")
    values["skills"] = [rows.given(each.tool.skills) for each in last.values()]
    values["token_hash"] = list(tokens.values())
    entered = {row[1]: (row[0], row[2]) for row in connection.execute(REGISTER, values)}
    ids = [entered[token][0] for token in tokens.values()]
    seconds = [each.tool.lease_seconds for each in last.values()]
    connection.execute(BEGIN_LEASES, {"ids": ids, "lease_seconds": seconds})
    known = {tool.id: tool for tool in by_ids(connection, ids)}

    made: set[str] = set()
    answers = []
    for registration in new:
        id_, created = entered[tokens[registration.tool.id or registration.token]]
        answers.append(Registered(known[id_], created and id_ not in made))
        made.add(id_)
    return answers


def by_ids(connection: Connection, ids: Sequence[str]) -> list[Tool]:
    """The tools of these ids, in no particular order; the unknown are left out."""
    return [rows.tool(row) for row in connection.execute(BY_IDS, {"ids": ids})]


def page(connection: Connection, *, state: str | None, limit: int, after: str | None) -> ToolPage:
    """Some of the tools, in the order of their ids."""
    values = {
        "after": unseal(after, str, field="after") if after is not None else "",
        "state": state,
        "limit": limit + 1,
    }
    found = connection.execute(LIST, values).all()
    items, onward = cut(found, limit, key=lambda row: row[0])
    return ToolPage(items=[rows.tool(row) for row in items], next=onward)


def change(connection: Connection, changes: Sequence[Change]) -> list[Tool | None]:
    """Change tools, one change after the other; for each the tool as it is then, None where there is none."""
    merged: defaultdict[str, dict[str, object]] = defaultdict(dict)
    for id_, changed in changes:
        given = {name: value for name, value in asdict(changed).items() if value is not UNSET}
        if isinstance(skills := given.get("skills"), Raw):
            given["skills"] = rows.given(skills)
        merged[id_].update(given)
    values: dict[str, list[object]] = {"id": list(merged)}
    for name in ("skills", "capacity", "lease_seconds", "draining"):
        values[name] = [given.get(name) for given in merged.values()]
    connection.execute(CHANGE, values)
    known = {tool.id: tool for tool in by_ids(connection, list(merged))}
    return [known.get(change.id) for change in changes]


def delete(connection: Connection, ids: Sequence[str]) -> list[str]:
    """Delete tools that have no work; for each `deleted`, `busy` or `unknown`."""
    loads = {row[0]: row[1] for row in connection.execute(LOCK, {"ids": ids})}
    deleted = {row[0] for row in connection.execute(DELETE, {"ids": list(loads)})}
    return ["deleted" if id_ in deleted else "busy" if id_ in loads else "unknown" for id_ in ids]


@one_statement()
def heartbeat(connection: Connection, ids: Sequence[str]) -> list[Heartbeat | None]:
    """Renew leases; for each tool until when, and which of its work should stop. None: unknown."""
    heard = {
        row[0]: Heartbeat(lease_expires_at=row[1], cancel=row[2])
        for row in connection.execute(HEARTBEAT, {"ids": ids})
    }
    return [heard.get(id_) for id_ in ids]


@one_statement()
def keep(connection: Connection, ids: Sequence[str]) -> list[float | None]:
    """Renew leases; for each tool how many seconds its leases last. None: unknown."""
    seconds = {row[0]: row[1] for row in connection.execute(RENEW, {"ids": ids})}
    return [seconds.get(id_) for id_ in ids]
