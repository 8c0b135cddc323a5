"""Tools: register, read, change and delete them."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from msgspec import UNSET
from msgspec.structs import asdict
from sqlalchemy import TextClause, text

from broker.schemas.tools import NewTool, ToolChange, ToolPage, ToolStatus
from broker.store import leases, lost_work, ownership, rows
from broker.store.database_errors import RetryTransaction
from broker.store.ownership import VOID, Token, Void
from broker.store.pages import bounded, kept, last_examined, read_listed, unseal
from broker.store.sql_connection import SqlConnection

REGISTER = text(f"""
insert into tools as t (id, skills, capacity, token_hash, registered_by, bytes)
select id, skills, capacity, token_hash, registered_by, {rows.printed("skills")}
from (select coalesce(u.id, cast(uuid7() as text)) as id, u.skills, u.capacity, u.token_hash, u.registered_by
      from unnest(cast(:id as text[]), cast(:skills as jsonb[]), cast(:capacity as integer[]),
                  cast(:token_hash as bytea[]), cast(:registered_by as text[]))
           as u (id, skills, capacity, token_hash, registered_by)) requested
order by id collate "C"
on conflict (id) do update
set skills = excluded.skills, bytes = excluded.bytes, capacity = excluded.capacity,
    token_hash = excluded.token_hash,
    registered_by = coalesce(t.registered_by, excluded.registered_by),
    draining = false, offline = false, changed = pg_current_xact_id()
returning t.id, t.token_hash, t.xmax = 0 as created, t.registered_by
""")

BY_IDS = text(f"""
select {rows.TOOL}
from tools t
join tool_leases l on l.tool_id = t.id and l.tool_id = any(cast(:ids as text[]))
where t.id = any(cast(:ids as text[]))
""")

_FILTERS = {"state": f"{rows.TOOL_STATE} = :state", "registered_by": "registered_by = :registered_by"}


@cache
def _listing(names: frozenset[str]) -> TextClause:
    """Return the statement for a list with some of the filters."""
    keep = [condition for name, condition in _FILTERS.items() if name in names]
    tools = "select * from tools where id > :after"
    return text(f"""
with page as materialized (
    {bounded(kept(tools, keep, order="id"), size=rows.tool_bytes("r"), order="id")}
),
examined as materialized ({last_examined(tools, keep, order="id", key="id")})
select {rows.TOOL}, t.met, examined.id as examined
from (select) always
left join page t on true
left join examined on true
left join tool_leases l on l.tool_id = t.id and l.tool_id = any(array(select id from page))
order by t.id
""")


CHANGE = text(f"""
with requested as (
    select *
    from unnest(cast(:id as text[]), cast(:skills as jsonb[]), cast(:capacity as integer[]),
                cast(:draining as boolean[]))
         as u (id, skills, capacity, draining)
),
locked as materialized (
    select id from tools where id = any(cast(:id as text[])) order by id for no key update
)
update tools t
set skills = coalesce(a.skills, t.skills), bytes = coalesce({rows.printed("a.skills")}, t.bytes),
    capacity = coalesce(a.capacity, t.capacity),
    draining = coalesce(a.draining, t.draining), changed = pg_current_xact_id()
from requested a join locked on locked.id = a.id
where t.id = a.id and t.id = any(cast(:id as text[]))
""")

LOCK_TO_CHANGE = text("""
select id from tools where id = any(cast(:ids as text[])) order by id for no key update
""")

LOCK = text("select id, token_hash from tools where id = any(cast(:ids as text[])) order by id for update")

DELETE = text("delete from tools where id = any(cast(:ids as text[])) and load = 0 returning id")


class Registration(NamedTuple):
    """A tool, the hash of its new token, and the name of the key that registers it, if there are keys.

    With `any_owner`, an existing tool with this id may belong to another key.
    """

    tool: NewTool
    token_hash: bytes
    by: str | None = None
    any_owner: bool = True


class Registered(NamedTuple):
    """A tool, and whether this registration created it. The tool is None if it belongs to another key."""

    tool: ToolStatus | None
    created: bool


class Change(NamedTuple):
    """A request to change a tool: the tool's id, the change, and the token of the request."""

    id: str
    change: ToolChange
    token: Token | None = None


ToolDeleted = Literal["deleted", "busy", "unknown"] | Void


class ToolDeletion(NamedTuple):
    """A request to delete a tool, and its token. With `force`, the tool's unfinished work ends as lost."""

    id: str
    force: bool = False
    token: Token | None = None


def register(connection: SqlConnection, new: Sequence[Registration]) -> list[Registered]:
    """Write tools. Update existing tools and make their old tokens invalid.

    Work that an earlier run of a tool started ends as lost, unless the new run resumes it. If several
    registrations have the same id, only the token of the last one is valid. A tool belongs to the key that
    registered it first.

    Raises:
        RetryTransaction: Before the tool was locked, its earlier run started work, or another key registered
            the tool.
    """
    refused = _of_others(connection, new)
    ours = [each for place, each in enumerate(new) if place not in refused]
    written = _write(connection, ours) if ours else {}

    returned: set[str] = set()
    results = []
    for place, each in enumerate(new):
        if place in refused:
            results.append(Registered(None, created=False))
            continue
        tool, created = written[_key(each)]
        results.append(Registered(tool, created and tool.id not in returned))
        returned.add(tool.id)
    return results


