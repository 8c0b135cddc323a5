"""Deletion of tasks: immediate unless work is running, and correct with any concurrent transaction."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from msgspec import Raw
from sqlalchemy import text

from broker.schemas.candidates import Pair
from broker.schemas.tools import ToolChange
from broker.store import (
    Store,
    assignment,
    completion,
    deletion,
    ended_tasks,
    leases,
    locks,
    tools,
    work,
)
from tests.support import steps
from tests.support.shared import SHARED_STORE
from tests.support.waiting import wait_until

pytestmark, database, sql, store = SHARED_STORE


async def test_deleting_a_waiting_task_leaves_a_cancelled_record(
    store: Store, sql: asyncpg.Connection
) -> None:
    [task] = await steps.submit(store, "a", needs=Raw(b"[1.10]"), priority=3)
    assert await steps.delete(store, "a") == "deleted"
    [record] = await steps.get_records(store, task_id="a")
    assert record.task == task
    assert (record.outcome, record.tool, record.tool_id, record.assigned_at) == (
        "cancelled",
        None,
        None,
        None,
    )
    assert (steps.reports_of(record), record.started_at, record.error) == ([], None, None)
    assert record.work_id.version == 7
    assert (await steps.get_task(store, "a")).state == "cancelled"
    await steps.check_invariants(sql)


async def test_a_scheduled_task_is_deleted_at_once(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "a", not_before=datetime.now(UTC) + timedelta(hours=1))
    assert await steps.delete(store, "a") == "deleted"
    [record] = await steps.get_records(store, task_id="a")
    assert (record.task.state, record.outcome) == ("scheduled", "cancelled")
    await steps.check_invariants(sql)


async def test_a_task_in_backoff_is_deleted_at_once(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store, "a")
    await steps.complete(store, made.id, "failed", error="broken")
    assert await steps.delete(store, "a") == "deleted"
    newest, first = await steps.get_records(store, task_id="a")
    assert (newest.outcome, newest.task.error, newest.tool) == ("cancelled", "broken", None)
    assert (first.outcome, first.work_id) == ("failed", made.id)
    await steps.check_invariants(sql)


async def test_a_failed_task_is_deleted_at_once(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store, "a", max_attempts=1)
    await steps.complete(store, made.id, "failed", error="broken")
    assert await steps.delete(store, "a") == "deleted"
    newest, _ = await steps.get_records(store, task_id="a")
    assert (newest.outcome, newest.task.state, newest.task.error) == ("cancelled", "failed", "broken")
    await steps.check_invariants(sql)


async def test_deletion_cancels_unstarted_work_and_frees_capacity(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_assigned_work(store, "a", "t")
    assert await steps.delete(store, "a") == "deleted"
    [record] = await steps.get_records(store, task_id="a")
    assert (record.work_id, record.outcome, record.tool_id) == (made.id, "cancelled", "t")
    assert (await steps.get_tool(store, "t")).load == 0
    await steps.check_invariants(sql)


async def test_deletion_requests_the_cancellation_of_running_work_once(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store, "a", "t")
    assert await steps.delete(store, "a") == "asked"
    first = await store.run(work.with_reports, made.id)
    assert await steps.delete(store, "a") == "asked"
    assert await store.run(work.with_reports, made.id) == first
    assert first is not None
    assert (first.work.cancel_requested, first.work.version) == (True, made.version + 1)
    [heartbeat] = await steps.run_many(store, leases.heartbeat, [leases.Beat("t")])
    assert heartbeat is not None
    assert heartbeat.cancel == [made.id]
    await steps.complete(store, made.id, "failed")
    assert (await steps.get_task(store, "a")).state == "cancelled"
    await steps.check_invariants(sql)


@pytest.mark.parametrize("force", [(False, True), (True, False)])
async def test_a_forced_deletion_wins_over_an_unforced_one_in_the_same_batch(
    store: Store, sql: asyncpg.Connection, force: tuple[bool, bool]
) -> None:
    await steps.add_running_work(store, "a")
    deletions = [deletion.TaskDeletion("a", each) for each in force]
    assert await steps.run_many(store, deletion.delete, deletions) == ["deleted", "deleted"]
    assert (await steps.get_task(store, "a")).state == "cancelled"
    await steps.check_invariants(sql)


@pytest.mark.thorough
async def test_a_failed_task_with_the_largest_values_can_be_deleted(store: Store) -> None:
    """As jsonb, PostgreSQL would need six times the space, and could hold only one of the values."""
    largest = Raw(b"[" + b"1," * (2**24 - 100) + b"1]")
    made = await steps.add_running_work(store, "a", "t", payload=largest)
    await steps.complete(store, made.id, "failed", result=largest, retry=False)
    assert await steps.delete(store, "a") == "deleted"
    [newest] = await steps.get_records(store, task_id="a")
    assert (newest.outcome, newest.task.state) == ("cancelled", "failed")
    assert newest.task.payload == newest.task.result == largest


async def test_a_forced_deletion_cancels_running_work_at_once(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store, "a", "t")
    await steps.report(store, made.id, message="half way")
    assert await steps.delete(store, "a", force=True) == "deleted"
    [record] = await steps.get_records(store, task_id="a")
    assert (record.work_id, record.outcome, len(steps.reports_of(record))) == (made.id, "cancelled", 1)
    await steps.check_invariants(sql)


@pytest.mark.parametrize("started", [False, True])
async def test_a_forced_deletion_overrides_an_earlier_requeue(
    store: Store, sql: asyncpg.Connection, started: bool
) -> None:
    make = steps.add_running_work if started else steps.add_assigned_work
    await make(store, "a")
    # The effect of `POST /v1/work/{id}/cancel {"requeue": true}`.
    await sql.execute("update work set cancel_requested = true, cancel_requeue = true")
    assert await steps.delete(store, "a", force=True) == "deleted"
    assert (await steps.get_task(store, "a")).state == "cancelled"
    await steps.check_invariants(sql)


async def test_a_requested_deletion_overrides_an_earlier_requeue(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store, "a")
    await sql.execute("update work set cancel_requested = true, cancel_requeue = true")
    assert await steps.delete(store, "a") == "asked"
    await steps.complete(store, made.id, "cancelled")
    assert (await steps.get_task(store, "a")).state == "cancelled"
    await steps.check_invariants(sql)


async def test_deleting_an_ended_task_changes_nothing(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store, "a")
    await steps.complete(store, made.id)
    await steps.submit(store, "b")
    assert [await steps.delete(store, id_) for id_ in ("a", "b", "b")] == ["deleted"] * 3
    assert (await steps.get_task(store, "a")).state == "succeeded"
    assert len(await steps.get_records(store)) == 2
    await steps.check_invariants(sql)


async def test_deleting_an_unknown_task_returns_unknown(store: Store) -> None:
    assert await steps.delete(store, "a") == "unknown"


async def test_a_batch_of_deletions_returns_results_in_order(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "waits", "waits-too")
    await steps.add_assigned_work(store, "assigned", "t")
    await steps.add_running_work(store, "running", "u")
    await steps.add_running_work(store, "forced", "v")
    ids = ["running", "nothing", "waits", "forced", "assigned", "waits-too", "waits"]
    results = await steps.run_many(
        store, deletion.delete, [deletion.TaskDeletion(id_, id_ == "forced") for id_ in ids]
    )
    assert results == ["asked", "unknown", "deleted", "deleted", "deleted", "deleted", "deleted"]
    await steps.check_invariants(sql)


async def test_deletion_cancels_work_assigned_just_before_its_lock(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t")
    async with steps.OpenTransaction(store) as assigning:
        await assigning.run(assignment.assign, [Pair(task_id="a", tool_id="t")])
        deleting = asyncio.create_task(steps.delete(store, "a"))
        await steps.wait_until_blocked(sql)
    assert await deleting == "deleted"
    [record] = await steps.get_records(store, task_id="a")
    assert (record.outcome, record.tool_id) == ("cancelled", "t")
    await steps.check_invariants(sql)


async def test_deletion_asks_to_stop_work_started_just_before_its_lock(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_assigned_work(store, "a")
    async with steps.OpenTransaction(store) as starting:
        await starting.run(work.start, [work.Start(made.id)])
        deleting = asyncio.create_task(steps.delete(store, "a"))
        await steps.wait_until_blocked(sql)
    assert await deleting == "asked"
    seen = await store.run(work.with_reports, made.id)
    assert seen is not None
    assert (seen.work.state, seen.work.cancel_requested) == ("running", True)
    await steps.check_invariants(sql)


async def test_a_success_before_the_deletion_is_kept(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store, "a")
    async with steps.OpenTransaction(store) as completing:
        await completing.run(completion.complete, [steps.new_ending(made.id)])
        deleting = asyncio.create_task(steps.delete(store, "a", force=True))
        await steps.wait_until_blocked(sql)
    assert await deleting == "deleted"
    assert (await steps.get_task(store, "a")).state == "succeeded"
    await steps.check_invariants(sql)


async def test_deletion_deletes_a_task_released_just_before_its_lock(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store, "a")
    async with steps.OpenTransaction(store) as completing:
        await completing.run(completion.complete, [steps.new_ending(made.id, "released")])
        deleting = asyncio.create_task(steps.delete(store, "a"))
        await steps.wait_until_blocked(sql)
    assert await deleting == "deleted"
    newest, first = await steps.get_records(store, task_id="a")
    assert (newest.outcome, newest.tool, first.outcome) == ("cancelled", None, "released")
    await steps.check_invariants(sql)


async def test_deletion_cancels_work_of_a_task_reassigned_just_before_its_lock(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store, "a", "t")
    await steps.register(store, "u")
    async with steps.OpenTransaction(store) as moving:
        await moving.run(completion.complete, [steps.new_ending(made.id, "released")])
        await moving.run(assignment.assign, [Pair(task_id="a", tool_id="u")])
        deleting = asyncio.create_task(steps.delete(store, "a"))
        await steps.wait_until_blocked(sql)
    assert await deleting == "deleted"
    newest, _ = await steps.get_records(store, task_id="a")
    assert (newest.outcome, newest.tool_id) == ("cancelled", "u")
    await steps.check_invariants(sql)


async def test_concurrent_deletions_of_a_task_leave_one_record(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "a")
    async with steps.OpenTransaction(store) as first:
        assert await first.run(deletion.delete, [deletion.TaskDeletion("a")]) == ["deleted"]
        second = asyncio.create_task(steps.delete(store, "a"))
        await steps.wait_until_blocked(sql)
    assert await second == "deleted"
    assert len(await steps.get_records(store)) == 1
    await steps.check_invariants(sql)


async def test_a_rolled_back_deletion_keeps_the_task(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "a")
    given_up = steps.OpenTransaction(store)
    await (await given_up.begin()).run(ended_tasks.record_deleted, ["a"])
    await given_up.roll_back()
    assert (await steps.get_task(store, "a")).state == "available"
    await steps.check_invariants(sql)


async def test_a_batch_of_deletions_and_an_assignment_do_not_deadlock(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.add_assigned_work(store, "with-work", "t")
    await store.one(tools.change, tools.Change("t", ToolChange(capacity=5)))
    await steps.submit(store, "without")
    async with steps.OpenTransaction(store) as gate:
        await gate.session.execute(tools.LOCK, {"ids": ["t"]})
        both = [deletion.TaskDeletion("with-work"), deletion.TaskDeletion("without")]
        deleting = asyncio.create_task(steps.run_many(store, deletion.delete, both))
        await steps.wait_until_blocked(sql, 1)
        assigning = asyncio.create_task(steps.assign(store, ("without", "t")))
        await steps.wait_until_blocked(sql, 2)
    assert await deleting == ["deleted", "deleted"]
    assert [result.status for result in await assigning] in (["assigned"], ["task_unavailable"])
    await steps.check_invariants(sql)


async def test_a_retried_batch_of_deletions_does_not_deadlock(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "a", "z")
    await steps.register(store, "t")
    gate, assigning = steps.OpenTransaction(store), steps.OpenTransaction(store)
    session = (await gate.begin()).session
    gate_pid = (await session.execute(text("select pg_backend_pid()"))).scalar_one()
    await session.execute(locks.LOCK, {"ids": [], "task_ids": ["z"], "tool_ids": []})
    [given] = await (await assigning.begin()).run(assignment.assign, [Pair(task_id="a", tool_id="t")])
    assert given.work is not None
    both = [deletion.TaskDeletion("a"), deletion.TaskDeletion("z")]
    deleting = asyncio.create_task(steps.run_many(store, deletion.delete, both))
    await steps.wait_until_blocked(sql, 1)
    # Now "a" has work that the deletion has not seen, while the deletion waits for "z".
    await assigning.commit()
    await wait_until(lambda: steps.blocks_another(sql, gate_pid))
    completing = asyncio.create_task(steps.complete(store, given.work.id))
    await steps.wait_until_done_or_blocked(completing, sql, 2)
    await gate.commit()
    assert await deleting == ["deleted", "deleted"]
    await completing
    await steps.check_invariants(sql)
