"""Tools: registering, reading, changing, deleting."""

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from msgspec import UNSET, Raw
from msgspec.structs import asdict
from sqlalchemy import Connection, text

from broker.schemas import NewTool, Tool, ToolChange, ToolPage
from broker.store import completion, leases, rows
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


CHANGE = text("""
with asked as (
    select *
    from unnest(cast(:id as text[]), cast(:skills as jsonb[]), cast(:capacity as integer[]),
                cast(:draining as boolean[]))
         as u (id, skills, capacity, draining)
),
locked as materialized (
    select id from tools where id = any(cast(:id as text[])) order by id for no key update
)
update tools t
set skills = coalesce(a.skills, t.skills), capacity = coalesce(a.capacity, t.capacity),
    draining = coalesce(a.draining, t.draining), changed = pg_current_xact_id()
from asked a join locked on locked.id = a.id
where t.id = a.id and t.id = any(cast(:id as text[]))
""")

LOCK = text("select id from tools where id = any(cast(:ids as text[])) order by id for update")

DELETE = text("delete from tools where id = any(cast(:ids as text[])) and load = 0 returning id")


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


Deleted = Literal["deleted", "busy", "unknown"]


def hashed(token: str) -> bytes:
    """A token as it is kept: it is long and random, so a plain hash is as hard to undo as it is."""
    return sha256(token.encode()).digest()


class Deletion(NamedTuple):
    """A tool to delete; by force, its unfinished work is lost."""

    id: str
    force: bool = False


def register(connection: Connection, new: Sequence[Registration]) -> list[Registered]:
    """Enter tools; one that is there already is updated, its old token void.

    What its earlier run had started is lost, unless the new one resumes it. Of several with the same id the
    last one is entered: only its token is good.

    Raises:
        BeginAgain: The earlier run started something just now.
    """
    if given := {each.tool.id for each in new if each.tool.id}:
        restarted = {each.tool.id for each in new if each.tool.id and not each.tool.resume}
        why = "The tool was started anew."
        completion.lose(connection, restarted, why, running_only=True, beside=given - restarted)
    # What registers without an id is known by its token until it has one.
    last = {registration.tool.id or registration.token: registration for registration in new}
    tokens = {key: hashed(registration.token) for key, registration in last.items()}
    values = rows.columns((each.tool for each in last.values()), "id", "capacity")
    values["skills"] = [rows.given(each.tool.skills) for each in last.values()]
    values["token_hash"] = list(tokens.values())
    entered = {row[1]: (row[0], row[2]) for row in connection.execute(REGISTER, values)}
    ids = [entered[token][0] for token in tokens.values()]
    seconds = [each.tool.lease_seconds for each in last.values()]
    leases.begin(connection, ids, seconds)
    if again := [id_ for id_, created in entered.values() if not created]:
        leases.tell(connection, again)
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
    merged: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for id_, changed in changes:
        given = {name: value for name, value in asdict(changed).items() if value is not UNSET}
        if isinstance(skills := given.get("skills"), Raw):
            given["skills"] = rows.given(skills)
        merged[id_].update(given)
    values: dict[str, list[object]] = {"id": list(merged)}
    for name in ("skills", "capacity", "draining"):
        values[name] = [given.get(name) for given in merged.values()]
    connection.execute(CHANGE, values)
    if seconds := {id_: given["lease_seconds"] for id_, given in merged.items() if "lease_seconds" in given}:
        leases.change(connection, seconds)
    known = {tool.id: tool for tool in by_ids(connection, list(merged))}
    return [known.get(change.id) for change in changes]


def delete(connection: Connection, deletions: Sequence[Deletion]) -> list[Deleted]:
    """Delete tools: those that have no work, and by force those that have some.

    Raises:
        BeginAgain: A tool got work behind our back, and work comes first in the order of locks.
    """
    if forced := sorted({deletion.id for deletion in deletions if deletion.force}):
        completion.lose(connection, forced, "The tool was deleted.")
    ids = list({deletion.id for deletion in deletions})
    known = set(connection.execute(LOCK, {"ids": ids}).scalars())
    deleted = set(connection.execute(DELETE, {"ids": list(known)}).scalars())

    def fate(id_: str) -> Deleted:
        return "deleted" if id_ in deleted else "busy" if id_ in known else "unknown"

    return [fate(deletion.id) for deletion in deletions]
