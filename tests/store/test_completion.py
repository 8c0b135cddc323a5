"""Completion: the archive gets the complete record at once, and the task its next state."""

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, get_args
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec import Raw

from broker.errors import BadRequest
from broker.schemas.states import Outcome
from broker.schemas.tasks import Task
from broker.schemas.values import NULL
from broker.store import Store, archive, completion, due, ended_work, leases, locks, reports, tools, work
from broker.store.completion import Ended
from broker.store.reports import ReportOf
from broker.store.sql_connection import SqlConnection
from tests.support import steps
from tests.support.shared import SHARED_STORE
from tests.support.steps import new_ending

pytestmark, database, sql, store = SHARED_STORE

DIGITS = Raw(
    b'{"a": 1.10, "b": 123456789012345678901234567890, "c": {"d": [1e2, -0.0, 0.30000000000000004]}}'
)


def exact(value: Raw | bytes) -> Any:
    """Decode a JSON value, with its numbers as the texts in which they are written."""
    return json.loads(bytes(value), parse_float=str, parse_int=str)


async def attempt(store: Store, task: str, outcome: Outcome, **fields: Any) -> Task:
    """Make an attempt at a task that ends with this outcome, and return the task."""
    [made] = await steps.assign_all(store, (task, "tool"))
    await steps.complete(store, made.id, outcome, **fields)
    return await steps.get_task(store, task)


async def bring_forward(store: Store, sql: asyncpg.Connection) -> None:
    """End the backoff of every task."""
    await sql.execute("update tasks set due_at = now() where state = 'scheduled'")
    await store.run(due.make_available, 100)


