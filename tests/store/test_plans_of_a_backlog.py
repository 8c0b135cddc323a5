"""Query plans with 220,000 waiting tasks and as many records: statements read only the rows that they need.

`make test-all` uses a million of each.

PostgreSQL plans each statement twice: for the full tables, and for empty tables. A connection may keep a plan
from a time when the queue was empty.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import TextClause

from broker.bench.scenarios.backlog import FILL_ARCHIVE, FILL_TASKS
from broker.schemas.overview import History, Queue
from broker.store import (
    acceptance,
    archive,
    assignment,
    cancellation,
    candidates,
    completion,
    due,
    ended_tasks,
    ended_work,
    events,
    explanation,
    leases,
    locks,
    lost_work,
    overview,
    ownership,
    reports,
    retention,
    submission,
    tasks,
    tools,
    work,
)
from broker.store.address import libpq_url
from broker.store.connections import SETTINGS
from broker.store.pages import MOST_BYTES, MOST_EXAMINED
from broker.store.verdicts import MOST_BEFORE
from tests.conftest import run_sql, temporary_database
from tests.support import steps
from tests.support.shared import THOROUGH

# Even a scan of the smaller number reads several times as many rows as any statement may.
ROWS = 1_000_000 if THOROUGH else 220_000
SET = 20
# The maximum number of rows, in all tables and indexes together, that a set may read. A scan reads at least
# ten times as many.
FEW = 60 * SET

# Tasks with known names at both ends of the backlog, work on some of them, and records of some ended tasks.
KNOWN = f"""
insert into tools (id, skills, capacity)
select 'tool-' || number, '{{}}', 100 from generate_series(1, {SET}) as number;
insert into tool_leases (tool_id, lease_seconds, expires_at)
select id, 60, now() + interval '1 hour' from tools;
insert into tasks (id, needs, payload, priority, state, due_at, max_attempts, retry_backoff_seconds)
select kind || number, '1', '2', 0, case kind when 'due-' then 'scheduled' else 'available' end,
       case kind when 'due-' then now() - interval '1 minute' end, 3, 1
