"""The time when an assigner last asked for candidates. Explanations need it."""

from collections.abc import Sequence

from sqlalchemy import text

from broker.store.sql_connection import SqlConnection
from broker.store.steps import one_statement

SEEN = text("""
insert into assigner (seen_at) values (now()) on conflict (id) do update set seen_at = excluded.seen_at
""")


@one_statement()
def seen(connection: SqlConnection, requests: Sequence[None]) -> list[None]:
    """Record that an assigner asks for candidates now."""
    connection.execute(SEEN)
    return list(requests)
