"""The database: one pool of connections, short transactions, group commit and retries."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, cast
from weakref import WeakSet

import asyncpg
import structlog
from msgspec import Raw, Struct
from sqlalchemy import QueuePool

from broker.errors import DatabaseTrouble, TooHeavy, TooSlow
from broker.store import connections, database_errors, pooler
from broker.store.address import CONNECT_SECONDS, Address
from broker.store.group_commit import GroupCommit
from broker.store.observer import Observer
from broker.store.sessions import Params, Query, Result, Sessions, name_of
from broker.store.steps import Item, Step, is_one_statement
from broker.store.troubles import Troubles

log = structlog.get_logger(__name__)

RunSet = Callable[[Step[Item, Result], Sequence[Item]], Awaitable[list[Result]]]

# A set that is too slow runs again, alone, with this many times the time limit.
_ALONE_FACTOR = 4
# The maximum number of sets that run alone at a time, and of sets that wait to do so.
_MOST_ALONE = 2
_MOST_WAITING_ALONE = 8
# If a request of this size is too slow alone, the broker asks the client to send less at once. A smaller
# request cannot be split and may carry finished work, so the client may repeat it.
_LARGE_BYTES = 2**20
_MANY_ITEMS = 100


class Store:
    """The database, as the rest of the broker sees it.

    Every method that uses the database raises `Unavailable` if the database does not respond, and
    `BadRequest` if PostgreSQL refuses a value.

    Args:
        url: The database's URL; `postgresql://` and `postgresql+asyncpg://` mean the same here.
        pool_size: The maximum number of connections.
        timeout_seconds: The time limit for a statement, in seconds.
        group_commit: Whether single items share transactions; otherwise each has its own.
        observer: Counts and logs what the store does.
        pooled: Whether the connections go through a pooler in transaction mode, such as PgBouncer. Then no
            setting and no prepared statement outlasts a transaction, and nothing runs outside of one.
        accepts_writes: Whether to connect only to a host that accepts writes.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 8,
        timeout_seconds: float = 15.0,
        group_commit: bool = True,
        observer: Observer | None = None,
        pooled: bool = False,
        accepts_writes: bool = True,
    ) -> None:
        self._observer = observer
        settings = connections.SESSION | connections.time_limits(timeout_seconds)
        self._address = Address(
            url,
            connect_seconds=min(timeout_seconds, CONNECT_SECONDS),
            accepts_writes=accepts_writes and not pooled,
        )
        self._connections: WeakSet[asyncpg.Connection[Any]] = WeakSet()
        self.engine = connections.create_engine(
            partial(self._connect, **(pooler.CONNECTION_OPTIONS if pooled else connections.PREPARING)),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            # A query that runs again after a migration gets the connection that has dropped its statements.
            pool_use_lifo=True,
            # A connection between two transactions needs no reset, because each session ends its own.
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            pool_reset_on_return=None,
            server_settings=connections.NAME | ({} if pooled else connections.CONNECTION | settings),
            **(pooler.ENGINE_OPTIONS if pooled else {}),
        )
        in_transaction = self.engine.execution_options(isolation_level="READ COMMITTED")
        connections.replace_unusable(self.engine)
        self._longer_seconds = timeout_seconds * _ALONE_FACTOR
        #: The current problems of the database.
        self.troubles = Troubles()
        sessions = partial(Sessions, troubles=self.troubles, observer=observer)
        own = pooler.commands(settings) if pooled else ""
        self._in_transaction = sessions(
            in_transaction, commits=True, timeout_seconds=timeout_seconds, settings=own
        )
        self._by_statement = sessions(
            self.engine, commits=False, timeout_seconds=timeout_seconds, settings=own
        )
        longer = (settings if pooled else {}) | connections.statement_timeout(self._longer_seconds)
        self._longer = sessions(
            in_transaction,
            commits=True,
            timeout_seconds=self._longer_seconds,
            settings=pooler.commands(longer),
        )
        self._group_commit = group_commit
        self._groups: dict[Step[Any, Any], GroupCommit[Any, Any]] = {}
        self._alone = asyncio.Semaphore(_MOST_ALONE)
        self._waiting_alone = 0

    async def one(self, step: Step[Item, Result], item: Item, *, size: int = 0) -> Result:
        """Run a step for one item of about `size` bytes, and return its result after the commit.

        Items that arrive at the same time share a transaction. A failing item does not affect the others.

        Raises:
            Overloaded: Too many items already wait for this step.
            TooHeavy: The database did not finish in time, although the item ran alone.
        """
        return await self._share(step, item, size, self._run_set, partial(self.alone, step))

    async def many(self, step: Step[Item, Result], items: Sequence[Item]) -> list[Result]:
        """Run a step for many items in one transaction, and return their results in order after the commit.

        Raises:
            TooHeavy: The database did not finish in time, although the set ran alone.
        """
        try:
            return await self._run_set(step, items)
        except TooSlow:
            return await self.alone(step, items)

    async def each(self, step: Step[Item, Result], items: Sequence[Item]) -> list[Result]:
        """Run a step for many items independently: if one fails, the others still succeed.

        Raises:
            TooHeavy: The database did not finish one of the items in time, although it ran alone.
        """
        try:
            return await self._run_set(step, items)
        except DatabaseTrouble:
            return await GroupCommit(partial(self._run_set, step), partial(self.alone, step)).settle(items)

    async def alone(self, step: Step[Item, Result], items: Sequence[Item]) -> list[Result]:
        """Run a step that was too slow again, alone and with more time.

        Raises:
            TooSlow: The step was too slow again, or too many slow steps already wait.
            TooHeavy: The step was too slow again, and the request is large.
        """
        if self._waiting_alone >= _MOST_WAITING_ALONE:
            raise TooSlow("too many requests are too slow for the database")
        self._waiting_alone += 1
        try:
            async with self._alone:
                return await self.run_longer(step, items)
        except TooSlow as error:
            seconds = self._longer_seconds
            log.warning("step timed out although it ran alone", step=name_of(step), seconds=seconds)
            if len(items) < _MANY_ITEMS and _json_bytes(items) < _LARGE_BYTES:
                # The database is slow, or the stored rows are large. A smaller request would not help.
                raise
            raise TooHeavy(seconds) from error
        finally:
            self._waiting_alone -= 1

    async def run_longer(
        self, query: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        """Run a query in its own transaction, with more time for each statement."""
        return await self._longer.run(query, *args, **kwargs)

    async def run(self, query: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        """Run a query, such as a step, a read or upkeep, in its own transaction."""
        return await self._in_transaction.run(query, *args, **kwargs)

    async def read(self, query: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        """Run a query without a transaction around it, so each of its statements commits by itself."""
        return await self._by_statement.run(query, *args, **kwargs)

    async def read_one(self, step: Step[Item, Result], item: Item) -> Result:
        """Read one item with a read-only step. Reads that arrive at the same time share its statements."""
        return await self._share(step, item, 0, self.read)

    async def _share(
        self,
        step: Step[Item, Result],
        item: Item,
        size: int,
        run_set: RunSet[Item, Result],
        alone: Callable[[Sequence[Item]], Awaitable[list[Result]]] | None = None,
    ) -> Result:
        if not self._group_commit:
            [result] = await (self.many if alone else run_set)(step, [item])
            return result
        group = self._groups.get(step)
        if group is None:
            group = self._groups[step] = GroupCommit(self._measured(step, run_set), alone)
        shared: Result = await group.call(item, size)
        return shared

    def _measured(
        self, step: Step[Item, Result], run_set: RunSet[Item, Result]
    ) -> Callable[[Sequence[Item]], Awaitable[list[Result]]]:
        """Return a function that runs a step for a set of items and reports the set to the observer."""
        observer, name = self._observer, name_of(step)
        if observer is None:
            return partial(run_set, step)

        async def measured(items: Sequence[Item]) -> list[Result]:
            began = time.perf_counter()
            try:
                return await run_set(step, items)
            finally:
                observer.set_committed(name, len(items), time.perf_counter() - began)

        return measured

    async def _run_set(self, step: Step[Item, Result], items: Sequence[Item]) -> list[Result]:
        sessions = self._by_statement if is_one_statement(step, items) else self._in_transaction
        return await sessions.run(step, items)

    async def _connect(self, **options: Any) -> "asyncpg.Connection[Any]":
        try:
            connection = await self._address.connect(**options)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise database_errors.of_connection(error) from error
        self._connections.add(connection)
        return connection

    def in_use(self) -> int:
        """Return the number of connections in use."""
        return cast("QueuePool", self.engine.pool).checkedout()

    def waiting(self) -> dict[str, int]:
        """Return the number of items that wait for a transaction, by step."""
        return {name_of(step): len(group) for step, group in self._groups.items()}

    def abort_connections(self) -> None:
        """Abort every connection at once. The database may be unable to respond to a graceful close."""
        for connection in list(self._connections):
            connection.terminate()

    async def close(self) -> None:
        """Abort the sets under way and close every connection."""
        self.abort_connections()
        for group in self._groups.values():
            await group.close()
        await self.engine.dispose()


def _json_bytes(item: Any) -> int:
    """Return the approximate number of JSON bytes in an item, at any depth."""
    if isinstance(item, Raw):
        return len(item)
    if isinstance(item, Struct):
        item = [getattr(item, name) for name in item.__struct_fields__]
    return sum(map(_json_bytes, item)) if isinstance(item, (list, tuple)) else 0
