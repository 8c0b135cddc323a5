"""Helpers for tests of the store: functions that create a state, and a check of the invariants."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self
from uuid import UUID

import asyncpg
import msgspec
import pytest
from msgspec import Raw
from sqlalchemy import TextClause
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from broker.schemas.archive import ArchiveRecord
from broker.schemas.candidates import Pair
from broker.schemas.states import Outcome
from broker.schemas.tasks import NewTask, Task
from broker.schemas.tools import NewTool, ToolStatus
from broker.schemas.values import NULL
from broker.schemas.work import NewReport, Report, Work
from broker.store import (
    Store,
    archive,
    assignment,
    completion,
    deletion,
    reports,
    submission,
    tasks,
    tools,
    work,
)
from broker.store.address import libpq_url
from broker.store.completion import Ending
from broker.store.database_errors import RetryTransaction
from broker.store.sessions import Params, Query, Result
from broker.store.sql_connection import Rows, SqlConnection
from broker.store.steps import Item, Step, is_one_statement
from broker.wake.listener import UPKEEP
from broker.wake.waiters import Waiters
from tests.conftest import Running
from tests.support.waiting import wait_until

PATIENCE_SECONDS = 10

# The columns that keep the task of an archive record, and values for tests in which the task does not matter.
TASK_COLUMNS = "needs, payload, priority, task_state, task_attempt, max_attempts, retry_backoff_seconds"
TASK_VALUES = "'1', 'null', 0, 'running', 0, 3, 1"

# Rules that hold for the whole database at any time. Each query returns the rows that break the rule.
INVARIANTS = {
    "a tool's load is its number of work rows": """
        select t.id, t.load, count(w.id) from tools t left join work w on w.tool_id = t.id
        group by t.id having t.load <> count(w.id)""",
    "no tool exceeds its capacity, unless it was resized": "select id from tools where load > capacity",
    "a tool that is offline has no work": "select id from tools where offline and load > 0",
    "every tool has a lease": """
        select t.id from tools t left join tool_leases l on l.tool_id = t.id where l.tool_id is null""",
    "work belongs to a task that is neither scheduled nor failed": """
        select w.id, t.state from work w left join tasks t on t.id = w.task_id
        where t.state is distinct from 'available'""",
    "a task is live or ended, never both": "select id from tasks join ended_tasks on task_id = id",
    "an ended task has a last record with its outcome": """
        select e.task_id, a.outcome from ended_tasks e left join work_archive a on a.work_id = e.work_id
        where a.work_id is null or a.task_id <> e.task_id or a.outcome not in ('succeeded', 'cancelled')""",
    "a task ends once": """
        select task_id from work_archive where outcome in ('succeeded', 'cancelled')
        group by task_id having count(*) > 1""",
    "a task whose record says that it ended has ended": """
        select a.task_id from work_archive a left join ended_tasks e on e.work_id = a.work_id
        where a.outcome in ('succeeded', 'cancelled') and e.task_id is null""",
    "work is current or in the archive, never both": """
        select w.id from work w join work_archive a on a.work_id = w.id""",
    "each work_id is in the archive once": """
        select work_id from work_archive group by work_id having count(*) > 1""",
    "a report belongs to current work": """
        select r.id from work_reports r left join work w on w.id = r.work_id where w.id is null""",
    "a task counts the attempts in the archive": """
        select t.id, t.attempt from tasks t
        where t.attempt <> (select count(*) from work_archive a where a.task_id = t.id
                            and (a.outcome in ('succeeded', 'failed', 'timed_out')
                                 or a.outcome = 'lost' and a.started_at is not null))""",
}


async def disable_notifications(connection: asyncpg.Connection) -> None:
    """Disable the triggers that send notifications."""
    for table, trigger in await connection.fetch(
        "select cast(tgrelid as regclass), tgname from pg_trigger"
        " where tgname like 'notify%' and tgparentid = 0"
    ):
        await connection.execute(f"alter table {table} disable trigger {trigger}")


@asynccontextmanager
async def open_store(url: str, **options: Any) -> AsyncIterator[Store]:
    """Open an additional store."""
    store = Store(url, **options)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def open_connection(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Open an additional connection."""
    connection = await asyncpg.connect(libpq_url(url))
    try:
        yield connection
    finally:
        await connection.close()