from generate_series(1, {SET}) as number, unnest(array['free-', 'busy-', 'due-']) as kind;
insert into work (id, task_id, tool_id, attempt)
select uuid7(), id, replace(id, 'busy', 'tool'), 1 from tasks where id like 'busy-%';
update tools set load = 1;
-- Tasks and records of a key.
update tasks set created_by = 'somebody' where seq % 10000 = 7 and seq > 100000;
update work_archive set created_by = 'somebody' where attempt = 1 and substr(task_id, 10)::int % 10000 = 7;
"""
EVERYTHING_ENDED = "insert into ended_tasks (task_id, work_id) select task_id, work_id from work_archive"
FREE, BUSY, ENDED, TOOLS = (
    [f"{kind}-{number}" for number in range(1, SET + 1)] for kind in ("free", "busy", "archived", "tool")
)


class Crowd(NamedTuple):
    """A connection with plans for the full database, and one with plans for the empty database."""

    url: str
    stale: asyncpg.Connection
    fresh: asyncpg.Connection
    work_ids: list[UUID]
    archived_ids: list[UUID]


# The values of each statement, or a function that returns them for a crowd.
SUBMITTED = {
    "id": [f"new-{number}" for number in range(SET)],
    "needs": ["1"] * SET,
    "payload": ["null"] * SET,
    "priority": [0] * SET,
    "not_before": [None] * SET,
    "timeout_seconds": [None] * SET,
    "max_attempts": [3] * SET,
    "retry_backoff_seconds": [1.0] * SET,
    "created_by": ["somebody"] * SET,
    "trace_context": [None] * SET,
}
PAIRS = {"task_ids": FREE, "tool_ids": TOOLS}
# Placeholders for the current snapshot and for its end.
NOW, LATEST = "{now}", "{its xmax}"
OLD_SNAPSHOT = "3:3:"
# The snapshot of a reader that has just read while a transaction from before the backlog was open.
BESIDE_AN_OLD_TRANSACTION = f"3:{LATEST}:3"


NO_TOKENS = {"token_tool": None, "token_hash": None}
BEATS = {"ids": TOOLS, "token_hash": [b"1"] * len(TOOLS)}


def reading(crowd: Crowd) -> dict[str, Any]:
    return {"seen": None, "reading": NOW, "limit": SET}


def ending(crowd: Crowd) -> dict[str, Any]:
    return {
        "work_id": crowd.work_ids,
        "outcome": ["succeeded"] * SET,
        "result": ["1"] * SET,
        "error": [None] * SET,
        "retry": [True] * SET,
        **NO_TOKENS,
    }


def some_reports(crowd: Crowd) -> dict[str, Any]:
    return {
        "work_id": crowd.work_ids,
        "id": [None] * SET,
        "progress": [0.5] * SET,
        "message": ["half way"] * SET,
        "data": ["null"] * SET,
        **NO_TOKENS,
    }


def late(crowd: Crowd) -> dict[str, Any]:
    return {"work_id": crowd.archived_ids, "result": ["1"] * SET, "error": [None] * SET}


STATEMENTS: dict[str, tuple[TextClause, Any]] = {
    "submit": (submission.SUBMIT, SUBMITTED),
    "submit with ids": (submission.SUBMIT_WITH_IDS, SUBMITTED),
    "submit ended tasks": (submission.DELETE_ENDED, {"ids": ENDED}),
    "candidates, the first page": (candidates.WALK_TASKS, lambda c: reading(c) | {"rank": -32769, "seq": -1}),
    "candidates, in the middle": (candidates.WALK_TASKS, lambda c: reading(c) | {"rank": -5, "seq": 200_000}),
    "candidates, tools": (candidates.WALK_TOOLS, lambda c: reading(c) | {"id": ""}),
    "candidates, new": (candidates.NEW, {"seen": NOW, "limit": SET}),
    "candidates, very many new tasks": (candidates.NEW, {"seen": OLD_SNAPSHOT, "limit": SET}),
    "candidates, beside an old transaction": (
        candidates.NEW,
        {"seen": BESIDE_AN_OLD_TRANSACTION, "limit": SET},
    ),
    "assign": (assignment.ASSIGN, PAIRS),
    "assign, briefly": (assignment.ASSIGN_BRIEFLY, PAIRS),
    "assign to waiting tools": (assignment.ASSIGN_TO_WAITING, PAIRS | {"waiting": TOOLS}),
    "assign again": (assignment.OF_PAIRS, {"task_ids": BUSY, "tool_ids": TOOLS}),
    "assign again, briefly": (assignment.OF_PAIRS_BRIEFLY, {"task_ids": BUSY, "tool_ids": TOOLS}),
    "poll": (work.ASSIGNED_TO, {"tool_ids": TOOLS}),
    "tools with work": (work.TOOLS_READY, {"ids": TOOLS}),
    "start": (work.START, lambda c: {"ids": c.work_ids} | NO_TOKENS),
    "report": (reports.REPORT, some_reports),
    "latest reports": (reports.LATEST, lambda c: {"work_id": next(iter(c.work_ids), UUID(int=0))}),
    "read work": (work.BY_IDS, lambda c: {"ids": c.work_ids}),
    "watch work": (work.STATUS, lambda c: {"work_id": next(iter(c.work_ids), None)}),
    "watch work that has ended": (ended_work.STATUS, lambda c: {"work_id": next(iter(c.archived_ids), None)}),
    "renew leases": (leases.RENEW, BEATS),
    "heartbeat": (leases.HEARTBEAT, BEATS),
    "bring tools back online": (leases.COME_BACK, BEATS),
    "lock ending work": (locks.LOCK, lambda c: {"ids": c.work_ids, "task_ids": [], "tool_ids": TOOLS}),
    "work of tools": (lost_work.OF_TOOLS, {"tool_ids": TOOLS, "running_only": True}),
    "cancel": (cancellation.CANCEL, lambda c: {"ids": c.work_ids, "requeue": [True] * SET}),
    "end": (completion.END, ending),
    "end, briefly": (completion.END_BRIEFLY, ending),
    "end successes": (completion.END_SUCCESSES, ending),
    "end successes, briefly": (completion.END_SUCCESSES_BRIEFLY, ending),
    "end without the tool": (completion.END_WITHOUT_TOOL, ending),
    "read tasks": (tasks.BY_IDS, {"ids": FREE + BUSY}),
    "read tasks that ended": (ended_tasks.ENDED_TASKS, {"ids": ENDED}),
    "ready tasks": (tasks.READY, {"ids": FREE + ENDED}),
    "owners of tasks": (ownership.TASKS, {"ids": FREE + ENDED}),
    "owners of tools": (ownership.TOOLS, {"ids": TOOLS}),
    "owners of work": (ownership.WORKS, lambda c: {"ids": c.work_ids + c.archived_ids}),
    "read records": (archive.FIND, lambda c: {"ids": c.archived_ids}),
    "lock tasks to delete": (ended_tasks.LOCK, {"ids": FREE}),
    "delete tasks": (ended_tasks.RECORD_DELETED, {"ids": FREE}),
    "due tasks": (due.DUE_TASKS, {"batch": SET, "skipped": []}),
    "offer due tasks": (due.MAKE_AVAILABLE, {"ids": FREE}),
    "next due task": (due.TASKS_NEXT, {"skipped": []}),
    "overdue work": (due.OVERDUE, {"batch": SET, "skipped": []}),
    "extend deadlines": (due.EXTEND_DEADLINES, due._extension(1)),
    "next overdue work": (due.WORK_NEXT, {"skipped": []}),
    "expired leases": (due.EXPIRED_LEASES, {"batch": SET, "skipped": []}),
    "extend leases": (due.EXTEND_LEASES, due._extension(1)),
    "work of offline tools": (due.WORK_OF_TOOLS, {"tool_ids": TOOLS}),
    "take offline": (due.TAKE_OFFLINE, {"ids": TOOLS}),
    "next expired lease": (due.LEASES_NEXT, {"skipped": []}),
    "retry": (tasks.RETRY, {"ids": FREE}),
    "keep late results": (ended_work.KEEP_LATE, late),
    "lock records to accept": (acceptance.LOCK, lambda c: {"ids": c.archived_ids}),
    "accept": (acceptance.ACCEPT, lambda c: {"ids": c.archived_ids}),
    "explain": (explanation.FACTS, {"id": FREE[0]}),
    "events of work": (events.WORKS, lambda c: {"ids": c.work_ids + c.archived_ids}),
    "events of records": (events.RECORDS, lambda c: {"ids": c.archived_ids}),
    "events of tasks": (events.TASKS, {"ids": FREE + BUSY}),
    "events of tasks that ended": (events.ENDED_TASKS, {"ids": ENDED}),
    "events of tools": (events.TOOLS, {"ids": TOOLS}),
    "delete old records": (retention.DELETE_REST, {"days": 30, "batch": SET}),
    "forget": (retention.FORGET_ENDED, lambda c: {"task_ids": ENDED, "work_ids": c.archived_ids}),
}


LAST_MINUTE = datetime.now(UTC) - timedelta(minutes=1)
LONG_AGO = LAST_MINUTE - timedelta(days=90)
MIDDLE = UUID("01980000-0000-7000-8000-000000000000")
NEWEST = {"before_at": datetime.max.replace(tzinfo=UTC), "before_id": UUID(int=2**128 - 1), "limit": SET}
EVERY_ATTEMPT = overview.timeline.TimelineRange()._asdict() | {"limit": SET}


def list_of_tasks(*, after: int = -1, **filters: Any) -> tuple[TextClause, dict[str, Any]]:
    which = tasks.TaskFilter(**filters)
    return tasks.listing(which), which._asdict() | {"after": after, "limit": SET}


def list_of_records(**filters: Any) -> tuple[TextClause, dict[str, Any]]:
    which = archive.ArchiveFilter(**filters)
    return archive.listing(which), which._asdict() | NEWEST | {"most_bytes": MOST_BYTES}


def list_of_work(**filters: Any) -> tuple[TextClause, dict[str, Any]]:
    which = work.WorkFilter(**filters)
    return work.listing(which), which._asdict() | {"after": UUID(int=0), "limit": SET}


def list_of_tools(state: str | None = None, registered_by: str | None = None) -> Any:
    filters = {"state": state, "registered_by": registered_by}
    return tools.listing(**filters), filters | {"after": "", "limit": SET}


# Lists whose rows an index finds.
LISTS: dict[str, tuple[TextClause, dict[str, Any]]] = {
    "records": list_of_records(),
    "records of a task": list_of_records(task_id="archived-7"),
    "records of a tool": list_of_records(tool_id="tool-7"),
    "records that failed": list_of_records(outcome="failed"),
    "records that were cancelled": list_of_records(outcome="cancelled"),
    "records that were released": list_of_records(outcome="released"),
    "records that were lost": list_of_records(outcome="lost"),
    "records that timed out": list_of_records(outcome="timed_out"),
    "records that succeeded": list_of_records(outcome="succeeded"),
    "records since then": list_of_records(since=LAST_MINUTE),
    "records until then": list_of_records(until=LONG_AGO),
    "records of a span that failed": list_of_records(outcome="failed", since=LONG_AGO, until=LAST_MINUTE),
    "records of a key": list_of_records(created_by="somebody"),
    "tasks": list_of_tasks(),
    "tasks of a key": list_of_tasks(created_by="somebody"),
    "available tasks": list_of_tasks(state="available"),
    "scheduled tasks": list_of_tasks(state="scheduled"),
    "assigned tasks": list_of_tasks(state="assigned"),
    "running tasks": list_of_tasks(state="running"),
    "failed tasks": list_of_tasks(state="failed"),
    "tasks from the middle on": list_of_tasks(after=200_000),
    "work": list_of_work(),
    "work of a tool": list_of_work(tool_id="tool-7"),
    "work on a task": list_of_work(task_id="busy-7"),
    "running work": list_of_work(state="running"),
    "work of a key's tools": list_of_work(registered_by="somebody"),
    "work of a tool in a state": list_of_work(tool_id="tool-7", state="running"),
    "tools": list_of_tools(),
    "tools in a state": list_of_tools("offline"),
    "tools of a key": list_of_tools("idle", "somebody"),
    "tools with their work": (overview.tools.PAGE, {"after": "", "limit": SET}),
    "attempts under way": (overview.timeline.READ, EVERY_ATTEMPT),
    "attempts under way since then": (overview.timeline.READ, EVERY_ATTEMPT | {"since": LAST_MINUTE}),
    "attempts of a tool": (overview.timeline.READ, EVERY_ATTEMPT | {"tool_id": "tool-7"}),
    "attempts at a task": (overview.timeline.READ, EVERY_ATTEMPT | {"task_id": "archived-7"}),
    "records to forget": (retention.records_of("work_archive_rest"), {"after": MIDDLE, "batch": SET}),
    "the newest record of a partition": (retention.newest_of("work_archive_rest"), {"days": 30}),
    "failures": (overview.failures.READ, NEWEST | {"since": None}),
}
# Lists with further conditions that no row meets.
EXAMINED: dict[str, tuple[TextClause, dict[str, Any]]] = {
    "tasks that need": list_of_tasks(needs='{"skill": "unknown"}'),
    "available tasks that need": list_of_tasks(state="available", needs='{"skill": "unknown"}'),
    "scheduled tasks that need": list_of_tasks(state="scheduled", needs='{"skill": "unknown"}'),
    "failed tasks that need": list_of_tasks(state="failed", needs='{"skill": "unknown"}'),
    "old tasks": list_of_tasks(older_than_seconds=1e8),
    "old tasks in a state": list_of_tasks(state="available", older_than_seconds=1e8),
    "tasks of a key that need": list_of_tasks(created_by="somebody", needs='{"skill": "unknown"}'),
    "failed tasks of a key": list_of_tasks(state="failed", created_by="somebody"),
    "records of a tool that were lost": list_of_records(tool_id="tool-7", outcome="lost"),
    "records of a task and a tool": list_of_records(task_id="archived-7", tool_id="nobody"),
    "records of a key that were lost": list_of_records(created_by="somebody", outcome="lost"),
    "records of nobody's tool in a span": list_of_records(tool_id="nobody", since=LONG_AGO),
    "records of a key and a tool": list_of_records(created_by="somebody", tool_id="tool-7"),
}
A_YEAR = {"since": LAST_MINUTE - timedelta(days=365), "until": LAST_MINUTE, "seconds": 86_400}
# Reads of many rows, with the maximum number.
READINGS: dict[str, tuple[TextClause, dict[str, Any], int]] = {
    "the queue": (overview.queue.KINDS, {}, overview.queue.MOST_LOOKED_AT),
    "unasked tools": (overview.queue.UNASKED, {}, 0),
    "waiting tasks": (overview.waiting.READ, {"limit": SET}, SET * MOST_BEFORE),
    "the history of a year": (overview.history.READ, A_YEAR, overview.history.MOST_RECORDS),
}


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Return one event loop for all tests, because the connections with their plans stay open."""
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture(scope="module")
def crowd(loop: asyncio.AbstractEventLoop, postgres: str, template: str) -> Iterator[Crowd]:
    made = open_crowd(postgres, template)
    yield loop.run_until_complete(anext(made))
    loop.run_until_complete(made.aclose())


