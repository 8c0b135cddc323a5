"""Retention: old records are deleted with their month, and nothing else is."""

import asyncio

import asyncpg
import pytest

from broker.background.upkeep import Upkeep
from broker.errors import Unavailable
from broker.store import Store, due, submission
from broker.store.retention import Retention
from broker.wake.waiters import Waiters
from tests.store.test_migrations import PARTITIONS, fetch
from tests.support import steps
from tests.support.waiting import wait_until

DAYS = 30
OLD, OLDER = "work_archive_2020_01", "work_archive_2019_12"
MONTHS = "select create_archive_partition('2019-12-01'), create_archive_partition('2020-01-01')"

# Records of tasks a0, a1 and so on, with work that was assigned and ended at these times.
RECORDS = f"""
with made as (
    insert into work_archive (work_id, task_id, attempt, outcome, result, reports, ended_at, submitted_at,
                              {steps.TASK_COLUMNS})
    select cast(left(cast(uuid7_floor($3) as text), 24) || lpad(to_hex(n), 12, '0') as uuid),
           $1 || n, 1, 'succeeded', 'null', '[]', $4, $4, {steps.TASK_VALUES}
    from generate_series(0, $2 - 1) as n
    returning task_id, work_id
)
insert into ended_tasks select * from made
"""
OF_OLD, OF_OLDER = "2020-01-15T00:00:00Z", "2019-12-15T00:00:00Z"


async def record(
    sql: asyncpg.Connection, kind: str, count: int, assigned_at: str, ended_at: str | None = None
) -> None:
    query = RECORDS.replace("$3", f"cast('{assigned_at}' as timestamptz)")
    query = query.replace("$4", f"cast('{ended_at or assigned_at}' as timestamptz)")
    await sql.execute(query, kind, count)


async def partitions(sql: asyncpg.Connection) -> set[str]:
    return {row["relname"] for row in await sql.fetch(PARTITIONS)}


async def kept(sql: asyncpg.Connection) -> list[str]:
    records = "select task_id from work_archive order by 1"
    assert await sql.fetch(records) == await sql.fetch("select task_id from ended_tasks order by 1")
    return [row[0] for row in await sql.fetch(records)]


async def keep(store: Store, retention: Retention, batch: int = 10) -> list[int]:
    """Run retention until nothing is left to do, and return the number of each batch."""
    counts = []
    while count := await store.run(retention.keep, batch):
        counts.append(count)
    return counts


async def test_old_months_are_dropped_and_their_task_ids_are_free(
    store: Store, sql: asyncpg.Connection
) -> None:
    await sql.execute(MONTHS)
    await record(sql, "old", 25, OF_OLD)
    await record(sql, "older", 3, OF_OLDER)
    made = await steps.add_running_work(store, "new")
    await steps.complete(store, made.id)
    assert await keep(store, Retention(DAYS)) == [3, 1, 10, 10, 5, 1]
    assert not {OLD, OLDER} & await partitions(sql)
    assert await kept(sql) == ["new"]
    # The id of a deleted task is free.
    [submitted] = await store.many(submission.submit, [steps.new_task("old7")])
    assert submitted.created


async def test_a_month_stays_while_one_of_its_records_is_new(store: Store, sql: asyncpg.Connection) -> None:
    await sql.execute(MONTHS)
    await record(sql, "a", 2, OF_OLD)
    yesterday = await sql.fetchval("select cast(now() - interval '1 day' as text)")
    await record(sql, "long-running", 1, "2020-01-20T00:00:00Z", yesterday)
    assert await keep(store, Retention(DAYS)) == [1]  # the other month, which is empty
    assert OLD in await partitions(sql)
    assert len(await kept(sql)) == 3


async def test_dropping_a_month_leaves_no_reference_to_its_records(
    store: Store, sql: asyncpg.Connection
) -> None:
    await sql.execute("select create_archive_partition('2020-01-01')")
    await record(sql, "old", 25, OF_OLD)
    retention = Retention(DAYS)
    async with steps.OpenTransaction(store) as given_up:
        assert await given_up.run(retention.keep, 10) == 10
        await given_up.roll_back()
        await given_up.begin()
    await keep(store, retention)
    assert OLD not in await partitions(sql)
    assert await sql.fetchval("select count(*) from ended_tasks") == 0


