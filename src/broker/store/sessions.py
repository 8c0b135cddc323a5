"""Sessions: run a query with a time limit for every statement, and translate driver errors."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from broker.errors import DatabaseTrouble
from broker.store.database_errors import DRIVER_ERRORS, RetryTransaction, is_unusable, translate
from broker.store.observer import Observer
from broker.store.sql_connection import SqlConnection
from broker.store.troubles import Troubles

Result = TypeVar("Result")
Params = ParamSpec("Params")
#: A function that executes statements over the connection in its first argument.
Query = Callable[Concatenate[SqlConnection, Params], Result]

# After the statement timeout, the broker waits this much longer. Then it considers the connection dead.
_GRACE_SECONDS = 1.0
# How many times a transaction runs if PostgreSQL aborts it because of a deadlock or serialization failure.
_TRIES = 5


class Sessions:
    """Sessions of one kind.

    Args:
        commits: Whether each session is a transaction. If not, each of its statements is one.
        timeout_seconds: The time limit for a statement, in seconds.
        settings: Commands at the beginning of each transaction, because the connections have other settings.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        commits: bool,
        timeout_seconds: float,
        settings: str = "",
        troubles: Troubles,
        observer: Observer | None = None,
    ) -> None:
        self._engine = engine.sync_engine
        self._commits = commits
        self._timeout_seconds = timeout_seconds
        self._settings = settings
        self._troubles = troubles
        self._observer = observer

    async def run(self, query: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        """Run a query in its own session, and return its result after the commit.

        If PostgreSQL aborts the query because of a deadlock or serialization failure, the query runs again.

        Raises:
            Unavailable: The database did not respond.
            BadRequest: PostgreSQL refuses a value.
        """
        for _ in range(_TRIES - 1):
            try:
                return await self._run(query, *args, **kwargs)
            except RetryTransaction:
                continue
        return await self._run(query, *args, **kwargs)

    async def _run(self, query: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        began = math.inf

        def run() -> Result:
            nonlocal began
            with self._opened() as (owned, session), self._usable(owned) as connection:
                try:
                    result = query(connection, *args, **kwargs)
                finally:
                    began = connection.began
                if session is not None:
                    began = connection.began = time.monotonic()
                    session.commit()
            if connection.noted and self._observer is not None:
                self._observer.work_ended(connection.noted)
            return result

        try:
            result = await greenlet_spawn(run)
        except DatabaseTrouble as error:  # raised while it connected
            self._troubles.note(name_of(query), error)
            raise
        except DRIVER_ERRORS as error:
            known = translate(error, timed_out=time.monotonic() - began >= self._timeout_seconds)
            if isinstance(known, DatabaseTrouble):
                self._troubles.note(name_of(query), known)
            if known is error:
                raise
            raise known from error
        if self._troubles:
            self._troubles.clear(name_of(query))
        return result

    @contextmanager
    def _opened(self) -> Iterator[tuple[Connection, Session | None]]:
        """Take a connection from the pool, with a session if it is for a transaction.

        A session costs as much as a small statement, and there is nothing to commit without a transaction.
        """
        if not self._commits:
            with self._engine.connect() as connection:
                yield connection, None
        else:
            with Session(self._engine) as session:
                yield session.connection(), session

    @contextmanager
    def _usable(self, owned: Connection) -> Iterator[SqlConnection]:
        """Begin the transaction of a connection, and discard it if an error shows that it is unusable."""
        connection = SqlConnection(owned, self._settings)
        try:
            with connection.watched(self._timeout_seconds + _GRACE_SECONDS):
                if self._commits:
                    connection.begin()
                yield connection
        except BaseException as error:
            # A cancelled statement may still be running.
            if not isinstance(error, Exception) or connection.driver.is_closed() or is_unusable(error):
                owned.invalidate(error)
            raise


def name_of(query: Callable[..., Any]) -> str:
    """Return the name of a step or query, such as `submission.submit`."""
    return f"{query.__module__.rpartition('.')[2]}.{query.__qualname__}"