async def open_crowd(postgres: str, template: str) -> AsyncIterator[Crowd]:
    async with temporary_database(postgres, template) as url:
        settings = SETTINGS | {"plan_cache_mode": "force_generic_plan"}
        stale = await asyncpg.connect(libpq_url(url), server_settings=settings)
        # The fixture analyzes the tables itself, because the time of autovacuum is random.
        for table in ("tasks", "tools", "tool_leases", "work", "work_reports", "ended_tasks"):
            await stale.execute(f"alter table {table} set (autovacuum_enabled = off)")
        await stale.execute("analyze")
        empty = Crowd(url, stale, stale, [], [])
        for name in STATEMENTS:
            await prepare(stale, empty, name)
        for fill in (FILL_TASKS, FILL_ARCHIVE):
            await run_sql(url, fill.format(first=0, portion=ROWS, total=ROWS))
        await run_sql(url, KNOWN, EVERYTHING_ENDED)
        fresh = await asyncpg.connect(libpq_url(url), server_settings=settings)
        await fresh.execute("vacuum analyze")
        works = await fresh.fetch("select id from work order by task_id")
        records = await fresh.fetch(
            "select work_id from ended_tasks where task_id = any($1) order by task_id", ENDED
        )
        crowd = Crowd(url, stale, fresh, *([row[0] for row in rows] for rows in (works, records)))
        for name in STATEMENTS:
            await prepare(fresh, crowd, name)
        try:
            yield crowd
        finally:
            await stale.close()
            await fresh.close()