async def test_retention_continues_after_an_interruption(store: Store, sql: asyncpg.Connection) -> None:
    await sql.execute("select create_archive_partition('2020-01-01')")
    await record(sql, "old", 25, OF_OLD)
    assert await store.run(Retention(DAYS).keep, 10) == 10
    async with steps.OpenTransaction(store) as timed_out:
        assert await timed_out.run(Retention(DAYS).keep, 10) == 10
        await timed_out.roll_back()
        await timed_out.begin()
    assert await sql.fetchval("select count(*) from ended_tasks") == 15
    # Another process, or this one after a restart, begins again with a new `Retention`.
    assert await keep(store, Retention(DAYS)) == [10, 5, 1]
    assert OLD not in await partitions(sql)
    assert await sql.fetchval("select count(*) from ended_tasks") == 0


async def test_a_record_that_arrives_during_retention_is_not_skipped(
    store: Store, sql: asyncpg.Connection
) -> None:
    await sql.execute("select create_archive_partition('2020-01-01')")
    await record(sql, "old", 25, OF_OLD)
    for _ in range(3):
        await store.run(Retention(DAYS).keep, 10)
    # Assigned before all others and ended after them, but old nevertheless.
    await record(sql, "late", 1, "2020-01-02T00:00:00Z", "2020-03-01T00:00:00Z")
    assert await keep(store, Retention(DAYS)) == [10, 10, 6, 1]
    assert await sql.fetchval("select count(*) from ended_tasks") == 0


async def test_a_batch_of_old_records_is_bounded_by_its_bytes(store: Store, sql: asyncpg.Connection) -> None:
    await record(sql, "large", 5, OF_OLD)
    # 5 MiB each, which cannot be compressed.
    await sql.execute("""
        update work_archive set result = (
            select to_json(string_agg(encode(sha256(cast(n || task_id as bytea)), 'hex'), ''))
            from generate_series(1, 80000) n)
    """)
    assert await keep(store, Retention(DAYS)) == [2, 2, 1]


async def test_old_records_without_a_month_are_deleted_in_batches(
    store: Store, sql: asyncpg.Connection
) -> None:
    await record(sql, "a", 15, OF_OLD)
    await record(sql, "young", 1, OF_OLDER, await sql.fetchval("select cast(now() as text)"))
    assert await keep(store, Retention(DAYS)) == [10, 5]
    assert await kept(sql) == ["young0"]


async def test_without_retention_days_records_are_kept_forever(store: Store, sql: asyncpg.Connection) -> None:
    await sql.execute(MONTHS)
    await record(sql, "a", 5, OF_OLD)
    assert await keep(store, Retention(None)) == []
    assert len(await kept(sql)) == 5


async def test_retention_creates_the_partitions_that_are_needed_soon(
    store: Store, sql: asyncpg.Connection, database: str
) -> None:
    made = await fetch(database, PARTITIONS)
    await sql.execute(f"drop table {made[1][0]}, {made[2][0]}")
    assert await keep(store, Retention(None)) == []
    assert await fetch(database, PARTITIONS) == made


async def test_retention_gives_way_to_readers_of_the_archive_and_blocks_no_completion(
    store: Store, sql: asyncpg.Connection
) -> None:
    await sql.execute(MONTHS)
    made = await steps.add_running_work(store, "a")
    async with sql.transaction():
        await sql.execute("select from work_archive")
        with pytest.raises(Unavailable) as refused:
            await keep(store, Retention(DAYS))
        assert "lock timeout" in str(refused.value.__cause__)
        assert (await steps.complete(store, made.id)).status == "ended"
    assert await keep(store, Retention(DAYS)) == [1, 1]


async def test_a_month_stays_if_it_gets_a_record_at_the_last_moment(
    store: Store, sql: asyncpg.Connection
) -> None:
    await sql.execute(MONTHS)
    now = await sql.fetchval("select cast(now() as text)")
    old_enough = Retention(DAYS)
    assert await store.run(old_enough.keep, 10) == 1
    async with sql.transaction():
        await record(sql, "a", 1, OF_OLD, now)
        dropping = asyncio.create_task(store.run(old_enough.keep, 10))
        with pytest.raises(Unavailable) as refused:
            await dropping
        assert "lock timeout" in str(refused.value.__cause__)
    assert await keep(store, old_enough) == []
    assert OLD in await partitions(sql)


async def test_upkeep_runs_retention_and_processes_take_turns(store: Store, sql: asyncpg.Connection) -> None:
    await sql.execute(MONTHS)
    await record(sql, "a", 5, OF_OLD)
    async with steps.OpenTransaction(store) as other:
        assert await other.run(due.in_turn, 4, Retention(DAYS).keep, 1) == 1
        assert await store.run(due.in_turn, 4, Retention(DAYS).keep, 1) == 0
    upkeep = Upkeep(store, Waiters(), retention_days=DAYS)
    upkeep.start()

    async def dropped() -> bool:
        return not {OLD, OLDER} & await partitions(sql)

    await wait_until(dropped)
    await upkeep.stop()
    assert await kept(sql) == []
