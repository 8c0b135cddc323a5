"""Upkeep: due rows are handled on time, without any request."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import structlog
from msgspec import Raw

from broker.background.upkeep import Upkeep
from broker.errors import ConnectionLost, DatabaseTrouble, Locked, Overloaded, TooSlow
from broker.settings import Settings
from broker.store import Store, completion, due, leases, migration, work
from broker.store.address import Address
from broker.wake.listener import UPKEEP, Listener
from broker.wake.waiters import Waiters
from tests.conftest import running_broker
from tests.support import steps
from tests.support.waiting import wait_until

AVAILABLE = "select id from tasks where state = 'available' order by id"


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.fixture
async def start(store: Store, database: str) -> AsyncIterator[Callable[[], None]]:
    """Return a function that starts an upkeep, as in another process. All of them share a listener."""
    waiters = Waiters()
    listener = Listener(waiters, Address(database).connect)
    listener.start()
    async with asyncio.timeout(steps.PATIENCE_SECONDS):
        await listener.connected.wait()
    running: list[Upkeep] = []

    def begin() -> None:
        running.append(Upkeep(store, waiters))
        running[-1].start()

    yield begin
    for upkeep in running:
        await upkeep.stop()
    await listener.stop()
    assert len(waiters) == 0


async def wait_until_available(sql: asyncpg.Connection, *ids: str) -> None:
    """Wait until exactly these tasks are available."""

    async def are_available() -> bool:
        return [row["id"] for row in await sql.fetch(AVAILABLE)] == list(ids)

    await wait_until(are_available)


async def test_a_task_becomes_available_when_it_is_due(
    store: Store, sql: asyncpg.Connection, start: Callable[[], None]
) -> None:
    start()
    [task] = await steps.submit(store, "a", not_before=in_seconds(0.3))
    assert task.state == "scheduled"
    await wait_until_available(sql, "a")
    assert await sql.fetchval("select not_before <= now() and due_at is null from tasks")


async def test_a_task_that_is_due_earlier_wakes_upkeep(
    store: Store, sql: asyncpg.Connection, start: Callable[[], None]
) -> None:
    await steps.submit(store, "far", not_before=in_seconds(3600))
    start()
    await steps.submit(store, "near", not_before=in_seconds(0.2))
    await wait_until_available(sql, "near")
    await steps.submit(store, "nearer", not_before=in_seconds(0.1))
    await wait_until_available(sql, "near", "nearer")


async def test_a_backoff_ends_without_a_request(
    store: Store, sql: asyncpg.Connection, start: Callable[[], None]
) -> None:
    start()
    made = await steps.add_running_work(store, "a", retry_backoff_seconds=0.3)
    await steps.complete(store, made.id, "failed")
    await wait_until_available(sql, "a")
    assert (await steps.get_task(store, "a")).attempt == 1


async def test_tasks_that_came_due_during_downtime_become_available_in_batches(
    store: Store, sql: asyncpg.Connection, start: Callable[[], None]
) -> None:
    ids = [f"{number:04}" for number in range(2500)]
    await steps.submit(store, *ids, not_before=in_seconds(3600))
    await sql.execute("update tasks set due_at = now()")
    start()
    await wait_until_available(sql, *ids)


async def test_a_batch_skips_rows_that_another_process_has_locked(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a", "b", "c", not_before=in_seconds(3600))
    await sql.execute("update tasks set due_at = now()")
    async with steps.OpenTransaction(store) as other:
        assert await other.run(due.make_available, 1) == 1
        assert await store.run(due.make_available, 10) == 2
    assert await store.run(due.make_available, 10) == 0
    await wait_until_available(sql, "a", "b", "c")


async def test_a_batch_is_bounded_and_begins_with_the_longest_due(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a", "b", "c", not_before=in_seconds(3600))
    await sql.execute(
        "update tasks set due_at = now() - make_interval(secs => case id when 'b' then 2 else 1 end)"
    )
    assert await store.run(due.make_available, 1) == 1
    await wait_until_available(sql, "b")


async def test_a_task_stays_scheduled_until_it_is_due(store: Store) -> None:
    await steps.submit(store, "a", not_before=in_seconds(3600))
    assert await store.run(due.make_available, 10) == 0
    seconds = await store.run(due.seconds_to_next, due.TASKS)
    assert seconds is not None
    assert 3590 < seconds <= 3600


async def test_there_is_no_next_task_without_scheduled_tasks(store: Store) -> None:
    await steps.submit(store, "a")
    assert await store.run(due.seconds_to_next, due.TASKS) is None


LAPSE = "update tool_leases set expires_at = now() where tool_id = any($1)"
PASS = "update work set deadline_at = now() where task_id = any($1)"


async def offline(sql: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await sql.fetch("select id from tools where offline order by id")]


async def test_tools_with_expired_leases_go_offline_in_batches_of_their_work(
    store: Store, sql: asyncpg.Connection
) -> None:
    for tool in "abc":
        await steps.register(store, tool, capacity=5)
        names = [f"{tool}{number}" for number in range(5)]
        await steps.submit(store, *names)
        await steps.assign_all(store, *((name, tool) for name in names))
    await sql.execute(LAPSE, ["a", "b", "c"])
    assert await store.run(due.take_offline, 7) == 2
    await steps.check_invariants(sql)
    assert await store.run(due.take_offline, 7) == 1
    assert await store.run(due.take_offline, 7) == 0
    assert await offline(sql) == ["a", "b", "c"]
    await steps.check_invariants(sql)


@pytest.mark.parametrize("table", ["work", "tasks", "tools", "tool_leases"])
async def test_a_locked_tool_is_left_to_the_next_batch_with_all_its_work(
    store: Store, sql: asyncpg.Connection, table: str
) -> None:
    await steps.add_running_work(store, "one", "held")
    await steps.register(store, "held", capacity=2, resume=True)
    await steps.submit(store, "two")
    await steps.assign_all(store, ("two", "held"))
    await steps.add_running_work(store, "three", "free")
    await sql.execute(LAPSE, ["held", "free"])
    rows = {"work": "task_id = 'two'", "tasks": "id = 'two'", "tools": "id = 'held'"}
    async with sql.transaction():
        await sql.execute(f"select from {table} where {rows.get(table, 'tool_id = $$held$$')} for update")
        assert await store.run(due.take_offline, 10) == 1
        assert await offline(sql) == ["free"]
    await steps.check_invariants(sql)
    assert await store.run(due.take_offline, 10) == 1
    assert await sql.fetchval("select count(*) from work") == 0
    await steps.check_invariants(sql)


async def test_a_tool_that_sends_a_heartbeat_just_in_time_stays_online(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.add_running_work(store)
    await sql.execute(LAPSE, ["tool"])
    async with steps.OpenTransaction(store) as late:
        assert await late.run(leases.heartbeat, [leases.Beat("tool")]) != [None]
        assert await store.run(due.take_offline, 10) == 0
    assert await store.run(due.take_offline, 10) == 0
    assert await offline(sql) == []


async def test_a_waiting_heartbeat_brings_its_offline_tool_back_online(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.add_running_work(store)
    await sql.execute(LAPSE, ["tool"])
    async with steps.OpenTransaction(store) as upkeep:
        assert await upkeep.run(due.take_offline, 10) == 1
        heartbeat = asyncio.create_task(store.one(leases.heartbeat, leases.Beat("tool")))
        await steps.wait_until_blocked(sql)
    assert await heartbeat is not None
    assert (await steps.get_tool(store, "tool")).state == "idle"
    await steps.check_invariants(sql)


async def test_overdue_work_ends_in_batches_that_skip_locked_work(
    store: Store, sql: asyncpg.Connection
) -> None:
    for name in ("a", "b", "c"):
        await steps.add_running_work(store, name, name, retry_backoff_seconds=0)
    await steps.add_assigned_work(store, "d", "d")
    await sql.execute(PASS, ["a", "b", "d"])
    async with sql.transaction():
        await sql.execute("select from work where task_id = 'a' for update")
        assert await store.run(due.end_overdue, 1) == 1
        assert await store.run(due.end_overdue, 10) == 1
    assert await store.run(due.end_overdue, 10) == 1
    outcomes = await sql.fetch("select task_id, outcome from work_archive order by task_id")
    assert [tuple(row) for row in outcomes] == [("a", "timed_out"), ("b", "timed_out"), ("d", "lost")]
    await steps.check_invariants(sql)


async def test_only_one_of_a_concurrent_completion_and_timeout_counts(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store)
    await sql.execute(PASS, ["task"])
    async with steps.OpenTransaction(store) as tool:
        assert (await tool.run(completion.complete, [steps.new_ending(made.id)]))[0].status == "ended"
        assert await store.run(due.end_overdue, 10) == 0
    assert await store.run(due.end_overdue, 10) == 0
    assert (await steps.get_task(store, "task")).state == "succeeded"
    await steps.check_invariants(sql)


@pytest.mark.parametrize("chore", due.CHORES, ids=lambda chore: chore.name)
async def test_processes_take_turns_at_a_chore(
    store: Store, sql: asyncpg.Connection, chore: due.Chore
) -> None:
    await steps.submit(store, "a", not_before=in_seconds(3600))
    await sql.execute("update tasks set due_at = now()")
    await steps.add_assigned_work(store, "b", "b")
    await steps.register(store, "c")
    await sql.execute(PASS, ["b"])
    await sql.execute(LAPSE, ["c"])
    async with steps.OpenTransaction(store) as other:
        assert await other.run(due.in_turn, chore.number, chore.do, 10) == 1
        assert await store.run(due.in_turn, chore.number, chore.do, 10) == 0


async def test_the_next_round_is_not_later_than_the_first_expiry_of_a_lease(store: Store) -> None:
    assert await store.run(due.seconds_to_next, due.LEASES) is None
    await steps.register(store, "patient", lease_seconds=3600)
    await steps.register(store, "hasty", lease_seconds=5)
    seconds = await store.run(due.seconds_to_next, due.LEASES)
    assert seconds is not None
    assert 4 < seconds <= 5


async def test_the_next_round_is_not_later_than_the_first_deadline(
    store: Store, sql: asyncpg.Connection
) -> None:
    assert await store.run(due.seconds_to_next, due.WORK) is None
    await steps.add_assigned_work(store, "a", "a")
    made = await steps.add_running_work(store, "b", "b", timeout_seconds=20)
    seconds = await store.run(due.seconds_to_next, due.WORK)
    assert seconds is not None
    assert 18 < seconds <= 20
    await steps.complete(store, made.id)
    seconds = await store.run(due.seconds_to_next, due.WORK)
    assert seconds is not None
    assert 58 < seconds <= 60


class Counted(Store):
    """A store that counts its uses."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.count = 0
        self.used_up = asyncio.Event()

    async def run(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        self.count += 1
        if self.count > 50:
            self.used_up.set()
        return await super().run(*args, **kwargs)  # type: ignore[arg-type]


@pytest.fixture
async def counted(database: str) -> AsyncIterator[Counted]:
    counted = Counted(database)
    yield counted
    await counted.close()


async def test_a_locked_due_task_does_not_cause_a_busy_loop(
    store: Store, sql: asyncpg.Connection, counted: Counted
) -> None:
    await steps.submit(store, "a", not_before=in_seconds(3600))
    await sql.execute("update tasks set due_at = now()")
    upkeep = Upkeep(counted, Waiters())
    async with sql.transaction():
        await sql.execute("select from tasks for update")
        upkeep.start()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(counted.used_up.wait(), 0.5)
    await upkeep.stop()


async def test_upkeep_reads_the_next_due_time_once_while_nothing_is_due(
    store: Store, counted: Counted
) -> None:
    await steps.submit(store, "a", not_before=in_seconds(3600))
    upkeep = Upkeep(counted, Waiters())
    upkeep.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(counted.used_up.wait(), 0.3)
    assert counted.count <= 4
    await upkeep.stop()


async def test_upkeep_continues_after_lost_connections(store: Store, sql: asyncpg.Connection) -> None:
    waiters = Waiters()
    upkeep = Upkeep(store, waiters)
    await steps.submit(store, "a", not_before=in_seconds(3600))
    upkeep.start()
    await sql.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'broker'"
    )
    await sql.execute("update tasks set due_at = now()")
    waiters.wake_topic(UPKEEP)
    await wait_until_available(sql, "a")
    await upkeep.stop()