async def check_invariants(sql: asyncpg.Connection, *, but: AbstractSet[str] = frozenset()) -> None:
    """Check the whole database, except the rules in `but`, which the test breaks intentionally."""
    rules = {name: query for name, query in INVARIANTS.items() if name not in but}
    broken = {name: rows for name, query in rules.items() if (rows := await sql.fetch(query))}
    assert broken == {}


async def wait_until_blocked(sql: asyncpg.Connection, count: int = 1) -> None:
    """Wait until at least `count` transactions wait for a lock."""
    await wait_until(lambda: is_blocked(sql, count))


async def is_blocked(sql: asyncpg.Connection, count: int) -> bool:
    # Count only sessions of this database, because other tests may share the server.
    return (
        await sql.fetchval("""
            select count(distinct pid)
            from pg_locks
            join pg_stat_activity using (pid)
            where not granted and datname = current_database()
        """)
        >= count
    )


async def wait_for_long_polls(broker: Running, count: int) -> None:
    """Wait until at least `count` long polls have queried the database and wait for a change."""
    service = broker.server.service

    async def all_wait() -> bool:
        return sleeping_count(service.waiters) >= count

    await wait_until(all_wait)


def sleeping_count(waiters: Waiters) -> int:
    """Return how many long polls wait for a change now. The upkeep, which always waits, does not count."""
    return sum(
        waiter._future is not None
        for topic, waiters_of_topic in waiters._by_topic.items()
        if topic != UPKEEP
        for waiting in waiters_of_topic.values()
        for waiter in waiting
    )


async def blocks_another(sql: asyncpg.Connection, pid: int) -> bool:
    """Return whether a transaction waits for a lock that the backend `pid` holds."""
    return bool(
        await sql.fetchval(
            "select exists (select from pg_locks where not granted and $1 = any(pg_blocking_pids(pid)))", pid
        )
    )


async def wait_until_done_or_blocked(
    task: "asyncio.Task[Any]", sql: asyncpg.Connection, count: int = 1
) -> None:
    """Wait until the asyncio task is done, or until at least `count` transactions wait for a lock."""

    async def either() -> bool:
        return task.done() or await is_blocked(sql, count)

    await wait_until(either)


@contextmanager
def statements_of(*stores: Store) -> Iterator[list[str]]:
    """Record the SQL statements that these stores execute within the block."""
    recorded: list[str] = []
    execute = SqlConnection.execute

    def record(self: SqlConnection, statement: TextClause, values: Mapping[str, Any] | None = None) -> Rows:
        if any(self.driver in store._connections for store in stores):
            recorded.append(statement.text)
        return execute(self, statement, values)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SqlConnection, "execute", record)
        yield recorded


def in_transaction(store: Store) -> AsyncEngine:
    """Return the engine of the store whose connections begin transactions."""
    return store.engine.execution_options(isolation_level="READ COMMITTED")