async def test_the_record_has_the_work_the_task_and_the_tool_as_they_were(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a", needs=DIGITS, payload=DIGITS, priority=-7, timeout_seconds=0.1)
    await steps.register(store, "t", skills=DIGITS, capacity=3, lease_seconds=77.7)
    [made] = await steps.assign_all(store, ("a", "t"))
    for number in range(20):
        await steps.report(store, made.id, progress=number / 20, message=f"{number} é", data=DIGITS)
    seen = await store.run(work.with_reports, made.id)
    task, tool = await steps.get_task(store, "a"), await steps.get_tool(store, "t")

    ended = await steps.complete(store, made.id, result=DIGITS, error="none")

    assert ended.status == "ended"
    assert ended.record is not None
    assert seen is not None
    record, running = ended.record, seen.work
    archived = steps.reports_of(record)
    assert record.task == task
    assert record.tool == tool
    assert archived == running.reports
    assert [report.message for report in archived] == [f"{number} é" for number in range(20)]
    assert [bytes(value) for value in (record.result, record.task.payload, archived[0].data)] == [
        bytes(DIGITS)
    ] * 3
    # Needs and skills are stored as jsonb for searches, and jsonb normalizes numbers.
    assert [exact(value) for value in (record.task.needs, tool.skills)] == [
        {
            "a": "1.10",
            "b": "123456789012345678901234567890",
            "c": {"d": ["100", "0.0", "0.30000000000000004"]},
        }
    ] * 2
    assert (record.work_id, record.task_id, record.tool_id) == (made.id, "a", "t")
    assert (record.attempt, record.outcome, record.error, record.late) == (1, "succeeded", "none", None)
    assert (record.assigned_at, record.started_at) == (running.assigned_at, running.started_at)
    assert record.ended_at >= archived[-1].at
    assert await steps.get_records(store, task_id="a") == [record]
    await steps.check_invariants(sql)


async def test_success_ends_the_task_and_leaves_nothing_in_the_hot_tables(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store, "a", "t")
    await steps.report(store, made.id, progress=0.5)
    await steps.complete(store, made.id, result=Raw(b"[1.10]"))
    for table in ("tasks", "work", "work_reports"):
        assert await sql.fetchval(f"select count(*) from {table}") == 0
    task = await steps.get_task(store, "a")
    assert (task.state, task.attempt, bytes(task.result), task.work_id) == (
        "succeeded",
        1,
        b"[1.10]",
        made.id,
    )
    assert task.ended_at is not None
    assert (await steps.get_tool(store, "t")).load == 0
    await steps.check_invariants(sql)


async def test_ended_work_looks_like_work_with_a_higher_version(store: Store) -> None:
    made = await steps.add_running_work(store)
    await steps.report(store, made.id, progress=0.25)
    await steps.report(store, made.id, message="no number")
    running = await store.run(work.with_reports, made.id)
    await steps.complete(store, made.id, "failed")
    ended = await store.run(work.with_reports, made.id)
    assert running is not None
    assert ended is not None
    before, after = running.work, ended.work
    assert after.version > before.version
    assert (after.state, after.progress, after.reports) == ("failed", 0.25, before.reports)
    assert (after.started_at, after.deadline_at) == (before.started_at, before.deadline_at)


async def test_work_that_was_never_started_can_be_completed(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_assigned_work(store)
    ended = await steps.complete(store, made.id)
    assert ended.record is not None
    assert (ended.record.started_at, ended.record.task.state) == (None, "assigned")
    await steps.check_invariants(sql)


async def test_a_batch_reduces_the_load_of_each_tool_by_its_ended_work(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a", "b", "c", "d")
    await steps.register(store, "t", "u", capacity=3)
    made = await steps.assign_all(store, ("a", "t"), ("b", "t"), ("c", "t"), ("d", "u"))
    await steps.run_many(store, completion.complete, [new_ending(item.id) for item in made[1:]])
    assert [(await steps.get_tool(store, id_)).load for id_ in ("t", "u")] == [1, 0]
    await steps.check_invariants(sql)


async def test_a_failed_attempt_returns_after_a_backoff_that_doubles(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a", max_attempts=6, retry_backoff_seconds=10)
    await steps.register(store, "tool")
    for number in range(5):
        task = await attempt(store, "a", "failed", error=f"no {number}")
        [record] = [each for each in await steps.get_records(store) if each.attempt == number + 1]
        wait = await sql.fetchval("select due_at from tasks") - record.ended_at
        assert timedelta(seconds=5) * 2**number <= wait <= timedelta(seconds=10) * 2**number
        assert (task.state, task.attempt, task.error) == ("scheduled", number + 1, f"no {number}")
        assert (task.work_id, task.ended_at) == (None, None)
        await bring_forward(store, sql)
    await steps.check_invariants(sql)


async def test_tasks_that_fail_together_become_available_at_different_times(
    store: Store, sql: asyncpg.Connection
) -> None:
    ids = [f"{number:03}" for number in range(100)]
    await steps.submit(store, *ids, retry_backoff_seconds=100)
    await steps.register(store, "t", capacity=100)
    made = await steps.assign_all(store, *((id_, "t") for id_ in ids))
    await steps.run_many(store, completion.complete, [new_ending(item.id, "failed") for item in made])
    waits = [row[0] for row in await sql.fetch("select extract(epoch from due_at - now()) from tasks")]
    assert len(set(waits)) > 90
    assert min(waits) < 65
    assert max(waits) > 85


async def test_the_backoff_is_at_most_a_day(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "a", max_attempts=1000, retry_backoff_seconds=86_400)
    await steps.register(store, "tool")
    await sql.execute("update tasks set attempt = 900")
    await attempt(store, "a", "failed")
    assert await sql.fetchval("select due_at <= now() + interval '1 day' from tasks")


async def test_a_failed_attempt_without_a_backoff_returns_at_once(store: Store) -> None:
    await steps.submit(store, "a", retry_backoff_seconds=0)
    await steps.register(store, "tool")
    assert (await attempt(store, "a", "failed")).state == "available"


async def test_a_completion_says_whether_the_tool_is_idle(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, *"abcde", max_attempts=1)
    await steps.register(store, "tool", "other", capacity=3)
    works = await steps.assign_all(store, *((task, "tool") for task in "abc"), ("d", "other"), ("e", "other"))
    a, b, c, d, e = (steps.new_ending(work.id) for work in works)
    assert not (await store.one(completion.complete, a)).is_tool_idle, "it has b and c"
    one_set = await store.many(completion.complete, [b, d, c])
    assert [ended.is_tool_idle for ended in one_set] == [True, False, True]
    assert not (await store.one(completion.complete, c)).is_tool_idle, "it may have got work since"
    # Upkeep ends the work of an offline tool in batches.
    await sql.execute("update tools set offline = true")
    assert not (await store.one(completion.complete, e)).is_tool_idle


async def test_a_task_stays_as_failed_after_its_last_attempt(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "a", max_attempts=2, retry_backoff_seconds=0)
    await steps.register(store, "tool")
    assert (await attempt(store, "a", "failed")).state == "available"
    task = await attempt(store, "a", "failed", error="broken", result=Raw(b"[1.10]"))
    assert (task.state, task.attempt, task.error, bytes(task.result)) == ("failed", 2, "broken", b"[1.10]")
    assert task.ended_at is not None
    assert task.work_id is None
    assert [each.status for each in await steps.assign(store, ("a", "tool"))] == ["task_unavailable"]
    await steps.check_invariants(sql)


async def test_a_failure_without_retry_is_the_last_attempt(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "a", max_attempts=10)
    await steps.register(store, "tool")
    task = await attempt(store, "a", "failed", retry=False)
    assert (task.state, task.attempt) == ("failed", 1)
    await steps.check_invariants(sql)


@pytest.mark.parametrize("retry", [True, False])
async def test_released_work_does_not_count_as_an_attempt(
    store: Store, sql: asyncpg.Connection, retry: bool
) -> None:
    await steps.submit(store, "a", max_attempts=1)
    await steps.register(store, "tool")
    for _ in range(3):
        task = await attempt(store, "a", "released", retry=retry)
        assert (task.state, task.attempt) == ("available", 0)
    assert {record.attempt for record in await steps.get_records(store)} == {1}
    await steps.check_invariants(sql)


@pytest.mark.parametrize(("started", "counted"), [(True, 1), (False, 0)])
async def test_lost_work_counts_as_an_attempt_only_if_it_was_started(
    store: Store, sql: asyncpg.Connection, started: bool, counted: int
) -> None:
    made = await (steps.add_running_work if started else steps.add_assigned_work)(store, "a")
    await store.run(completion.end, [new_ending(made.id, "lost")])
    task = await steps.get_task(store, "a")
    assert (task.state, task.attempt) == ("available", counted)
    await steps.check_invariants(sql)


async def test_a_cancelled_attempt_ends_the_task(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store, "a")
    await steps.complete(store, made.id, "cancelled")
    assert (await steps.get_task(store, "a")).state == "cancelled"
    await steps.check_invariants(sql)


@pytest.mark.parametrize("outcome", get_args(Outcome))
@pytest.mark.parametrize("requeue", [False, True])
async def test_only_a_success_overrides_a_requested_cancellation(
    store: Store, sql: asyncpg.Connection, outcome: Outcome, requeue: bool
) -> None:
    made = await steps.add_running_work(store, "a", max_attempts=1)
    await sql.execute("update work set cancel_requested = true, cancel_requeue = $1", requeue)
    await store.run(completion.end, [new_ending(made.id, outcome)])
    [record] = await steps.get_records(store, task_id="a")
    task = await steps.get_task(store, "a")
    if outcome == "succeeded":
        assert (record.outcome, task.state) == ("succeeded", "succeeded")
    elif requeue:
        assert (record.outcome, task.state, task.attempt) == ("released", "available", 0)
    else:
        assert (record.outcome, task.state) == ("cancelled", "cancelled")
    await steps.check_invariants(sql)


async def test_a_late_attempt_cannot_change_the_next_one(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "a", retry_backoff_seconds=0)
    await steps.register(store, "tool")
    [first] = await steps.assign_all(store, ("a", "tool"))
    await steps.complete(store, first.id, "failed")
    [second] = await steps.assign_all(store, ("a", "tool"))
    assert second.id != first.id
    assert second.attempt == 2
    assert (await steps.complete(store, first.id)).status == "other"
    assert await steps.report(store, first.id) is None
    assert (await steps.get_task(store, "a")).work_id == second.id
    await steps.check_invariants(sql)


async def test_repeated_completion_returns_the_same_record(store: Store) -> None:
    made = await steps.add_running_work(store)
    first = await steps.complete(store, made.id, result=Raw(b"1"))
    again = await steps.complete(store, made.id, result=Raw(b"2"))
    other = await steps.complete(store, made.id, "failed")
    assert (again.status, again.record) == ("same", first.record)
    assert (other.status, other.record) == ("other", first.record)


async def test_repeated_completion_during_the_deletion_of_the_record_is_unknown(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await steps.add_running_work(store)
    await steps.complete(store, made.id)
    outcomes = ended_work.outcomes

    def outcomes_before_it_is_deleted(connection: SqlConnection, work_ids: list[UUID]) -> Any:
        earlier = outcomes(connection, work_ids)
        archive.delete(connection, work_ids)
        return earlier

    monkeypatch.setattr(ended_work, "outcomes", outcomes_before_it_is_deleted)
    assert await steps.complete(store, made.id) == Ended("unknown", None)


async def test_unknown_work_in_a_batch_does_not_affect_the_rest(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store)
    unknown = uuid4()
    results = await steps.run_many(
        store, completion.complete, [new_ending(unknown), new_ending(made.id), new_ending(unknown)]
    )
    assert [result.status for result in results] == ["unknown", "ended", "unknown"]
    assert [result.record is None for result in results] == [True, False, True]
    await steps.check_invariants(sql)


async def test_the_first_ending_of_a_work_item_in_a_batch_wins(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store)
    endings = [
        new_ending(made.id, "failed", error="first"),
        new_ending(made.id),
        new_ending(made.id, "failed"),
    ]
    results = await steps.run_many(store, completion.complete, endings)
    assert [result.status for result in results] == ["ended", "other", "same"]
    assert {result.record.error for result in results if result.record} == {"first"}
    await steps.check_invariants(sql)


async def test_a_batch_can_have_several_outcomes(store: Store, sql: asyncpg.Connection) -> None:
    ids = ["a", "b", "c", "d", "e"]
    await steps.submit(store, *ids)
    await steps.register(store, "t", capacity=5)
    made = await steps.assign_all(store, *((id_, "t") for id_ in ids))
    outcomes: list[Outcome] = ["succeeded", "failed", "cancelled", "released", "failed"]
    endings = [new_ending(item.id, how) for item, how in zip(made, outcomes, strict=True)]
    endings[4] = endings[4]._replace(retry=False)
    results = await steps.run_many(store, completion.complete, endings)
    assert [result.record.outcome for result in results if result.record] == outcomes
    states = [(await steps.get_task(store, id_)).state for id_ in ids]
    assert states == ["succeeded", "scheduled", "cancelled", "available", "failed"]
    await steps.check_invariants(sql)


async def test_a_report_that_commits_while_completion_waits_is_in_the_record(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store)
    async with steps.OpenTransaction(store) as reporting:
        report = steps.NewReport(message="the last word")
        [written] = await reporting.run(reports.write, [ReportOf(made.id, report)])
        completing = asyncio.create_task(steps.complete(store, made.id))
        await steps.wait_until_blocked(sql)
    record = (await completing).record
    assert record is not None
    assert written is not None
    assert [(each.id, each.message) for each in steps.reports_of(record)] == [(written.id, "the last word")]
    assert await sql.fetchval("select count(*) from work_reports") == 0
    await steps.check_invariants(sql)


async def test_a_report_that_arrives_while_work_ends_is_refused_and_leaves_no_row(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store)
    async with steps.OpenTransaction(store) as completing:
        await completing.run(completion.complete, [new_ending(made.id)])
        reporting = asyncio.create_task(steps.report(store, made.id, message="too late"))
        await steps.wait_until_blocked(sql)
    assert await reporting is None
    assert await sql.fetchval("select count(*) from work_reports") == 0
    await steps.check_invariants(sql)


async def test_a_start_that_arrives_while_work_ends_is_refused(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_assigned_work(store)
    async with steps.OpenTransaction(store) as completing:
        await completing.run(completion.complete, [new_ending(made.id, "released")])
        starting = asyncio.create_task(store.one(work.start, work.Start(made.id)))
        await steps.wait_until_blocked(sql)
    assert await starting is None
    await steps.check_invariants(sql)


async def test_work_that_starts_while_it_is_being_ended_as_lost_counts_as_started(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_assigned_work(store, "a")
    async with steps.OpenTransaction(store) as starting:
        await starting.run(work.start, [work.Start(made.id)])
        losing = asyncio.create_task(store.run(completion.end, [new_ending(made.id, "lost")]))
        await steps.wait_until_blocked(sql)
    await losing
    assert (await steps.get_task(store, "a")).attempt == 1
    await steps.check_invariants(sql)


async def test_exactly_one_of_two_concurrent_completions_wins(store: Store, sql: asyncpg.Connection) -> None:
    made = await steps.add_running_work(store, "a")
    async with steps.OpenTransaction(store) as gate:
        # Both completions wait for the same row.
        await gate.session.execute(locks.LOCK, {"ids": [made.id], "task_ids": [], "tool_ids": []})
        both = [
            asyncio.create_task(steps.complete(store, made.id, how, error=how))
            for how in ("succeeded", "failed")
        ]
        await steps.wait_until_blocked(sql, 2)
    results = await asyncio.gather(*both)
    assert sorted(result.status for result in results) == ["ended", "other"]
    assert len({result.record.error for result in results if result.record}) == 1
    assert len(await steps.get_records(store)) == 1
    await steps.check_invariants(sql)


async def test_completions_in_opposite_orders_do_not_deadlock(store: Store, sql: asyncpg.Connection) -> None:
    ids = [f"{number:02}" for number in range(30)]
    await steps.submit(store, *ids)
    await steps.register(store, *(f"t{number}" for number in range(10)), capacity=3)
    made = await steps.assign_all(store, *((id_, f"t{number % 10}") for number, id_ in enumerate(ids)))
    outcomes: list[Outcome] = ["succeeded", "failed", "released", "cancelled"]
    batches = [
        [new_ending(item.id, outcomes[number]) for item in (made if number % 2 else made[::-1])]
        for number in range(4)
    ]
    results = await asyncio.gather(*(steps.run_many(store, completion.complete, batch) for batch in batches))
    ended = [result.record for batch in results for result in batch if result.status == "ended"]
    assert sorted(record.work_id for record in ended if record) == sorted(item.id for item in made)
    await steps.check_invariants(sql)


async def test_completion_renews_the_lease_and_the_record_has_the_previous_lease(store: Store) -> None:
    made = await steps.add_running_work(store, tool="t")
    before = await steps.get_tool(store, "t")
    ended = await steps.complete(store, made.id)
    assert ended.record is not None
    assert ended.record.tool == before
    assert (await steps.get_tool(store, "t")).lease_expires_at > before.lease_expires_at


async def test_work_is_unknown_after_its_tool_was_deleted_with_sql(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store)
    await sql.execute("delete from tools")
    assert (await steps.complete(store, made.id)).status == "unknown"


async def test_the_record_has_the_state_of_the_tool_before_completion(store: Store) -> None:
    await steps.submit(store, "a", "b")
    await steps.register(store, "t", capacity=2)
    first, _ = await steps.assign_all(store, ("a", "t"), ("b", "t"))
    ended = await steps.complete(store, first.id)
    assert ended.record is not None
    assert ended.record.tool is not None
    assert (ended.record.tool.state, ended.record.tool.load) == ("busy", 2)
    now = await steps.get_tool(store, "t")
    assert (now.state, now.load) == ("idle", 1)


async def test_an_error_text_that_cannot_be_stored_does_not_end_the_work(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store)
    with pytest.raises(BadRequest):
        await steps.complete(store, made.id, error="\0")
    assert await sql.fetchval("select id from work") == made.id
    await steps.check_invariants(sql)


async def test_a_thousand_work_items_of_a_tool_can_end_at_once(store: Store, sql: asyncpg.Connection) -> None:
    ids = [f"{number:04}" for number in range(1000)]
    await steps.submit(store, *ids)
    await steps.register(store, "t", capacity=1000)
    made = await steps.assign_all(store, *((id_, "t") for id_ in ids))
    results = await steps.run_many(
        store, completion.complete, [new_ending(item.id, result=NULL) for item in made]
    )
    assert {result.status for result in results} == {"ended"}
    assert (await steps.run_many(store, leases.heartbeat, [leases.Beat("t")]))[0] is not None
    await steps.check_invariants(sql)


@pytest.mark.parametrize("end", ["restart", "force"])
async def test_restart_and_deletion_end_large_work_in_bounded_statements(
    store: Store, sql: asyncpg.Connection, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "_MOST_RECORD_BYTES", 3000)
    sizes: list[int] = []
    counted = completion.end

    def count(connection: SqlConnection, endings: Sequence[completion.Ending]) -> None:
        sizes.append(len(endings))
        counted(connection, endings)

    monkeypatch.setattr(completion, "end", count)
    names = [f"task-{number}" for number in range(5)]
    await steps.register(store, "tool", capacity=5)
    await steps.submit(store, *names)
    for made in await steps.assign_all(store, *((name, "tool") for name in names)):
        await store.one(work.start, work.Start(made.id))
    await sql.execute("update work set report_bytes = 2000")
    if end == "restart":
        await steps.register(store, "tool")
    else:
        assert await store.many(tools.delete, [tools.ToolDeletion("tool", force=True)]) == ["deleted"]
    assert sizes == [2, 2, 1]
    assert await sql.fetchval("select count(*) from work_archive where outcome = 'lost'") == 5
    await steps.check_invariants(sql)