async def test_upkeep_survives_a_database_without_a_schema(empty_database: str) -> None:
    async with steps.open_store(empty_database) as store, steps.open_connection(empty_database) as sql:
        waiters = Waiters()
        upkeep = Upkeep(store, waiters)
        upkeep.start()

        async def tried() -> bool:
            return store.engine.pool.checkedin() > 0

        await wait_until(tried)
        await migration.migrate(empty_database)
        await steps.submit(store, "a", not_before=in_seconds(3600))
        await sql.execute("update tasks set due_at = now()")
        waiters.wake_topic(UPKEEP)
        try:
            await wait_until_available(sql, "a")
        finally:
            await upkeep.stop()


@pytest.mark.parametrize(("here", "more"), [(0.5, True), (59, True), (61, False)])
async def test_a_lease_expires_only_if_the_service_was_reachable_for_its_length(
    store: Store, sql: asyncpg.Connection, here: float, more: bool
) -> None:
    await steps.add_assigned_work(store)
    await sql.execute("update tool_leases set expires_at = now() - interval '0.2 s'")
    await sql.execute("update work set deadline_at = now() - interval '0.2 s'")
    await store.run(due.extend_leases, here)
    await store.run(due.extend_deadlines, here)
    for what in ("expires_at from tool_leases", "deadline_at from work"):
        column, _, table = what.partition(" from ")
        left = await sql.fetchval(f"select cast(extract(epoch from {column} - now()) as float) from {table}")
        assert left == pytest.approx(60 - here if more else -0.2, abs=1)
    await steps.check_invariants(sql)


