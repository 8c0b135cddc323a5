"""Connections through a pooler in transaction mode, such as PgBouncer.

The pooler gives a client a server connection for one transaction only. So each statement needs a transaction,
and settings and prepared statements are lost at its end.
"""

from typing import Any

import asyncpg
from sqlalchemy import Connection, ExceptionContext, event
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.store.database_errors import of_connection


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


def set_in_each_transaction(engine: AsyncEngine, settings: dict[str, str]) -> None:
    """Apply these settings at the start of each transaction."""
    values = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"select {values}")

    event.listen(engine.sync_engine, "begin", begin)


def make_each_statement_a_transaction(engine: AsyncEngine, settings: dict[str, str]) -> None:
    """Run each statement of an engine in AUTOCOMMIT mode in its own transaction with these settings.

    asyncpg prepares a statement first, and must then run it over the same server connection.
    """
    first = "; ".join(["begin", *(f"set local {name} = '{value}'" for name, value in settings.items())])

    def begin(connection: Connection, *_: Any) -> None:
        _execute(connection, first)

    def commit(connection: Connection, *_: Any) -> None:
        # The client already has the whole result.
        _execute(connection, "commit")

    def roll_back(context: ExceptionContext) -> None:
        connection = context.connection
        # A lost connection has nothing to roll back.
        if not (connection is None or connection.invalidated or context.is_disconnect):
            _execute(connection, "rollback")

    event.listen(engine.sync_engine, "before_cursor_execute", begin)
    event.listen(engine.sync_engine, "after_cursor_execute", commit)
    event.listen(engine.sync_engine, "handle_error", roll_back)


def _execute(connection: Connection, command: str) -> None:
    """Run a command directly, without SQLAlchemy and without preparing it."""
    try:
        connection.connection.run_async(lambda driver: driver.execute(command))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        connection.invalidate(error)
        raise of_connection(error) from error