class OpenTransaction:
    """A transaction that stays open until the test commits it or rolls it back."""

    def __init__(self, store: Store) -> None:
        self.session = AsyncSession(in_transaction(store))

    async def __aenter__(self) -> Self:
        return await self.begin()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await (self.commit() if kind is None else self.roll_back())

    async def begin(self) -> Self:
        await self.session.begin()
        return self

    async def run(self, do: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        """Run a query in this transaction."""
        return await self.session.run_sync(self._run, do, *args, **kwargs)

    def _run(
        self, session: Session, do: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        connection = SqlConnection(session.connection())
        if not connection.driver.is_in_transaction():
            connection.begin()
        return do(connection, *args, **kwargs)

    async def commit(self) -> None:
        async with self.session:
            await self.session.commit()

    async def roll_back(self) -> None:
        await self.session.close()


async def run_many(store: Store, step: Step[Item, Result], items: Sequence[Item]) -> list[Result]:
    """Run a step like `Store.many`, but raise if PostgreSQL aborts the transaction, e.g. in a deadlock."""
    sessions = store._by_statement if is_one_statement(step, items) else store._in_transaction
    while True:
        try:
            return await sessions._run(step, items)
        except RetryTransaction as error:
            # Without a cause, the step itself has requested the retry.
            if error.__cause__ is not None:
                raise


def new_task(id_: str | None = None, **fields: Any) -> submission.TaskSubmission:
    return submission.TaskSubmission(NewTask(**{"needs": Raw(b"{}"), "id": id_} | fields))


async def submit(store: Store, *ids: str, **fields: Any) -> list[Task]:
    """Submit tasks with these ids and the same fields."""
    submitted = await run_many(store, submission.submit, [new_task(id_, **fields) for id_ in ids])
    return [task for task, _ in submitted if task is not None]


async def register(store: Store, *ids: str, **fields: Any) -> list[ToolStatus]:
    """Register tools with these ids and the same fields."""
    new = [
        tools.Registration(NewTool(**{"skills": Raw(b"{}"), "id": id_} | fields), id_.encode()) for id_ in ids
    ]
    return [tool for tool, _ in await run_many(store, tools.register, new) if tool is not None]


async def assign(store: Store, *pairs: tuple[str, str]) -> list[assignment.Assigned]:
    return await run_many(
        store, assignment.assign, [Pair(task_id=task, tool_id=tool) for task, tool in pairs]
    )


async def assign_all(store: Store, *pairs: tuple[str, str]) -> list[Work]:
    """Assign all these pairs, and return their work."""
    works = [result.work for result in await assign(store, *pairs) if result.status == "assigned"]
    assert len(works) == len(pairs)
    return works


async def add_assigned_work(store: Store, task: str = "task", tool: str = "tool", **fields: Any) -> Work:
    """Submit a task with these fields, register a tool, and assign the task to it."""
    await submit(store, task, **fields)
    await register(store, tool)
    [work] = await assign_all(store, (task, tool))
    return work


async def add_running_work(store: Store, task: str = "task", tool: str = "tool", **fields: Any) -> Work:
    """Do the same as `add_assigned_work`, and start the work."""
    assigned_work = await add_assigned_work(store, task, tool, **fields)
    started = await store.one(work.start, work.Start(assigned_work.id))
    assert started is not None
    return started.work


def new_ending(
    work_id: UUID, outcome: Outcome = "succeeded", result: Raw = NULL, error: str | None = None, **fields: Any
) -> Ending:
    return Ending(work_id, outcome, result, error, **fields)


async def complete(
    store: Store, work_id: UUID, outcome: Outcome = "succeeded", **fields: Any
) -> completion.Ended:
    [result] = await run_many(store, completion.complete, [new_ending(work_id, outcome, **fields)])
    return result


async def report(store: Store, work_id: UUID, **fields: Any) -> reports.WrittenReport | None:
    [result] = await run_many(store, reports.write, [reports.ReportOf(work_id, NewReport(**fields))])
    return result


async def delete(store: Store, task: str, *, force: bool = False) -> str:
    [result] = await run_many(store, deletion.delete, [deletion.TaskDeletion(task, force)])
    return result


def reports_of(record: ArchiveRecord) -> list[Report]:
    """Decode the reports of a record, which holds them as JSON."""
    return msgspec.json.decode(msgspec.json.encode(record.reports), type=list[Report])


async def get_task(store: Store, id_: str) -> Task:
    [item] = await store.run(tasks.find, [id_])
    assert item is not None
    return item


async def get_tool(store: Store, id_: str) -> ToolStatus:
    [item] = await store.run(tools.by_ids, [id_])
    return item


async def get_records(store: Store, **filters: str) -> Sequence[ArchiveRecord]:
    """Return the newest archive records."""
    page = await store.run(archive.page, archive.ArchiveFilter(**filters), limit=1000, after=None)
    return page.items