async def test_the_extension_of_a_long_lease_is_limited(store: Store, sql: asyncpg.Connection) -> None:
    await steps.register(store, "t", lease_seconds=86_400)
    await sql.execute("update tool_leases set expires_at = now() - interval '0.2 s'")
    await store.run(due.extend_leases, 100)
    assert await sql.fetchval("select expires_at < now() + interval '201 s' from tool_leases")


async def test_the_time_limit_of_running_work_is_not_extended(store: Store, sql: asyncpg.Connection) -> None:
    await steps.add_running_work(store, timeout_seconds=5)
    await sql.execute("update work set deadline_at = now()")
    await store.run(due.extend_deadlines, 0)
    assert await store.run(due.end_overdue, 10) == 1


async def test_leases_and_deadlines_that_expired_during_downtime_are_extended(
    database: str, store: Store, sql: asyncpg.Connection
) -> None:
    settings = Settings(database_url=database)
    async with running_broker(settings):
        running = await steps.add_running_work(store, "running")
        await steps.submit(store, "waits")
        await steps.register(store, "other")
        [waits] = await steps.assign_all(store, ("waits", "other"))
    moment = "now() - interval '0.1 s'"
    await sql.execute(f"update tool_leases set expires_at = {moment}")
    await sql.execute(f"update work set deadline_at = {moment} where state = 'assigned'")
    async with running_broker(settings, without_grace=False) as broker:
        await wait_until(lambda: _has_time(sql))
        assert (await broker.client.post("/v1/tools/tool/heartbeat")).status_code == 200
        assert (await broker.client.get(f"/v1/work/{running.id}")).json()["state"] == "running"
        assert (await broker.client.post(f"/v1/work/{waits.id}/start")).status_code == 200


