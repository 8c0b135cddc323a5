"""Leases: how long a tool counts as online after its last request.

Leases have their own table. PostgreSQL updates its rows in place, because no index has the changing columns.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import TextClause, text

from broker.schemas.tools import Heartbeat
from broker.store import rows
from broker.store.ownership import VOID, Void
from broker.store.sql_connection import SqlConnection
from broker.store.steps import one_statement

Renewal = TypeVar("Renewal")

BEGIN = text("""
insert into tool_leases as l (tool_id, lease_seconds, seen_at, expires_at)
select u.tool_id, u.lease_seconds, clock.now, clock.now + make_interval(secs => u.lease_seconds)
from unnest(cast(:ids as text[]), cast(:lease_seconds as double precision[])) as u (tool_id, lease_seconds)
cross join (select clock_timestamp() as now) clock
order by u.tool_id collate "C"
on conflict (tool_id) do update
set lease_seconds = excluded.lease_seconds, seen_at = excluded.seen_at, expires_at = excluded.expires_at
""")


def locked(tools: str) -> str:
    """Return CTEs that lock the leases of an array of tools, and then read the clock."""
    return f"""
locked_leases as materialized (
    select tool_id, expires_at, token_hash
    from tool_leases
    where tool_id = any({tools})
    order by tool_id
    for no key update
),
moment as materialized (
    select clock_timestamp() as now from (select count(*) from locked_leases) counted
)"""


def renewed(tools: str) -> str:
    """Return a CTE that renews leases, to be used after `locked`.

    A lease starts when it is locked, because the statement may have waited for the lock. So no lease ends
    earlier than a response has stated. The tools must be among those of `locked`.
    """
    return f"""
renewed as (
    update tool_leases l
    set seen_at = (select now from moment),
        expires_at = (select now from moment) + make_interval(secs => l.lease_seconds)
    from locked_leases
    where l.tool_id = locked_leases.tool_id and l.tool_id = any({tools})
    returning l.tool_id, l.expires_at, l.lease_seconds
)"""


_IDS = "cast(:ids as text[])"
# The new length applies from the next renewal on.
CHANGE = text(f"""
with {locked(_IDS)}
update tool_leases l
set lease_seconds = a.lease_seconds
from unnest({_IDS}, cast(:lease_seconds as double precision[])) as a (tool_id, lease_seconds)
join locked_leases on locked_leases.tool_id = a.tool_id
where l.tool_id = a.tool_id and l.tool_id = any({_IDS})
""")

_ITEMS = f"unnest({_IDS}, cast(:token_hash as bytea[])) as u (tool_id, token_hash)"
# A tool with an expired lease may be offline. The statement can check that only after it locked the lease. An
# offline tool has a valid lease if it has just completed work that upkeep has not ended yet.
_RENEWAL = f"""{locked(_IDS)},
held as materialized (
    select l.tool_id
    from {_ITEMS}
    join locked_leases l on l.tool_id = u.tool_id
    where (u.token_hash is null or u.token_hash = l.token_hash) and l.expires_at > (select now from moment)
      and l.tool_id not in (select id from tools where id = any({_IDS}) and offline)
),
{renewed("array(select tool_id from held)")}"""
RENEW = text(f"""
with {_RENEWAL}
select l.tool_id, l.token_hash, renewed.tool_id is not null as is_renewed, renewed.lease_seconds
from locked_leases l
left join renewed on renewed.tool_id = l.tool_id
""")

HEARTBEAT = text(f"""
with {_RENEWAL}
select l.tool_id, l.token_hash, renewed.tool_id is not null as is_renewed, renewed.expires_at,
       array(select w.id
             from work w
             where w.tool_id = renewed.tool_id and w.cancel_requested
             order by w.assigned_at, w.id) as to_cancel
