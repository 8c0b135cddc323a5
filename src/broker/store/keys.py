"""Keys: made, listed and revoked; what they may do is not known here."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

CREATE = text("""
insert into keys (name, roles, hash)
values (:name, cast(:roles as text[]), :hash)
on conflict (name) where revoked_at is null do nothing
returning id
""")

LIST = text("select name, roles, hash, created_at, revoked_at from keys order by id")

REVOKE = text("""
update keys set revoked_at = now() where name = :name and revoked_at is null returning name
""")

# What its programs had in hand cannot be told any more: their tools are silent from now on.
SILENCE = text("""
with locked_tools as materialized (
    select id from tools where registered_by = :name order by id for no key update
),
locked_leases as materialized (
    select tool_id
    from tool_leases
    where tool_id = any(array(select id from locked_tools))
    order by tool_id
    for no key update
),
voided as (
    update tools set token_hash = null where id = any(array(select id from locked_tools))
),
ended as (
    update tool_leases set expires_at = now() where tool_id = any(array(select tool_id from locked_leases))
)
select notify_ids('broker_tool', array(select id from locked_tools)), notify_ids('broker_upkeep', '{tools}')
""")


class Key(NamedTuple):
    """A key: what it is called, what it may do, its hash, and since and until when it is good."""

    name: str
    roles: list[str]
    hash: bytes
    created_at: datetime
    revoked_at: datetime | None


def create(
    connection: Connection, name: str, roles: Sequence[str], hashed: bytes, *, replace: bool = False
) -> bool:
    """Enter a key; whether it was: a name belongs to one key at a time.

    Args:
        connection: In an open transaction.
        name: What it is called.
        roles: What it may do.
        hashed: Its hash; the key itself is nowhere.
        replace: Whether the key that has the name is revoked, and its tools go on with the new one.
    """
    if replace:
        connection.execute(REVOKE, {"name": name})
    values = {"name": name, "roles": list(roles), "hash": hashed}
    return connection.execute(CREATE, values).one_or_none() is not None


def all_of_them(connection: Connection) -> list[Key]:
    """Every key, revoked ones too, in the order in which they were made."""
    return [Key(*row) for row in connection.execute(LIST)]


def revoke(connection: Connection, name: str) -> bool:
    """Revoke the key of this name, and void the tokens of its tools; whether there was one in use."""
    was_there = connection.execute(REVOKE, {"name": name}).one_or_none() is not None
    if was_there:
        connection.execute(SILENCE, {"name": name})
    return was_there
