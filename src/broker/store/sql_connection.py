"""The connection of a session, over which steps execute their statements."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from operator import itemgetter
from typing import Any

import asyncpg
from sqlalchemy import Connection, TextClause
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.util import await_only

from broker.store.observer import EndedWork

_DIALECT = dialect()  # type: ignore[no-untyped-call]
# The number of statements whose SQL is cached. Only the statements for partitions of the archive change.
_MOST_COMPILED = 1_000


class SqlRow(asyncpg.Record):  # type: ignore[misc] # it ships no types
    """A row, which also has its columns as attributes."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            value = self[name]
        except KeyError:
            raise AttributeError(name) from None
        # Python calls this method only after a search for the attribute, which takes 300 ns. From now on, all
        # rows find the column in 60 ns.
        setattr(SqlRow, name, property(itemgetter(name)))
        return value

    def _asdict(self) -> dict[str, Any]:
        return dict(self.items())


class Rows(list[SqlRow]):
    """The rows that a statement returned. The methods are those of SQLAlchemy's `Result`."""

    __slots__ = ()

    def all(self) -> list[SqlRow]:
        """Return all rows."""
        return self

    def one(self) -> SqlRow:
        """Return the only row."""
        [row] = self
        return row

    def one_or_none(self) -> SqlRow | None:
        """Return the only row, or None without rows."""
        return self.one() if self else None

    def scalars(self) -> list[Any]:
        """Return the first column of each row."""
        return [row[0] for row in self]

    def scalar_one(self) -> Any:
        """Return the first column of the only row."""
        return self.one()[0]

    def scalar_one_or_none(self) -> Any:
        """Return the first column of the only row, or None without rows."""
        return self.one()[0] if self else None


class SqlConnection:
    """A connection that executes statements with asyncpg directly.

    SQLAlchemy's session owns the connection, and begins and commits its transaction. Only the statements do
    not pass through SQLAlchemy, because that takes three times as long as a small statement in asyncpg.

    Args:
        connection: The connection of a session.
        settings: Commands that must precede the statements in each transaction. If there are any, a statement
            outside of a transaction gets one.
    """

    def __init__(self, connection: Connection, settings: str = "") -> None:
        self._adapter: Any = connection.connection.dbapi_connection
        #: The connection of asyncpg.
        self.driver: asyncpg.Connection[Any] = connection.connection.driver_connection
        self._settings = settings
        self._fetch = self._fetch_alone if settings else self._fetch_only
        #: The time when the last statement began.
        self.began = time.monotonic()
        #: The work that the transaction has ended, for the observer.
        self.noted: list[EndedWork] = []

    def begin(self) -> None:
        """Begin the session's transaction. SQLAlchemy does so before the first statement that it executes."""
        await_only(self._adapter._start_transaction())
        if self._settings:
            await_only(self.driver.execute(self._settings))
        self._fetch = self._fetch_only

    def execute(self, statement: TextClause, values: Mapping[str, Any] | None = None) -> Rows:
        """Execute a statement with the values of its parameters."""
        sql, names = compiled(statement)
        self.began = time.monotonic()
        return Rows(await_only(self._fetch(sql, [values[name] for name in names] if values else ())))

    async def _fetch_only(self, sql: str, values: Any) -> list[SqlRow]:
        rows: list[SqlRow] = await self.driver.fetch(sql, *values)
        return rows

    async def _fetch_alone(self, sql: str, values: Any) -> list[SqlRow]:
        """Execute a statement in its own transaction.

        asyncpg prepares a statement first. A pooler runs it over the same server connection only within a
        transaction.
        """
        await self.driver.execute(f"begin; {self._settings}")
        try:
            rows = await self._fetch_only(sql, values)
        except Exception:
            # A lost connection has nothing to roll back.
            if not self.driver.is_closed():
                await self.driver.execute("rollback")
            raise
        await self.driver.execute("commit")
        return rows

    @contextmanager
    def watched(self, patience_seconds: float) -> Iterator[None]:
        """Terminate the connection if a statement gets no response for longer than it may take.

        If the network drops every packet, such a connection looks alive. Cancelling its statement would not
        help, because that needs a response too.
        """
        loop = asyncio.get_running_loop()
        timer = loop.call_later(patience_seconds, lambda: check())  # noqa: PLW0108 - it is defined below

        def check() -> None:
            nonlocal timer
            left = self.began + patience_seconds - time.monotonic()
            if left > 0:
                timer = loop.call_later(left, check)
            else:
                self.driver.terminate()

        try:
            yield
        finally:
            timer.cancel()


@lru_cache(_MOST_COMPILED)
def compiled(statement: TextClause) -> tuple[str, tuple[str, ...]]:
    """Return the SQL of a statement with numbered parameters, and the names of the parameters in order."""
    result: Any = statement.compile(dialect=_DIALECT)
    return result.string, tuple(result.positiontup or ())
