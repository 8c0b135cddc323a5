"""Leases: how long a tool is taken to be there without a word from it.

They have a table of their own and are renewed in place: no index has what changes.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from broker.schemas import Heartbeat
from broker.store.engine import one_statement

BEGIN = text("""
insert into tool_leases as l (tool_id, lease_seconds, seen_at, expires_at)
select u.tool_id, u.lease_seconds, clock.now, clock.now + make_interval(secs => u.lease_seconds)
from unnest(cast(:ids as text[]), cast(:lease_seconds as double precision[])) as u (tool_id, lease_seconds)
cross join (select clock_timestamp() as now) clock
order by u.tool_id collate "C"
on conflict (tool_id) do update
set lease_seconds = excluded.lease_seconds, seen_at = excluded.seen_at, expires_at = excluded.expires_at
""")

# It counts from the next renewal on.
CHANGE = text("""
with locked as materialized (
    select tool_id
    from tool_leases
    where tool_id = any(cast(:ids as text[]))
    order by tool_id
    for no key update
)
update tool_leases l
set lease_seconds = a.lease_seconds
from unnest(cast(:ids as text[]), cast(:lease_seconds as double precision[])) as a (tool_id, lease_seconds)
join locked on locked.tool_id = a.tool_id
where l.tool_id = a.tool_id and l.tool_id = any(cast(:ids as text[]))
""")


def renewed(tools: str, *, which: str = "true") -> str:
    """The part of a statement that renews leases, as whatever a tool does renews its own.

    They run from when they are locked, not from when the statement began, which may have waited: so none
    ends sooner than somebody was told.

    Args:
        tools: SQL for the array of the tools' ids.
        which: SQL for a condition; `locked_leases` is the lease in its latest version, `moment` has when
            it was locked.
    """
    return f"""
locked_leases as materialized (
    select tool_id, expires_at
    from tool_leases
    where tool_id = any({tools})
    order by tool_id
    for no key update
),
moment as materialized (
    select clock_timestamp() as now from (select count(*) from locked_leases) all_of_them
),
renewed as (
    update tool_leases l
    set seen_at = (select now from moment),
        expires_at = (select now from moment) + make_interval(secs => l.lease_seconds)
    from locked_leases
    where l.tool_id = locked_leases.tool_id and l.tool_id = any({tools}) and {which}
    returning l.tool_id, l.expires_at, l.lease_seconds
)"""


# A tool whose lease has run out may be offline; that is only seen after its lease was locked.
_ASKED = renewed("cast(:ids as text[])", which="locked_leases.expires_at > (select now from moment)")
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

COME_BACK = text(f"""
with locked_tools as materialized (
    select id, offline from tools where id = any(cast(:ids as text[])) order by id for no key update
),
back as (
    update tools t
    set offline = false, changed = pg_current_xact_id()
    from locked_tools
    where t.id = locked_tools.id and t.id = any(cast(:ids as text[])) and locked_tools.offline
),
{renewed("array(select id from locked_tools)")}
select tool_id, lease_seconds from renewed
""")

# Whoever waits for the tool's work renews its lease meanwhile, and plans by its length.
TELL = text("select notify_ids('broker_tool', cast(:ids as text[]))")


def begin(connection: Connection, ids: Sequence[str], seconds: Sequence[float]) -> None:
    """Begin the leases of tools that register."""
    connection.execute(BEGIN, {"ids": ids, "lease_seconds": seconds})


def change(connection: Connection, seconds: dict[str, float]) -> None:
    """Change how long the leases of tools last from their next renewal on."""
    connection.execute(CHANGE, {"ids": list(seconds), "lease_seconds": list(seconds.values())})
    tell(connection, list(seconds))


def tell(connection: Connection, ids: Sequence[str]) -> None:
    """Have whoever waits for the work of these tools look again: their leases have another length."""
    connection.execute(TELL, {"ids": ids})


@one_statement()
def heartbeat(connection: Connection, ids: Sequence[str]) -> list[Heartbeat | None]:
    """Renew leases; for each tool until when, and which of its work should stop. None: unknown.

    A tool that was offline is back.
    """
    heard = _heard(connection, ids)
    if missing := [id_ for id_ in ids if id_ not in heard]:
        connection.execute(COME_BACK, {"ids": missing})
        heard |= _heard(connection, missing)
    return [heard.get(id_) for id_ in ids]


@one_statement()
def keep(connection: Connection, ids: Sequence[str]) -> list[float | None]:
    """Renew leases; for each tool how many seconds its leases last. None: unknown.

    A tool that was offline is back.
    """
    seconds = {row[0]: row[1] for row in connection.execute(RENEW, {"ids": ids})}
    if missing := [id_ for id_ in ids if id_ not in seconds]:
        seconds |= {row[0]: row[1] for row in connection.execute(COME_BACK, {"ids": missing})}
    return [seconds.get(id_) for id_ in ids]


def _heard(connection: Connection, ids: Sequence[str]) -> dict[str, Heartbeat]:
    return {
        row[0]: Heartbeat(lease_expires_at=row[1], cancel=row[2])
        for row in connection.execute(HEARTBEAT, {"ids": ids})
    }