@pytest.mark.parametrize("planned", ["stale", "fresh"])
@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_reads_few_rows(
    loop: asyncio.AbstractEventLoop, crowd: Crowd, name: str, planned: str
) -> None:
    plan = loop.run_until_complete(
        explain(getattr(crowd, planned), crowd, name, "analyze, timing off, format json")
    )
    nodes = list(every_node(plan))
    # A scan of work is acceptable, because little work is under way at any time.
    scans = [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Actual Loops"]]
    assert {node["Relation Name"] for node in scans} <= {"work"}
    touched = sum(rows_of(node) for node in nodes if "Index Name" in node or "Relation Name" in node)
    assert touched <= FEW, json.dumps(plan, indent=1)
    assert max((rows_of(node) for node in nodes if "Sort" in node["Node Type"]), default=0) <= FEW


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_is_planned_once(loop: asyncio.AbstractEventLoop, crowd: Crowd, name: str) -> None:
    """PostgreSQL must use a generic plan even for the smallest sets."""
    loop.run_until_complete(plan_repeatedly(crowd, name))


async def plan_repeatedly(crowd: Crowd, name: str) -> None:
    connection = await asyncpg.connect(libpq_url(crowd.url), server_settings=SETTINGS)
    try:
        await prepare(connection, crowd, name)
        # PostgreSQL decides after five executions.
        for _ in range(6):
            await explain(connection, crowd, name, "format json", most=1)
        planned = "select generic_plans from pg_prepared_statements where name = $1"
        assert await connection.fetchval(planned, identifier(name)) > 0
    finally:
        await connection.close()


@pytest.mark.parametrize("name", LISTS)
def test_a_page_of_a_list_costs_a_page(loop: asyncio.AbstractEventLoop, crowd: Crowd, name: str) -> None:
    assert loop.run_until_complete(rows_met(crowd, *LISTS[name])) <= FEW


@pytest.mark.parametrize("name", EXAMINED)
def test_a_page_without_matches_examines_a_bounded_number_of_rows(
    loop: asyncio.AbstractEventLoop, crowd: Crowd, name: str
) -> None:
    # The statement reads the rows twice: for the page, and for the position where the page ends.
    assert loop.run_until_complete(rows_met(crowd, *EXAMINED[name])) <= 2 * MOST_EXAMINED + FEW


@pytest.mark.parametrize("name", READINGS)
def test_an_overview_reads_a_bounded_number_of_rows(
    loop: asyncio.AbstractEventLoop, crowd: Crowd, name: str
) -> None:
    statement, values, bound = READINGS[name]
    # The queue also reads the latest attempts, to find tasks that others overtook.
    few = FEW + 3 * overview.queue.LATELY
    assert loop.run_until_complete(rows_met(crowd, statement, values)) <= bound + few


def test_an_overview_reports_that_it_left_rows_out(loop: asyncio.AbstractEventLoop, crowd: Crowd) -> None:
    async def read() -> tuple[Queue, History]:
        async with steps.open_store(crowd.url) as store:
            history = await store.read(overview.history.read, A_YEAR["since"], A_YEAR["until"], 12)
            return await store.read(overview.queue.read), history

    queue, history = loop.run_until_complete(read())
    assert (queue.counted, queue.more) == (overview.queue.MOST_LOOKED_AT, True)
    assert sum(kind.tasks for kind in queue.kinds) == queue.counted
    assert not history.complete
    assert sum(bucket.succeeded for bucket in history.items) >= overview.history.MOST_RECORDS
    assert history.items[-1].succeeded > history.items[0].succeeded == 0


async def rows_met(crowd: Crowd, statement: TextClause, values: dict[str, Any]) -> float:
    """Return the number of rows of tables and indexes that a statement reads."""
    plan = await plan_of(crowd, statement, values)
    nodes = [node for node in every_node(plan) if "Index Name" in node or "Relation Name" in node]
    return sum(map(rows_of, nodes))


async def plan_of(crowd: Crowd, statement: TextClause, values: dict[str, Any]) -> Any:
    text, names = numbered(statement.text)
    connection = await asyncpg.connect(libpq_url(crowd.url), server_settings=SETTINGS)
    try:
        how = "explain (analyze, timing off, format json)"
        return json.loads(await connection.fetchval(f"{how} {text}", *(values[each] for each in names)))
    finally:
        await connection.close()


async def prepare(connection: asyncpg.Connection, crowd: Crowd, name: str) -> None:
    """Plan the statement now, and keep the plan."""
    text, _ = numbered(STATEMENTS[name][0].text)
    await connection.execute(f"prepare {identifier(name)} as {text}")
    await explain(connection, crowd, name, "format json")


async def explain(
    connection: asyncpg.Connection, crowd: Crowd, name: str, how: str, *, most: int = SET
) -> Any:
    """Return the plan of a statement for a set of at most `most` items, and roll back its changes."""
    statement, given = STATEMENTS[name]
    _, names = numbered(statement.text)
    values = given(crowd) if callable(given) else given
    now = await connection.fetchval("select cast(pg_current_snapshot() as text)")
    known = {NOW: now, LATEST: now.split(":")[1]}
    literals = ", ".join(literal(values[each], most, known) for each in names)
    call = identifier(name) + (f"({literals})" if names else "")
    transaction = connection.transaction()
    await transaction.start()
    try:
        plan = await connection.fetchval(f"explain ({how}) execute {call}")
    finally:
        await transaction.rollback()
    return json.loads(plan)


def numbered(text: str) -> tuple[str, list[str]]:
    """Return the statement with `$1` for its first parameter, and the names of the parameters in order."""
    text = re.sub(r"--.*", "", text)
    names = list(dict.fromkeys(re.findall(r"(?<![:\w]):(\w+)", text)))
    return re.sub(r"(?<![:\w]):(\w+)", lambda bind: f"${names.index(bind[1]) + 1}", text), names


def identifier(name: str) -> str:
    return "the_" + re.sub(r"\W+", "_", name)


def literal(value: Any, most: int, known: dict[str, str]) -> str:
    """Return a value as SQL, with at most `most` items of a list, and with placeholders replaced."""
    if value is None:
        return "null"
    if isinstance(value, list):
        inner = ",".join("null" if each is None else json.dumps(str(each)) for each in value[:most])
        value = f"{{{inner}}}"
    value = str(value)
    for place, now in known.items():
        value = value.replace(place, now)
    return "'" + value.replace("'", "''") + "'"


def every_node(plan: Any) -> Iterator[dict[str, Any]]:
    if isinstance(plan, list):
        for each in plan:
            yield from every_node(each)
    elif isinstance(plan, dict):
        if "Node Type" in plan:
            yield plan
        for value in plan.values():
            yield from every_node(value)


def rows_of(node: dict[str, Any]) -> float:
    """Return the number of rows that a node has read, including discarded rows."""
    removed = sum(value for key, value in node.items() if key.startswith("Rows Removed by"))
    rows: float = (node["Actual Rows"] + removed) * node["Actual Loops"]
    return rows
