"""Keys: made, listed and revoked; what they may do is not known here."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from broker.schemas import keys as schemas
from broker.schemas.keys import KeyPage
from broker.store.database_errors import BeginAgain
from broker.store.pages import cut, unseal
from broker.store.steps import one_statement

CREATE = text("""
insert into keys (name, roles, hash)
values (:name, cast(:roles as text[]), :hash)
on conflict (name) where revoked_at is null do nothing
returning created_at
""")

LIST = text("select name, roles, hash, created_at, revoked_at, last_used_at from keys order by id")

PAGE = text("""
select name, roles, created_at, last_used_at
from keys
where name > :after and revoked_at is null
order by name
limit :limit
""")

USED = text("""
with locked as materialized (
    select id from keys where hash = any(cast(:hashes as bytea[])) order by id for no key update
)
update keys set last_used_at = now() where id = any(array(select id from locked))
""")

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


class StoredKey(NamedTuple):
    """A key: its name, roles and hash, when it was made and revoked, and when it was last used."""

    name: str
    roles: list[str]
    hash: bytes
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None


def create(
    connection: Connection, name: str, roles: Sequence[str], hashed: bytes, *, replace: bool = False
) -> datetime | None:
    """Enter a key, and return when it was made; None: a name belongs to one key at a time.

    Args:
        connection: In an open transaction.
        name: What it is called.
        roles: What it may do.
        hashed: Its hash; the key itself is nowhere.
        replace: Whether the key that has the name is revoked, and its tools go on with the new one.

    Raises:
        BeginAgain: Another process gave the name to a key in the meantime, which is to be replaced, too.
    """
    if replace:
        connection.execute(REVOKE, {"name": name})
    values = {"name": name, "roles": list(roles), "hash": hashed}
    created_at: datetime | None = connection.execute(CREATE, values).scalar_one_or_none()
    if replace and created_at is None:
        raise BeginAgain
    return created_at


def all_of_them(connection: Connection) -> list[StoredKey]:
    """Every key, revoked ones too, in the order in which they were made."""
    return [StoredKey(**row._asdict()) for row in connection.execute(LIST)]


def page(connection: Connection, *, limit: int, after: str | None) -> KeyPage:
    """Return some of the keys in use, in the order of their names."""
    begin = unseal(after, str, field="after") if after is not None else ""
    found = connection.execute(PAGE, {"after": begin, "limit": limit + 1}).all()
    items, onward = cut(found, limit, key=lambda row: row.name)
    return KeyPage(items=[schemas.Key(**row._asdict()) for row in items], next=onward)


@one_statement()
def used(connection: Connection, hashes: Sequence[bytes]) -> list[None]:
    """Record that keys are in use now."""
    connection.execute(USED, {"hashes": hashes})
    return [None] * len(hashes)


def revoke(connection: Connection, name: str) -> bool:
    """Revoke the key of this name, and void the tokens of its tools; whether there was one in use."""
    was_there = connection.execute(REVOKE, {"name": name}).one_or_none() is not None
    if was_there:
        connection.execute(SILENCE, {"name": name})
    return was_there