def _of_others(connection: SqlConnection, new: Sequence[Registration]) -> set[int]:
    """Return the positions of the registrations to refuse, because their tool belongs to another key."""
    ids = list({each.tool.id for each in new if each.tool.id and not each.any_owner})
    if not ids:
        return set()
    known = zip(ids, ownership.of_tools(connection, ids), strict=True)
    owners = {id_: owner.key for id_, owner in known if owner and owner.key}
    return {
        place
        for place, each in enumerate(new)
        if each.tool.id
        and each.by
        and owners.setdefault(each.tool.id, each.by) != each.by
        # A registration for any owner is never refused. It sets the owner for the registrations after it.
        and not each.any_owner
    }


def _write(
    connection: SqlConnection, new: Sequence[Registration]
) -> dict[str | bytes, tuple[ToolStatus, bool]]:
    """Write tools, and return each of them and whether it is new, by its `_key`."""
    if given_ids := {each.tool.id for each in new if each.tool.id}:
        restarted = {each.tool.id for each in new if each.tool.id and not each.tool.resume}
        why = "The tool was restarted."
        lost_work.end_as_lost(connection, restarted, why, running_only=True, beside=given_ids - restarted)
    last = {_key(each): each for each in new}
    first = {_key(each): each for each in reversed(new)}
    values = rows.columns((each.tool for each in last.values()), "id", "capacity")
    values["skills"] = [each.tool.skills for each in last.values()]
    values["token_hash"] = [each.token_hash for each in last.values()]
    values["registered_by"] = [first[key].by for key in last]
    written = {row.token_hash: row for row in connection.execute(REGISTER, values)}
    in_order = [(key, each, written[each.token_hash]) for key, each in last.items()]
    if any(not each.any_owner and row.registered_by != first[key].by for key, each, row in in_order):
        raise RetryTransaction
    ids = [row.id for _, _, row in in_order]
    leases.begin(connection, ids, [each.tool.lease_seconds for each in last.values()])
    if again := [row.id for _, _, row in in_order if not row.created]:
        leases.notify(connection, again)
    known = {tool.id: tool for tool in by_ids(connection, ids)}
    return {key: (known[row.id], row.created) for key, _, row in in_order}


def _key(registration: Registration) -> str | bytes:
    """Return the id of a registration's tool, or the hash of its token if the request has no id."""
    return registration.tool.id or registration.token_hash


def by_ids(connection: SqlConnection, ids: Sequence[str]) -> list[ToolStatus]:
    """Return the known tools among these ids, in no particular order."""
    return [rows.tool(row) for row in connection.execute(BY_IDS, {"ids": ids})]


def listing(*, state: str | None, registered_by: str | None) -> TextClause:
    """Return the statement for a page of a list."""
    filters = {"state": state, "registered_by": registered_by}
    return _listing(frozenset(name for name, value in filters.items() if value is not None))


def page(
    connection: SqlConnection, *, state: str | None, registered_by: str | None, limit: int, after: str | None
) -> ToolPage:
    """Return a page of the tools, in the order of their ids."""
    filters = {"state": state, "registered_by": registered_by}
    begin = unseal(after, str, field="after") if after is not None else ""
    statement = listing(**filters)
    items, onward = read_listed(
        connection, statement, filters | {"after": begin}, limit, key=lambda row: row.id
    )
    return ToolPage(items=[rows.tool(row) for row in items], next=onward)


def change(connection: SqlConnection, changes: Sequence[Change]) -> list[ToolStatus | Void | None]:
    """Apply changes to tools in order, and return each tool as it is after all of them.

    The result of an unknown tool is None. A change with an invalid token has no effect; its result is `void`.
    """
    void: set[Token | None] = set()
    if any(change.token for change in changes):
        connection.execute(LOCK_TO_CHANGE, {"ids": [change.id for change in changes]})
        void = ownership.void(connection, [change.token for change in changes])
    good = [change for change in changes if change.token not in void]
    known = iter(_change(connection, good) if good else [])
    return [VOID if change.token in void else next(known) for change in changes]


def _change(connection: SqlConnection, changes: Sequence[Change]) -> list[ToolStatus | None]:
    merged: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for id_, changed, _ in changes:
        fields = {name: value for name, value in asdict(changed).items() if value is not UNSET}
        merged[id_].update(fields)
    values: dict[str, list[object]] = {"id": list(merged)}
    for name in ("skills", "capacity", "draining"):
        values[name] = [fields.get(name) for fields in merged.values()]
    connection.execute(CHANGE, values)
    if seconds := {
        id_: fields["lease_seconds"] for id_, fields in merged.items() if "lease_seconds" in fields
    }:
        leases.change(connection, seconds)
    known = {tool.id: tool for tool in by_ids(connection, list(merged))}
    return [known.get(change.id) for change in changes]


def delete(connection: SqlConnection, deletions: Sequence[ToolDeletion]) -> list[ToolDeleted]:
    """Delete tools without work, and with `force` also tools with work.

    Raises:
        RetryTransaction: A tool got work or another token before it was locked. Work must be locked first.
    """
    void = ownership.void(connection, [deletion.token for deletion in deletions])
    good = [deletion for deletion in deletions if deletion.token not in void]
    if forced := sorted({deletion.id for deletion in good if deletion.force}):
        lost_work.end_as_lost(connection, forced, "The tool was deleted.")
    ids = list({deletion.id for deletion in good})
    known = {row.id: Token(row.id, row.token_hash) for row in connection.execute(LOCK, {"ids": ids})}
    if any(ownership.is_void(deletion.token, known.get(deletion.id)) for deletion in good):
        raise RetryTransaction
    deleted = set(connection.execute(DELETE, {"ids": list(known)}).scalars())

    def result(deletion: ToolDeletion) -> ToolDeleted:
        if deletion.token in void:
            return VOID
        return "deleted" if deletion.id in deleted else "busy" if deletion.id in known else "unknown"

    return [result(deletion) for deletion in deletions]