from locked_leases l
left join renewed on renewed.tool_id = l.tool_id
""")

COME_BACK = text(f"""
with locked_tools as materialized (
    select id, offline, token_hash from tools where id = any({_IDS}) order by id for no key update
),
held as materialized (
    select t.id
    from {_ITEMS}
    join locked_tools t on t.id = u.tool_id
    where u.token_hash is null or u.token_hash = t.token_hash
),
back as (
    update tools t
    set offline = false, changed = pg_current_xact_id()
    from locked_tools
    where t.id = locked_tools.id and t.id = any({_IDS}) and locked_tools.offline
      and t.id in (select id from held)
),
{locked("array(select id from locked_tools)")},
{renewed("array(select id from held)")}
select tool_id, lease_seconds from renewed
""")

# A request that waits for the tool's work renews its lease in the meantime, so it must know its length.
NOTIFY = text("select notify_ids('broker_tool', array_to_string(cast(:ids as text[]), ','))")


def begin(connection: SqlConnection, ids: Sequence[str], seconds: Sequence[float]) -> None:
    """Begin the leases of newly registered tools, each with its length in seconds."""
    connection.execute(BEGIN, {"ids": ids, "lease_seconds": seconds})


def change(connection: SqlConnection, seconds: dict[str, float]) -> None:
    """Change the lengths of leases, in seconds by tool id, from their next renewal on."""
    connection.execute(CHANGE, {"ids": list(seconds), "lease_seconds": list(seconds.values())})
    notify(connection, list(seconds))


def notify(connection: SqlConnection, ids: Sequence[str]) -> None:
    """Wake the requests that wait for work of these tools, because their leases have a new length."""
    connection.execute(NOTIFY, {"ids": ids})


class Beat(NamedTuple):
    """A heartbeat of a tool, and the hash of the request's token, empty if the request had none."""

    tool_id: str
    token_hash: bytes = b""


@one_statement()
def heartbeat(connection: SqlConnection, beats: Sequence[Beat]) -> list[Heartbeat | Void | None]:
    """Renew leases, and return for each tool when its lease ends and which work must stop.

    An offline tool is online again. For an unknown tool the result is None.
    """
    return _renew(
        connection,
        HEARTBEAT,
        beats,
        lambda row: Heartbeat(lease_expires_at=row.expires_at, cancel=row.to_cancel),
    )


@one_statement()
def keep(connection: SqlConnection, beats: Sequence[Beat]) -> list[float | Void | None]:
    """Renew leases, and return the length of each in seconds.

    An offline tool is online again. For an unknown tool the result is None.
    """
    return _renew(connection, RENEW, beats, lambda row: float(row.lease_seconds))


def _renew(
    connection: SqlConnection,
    statement: TextClause,
    beats: Sequence[Beat],
    read: Callable[[rows.AnyRow], Renewal],
) -> list[Renewal | Void | None]:
    """Renew leases. Those of offline tools need a second statement, which locks more rows."""

    def renew(some: Sequence[Beat]) -> list[Renewal | Void | None]:
        by_tool = {row.tool_id: row for row in connection.execute(statement, _values(some))}
        return [_result(beat, by_tool.get(beat.tool_id), read) for beat in some]

    renewals = renew(beats)
    if expired := [beat for beat, renewal in zip(beats, renewals, strict=True) if renewal is None]:
        connection.execute(COME_BACK, _values(expired))
        later = iter(renew(expired))
        renewals = [next(later) if renewal is None else renewal for renewal in renewals]
    return renewals


def _result(
    beat: Beat, row: rows.AnyRow | None, read: Callable[[rows.AnyRow], Renewal]
) -> Renewal | Void | None:
    """Return the renewal, `void` if the tool has another token, or None without a valid lease."""
    if row is None:
        return None
    if beat.token_hash and beat.token_hash != row.token_hash:
        return VOID
    return read(row) if row.is_renewed else None


def _values(beats: Sequence[Beat]) -> dict[str, list[Any] | None]:
    return {
        "ids": [beat.tool_id for beat in beats],
        "token_hash": rows.column(beat.token_hash or None for beat in beats),
    }
