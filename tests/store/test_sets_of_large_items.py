"""Sets of large items: the size of the results bounds a set, so requests for large items take turns."""

import asyncio
from collections.abc import Sequence
from typing import Any
from unittest.mock import ANY

import asyncpg
import msgspec
import pytest
from msgspec import Raw

from broker.schemas.candidates import Pair
from broker.store import (
    Store,
    archive,
    assignment,
    cancellation,
    candidates,
    completion,
    submission,
    tasks,
    work,
)
from broker.store.assignment import WaitingPair
from broker.store.cancellation import Cancellation
from broker.store.group_commit import LATER
from broker.store.pages import MOST_BYTES
from tests.support import steps

# PostgreSQL compresses these 5.6 MB to 64 kB. Two of them fill a set.
COMPRESSED = Raw(f"[{','.join(['1' * 100] * 55_000)}]".encode())
EACH = 5_700_000
NAMES = ["a", "b", "c", "d", "e"]


def size(results: Sequence[Any]) -> int:
    """Return the number of JSON bytes in results."""
    present = [each.work if hasattr(each, "trace_context") else each for each in results if each is not LATER]
    return len(msgspec.json.encode(present))


async def shared(store: Store, step: Any, items: Sequence[Any], *, reads: bool = True) -> list[Any]:
    """Run a step with all items in one set, where some do not fit, and then as requests that share sets.

    Returns:
        The results of the requests.
    """
    one_set = await (store.read(step, items) if reads else store.many(step, items))
    assert 0 < one_set.count(LATER) < len(items)
    assert size(one_set) < MOST_BYTES + EACH
    run = store.read_one if reads else store.one
    results = await asyncio.gather(*(run(step, item) for item in items))
    assert LATER not in results
    return results


async def made(store: Store, *, tools: bool = False) -> None:
    """Submit large tasks, and register a tool for each, or one for all."""
    await steps.submit(store, *NAMES, payload=COMPRESSED)
    await steps.register(store, *(NAMES if tools else ["tool"]), capacity=10)


async def all_assigned(store: Store, *, tools: bool = False) -> list[Any]:
    """Assign large tasks, and return the ids of the work."""
    await made(store, tools=tools)
    pairs = [Pair(task_id=name, tool_id=name if tools else "tool") for name in NAMES]
    return [each.work_id for each in await store.many(assignment.assign_briefly, pairs)]


async def test_reads_of_large_tasks_take_turns(store: Store) -> None:
    await made(store)
    results = await shared(store, tasks.find, [*NAMES, "unknown"])
    assert [task and task.id for task in results] == [*NAMES, None]


async def test_reads_of_large_ended_tasks_and_records_take_turns(
    store: Store, sql: asyncpg.Connection
) -> None:
    works = await all_assigned(store)
    for id_ in works:
        await store.many(steps.completion.complete_briefly, [steps.new_ending(id_)])
    results = await shared(store, tasks.find, [*NAMES, "unknown"])
    assert [task and task.state for task in results] == ["succeeded"] * 5 + [None]
    records = await shared(store, archive.find, works)
    assert [record.work_id for record in records] == works
    # Records from before the size was stored.
    await sql.execute("update work_archive set bytes = null")
    assert await store.read(archive.find, works) != await store.read(archive.find, works[:1])


async def test_polls_of_tools_with_large_work_take_turns(store: Store) -> None:
    works = await all_assigned(store, tools=True)
    results = await shared(store, work.assigned_to, [*NAMES, "unknown"])
    assert [assigned and assigned.items[0].id for assigned in results] == [*works, None]


async def test_a_tool_gets_its_large_work_in_parts(store: Store) -> None:
    works = await all_assigned(store)
    seen = []
    while True:
        [assigned] = await store.read(work.assigned_to, ["tool"])
        assert assigned is not None
        assert size(assigned.items) < MOST_BYTES + EACH
        # Without a start, the next poll returns the same work.
        assert await store.read(work.assigned_to, ["tool"]) == [assigned._replace(since_seconds=ANY)]
        if not assigned.items:
            break
        seen.append([item.id for item in assigned.items])
        await asyncio.gather(*(store.one(work.start, work.Start(item.id)) for item in assigned.items))
    assert [len(ids) for ids in seen] == [2, 2, 1]
    assert sorted(id_ for ids in seen for id_ in ids) == sorted(works)


