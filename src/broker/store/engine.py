"""The way to the database: one engine, short transactions, and errors in the broker's own words."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast
from weakref import WeakSet

import asyncpg
import structlog
from msgspec import Raw, Struct
from sqlalchemy import Connection, ExceptionContext, QueuePool, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from broker.errors import DatabaseTrouble, TooHeavy, TooSlow
from broker.store import database_errors, json_codec, pooler
from broker.store.address import CONNECT_SECONDS, Address
from broker.store.database_errors import BeginAgain
from broker.store.group_commit import GroupCommit
from broker.store.observer import Observer
from broker.store.sessions import Params, Query, Result, Sessions, name_of
from broker.store.troubles import Troubles

log = structlog.get_logger(__name__)

Item = TypeVar("Item")

# A step of the life cycle takes a set of items and answers for each of them, in order. Steps are plain
# functions: a session runs each in one go (SQLAlchemy's `run_sync`), and hands it the connection that it
# holds, which costs a third less than to await its statements one by one.
Step = Callable[[Connection, Sequence[Item]], list[Result]]

# Every statement names the rows that it wants of every table (`= any(...)`), finds them by an index, and
# joins them by hash. Plans are kept, and made from statistics that say "empty" of a queue that has just
# run dry: with nested loops, a thousand rows would then be compared with a thousand. A plain index scan,
# unlike one by bitmap, marks the dead entries that it meets, and who comes next does not. No statement runs
# for long enough to be compiled.
# A plan for any arguments is kept where it seems hardly dearer than one for these. By the default cost of a
# page, which is a turning disk's, it seemed much dearer: every assignment was planned anew, and that took
# longer than to run it. Hot tables are small and in memory, where a page costs next to nothing.
SETTINGS = {
    "enable_seqscan": "off",
    "enable_nestloop": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    "seq_page_cost": "0.1",
    "random_page_cost": "0.1",
}
_NAME = {"application_name": "broker"}
_SESSION = {"TimeZone": "UTC"}
_CONNECTION = {
    # What a statement waited for it has to see.
    "default_transaction_isolation": "read committed",
    # A broker that is gone without a word holds no locks for long.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}

# The part of a statement's time that it may wait for one lock. Without a limit of its own, a wait for a lock
# looks like a statement that is too slow.
_LOCK_SHARE = 0.6
# What is too slow gets this many times more time, alone.
_ALONE_FACTOR = 4
# How many sets may run alone at a time, and how many more may wait for that.
_MOST_ALONE = 2
_MOST_WAITING_ALONE = 8
# If a request of this size is too slow alone, the broker asks the client to send less. A smaller one cannot
# send less, and may carry finished work: it stays safe to repeat.
_LARGE_BYTES = 2**20
_MANY_ITEMS = 100
_TRIES = 5


# The steps that are one statement, and for which items they are.
_ONE_STATEMENT: dict[Step[Any, Any], Callable[[Any], bool]] = {}


def one_statement(
    fits: Callable[[Any], bool] = lambda _: True,
) -> Callable[[Step[Item, Result]], Step[Item, Result]]:
    """Mark a step that writes by one statement, which is a transaction of its own and needs none around it.

    To begin and to commit one takes as long as a small statement does. Of each row that it locks such a
    statement sees the latest version, of all else what was committed when it began. A step that takes a
    further one for what is left, and is given up there, is taken again, and finds what it wrote before.

    Args:
        fits: For which items it is one statement.
    """

    def mark(step: Step[Item, Result]) -> Step[Item, Result]:
        _ONE_STATEMENT[step] = fits
        return step

    return mark


class Store:
    """The database, as the rest of the broker sees it.

    Args:
        url: Where it is; `postgresql://` and `postgresql+asyncpg://` mean the same here.
        pool_size: How many connections to keep at most.
        timeout_seconds: How long a statement may take.
        group_commit: Whether single items share transactions; else each has one of its own.
        observer: Counts and logs what is done.
        pooled: Whether a pooler in transaction mode, PgBouncer for one, stands in front of it: then nothing
            outlasts a transaction, no setting and no prepared statement, and there is nothing outside of one.
        takes_writes: Whether a host that takes none will not do.
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
        takes_writes: bool = True,
    ) -> None:
        self._observer = observer
        milliseconds = str(int(timeout_seconds * 1000))
        limits = {
            "statement_timeout": milliseconds,
            "lock_timeout": str(int(timeout_seconds * _LOCK_SHARE * 1000)),
            "idle_in_transaction_session_timeout": milliseconds,
        }
        self._address = Address(
            url,
            connect_seconds=min(timeout_seconds, CONNECT_SECONDS),
            takes_writes=takes_writes and not pooled,
        )
        self._connections: WeakSet[asyncpg.Connection[Any]] = WeakSet()
        self.engine = create_engine(
            partial(self._connect, **pooler.OF_CONNECTION) if pooled else self._connect,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            # JSON passes through as text.
            json_deserializer=Raw,
            server_settings=_NAME if pooled else _NAME | _CONNECTION | _SESSION | SETTINGS | limits,
            **(pooler.OF_ENGINE if pooled else {}),
        )
        in_transaction = self.engine.execution_options(isolation_level="READ COMMITTED")
        by_statement = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        event.listen(self.engine.sync_engine, "handle_error", _give_up_useless)
        if pooled:
            pooler.set_in_each_transaction(in_transaction, _SESSION | SETTINGS | limits)
            pooler.make_each_statement_a_transaction(by_statement, _SESSION | SETTINGS | limits)
        self._timeout_seconds = timeout_seconds
        #: What the database cannot do now.
        self.troubles = Troubles()
        sessions = partial(
            Sessions, timeout_seconds=timeout_seconds, troubles=self.troubles, observer=observer
        )
        self._in_transaction = sessions(in_transaction, commits=True)
        self._by_statement = sessions(by_statement, commits=False)
        self._group_commit = group_commit
        self._groups: dict[Step[Any, Any], GroupCommit[Any, Any]] = {}
        self._alone = asyncio.Semaphore(_MOST_ALONE)
        self._waiting_alone = 0

    async def one(self, step: Step[Item, Result], item: Item, *, size: int = 0) -> Result:
        """Take a step with one item, and its answer once that is committed.

        Items that come at the same time share a transaction; one that fails, fails alone.

        Args:
            step: The step.
            item: The item.
            size: About how many bytes it has, where that is worth mentioning.

        Raises:
            Overloaded: Too much waits for this step already.
            Unavailable: The database did not answer.
            BadRequest: PostgreSQL refuses a value.
            TooHeavy: The database did not finish it in time, though it ran alone.
        """
        return await self._shared(step, item, size, self._set, partial(self.alone, step))

    async def many(self, step: Step[Item, Result], items: Sequence[Item]) -> list[Result]:
        """Take a step with many items, and their answers, in order, once those are committed: all or none.

        Raises:
            Unavailable: The database did not answer.
            BadRequest: PostgreSQL refuses a value.
            TooHeavy: The database did not finish it in time, though it ran alone.
        """
        try:
            return await self._set(step, items)
        except TooSlow:
            return await self.alone(step, items)

    async def each(self, step: Step[Item, Result], items: Sequence[Item]) -> list[Result]:
        """Take a step with many items, each for itself; where one fails, the others are done all the same.

        Raises:
            Unavailable: The database did not answer for one of the items.
            BadRequest: PostgreSQL refuses a value.
            TooHeavy: The database did not finish one of the items in time, though it ran alone.
        """
        try:
            return await self._set(step, items)
        except DatabaseTrouble:
            return await GroupCommit(partial(self._set, step), partial(self.alone, step)).settle(items)

    async def alone(self, step: Step[Item, Result], items: Sequence[Item]) -> list[Result]:
        """Take a step that was too slow again, alone, with more time.

        Raises:
            Unavailable: The database did not answer, or too many steps that were too slow wait already.
            TooSlow: The step was too slow again.
            TooHeavy: The step was too slow again, and the client sent much at once.
        """
        if self._waiting_alone >= _MOST_WAITING_ALONE:
            raise TooSlow("too many requests are too slow for the database")
        self._waiting_alone += 1
        try:
            async with self._alone:
                return await self.run_longer(step, items)
        except TooSlow as error:
            seconds = self._timeout_seconds * _ALONE_FACTOR
            log.warning("database did not finish a step in time, alone", step=name_of(step), seconds=seconds)
            if len(items) < _MANY_ITEMS and _json_bytes(items) < _LARGE_BYTES:
                # The database is slow, or what is stored is large: sending less would not help.
                raise
            raise TooHeavy(seconds) from error
        finally:
            self._waiting_alone -= 1

    async def run_longer(
        self, do: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        """Run something as `run` does, with more time for each statement."""
        seconds = self._timeout_seconds * _ALONE_FACTOR
        return await _patiently(lambda: self._in_transaction.take_longer(seconds, do, *args, **kwargs))

    async def run(self, do: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        """Run something in a transaction of its own: a step, a read, or upkeep.

        What is given up for the sake of somebody else (by PostgreSQL: a deadlock) is begun again.
        """
        return await _patiently(lambda: self._run_once(do, *args, **kwargs))

    async def read(self, do: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        """Run something that needs no transaction; each of its statements is one.

        Raises:
            Unavailable: The database did not answer.
            BadRequest: PostgreSQL refuses a value.
        """
        return await _patiently(lambda: self._by_statement.take(do, *args, **kwargs))

    async def read_one(self, step: Step[Item, Result], item: Item) -> Result:
        """Read one item by a step that only reads; those who come at the same time share its statements."""
        return await self._shared(step, item, 0, self.read)

    async def _shared(
        self,
        step: Step[Item, Result],
        item: Item,
        size: int,
        take: Callable[[Step[Item, Result], Sequence[Item]], Awaitable[list[Result]]],
        alone: Callable[[Sequence[Item]], Awaitable[list[Result]]] | None = None,
    ) -> Result:
        if not self._group_commit:
            [answer] = await (self.many if alone else take)(step, [item])
            return answer
        group = self._groups.get(step)
        if group is None:
            group = self._groups[step] = GroupCommit(self._measured(step, take), alone)
        shared: Result = await group.call(item, size)
        return shared

    def _measured(
        self,
        step: Step[Item, Result],
        take: Callable[[Step[Item, Result], Sequence[Item]], Awaitable[list[Result]]],
    ) -> Callable[[Sequence[Item]], Awaitable[list[Result]]]:
        """A step that takes sets, and has them counted."""
        observer, name = self._observer, name_of(step)
        if observer is None:
            return partial(take, step)

        async def measured(items: Sequence[Item]) -> list[Result]:
            began = time.perf_counter()
            try:
                return await take(step, items)
            finally:
                observer.set_committed(name, len(items), time.perf_counter() - began)

        return measured

    async def _set(self, step: Step[Item, Result], items: Sequence[Item]) -> list[Result]:
        return await _patiently(lambda: self._step(step, items))

    async def _step(self, step: Step[Item, Result], items: Sequence[Item]) -> list[Result]:
        fits = _ONE_STATEMENT.get(step)
        once = self._by_statement.take if fits is not None and all(map(fits, items)) else self._run_once
        return await once(step, items)

    async def _run_once(
        self, do: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        return await self._in_transaction.take(do, *args, **kwargs)

    async def _connect(self, **options: Any) -> "asyncpg.Connection[Any]":
        try:
            connection = await self._address.connect(**options)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            # Whatever it is that keeps us out.
            raise database_errors.of_connection(error) from error
        self._connections.add(connection)
        return connection

    def in_use(self) -> int:
        """How many connections are in use."""
        return cast("QueuePool", self.engine.pool).checkedout()

    def waiting(self) -> dict[str, int]:
        """For each step how many calls wait for their set."""
        return {name_of(step): len(group) for step, group in self._groups.items()}

    def break_off(self) -> None:
        """End every connection without waiting for a word from the database, which may say none."""
        for connection in list(self._connections):
            connection.terminate()

    async def close(self) -> None:
        """Give up what is under way, and let go of every connection."""
        self.break_off()
        for group in self._groups.values():
            await group.close()
        await self.engine.dispose()


def create_engine(
    connect: Callable[..., Awaitable["asyncpg.Connection[Any]"]],
    *,
    server_settings: dict[str, str] | None = None,
    **options: Any,
) -> AsyncEngine:
    """SQLAlchemy's engine for a database.

    Args:
        connect: Makes a connection; takes asyncpg's options.
        server_settings: PostgreSQL's settings for each connection.
        options: What SQLAlchemy takes.
    """
    creator = partial(connect, server_settings=server_settings)
    # What is in a statement is nobody's business: an error would tell it to the log.
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=creator, hide_parameters=True, **options
    )
    json_codec.pass_on(engine.dialect)
    return engine


def _json_bytes(item: Any) -> int:
    """Return about how many bytes of JSON a step is given, wherever they are in its items."""
    if isinstance(item, Raw):
        return len(item)
    if isinstance(item, Struct):
        item = [getattr(item, name) for name in item.__struct_fields__]
    return sum(map(_json_bytes, item)) if isinstance(item, (list, tuple)) else 0


async def _patiently(do: Callable[[], Awaitable[Result]]) -> Result:
    """Do something; what is given up for the sake of somebody else is begun again."""
    for _ in range(_TRIES - 1):
        try:
            return await do()
        except BeginAgain:
            continue
    return await do()


def _give_up_useless(context: ExceptionContext) -> None:
    """Have the pool throw connections away over which nothing more is to be had."""
    if getattr(context.original_exception, "sqlstate", None) in database_errors.USELESS:
        context.is_disconnect = True
