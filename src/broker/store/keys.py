"""Keys: create, list and revoke them. This module does not interpret their roles."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text

from broker.schemas import keys as schemas
from broker.schemas.keys import KeyPage
from broker.store import leases
from broker.store.database_errors import RetryTransaction
from broker.store.pages import cut, unseal
from broker.store.sql_connection import SqlConnection
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

# Until the transaction ends, no other transaction can replace the key with this name.
LOCK_NAME = text("select pg_advisory_xact_lock(hashtextextended(:name, 0))")

REVOKE = text("""
update keys set revoked_at = now() where name = :name and revoked_at is null returning name
""")

# The tools of a revoked key can no longer renew their leases, so their leases end now.
END_LEASES = text(f"""
with locked_tools as materialized (
    select id from tools where registered_by = :name order by id for no key update
),
{leases.locked("array(select id from locked_tools)")},
voided as (
    update tools set token_hash = null where id = any(array(select id from locked_tools))
),
ended as (
    update tool_leases set expires_at = now() where tool_id = any(array(select tool_id from locked_leases))
)
select notify_ids('broker_tool', (select string_agg(id, ',') from locked_tools)),
       notify_ids('broker_upkeep', 'tools')
""")


class StoredKey(NamedTuple):
    """A key as the database stores it, with its hash."""

    name: str
    roles: list[str]
    hash: bytes
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None


def create(
    connection: SqlConnection, name: str, roles: Sequence[str], hashed: bytes, *, replace: bool = False
) -> datetime | None:
    """Write a new key, and return when it was created, or None if an unrevoked key has the name.

    With `replace`, revoke the key that has the name. Its tools keep working with the new key.

    Raises:
        RetryTransaction: Another process has just created a key with this name, which must be replaced too.
    """
    if replace:
        connection.execute(LOCK_NAME, {"name": name})
        connection.execute(REVOKE, {"name": name})
    values = {"name": name, "roles": list(roles), "hash": hashed}
    created_at: datetime | None = connection.execute(CREATE, values).scalar_one_or_none()
    if replace and created_at is None:
        raise RetryTransaction
    return created_at


def read_all(connection: SqlConnection) -> list[StoredKey]:
    """Return all keys, including revoked ones, in the order of their creation."""
    return [StoredKey(**row._asdict()) for row in connection.execute(LIST)]


def page(connection: SqlConnection, *, limit: int, after: str | None) -> KeyPage:
    """Return a page of the keys that are not revoked, in the order of their names."""
    begin = unseal(after, str, field="after") if after is not None else ""
    read = connection.execute(PAGE, {"after": begin, "limit": limit + 1}).all()
    items, onward = cut(read, limit, key=lambda row: row.name)
    return KeyPage(items=[schemas.Key(**row._asdict()) for row in items], next=onward)


@one_statement()
def used(connection: SqlConnection, hashes: Sequence[bytes]) -> list[None]:
    """Record that keys are in use now."""
    connection.execute(USED, {"hashes": hashes})
    return [None] * len(hashes)


def revoke(connection: SqlConnection, name: str) -> bool:
    """Revoke the key with this name and the tokens of its tools. Return whether there was such a key."""
    was_in_use = connection.execute(REVOKE, {"name": name}).one_or_none() is not None
    if was_in_use:
        connection.execute(END_LEASES, {"name": name})
    return was_in_use
