"""Submission: a task exists once, even if clients submit it twice, concurrently, or after it has ended."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID

import asyncpg
import pytest
from msgspec import Raw

from broker.errors import BadRequest
from broker.schemas.values import JSON
from broker.store import Store, completion, ended_tasks, submission, tasks
from tests.support import steps
from tests.support.shared import SHARED_STORE

pytestmark, database, sql, store = SHARED_STORE

IN_AN_HOUR = timedelta(hours=1)


async def seqs(sql: asyncpg.Connection) -> list[str]:
    return [row["id"] for row in await sql.fetch("select id from tasks order by seq")]


async def test_a_task_without_an_id_gets_a_uuid7_of_the_current_time(store: Store) -> None:
    submitted = await steps.run_many(store, submission.submit, [steps.new_task() for _ in range(100)])
    ids = [UUID(task.id) for task, _ in submitted]
    assert len(set(ids)) == 100
    assert {(id_.version, id_.variant) for id_ in ids} == {(7, RFC_4122)}
    for id_, (task, created) in zip(ids, submitted, strict=True):
        time_of_id = datetime.fromtimestamp((id_.int >> 80) / 1000, tz=UTC)
        assert created
        assert abs(time_of_id - task.created_at) < timedelta(seconds=5)


async def test_tasks_of_a_batch_are_offered_in_its_order(store: Store, sql: asyncpg.Connection) -> None:
    ids = [f"{number:04}" for number in range(500)]
    random.Random(1).shuffle(ids)
    results = await steps.run_many(
        store, submission.submit, [steps.new_task(id_ if n % 3 else None) for n, id_ in enumerate(ids)]
    )
    assert await seqs(sql) == [task.id for task, _ in results]
    assert [task.id for task, _ in results if "-" not in task.id] == [
        id_ for n, id_ in enumerate(ids) if n % 3
    ]


async def test_json_values_are_returned_with_all_their_digits(store: Store) -> None:
    needs = Raw(b'{"a": 1.10, "b": 123456789012345678901234567890, "c": [null, true, "\\u00e9"], "d": 1e2}')
    [task] = await steps.submit(store, "a", needs=needs, payload=Raw(b"-0.000"), priority=-32768)
    assert (bytes(task.needs), bytes(task.payload)) == (bytes(needs), b"-0.000")
    task = await steps.get_task(store, "a")
    assert bytes(task.needs) == (
        b'{"a": 1.10, "b": 123456789012345678901234567890, "c": [null, true, "\xc3\xa9"], "d": 100}'
    )
    assert bytes(task.payload) == b"-0.000"
    assert await steps.get_task(store, "a") == task


async def test_a_task_is_scheduled_until_its_not_before(store: Store) -> None:
    now = datetime.now(UTC)
    [later] = await steps.submit(store, "later", not_before=now + IN_AN_HOUR)
    [past] = await steps.submit(store, "past", not_before=now - IN_AN_HOUR)
    assert (later.state, past.state) == ("scheduled", "available")
    assert (later.not_before, past.not_before) == (now + IN_AN_HOUR, now - IN_AN_HOUR)


async def test_submitting_a_known_id_returns_the_unchanged_task(store: Store) -> None:
    [first] = await steps.submit(store, "a", priority=1)
    [(task, created)] = await steps.run_many(store, submission.submit, [steps.new_task("a", priority=2)])
    assert (task, created) == (first, False)
    assert await steps.get_task(store, "a") == first


async def test_the_first_of_two_tasks_with_the_same_id_in_a_batch_is_written(store: Store) -> None:
    results = await steps.run_many(
        store, submission.submit, [steps.new_task("a", priority=1), steps.new_task("a", priority=2)]
    )
    assert [(task.priority, created) for task, created in results] == [(1, True), (1, False)]


async def test_the_first_task_of_each_repeated_id_in_a_batch_is_written(store: Store) -> None:
    ids = [f"{number:02}" for number in range(20)] * 10
    random.Random(2).shuffle(ids)
    results = await steps.run_many(
        store, submission.submit, [steps.new_task(id_, priority=place) for place, id_ in enumerate(ids)]
    )
    assert [task.priority for task, _ in results] == [ids.index(id_) for id_ in ids]
    assert [created for _, created in results] == [ids.index(id_) == place for place, id_ in enumerate(ids)]


async def test_batches_with_the_same_ids_in_opposite_orders_do_not_deadlock(
    store: Store, sql: asyncpg.Connection
) -> None:
    ids = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    async with steps.OpenTransaction(store) as first:
        await first.run(submission.submit, [steps.new_task("m")])
        # The first batch is half done when the second one begins from the other end.
        up = asyncio.create_task(
            steps.run_many(store, submission.submit, [steps.new_task(id_) for id_ in ids])
        )
        await steps.wait_until_blocked(sql, 1)
        down = asyncio.create_task(
            steps.run_many(store, submission.submit, [steps.new_task(id_) for id_ in reversed(ids)])
        )
        await steps.wait_until_blocked(sql, 2)
    assert sum(created for _, created in await up) == len(ids) - 1
    assert sum(created for _, created in await down) == 0
    assert sorted(await seqs(sql)) == ids


async def test_concurrent_submitters_of_the_same_ids_write_each_task_once(
    store: Store, sql: asyncpg.Connection
) -> None:
    randomness = random.Random(3)
    batches = []
    for submitter in range(8):
        ids = [f"{number:03}" for number in range(200)]
        randomness.shuffle(ids)
        batches.append([steps.new_task(id_, priority=submitter) for id_ in ids])
    results = await asyncio.gather(*(steps.run_many(store, submission.submit, batch) for batch in batches))
    created = [task.id for batch in results for task, made in batch if made]
    assert len(created) == len(set(created)) == 200
    known = dict(zip(created, await store.run(tasks.find, created), strict=True))
    assert all(task == known[task.id] for batch in results for task, _ in batch)
    await steps.check_invariants(sql)


async def test_a_second_submission_counts_if_the_first_is_rolled_back(
    store: Store, sql: asyncpg.Connection
) -> None:
    first = steps.OpenTransaction(store)
    await (await first.begin()).run(submission.submit, [steps.new_task("a", priority=1)])
    second = asyncio.create_task(steps.run_many(store, submission.submit, [steps.new_task("a", priority=2)]))
    await steps.wait_until_blocked(sql)
    await first.roll_back()
    [(task, created)] = await second
    assert (task.priority, created) == (2, True)


async def test_submitting_an_ended_id_returns_the_ended_task(store: Store, sql: asyncpg.Connection) -> None:
    work = await steps.add_running_work(store, "a")
    await steps.complete(store, work.id, result=Raw(b"1.10"))
    [(a, a_created), (b, b_created)] = await steps.run_many(
        store, submission.submit, [steps.new_task("a"), steps.new_task("b")]
    )
    assert (a.state, bytes(a.result), a_created) == ("succeeded", b"1.10", False)
    assert (b.state, b_created) == ("available", True)
    assert await seqs(sql) == ["b"]
    await steps.check_invariants(sql)


async def test_an_id_whose_record_was_deleted_is_free_again(store: Store, sql: asyncpg.Connection) -> None:
    work = await steps.add_running_work(store, "a")
    await steps.complete(store, work.id)
    # The effect of `DELETE /v1/archive/…`, or of retention.
    await sql.execute("delete from work_archive where work_id = $1", work.id)
    for first in (True, False):
        [(task, created)] = await steps.run_many(store, submission.submit, [steps.new_task("a")])
        assert (task.id, task.state, created) == ("a", "available", first)
    await steps.check_invariants(sql)


async def test_a_task_completed_during_a_repeated_submission_stays_ended(
    store: Store, sql: asyncpg.Connection
) -> None:
    work = await steps.add_running_work(store, "a")
    async with steps.OpenTransaction(store) as completing:
        await completing.run(completion.complete, [steps.new_ending(work.id, result=Raw(b"1"))])
        again = asyncio.create_task(
            steps.run_many(
                store, submission.submit, [steps.new_task("a"), steps.new_task("b"), steps.new_task("a")]
            )
        )
        await steps.wait_until_blocked(sql)
    results = [(task.id, task.state, created) for task, created in await again]
    assert results == [("a", "succeeded", False), ("b", "available", True), ("a", "succeeded", False)]
    assert await seqs(sql) == ["b"]
    await steps.check_invariants(sql)


async def test_submissions_that_wait_for_a_completion_return_the_ended_task(
    store: Store, sql: asyncpg.Connection
) -> None:
    work = await steps.add_running_work(store, "a")
    async with steps.OpenTransaction(store) as completing:
        await completing.run(completion.complete, [steps.new_ending(work.id)])
        again = [
            asyncio.create_task(steps.run_many(store, submission.submit, [steps.new_task("a")]))
            for _ in range(3)
        ]
        await steps.wait_until_blocked(sql, 3)
    assert [(task.state, created) for [(task, created)] in await asyncio.gather(*again)] == [
        ("succeeded", False)
    ] * 3
    assert await seqs(sql) == []
    await steps.check_invariants(sql)


async def test_a_task_deleted_during_a_repeated_submission_stays_ended(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a")
    async with steps.OpenTransaction(store) as deleting:
        await deleting.run(ended_tasks.record_deleted, ["a"])
        again = asyncio.create_task(steps.run_many(store, submission.submit, [steps.new_task("a")]))
        await steps.wait_until_blocked(sql)
    [(task, created)] = await again
    assert (task.state, created) == ("cancelled", False)
    await steps.check_invariants(sql)


async def test_a_rolled_back_completion_keeps_the_task_live(store: Store, sql: asyncpg.Connection) -> None:
    work = await steps.add_running_work(store, "a")
    completing = steps.OpenTransaction(store)
    await (await completing.begin()).run(completion.complete, [steps.new_ending(work.id)])
    again = asyncio.create_task(steps.run_many(store, submission.submit, [steps.new_task("a")]))
    await steps.wait_until_blocked(sql)
    await completing.roll_back()
    [(task, created)] = await again
    assert (task.state, task.work_id, created) == ("running", work.id, False)
    await steps.check_invariants(sql)


@pytest.mark.parametrize(
    "refused",
    [
        steps.new_task("b", needs=Raw(b'"\\u0000"')),
        steps.new_task("b", needs=Raw(b"1e999999")),
        steps.new_task("b", not_before=datetime.max.replace(tzinfo=UTC), payload=Raw(b"nope")),
    ],
    ids=["a zero byte", "a number out of range", "no JSON"],
)
async def test_a_value_that_postgresql_refuses_is_a_bad_request_and_writes_nothing(
    store: Store, sql: asyncpg.Connection, refused: submission.TaskSubmission
) -> None:
    with pytest.raises(BadRequest):
        await steps.run_many(store, submission.submit, [steps.new_task("a"), refused, steps.new_task("c")])
    assert await seqs(sql) == []


@pytest.mark.parametrize(
    ("given", "field"), [(Raw(b"[1.10]"), "needs"), (Raw(b'"1"'), "payload"), (Raw(b"null"), "needs")]
)
async def test_any_json_value_is_accepted(store: Store, given: JSON, field: str) -> None:
    [task] = await steps.submit(store, "a", **{field: given})
    assert bytes(getattr(task, field)) == bytes(given)