async def test_starts_of_large_work_take_turns(store: Store, sql: asyncpg.Connection) -> None:
    works = await all_assigned(store)
    results = await shared(store, work.start, [work.Start(id_) for id_ in works], reads=False)
    assert [(started.work.id, started.work.state) for started in results] == [
        (id_, "running") for id_ in works
    ]
    assert await sql.fetchval("select max(version) from work") == 2, "some work was started twice"


async def test_completions_of_large_work_take_turns(store: Store, sql: asyncpg.Connection) -> None:
    works = await all_assigned(store)
    endings = [completion.Ending(id_, "succeeded") for id_ in works]
    results = await shared(store, completion.complete, endings, reads=False)
    assert [(ended.status, ended.record.work_id) for ended in results] == [("same", id_) for id_ in works]
    assert await sql.fetchval("select count(*) from work_archive") == 5
    assert await sql.fetchval("select load from tools") == 0


async def test_cancellations_of_large_work_take_turns(store: Store) -> None:
    works = await all_assigned(store)
    results = await shared(store, cancellation.cancel, [Cancellation(id_) for id_ in works], reads=False)
    assert [(each.id, each.cancel_requested) for each in results] == [(id_, True) for id_ in works]


async def test_assignments_of_large_tasks_take_turns(store: Store, sql: asyncpg.Connection) -> None:
    await made(store)
    pairs = [Pair(task_id=name, tool_id="tool") for name in NAMES]
    one_set = await store.many(assignment.assign, pairs)
    assert [each is LATER or each.status for each in one_set] == ["assigned"] * 2 + [True] * 3
    assert await sql.fetchval("select load from tools") == 2, "a pair that waits has been assigned"
    results = await asyncio.gather(*(store.one(assignment.assign, pair) for pair in pairs))
    assert sorted(each.status for each in results) == ["assigned"] * 3 + ["exists"] * 2
    again = await shared(store, assignment.assign, pairs, reads=False)
    assert [each.work.task_id for each in again] == NAMES
    brief = await store.many(assignment.assign_briefly, pairs)
    assert [each.status for each in brief] == ["exists"] * 5


async def test_a_brief_assignment_reads_only_awaited_work_that_fits(store: Store) -> None:
    await made(store, tools=True)
    pairs = [WaitingPair(name, name, name != "a") for name in NAMES]
    results = await store.many(assignment.assign_to_waiting, pairs)
    assert [each.status for each in results] == ["assigned"] * 5
    assert [each.work_id is not None for each in results] == [True] * 5
    assert [each.work is not None for each in results] == [False, True, True, False, False]
    assert [each.tool is not None for each in results] == [False, True, True, False, False]
    again = await store.many(assignment.assign_to_waiting, pairs)
    assert [(each.status, each.work, each.tool) for each in again] == [("exists", None, None)] * 5
    assert [each.work_id for each in again] == [each.work_id for each in results]


async def test_repeated_submissions_of_large_tasks_take_turns(store: Store) -> None:
    await made(store)
    again = [steps.new_task(name) for name in NAMES]
    results = await shared(store, submission.submit, again, reads=False)
    assert [(task.id, created) for task, created in results] == [(name, False) for name in NAMES]


async def test_assigners_with_different_requests_take_turns(store: Store) -> None:
    await made(store)
    requests = [candidates.CandidatesRequest(None, limit) for limit in (1000, 999, 998)]
    results = await shared(store, candidates.read, requests)
    assert all([task.id for task in page.tasks] == ["a", "b"] and page.more for page in results)


@pytest.mark.parametrize("state", ["failed", "available"])
async def test_retries_of_large_tasks_take_turns(store: Store, state: str) -> None:
    works = await all_assigned(store)
    outcome = {"failed": "failed", "available": "released"}[state]
    for id_ in works:
        await store.many(steps.completion.complete_briefly, [steps.new_ending(id_, outcome, retry=False)])
    assert (await steps.get_task(store, "a")).state == state
    results = await shared(store, tasks.retry, NAMES, reads=False)
    assert [(task.id, task.state) for task in results] == [(name, "available") for name in NAMES]
