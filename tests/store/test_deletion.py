"""Deleting: at once where nothing runs, by asking where something does, whatever comes in between."""

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


async def test_a_task_that_waits_is_gone_and_its_record_says_so(
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


async def test_a_scheduled_task_is_gone(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "a", not_before=datetime.now(UTC) + timedelta(hours=1))
    assert await steps.delete(store, "a") == "deleted"
    [record] = await steps.get_records(store, task_id="a")
    assert (record.task.state, record.outcome) == ("scheduled", "cancelled")
    await steps.check_invariants(sql)


async def test_a_task_that_backs_off_is_gone(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store, "a")
    await steps.complete(store, made.id, "failed", error="broken")
    assert await steps.delete(store, "a") == "deleted"
    newest, first = await steps.get_records(store, task_id="a")
    assert (newest.outcome, newest.task.error, newest.tool) == ("cancelled", "broken", None)
    assert (first.outcome, first.work_id) == ("failed", made.id)
    await steps.check_invariants(sql)


async def test_a_failed_task_is_gone(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store, "a", max_attempts=1)
    await steps.complete(store, made.id, "failed", error="broken")
    assert await steps.delete(store, "a") == "deleted"
    newest, _ = await steps.get_records(store, task_id="a")
    assert (newest.outcome, newest.task.state, newest.task.error) == ("cancelled", "failed", "broken")
    await steps.check_invariants(sql)


async def test_work_not_started_is_cancelled_and_the_tool_has_room(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_assigned_work(store, "a", "t")
    assert await steps.delete(store, "a") == "deleted"
    [record] = await steps.get_records(store, task_id="a")
    assert (record.work_id, record.outcome, record.tool_id) == (made.id, "cancelled", "t")
    assert (await steps.get_tool(store, "t")).load == 0
    await steps.check_invariants(sql)


async def test_running_work_is_asked_to_stop_and_asked_once(store: Store, sql: asyncpg.Connection) -> None:
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
async def test_who_deletes_by_force_beside_others_who_do_not_has_it_deleted(
    store: Store, sql: asyncpg.Connection, force: tuple[bool, bool]
) -> None:
    await steps.add_running_work(store, "a")
    deletions = [deletion.TaskDeletion("a", each) for each in force]
    assert await steps.run_many(store, deletion.delete, deletions) == ["deleted", "deleted"]
    assert (await steps.get_task(store, "a")).state == "cancelled"
    await steps.check_invariants(sql)


@pytest.mark.thorough
async def test_a_failed_task_with_the_largest_values_can_be_deleted(store: Store) -> None:
    """PostgreSQL's jsonb would take six times the room, and hold only one of them."""
    largest = Raw(b"[" + b"1," * (2**24 - 100) + b"1]")
    made = await steps.add_running_work(store, "a", "t", payload=largest)
    await steps.complete(store, made.id, "failed", result=largest, retry=False)
    assert await steps.delete(store, "a") == "deleted"
    [newest] = await steps.get_records(store, task_id="a")
    assert (newest.outcome, newest.task.state) == ("cancelled", "failed")
    assert newest.task.payload == newest.task.result == largest


async def test_by_force_running_work_is_cancelled_at_once(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store, "a", "t")
    await steps.report(store, made.id, message="half way")
    assert await steps.delete(store, "a", force=True) == "deleted"
    [record] = await steps.get_records(store, task_id="a")
    assert (record.work_id, record.outcome, len(steps.reports_of(record))) == (made.id, "cancelled", 1)
    await steps.check_invariants(sql)


@pytest.mark.parametrize("started", [False, True])
async def test_a_deleted_task_does_not_go_back_because_a_requeue_was_asked_for_before(
    store: Store, sql: asyncpg.Connection, started: bool
) -> None:
    make = steps.add_running_work if started else steps.add_assigned_work
    await make(store, "a")
    # What `POST /v1/work/{id}/cancel {"requeue": true}` leaves.
    await sql.execute("update work set cancel_requested = true, cancel_requeue = true")
    assert await steps.delete(store, "a", force=True) == "deleted"
    assert (await steps.get_task(store, "a")).state == "cancelled"
    await steps.check_invariants(sql)


async def test_asking_for_deletion_overrules_a_requeue_asked_for_before(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store, "a")
    await sql.execute("update work set cancel_requested = true, cancel_requeue = true")
    assert await steps.delete(store, "a") == "asked"
    await steps.complete(store, made.id, "cancelled")
    assert (await steps.get_task(store, "a")).state == "cancelled"
    await steps.check_invariants(sql)


async def test_an_ended_task_is_deleted_already(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store, "a")
    await steps.complete(store, made.id)
    await steps.submit(store, "b")
    assert [await steps.delete(store, id_) for id_ in ("a", "b", "b")] == ["deleted"] * 3
    assert (await steps.get_task(store, "a")).state == "succeeded"
    assert len(await steps.get_records(store)) == 2
    await steps.check_invariants(sql)


async def test_what_never_was_is_unknown(store: Store) -> None:
    assert await steps.delete(store, "a") == "unknown"


async def test_each_of_a_batch_is_answered_in_order(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "waits", "waits-too")
    await steps.add_assigned_work(store, "assigned", "t")
    await steps.add_running_work(store, "running", "u")
    await steps.add_running_work(store, "forced", "v")
    ids = ["running", "nothing", "waits", "forced", "assigned", "waits-too", "waits"]
    answers = await steps.run_many(
        store, deletion.delete, [deletion.TaskDeletion(id_, id_ == "forced") for id_ in ids]
    )
    assert answers == ["asked", "unknown", "deleted", "deleted", "deleted", "deleted", "deleted"]
    await steps.check_invariants(sql)


async def test_a_task_assigned_between_the_look_and_the_lock_is_taken_from_its_tool(
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


async def test_work_started_between_the_look_and_the_lock_is_asked_to_stop(
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


async def test_a_success_that_comes_first_stands(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store, "a")
    async with steps.OpenTransaction(store) as completing:
        await completing.run(completion.complete, [steps.new_ending(made.id)])
        deleting = asyncio.create_task(steps.delete(store, "a", force=True))
        await steps.wait_until_blocked(sql)
    assert await deleting == "deleted"
    assert (await steps.get_task(store, "a")).state == "succeeded"
    await steps.check_invariants(sql)


async def test_a_task_that_goes_back_between_the_look_and_the_lock_is_gone(
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


async def test_a_task_given_to_another_tool_between_the_look_and_the_lock_is_taken_from_that(
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


async def test_two_that_delete_the_same_task_leave_one_record(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "a")
    async with steps.OpenTransaction(store) as first:
        assert await first.run(deletion.delete, [deletion.TaskDeletion("a")]) == ["deleted"]
        second = asyncio.create_task(steps.delete(store, "a"))
        await steps.wait_until_blocked(sql)
    assert await second == "deleted"
    assert len(await steps.get_records(store)) == 1
    await steps.check_invariants(sql)


async def test_a_deletion_that_is_rolled_back_leaves_the_task(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "a")
    given_up = steps.OpenTransaction(store)
    await (await given_up.begin()).run(ended_tasks.record_deleted, ["a"])
    await given_up.roll_back()
    assert (await steps.get_task(store, "a")).state == "available"
    await steps.check_invariants(sql)


async def test_a_batch_of_deletions_and_an_assignment_do_not_wait_in_a_circle(
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
    assert [answer.status for answer in await assigning] in (["assigned"], ["task_unavailable"])
    await steps.check_invariants(sql)


async def test_a_batch_of_deletions_that_looks_again_does_not_wait_in_a_circle(
    store: Store, sql: asyncpg.Connection
) -> None:
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
    # "a" has work now that the deletion has not seen, and waits for "z" meanwhile.
    await assigning.commit()
    await wait_until(lambda: steps.blocks_another(sql, gate_pid))
    completing = asyncio.create_task(steps.complete(store, given.work.id))
    await steps.wait_until_done_or_blocked(completing, sql, 2)
    await gate.commit()
    assert await deleting == ["deleted", "deleted"]
    await completing
    await steps.check_invariants(sql)
