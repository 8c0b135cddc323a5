"""Sessions: run a query with a time limit for every statement, and translate driver errors."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import asyncpg
from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Session

from broker.errors import DatabaseTrouble
from broker.store.database_errors import RetryTransaction, translate
from broker.store.observer import Observer, pop_noted
from broker.store.troubles import Troubles

Result = TypeVar("Result")
Params = ParamSpec("Params")
#: A function that executes statements over the connection in its first argument.
Query = Callable[Concatenate[Connection, Params], Result]

# After the statement timeout, the broker waits this much longer. Then it considers the connection dead.
_GRACE_SECONDS = 1.0
# How many times a transaction runs if PostgreSQL aborts it because of a deadlock or serialization failure.
_TRIES = 5
# The key in a connection's `info` for the time when its last statement began.
_BEGAN = "began"


class Sessions:
    """Sessions of one kind.

    Args:
        commits: Whether each session is a transaction. If not, each of its statements is one.
        timeout_seconds: The time limit for a statement, in seconds.
        sets_timeout: Whether each transaction must set this limit, because the connections have another one.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        commits: bool,
        timeout_seconds: float,
        sets_timeout: bool = False,
        troubles: Troubles,
        observer: Observer | None = None,
    ) -> None:
        self._sessions = async_sessionmaker(engine)
        self._commits = commits
        self._timeout_seconds = timeout_seconds
        self._sets_timeout = sets_timeout
        self._troubles = troubles
        self._observer = observer
        event.listen(engine.sync_engine, "before_cursor_execute", _note_begin)

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
        info: dict[Any, Any] = {_BEGAN: math.inf}

        def run(session: Session) -> Result:
            nonlocal info
            patience_seconds = self._timeout_seconds + _GRACE_SECONDS
            with session, _watched(session.connection(), patience_seconds) as connection:
                info = connection.info
                if self._sets_timeout:
                    milliseconds = int(self._timeout_seconds * 1000)
                    connection.exec_driver_sql(f"set local statement_timeout = {milliseconds}")
                try:
                    result = query(connection, *args, **kwargs)
                finally:
                    noted = pop_noted(info)
                if self._commits:
                    info[_BEGAN] = time.monotonic()
                    session.commit()
            if noted and self._observer is not None:
                self._observer.work_ended(noted)
            return result

        try:
            result = await self._sessions().run_sync(run)
        except DatabaseTrouble as error:  # raised while it connected
            self._troubles.note(name_of(query), error)
            raise
        except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InternalClientError, OSError) as error:
            known = translate(error, timed_out=time.monotonic() - info[_BEGAN] >= self._timeout_seconds)
            if isinstance(known, DatabaseTrouble):
                self._troubles.note(name_of(query), known)
            if known is error:
                raise
            raise known from error
        if self._troubles:
            self._troubles.clear(name_of(query))
        return result


def name_of(query: Callable[..., Any]) -> str:
    """Return the name of a step or query, such as `tasks.submit`."""
    return f"{query.__module__.rpartition('.')[2]}.{query.__qualname__}"


@contextmanager
def _watched(connection: Connection, patience_seconds: float) -> Iterator[Connection]:
    """Terminate a connection if a statement gets no response for longer than it may take.

    If the network drops every packet, such a connection looks alive. Cancelling its statement would not help,
    because that needs a response too.
    """
    driver: asyncpg.Connection[Any] = connection.connection.driver_connection
    loop = asyncio.get_running_loop()
    info = connection.info
    info[_BEGAN] = time.monotonic()
    timer = loop.call_later(patience_seconds, lambda: check())  # noqa: PLW0108 - it is defined below

    def check() -> None:
        nonlocal timer
        left = info[_BEGAN] + patience_seconds - time.monotonic()
        if left > 0:
            timer = loop.call_later(left, check)
        else:
            driver.terminate()

    try:
        yield connection
    finally:
        timer.cancel()


def _note_begin(connection: Connection, *_: Any) -> None:
    connection.info[_BEGAN] = time.monotonic()
