"""Connections through a pooler in transaction mode, such as PgBouncer.

The pooler gives a client a server connection for one transaction only. So each statement needs a transaction,
and settings and prepared statements are lost at its end.
"""

from typing import Any

import asyncpg


class PooledConnection(asyncpg.Connection):  # type: ignore[misc] # it ships no types
    """A connection that sends no query outside of a transaction; asyncpg's queries have two steps."""

    async def set_type_codec(self, *args: Any, **kwargs: Any) -> None:
        """Set how to read and write a type, in a transaction because asyncpg queries the type."""
        async with self.transaction():
            await super().set_type_codec(*args, **kwargs)


#: Options of asyncpg. asyncpg and SQLAlchemy must not cache prepared statements, so they use unnamed ones,
#: which the next statement replaces.
CONNECTION_OPTIONS: dict[str, Any] = {"connection_class": PooledConnection, "statement_cache_size": 0}

#: Options of SQLAlchemy.
ENGINE_OPTIONS: dict[str, Any] = {
    "connect_args": {"prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: ""}
}


def commands(settings: dict[str, str]) -> str:
    """Return the commands that apply settings to the current transaction."""
    return "; ".join(f"set local {name} = '{value}'" for name, value in settings.items())
