"""The time when an assigner last asked for candidates. Explanations need it."""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from broker.store.steps import one_statement

SEEN = text("""
insert into assigner (seen_at) values (now()) on conflict (id) do update set seen_at = excluded.seen_at
""")


@one_statement()
def seen(connection: Connection, requests: Sequence[None]) -> list[None]:
    """Record that an assigner asks for candidates now."""
    connection.execute(SEEN)
    return list(requests)
