"""A pooler in transaction mode, PgBouncer for one, between us and the database.

It hands a connection to the server to whoever begins a transaction, and takes it back at the end. So there is
nothing outside of a transaction, and nothing outlasts it: no setting, and no prepared statement.
"""

from typing import Any

import asyncpg
from sqlalchemy import Connection, ExceptionContext, event
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.store.database_errors import of_connection


class PooledConnection(asyncpg.Connection):  # type: ignore[misc] # it ships no types
    """A connection that asks for nothing outside of a transaction, which asyncpg does in two steps."""

    async def set_type_codec(self, *args: Any, **kwargs: Any) -> None:
        """Say how a type is read and written; the database is asked for what it knows of the type."""
        async with self.transaction():
            await super().set_type_codec(*args, **kwargs)


#: For asyncpg. It and SQLAlchemy each keep prepared statements; one without a name is gone with the next.
OF_CONNECTION: dict[str, Any] = {"connection_class": PooledConnection, "statement_cache_size": 0}

#: For SQLAlchemy.
OF_ENGINE: dict[str, Any] = {
    "connect_args": {"prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: ""}
}


def set_in_each_transaction(engine: AsyncEngine, settings: dict[str, str]) -> None:
    """Have each transaction begin with settings of its own.

    Args:
        engine: Over the pooler.
        settings: PostgreSQL's.
    """
    values = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"select {values}")

    event.listen(engine.sync_engine, "begin", begin)


def make_each_statement_a_transaction(engine: AsyncEngine, settings: dict[str, str]) -> None:
    """Have each statement run in a transaction of its own, which begins with settings of its own.

    asyncpg prepares a statement first, and has to find it on the same server when it runs it.

    Args:
        engine: Over the pooler, and in SQLAlchemy's mode AUTOCOMMIT.
        settings: PostgreSQL's.
    """
    first = "; ".join(["begin", *(f"set local {name} = '{value}'" for name, value in settings.items())])

    def begin(connection: Connection, *_: Any) -> None:
        _tell(connection, first)

    def commit(connection: Connection, *_: Any) -> None:
        # What it found is here already.
        _tell(connection, "commit")

    def roll_back(context: ExceptionContext) -> None:
        connection = context.connection
        # One that is lost has nothing left to roll back.
        if not (connection is None or connection.invalidated or context.is_disconnect):
            _tell(connection, "rollback")

    event.listen(engine.sync_engine, "before_cursor_execute", begin)
    event.listen(engine.sync_engine, "after_cursor_execute", commit)
    event.listen(engine.sync_engine, "handle_error", roll_back)


def _tell(connection: Connection, command: str) -> None:
    """Have the server run a command, past SQLAlchemy: at once, as one that is not prepared is.

    Raises:
        Unavailable: It did not.
    """
    try:
        connection.connection.run_async(lambda driver: driver.execute(command))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        connection.invalidate(error)
        raise of_connection(error) from error