async def _has_time(sql: asyncpg.Connection) -> bool:
    leases = "select bool_and(expires_at > now()) from tool_leases"
    deadlines = "select bool_and(deadline_at > now()) from work where state = 'assigned'"
    return bool(await sql.fetchval(f"select ({leases}) and ({deadlines})"))


STALL = """
create function stall() returns trigger language plpgsql as $$
    begin
        perform pg_sleep(60) from new_rows where task_id = any('{slow}');
        return null;
    end
$$;
create trigger stall after insert on work_archive referencing new table as new_rows
for each statement execute function stall();
"""


async def work_of_one_tool(store: Store, *names: str, **fields: Any) -> None:
    await steps.register(store, "tool", capacity=len(names))
    await steps.submit(store, *names, timeout_seconds=3600, **fields)
    for made in await steps.assign_all(store, *((name, "tool") for name in names)):
        await store.one(work.start, work.Start(made.id))


async def ended(sql: asyncpg.Connection, outcome: str) -> list[str]:
    rows = await sql.fetch("select task_id from work_archive where outcome = $1 order by task_id", outcome)
    return [row["task_id"] for row in rows]


@pytest.mark.parametrize("outcome", ["lost", "timed_out"])
async def test_work_that_cannot_end_does_not_block_other_work_or_tools(
    database: str, sql: asyncpg.Connection, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is too slow. The chore skips it and retries it later."""
    monkeypatch.setattr("broker.background.upkeep._SKIP_SECONDS", 0.5)
    monkeypatch.setattr("broker.background.upkeep._SHORTEST_SLEEP_SECONDS", 0.02)
    names = ["slow", *(f"task-{number}" for number in range(20))]
    await sql.execute(STALL)
    async with steps.open_store(database, timeout_seconds=0.5) as store:
        await work_of_one_tool(store, *names)
        upkeep = Upkeep(store, Waiters())
        upkeep.start()
        upkeep.away_at = -math.inf
        if outcome == "lost":
            await sql.execute(LAPSE, ["tool"])
        else:
            await sql.execute(PASS, names)
        upkeep._waiters.wake_topic(UPKEEP)
        with structlog.testing.capture_logs() as logs:

            async def all_others() -> bool:
                return len(await ended(sql, outcome)) == len(names) - 1

            await wait_until(all_others)
            assert "slow" not in await ended(sql, outcome)
            assert await offline(sql) == (["tool"] if outcome == "lost" else [])
            # The retry fails too, but the log names the row only once.
            skipped = upkeep._skipped["tools" if outcome == "lost" else "work"]

            async def failed_again() -> bool:
                return any(seconds > 0.5 for _, seconds, _ in skipped._rows.values())

            await wait_until(failed_again)
            await sql.execute("drop trigger stall on work_archive")

            async def all_are_back() -> bool:
                return len(await ended(sql, outcome)) == len(names)

            await wait_until(all_are_back)
        await upkeep.stop()
    lines = [line for line in logs if line["event"] == "upkeep skipped a row"]
    assert len(lines) == 1
    assert lines[0]["id"] == str(
        await sql.fetchval("select work_id from work_archive where task_id = 'slow'")
    )
    await steps.check_invariants(sql)


async def test_a_tool_with_large_work_goes_offline_in_bounded_batches(
    store: Store, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "_MOST_RECORD_BYTES", 3000)
    names = [f"task-{number}" for number in range(6)]
    await work_of_one_tool(store, *names)
    await sql.execute("update work set report_bytes = 2000")
    await sql.execute(LAPSE, ["tool"])
    ids = due.BatchIds()
    assert await store.run(due.take_offline, 10, ids) == 1
    assert len(ids.changed) == 2, "the last one of a batch may be larger"
    assert await offline(sql) == ["tool"]
    assert await store.run(due.seconds_to_next, due.LEASES) < 0
    # The next batches take no tool offline, but end more of its work.
    for _ in range(2):
        assert await store.run(due.take_offline, 10, ids) == 0
        assert len(ids.changed) == 2
    assert await ended(sql, "lost") == names
    assert await store.run(due.seconds_to_next, due.LEASES) is None
    await steps.check_invariants(sql)


async def test_a_tool_that_returns_between_two_batches_keeps_the_rest_of_its_work(
    store: Store, sql: asyncpg.Connection
) -> None:
    await work_of_one_tool(store, "a", "b", "c")
    await sql.execute(LAPSE, ["tool"])
    assert await store.run(due.take_offline, 1) == 1
    assert await store.one(leases.heartbeat, leases.Beat("tool")) is not None
    ids = due.BatchIds()
    assert await store.run(due.take_offline, 10, ids) == 0
    assert ids.changed == []
    assert (await steps.get_tool(store, "tool")).load == 2
    await steps.check_invariants(sql)


@pytest.mark.parametrize("step", ["complete", "start"])
async def test_an_offline_tool_that_acts_on_the_rest_of_its_work_comes_back_at_its_next_renewal(
    store: Store, sql: asyncpg.Connection, step: str
) -> None:
    await work_of_one_tool(store, "a", "b", "c")
    await sql.execute(LAPSE, ["tool"])
    assert await store.run(due.take_offline, 1) == 1
    rest = await sql.fetchval("select id from work limit 1")
    if step == "complete":
        await steps.complete(store, rest)
    else:
        await store.one(work.start, work.Start(rest))
    assert await offline(sql) == ["tool"]
    assert await store.one(leases.keep, leases.Beat("tool")) is not None
    assert await offline(sql) == []
    await steps.check_invariants(sql)


async def test_overdue_work_ends_in_batches_bounded_by_bytes(
    store: Store, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "_MOST_RECORD_BYTES", 3000)
    await work_of_one_tool(store, "a", "b", "c", "d")
    await sql.execute("update work set report_bytes = 2000")
    await sql.execute(PASS, ["a", "b", "c", "d"])
    assert [await store.run(due.end_overdue, 10) for _ in range(3)] == [2, 2, 0]


async def test_a_batch_counts_the_uncompressed_bytes_of_payloads(
    store: Store, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "_MOST_RECORD_BYTES", 30_000)
    zeros = Raw(f"[{','.join(['0'] * 10_000)}]".encode())
    await work_of_one_tool(store, "a", "b", "c", "d", payload=zeros)
    assert await sql.fetchval("select max(pg_column_size(payload)) from tasks") < 3_000
    await sql.execute(PASS, ["a", "b", "c", "d"])
    assert [await store.run(due.end_overdue, 10) for _ in range(3)] == [2, 2, 0]


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (ConnectionLost(), True),
        (TooSlow("too slow"), False),
        (Locked("locked"), False),
        (Overloaded(), False),
        (DatabaseTrouble("the disk of the database is full"), False),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_only_a_lost_connection_counts_as_an_outage(store: Store, error: Exception, away: bool) -> None:
    upkeep = Upkeep(store, Waiters())

    async def fail() -> float:
        raise error

    assert await upkeep._try("tools", fail, 1.0) == 1.0
    assert (upkeep.away_at > -math.inf) == away


async def test_a_lease_that_expired_while_its_chore_failed_is_not_extended(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.add_assigned_work(store)
    await sql.execute("update tool_leases set expires_at = now() - interval '60 s'")
    await sql.execute("update work set deadline_at = now() - interval '60 s'")
    before = datetime.now(UTC) - timedelta(seconds=30)
    for extend in (due.extend_leases, due.extend_deadlines):
        assert before < await store.run(extend, 1e6, before)
    leases_left = "select count(*) from tool_leases where expires_at > now()"
    starts_left = "select count(*) from work where deadline_at > now()"
    assert (await sql.fetchval(leases_left), await sql.fetchval(starts_left)) == (0, 0)
    # The chore has not run since: the clock jumped, or the process was stopped.
    for extend in (due.extend_leases, due.extend_deadlines):
        await store.run(extend, 1e6, before - timedelta(hours=1))
    assert (await sql.fetchval(leases_left), await sql.fetchval(starts_left)) == (1, 1)


async def test_a_failing_chore_does_not_extend_the_lease_of_a_dead_tool(
    database: str, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the batches of a chore fail for longer than `_LATE_SECONDS`."""
    monkeypatch.setattr(due, "_LATE_SECONDS", 0.2)
    monkeypatch.setattr("broker.background.upkeep._RETRY_SECONDS", 0.05)
    async with steps.open_store(database) as store:
        await steps.add_running_work(store)
        await sql.execute("""
            create function fail() returns trigger language plpgsql as $$
                begin raise exception 'full' using errcode = '53100'; end $$;
            create trigger fail before update of offline on tools
            for each statement when (true) execute function fail();
        """)
        upkeep = Upkeep(store, Waiters())
        upkeep.start()
        upkeep.away_at = -math.inf
        await sql.execute(LAPSE, ["tool"])
        upkeep._waiters.wake_topic(UPKEEP)
        expires = await sql.fetchval("select expires_at from tool_leases")

        async def late() -> bool:
            return bool(await sql.fetchval("select now() > expires_at + interval '1 s' from tool_leases"))

        await wait_until(late)
        assert await sql.fetchval("select expires_at from tool_leases") == expires
        await sql.execute("drop trigger fail on tools")
        await wait_until(lambda: _is_offline(sql))
        await upkeep.stop()


async def _is_offline(sql: asyncpg.Connection) -> bool:
    return await offline(sql) == ["tool"]
