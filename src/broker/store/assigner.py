"""The assigner: the time at which one last asked for candidates, which explanations need."""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from broker.store.steps import one_statement

SEEN = text("""
insert into assigner (seen_at) values (now()) on conflict (id) do update set seen_at = excluded.seen_at
""")


@one_statement()
def seen(connection: Connection, asked: Sequence[None]) -> list[None]:
    """Write that an assigner asks for candidates now."""
    connection.execute(SEEN)
    return list(asked)
