"""The way to the database: one engine, short transactions, and errors in the broker's own words."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, cast
from weakref import WeakSet

import asyncpg
from msgspec import Raw
from sqlalchemy import Connection, ExceptionContext, QueuePool, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from broker.errors import BadRequest, Unavailable
from broker.store import facts, pooler
from broker.store.address import CONNECT_SECONDS, Address
from broker.store.group_commit import GroupCommit

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Given = ParamSpec("Given")

# A step of the life cycle takes a set of items and answers for each of them, in order. Steps are plain
# functions: a session runs each in one go (SQLAlchemy's `run_sync`), and hands it the connection that it
# holds, which costs a third less than to await its statements one by one.
Step = Callable[[Connection, Sequence[Item]], list[Answer]]
Do = Callable[Concatenate[Connection, Given], Answer]

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

# Over such a connection nothing more is to be had: its server stops, or is a primary no longer.
_USELESS = {"57P01", "57P02", "57P03", "25006"}
# How much longer than the database itself we wait for it: then the connection is dead.
_GRACE_SECONDS = 1.0

# asyncpg's internal error is what a connection that dies between two operations can raise.
# PostgreSQL's own errors come bare only where a connection is begun.
_LOST = (
    InterfaceError,
    OperationalError,
    PoolTimeoutError,
    asyncpg.PostgresError,
    asyncpg.InternalClientError,
    OSError,
)

# Classes of SQLSTATEs: this value cannot be stored; this transaction was given up for another.
_DATA_EXCEPTION = "22"
_LIMIT_EXCEEDED = "54"
_ROLLBACK = "40"
# Insufficient resources, operator intervention, connection, read-only, input and output, a lock not given.
_NOT_NOW = {"53", "57", "08", "25", "58", "55", ""}
# No such table, column or function: it is being migrated, or restored.
_ANOTHER_SCHEMA = {"42P01", "42703", "42883"}
_TRIES = 5


# The steps that are one statement, and for which items they are.
_ONE_STATEMENT: dict[Step[Any, Any], Callable[[Any], bool]] = {}


def one_statement(
    fits: Callable[[Any], bool] = lambda _: True,
) -> Callable[[Step[Item, Answer]], Step[Item, Answer]]:
    """Mark a step that writes by one statement, which is a transaction of its own and needs none around it.

    To begin and to commit one takes as long as a small statement does. Of each row that it locks such a
    statement sees the latest version, of all else what was committed when it began. A step that takes a
    further one for what is left, and is given up there, is taken again, and finds what it wrote before.

    Args:
        fits: For which items it is one statement.
    """

    def mark(step: Step[Item, Answer]) -> Step[Item, Answer]:
        _ONE_STATEMENT[step] = fits
        return step

    return mark


class BeginAgain(Unavailable):
    """This transaction was given up for another; it can be begun again at once."""


class Store:
    """The database, as the rest of the broker sees it.

    Args:
        url: Where it is; `postgresql://` and `postgresql+asyncpg://` mean the same here.
        pool_size: How many connections to keep at most.
        timeout_seconds: How long a statement may take.
        group_commit: Whether single items share transactions; else each has one of its own.
        witness: Who counts what is done.
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
        witness: facts.Witness | None = None,
        pooled: bool = False,
        takes_writes: bool = True,
    ) -> None:
        self._witness = witness
        milliseconds = str(int(timeout_seconds * 1000))
        limits = {
            "statement_timeout": milliseconds,
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
        self._patience_seconds = timeout_seconds + _GRACE_SECONDS
        self._in_transaction = async_sessionmaker(in_transaction)
        self._by_statement = async_sessionmaker(by_statement)
        self._group_commit = group_commit
        self._groups: dict[Step[Any, Any], GroupCommit[Any, Any]] = {}

    async def one(self, step: Step[Item, Answer], item: Item, *, size: int = 0) -> Answer:
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
        """
        return await self._shared(step, item, size, self.many)

    async def many(self, step: Step[Item, Answer], items: Sequence[Item]) -> list[Answer]:
        """Take a step with many items, and their answers, in order, once those are committed."""
        return await _patiently(lambda: self._step(step, items))

    async def run(self, do: Do[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        """Run something in a transaction of its own: a step, a read, or upkeep.

        What is given up for the sake of somebody else (by PostgreSQL: a deadlock) is begun again.
        """
        return await _patiently(lambda: self._run_once(do, *args, **kwargs))

    async def read(self, do: Do[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        """Run something that needs no transaction; each of its statements is one.

        Raises:
            Unavailable: The database did not answer.
            BadRequest: PostgreSQL refuses a value.
        """
        return await self._take(self._by_statement, lambda connection: do(connection, *args, **kwargs))

    async def read_one(self, step: Step[Item, Answer], item: Item) -> Answer:
        """Read one item by a step that only reads; those who come at the same time share its statements."""
        return await self._shared(step, item, 0, self.read)

    async def _shared(
        self,
        step: Step[Item, Answer],
        item: Item,
        size: int,
        take: Callable[[Step[Item, Answer], Sequence[Item]], Awaitable[list[Answer]]],
    ) -> Answer:
        if not self._group_commit:
            [answer] = await take(step, [item])
            return answer
        group = self._groups.get(step)
        if group is None:
            group = self._groups[step] = GroupCommit(self._measured(step, take))
        shared: Answer = await group.call(item, size)
        return shared

    def _measured(
        self,
        step: Step[Item, Answer],
        take: Callable[[Step[Item, Answer], Sequence[Item]], Awaitable[list[Answer]]],
    ) -> Callable[[Sequence[Item]], Awaitable[list[Answer]]]:
        """A step that takes sets, and has them counted."""
        witness, name = self._witness, _name(step)
        if witness is None:
            return partial(take, step)

        async def measured(items: Sequence[Item]) -> list[Answer]:
            began = time.perf_counter()
            try:
                return await take(step, items)
            finally:
                witness.set_taken(name, len(items), time.perf_counter() - began)

        return measured

    async def _step(self, step: Step[Item, Answer], items: Sequence[Item]) -> list[Answer]:
        fits = _ONE_STATEMENT.get(step)
        once = self.read if fits is not None and all(map(fits, items)) else self._run_once
        return await once(step, items)

    async def _run_once(self, do: Do[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        return await self._take(self._in_transaction, lambda connection: do(connection, *args, **kwargs))

    async def _take(
        self, sessions: async_sessionmaker[AsyncSession], do: Callable[[Connection], Answer]
    ) -> Answer:
        def take(session: Session) -> Answer:
            with session, self._watched(session.connection()) as connection:
                info = connection.info
                try:
                    answer = do(connection)
                finally:
                    noted = facts.take(info)
                if sessions is self._in_transaction:
                    session.commit()
            if noted and self._witness is not None:
                self._witness.ended(noted)
            return answer

        with _in_our_words():
            return await sessions().run_sync(take)

    @contextmanager
    def _watched(self, connection: Connection) -> Iterator[Connection]:
        """Give a connection up when it stays silent for longer than a statement may take.

        It looks alive where the network swallows everything, and to cancel what runs there would wait for an
        answer, too.
        """
        driver: asyncpg.Connection[Any] = connection.connection.driver_connection
        timer = asyncio.get_running_loop().call_later(self._patience_seconds, driver.terminate)
        try:
            yield connection
        finally:
            timer.cancel()

    async def _connect(self, **options: Any) -> "asyncpg.Connection[Any]":
        try:
            connection = await self._address.connect(**options)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            # Whatever it is that keeps us out.
            raise Unavailable from error
        self._connections.add(connection)
        return connection

    def in_use(self) -> int:
        """How many connections are in use."""
        return cast("QueuePool", self.engine.pool).checkedout()

    def waiting(self) -> dict[str, int]:
        """For each step how many calls wait for their set."""
        return {_name(step): len(group) for step, group in self._groups.items()}

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


def _name(step: Step[Any, Any]) -> str:
    """A step's name, `tasks.submit` for example."""
    return f"{step.__module__.rpartition('.')[2]}.{step.__qualname__}"


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
    return create_async_engine(
        "postgresql+asyncpg://", async_creator=creator, hide_parameters=True, **options
    )


async def _patiently(do: Callable[[], Awaitable[Answer]]) -> Answer:
    """Do something; what is given up for the sake of somebody else is begun again."""
    for _ in range(_TRIES - 1):
        try:
            return await do()
        except BeginAgain:
            continue
    return await do()


@contextmanager
def _in_our_words() -> Iterator[None]:
    """What goes wrong in the block is told in the broker's own words."""
    try:
        yield
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InternalClientError, OSError) as error:
        raise _translate(error) from error


def _give_up_useless(context: ExceptionContext) -> None:
    """Have the pool throw connections away over which nothing more is to be had."""
    if getattr(context.original_exception, "sqlstate", None) in _USELESS:
        context.is_disconnect = True


def _translate(error: Exception) -> Exception:
    if isinstance(error, DBAPIError):
        state = str(getattr(error.orig, "sqlstate", None) or "")
        refused_by_driver = isinstance(getattr(error.orig, "__cause__", None), asyncpg.DataError)
        if refused_by_driver or state.startswith((_DATA_EXCEPTION, _LIMIT_EXCEEDED)):
            return BadRequest("PostgreSQL cannot hold a value of this request.")
        if state.startswith(_ROLLBACK):
            return BeginAgain()
        if error.connection_invalidated or state[:2] in _NOT_NOW or state in _ANOTHER_SCHEMA:
            return Unavailable()
    if isinstance(error, _LOST):
        return Unavailable()
    return error
