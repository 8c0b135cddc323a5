"""Assignment: a task has at most one work item, and a tool never more than its capacity allows."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import asyncpg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from broker.schemas.candidates import Pair, PairStatus
from broker.schemas.tools import ToolChange
from broker.schemas.values import NULL
from broker.schemas.work import NewReport
from broker.store import Store, assignment, completion, deletion, due, leases, locks, reports, tools, work
from broker.store.assignment import PairKey, repeated, runs
from tests.support import steps

STATES = ["available", "scheduled", "assigned", "failed"]


def one_after_the_other(
    keys: Sequence[PairKey], states: Mapping[str, str], room: Mapping[str, int]
) -> list[str]:
    """Follow the contract literally: decide on each pair independently, in order."""
    states, room = dict(states), dict(room)
    done: set[PairKey] = set()
    results = []
    for key in keys:
        task_id, tool_id = key
        if key in done:
            result = "exists"
        elif task_id not in states:
            result = "task_not_found"
        elif states[task_id] != "available":
            result = "task_unavailable"
        elif tool_id not in room:
            result = "tool_not_found"
        elif room[tool_id] <= 0:
            result = "tool_unavailable"
        else:
            result = "assigned"
            states[task_id] = "assigned"
            room[tool_id] -= 1
            done.add(key)
        results.append(result)
    return results


def judged(run: Sequence[PairKey], states: dict[str, str], room: dict[str, int]) -> Iterator[PairStatus]:
    """Yield the status that the statement returns for each pair of a set without repeated tasks."""
    for task_id, tool_id in run:
        if task_id not in states:
            yield "task_not_found"
        elif states[task_id] != "available":
            yield "task_unavailable"
        elif tool_id not in room:
            yield "tool_not_found"
        elif room[tool_id] <= 0:
            yield "tool_unavailable"
        else:
            states[task_id] = "assigned"
            room[tool_id] -= 1
            yield "assigned"


@given(
    keys=st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("tuvw")), max_size=30),
    states=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(STATES)),
    room=st.dictionaries(st.sampled_from("tuvw"), st.integers(-1, 3)),
)
# The repeated pair is first refused because its tool is full, and then because another tool has its task.
@example(
    keys=[("a", "full"), ("a", "free"), ("a", "full")], states={"a": "available"}, room={"full": 0, "free": 1}
)
@settings(max_examples=300, deadline=None)
def test_assigning_in_sets_has_the_results_of_assigning_one_by_one(
    keys: list[PairKey], states: dict[str, str], room: dict[str, int]
) -> None:
    expected = one_after_the_other(keys, states, room)
    first: dict[PairKey, PairStatus] = {}
    for run in runs(keys):
        assert len({task_id for task_id, _ in run}) == len(run)
        first |= zip(run, judged(run, states, room), strict=True)
    assert repeated(keys, first) == expected


async def test_a_pair_becomes_work(store: Store, sql: asyncpg.Connection) -> None:
    [task] = await steps.submit(store, "a", needs=Raw(b"[1.10]"), payload=Raw(b'"p"'))
    [tool] = await steps.register(store, "t", capacity=2, lease_seconds=30)
    [made] = await steps.assign_all(store, ("a", "t"))
    assert (made.task_id, made.tool_id, made.attempt, made.state, made.version) == (
        "a",
        "t",
        1,
        "assigned",
        1,
    )
    assert (bytes(made.needs), bytes(made.payload)) == (b"[1.10]", b'"p"')
    assert made.id.version == 7
    assert (made.deadline_at - made.assigned_at).total_seconds() == 30
    now = await steps.get_task(store, "a")
    assert (now.state, now.work_id, now.attempt) == ("assigned", made.id, 0)
    assert ((await steps.get_tool(store, "t")).load, tool.load) == (1, 0)
    assert task.work_id is None
    await steps.check_invariants(sql)


async def test_a_batch_returns_the_status_of_each_pair_in_order(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a", "b", "c", "d")
    await steps.register(store, "one", "draining", "offline")
    await steps.register(store, "two", capacity=2)
    await store.one(tools.change, tools.Change("draining", ToolChange(draining=True)))
    await sql.execute("update tools set offline = true where id = 'offline'")
    work = await steps.add_assigned_work(store, "ended", "other")
    await steps.complete(store, work.id)
    pairs = {
        ("a", "one"): "assigned",
        ("a", "two"): "task_unavailable",
        ("b", "one"): "tool_unavailable",
        ("b", "draining"): "tool_unavailable",
        ("b", "offline"): "tool_unavailable",
        ("b", "nowhere"): "tool_not_found",
        ("nothing", "nowhere"): "task_not_found",
        ("ended", "two"): "task_unavailable",
        ("ended", "nowhere"): "task_unavailable",
        ("c", "two"): "assigned",
        ("d", "two"): "assigned",
        ("b", "two"): "tool_unavailable",
    }
    results = await steps.assign(store, *pairs)
    assert [result.status for result in results] == list(pairs.values())
    assert [result.work is not None for result in results] == [s == "assigned" for s in pairs.values()]
    await steps.check_invariants(sql)


async def test_a_repeated_pair_returns_the_same_work(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t", "u", capacity=5)
    first, second = await steps.assign(store, ("a", "t"), ("a", "t"))
    [third] = await steps.assign(store, ("a", "t"))
    assert [result.status for result in (first, second, third)] == ["assigned", "exists", "exists"]
    assert first.work == second.work == third.work
    assert [result.status for result in await steps.assign(store, ("a", "u"))] == ["task_unavailable"]
    assert (await steps.get_tool(store, "t")).load == 1
    await steps.check_invariants(sql)


@pytest.mark.parametrize("seed", range(12))
async def test_a_batch_has_the_results_of_the_same_pairs_one_by_one(
    store: Store, sql: asyncpg.Connection, seed: int
) -> None:
    randomness = random.Random(seed)
    for side in ("batch", "single"):
        await steps.submit(store, *(f"{side}-{number}" for number in range(8)))
        for number in range(3):
            await steps.register(store, f"{side}-tool-{number}", capacity=number + 1)
    pairs = [(randomness.randrange(10), randomness.randrange(4)) for _ in range(40)]

    def on(side: str) -> list[tuple[str, str]]:
        return [(f"{side}-{task}", f"{side}-tool-{tool}") for task, tool in pairs]

    together = [result.status for result in await steps.assign(store, *on("batch"))]
    apart = [(await steps.assign(store, pair))[0].status for pair in on("single")]
    assert together == apart
    await steps.check_invariants(sql)


@pytest.mark.parametrize("seed", range(3))
async def test_concurrent_assigners_create_one_work_item_for_each_task_and_fill_each_tool(
    store: Store, sql: asyncpg.Connection, seed: int
) -> None:
    randomness = random.Random(seed)
    ids = [f"task-{number}" for number in range(60)]
    homes = [f"tool-{number}" for number in range(8)]
    await steps.submit(store, *ids)
    for number, home in enumerate(homes):
        await steps.register(store, home, capacity=1 + number % 4)
    batches = [[(randomness.choice(ids), randomness.choice(homes)) for _ in range(80)] for _ in range(8)]
    results = await asyncio.gather(*(steps.assign(store, *batch) for batch in batches))
    made = [result.work for batch in results for result in batch if result.status == "assigned"]
    assert len(made) == sum(1 + number % 4 for number in range(8))
    assert len({work.task_id for work in made}) == len(made)
    assert {work.id for work in made} == {row["id"] for row in await sql.fetch("select id from work")}
    await steps.check_invariants(sql)


async def test_assigners_with_opposite_orders_do_not_deadlock(store: Store, sql: asyncpg.Connection) -> None:
    ids = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    await steps.submit(store, *ids)
    await steps.register(store, "t", "u", capacity=100)
    async with steps.OpenTransaction(store) as first:
        await first.run(assignment.assign, [Pair(task_id="m", tool_id="t")])
        up = asyncio.create_task(steps.assign(store, *((id_, "t") for id_ in ids)))
        await steps.wait_until_blocked(sql, 1)
        down = asyncio.create_task(steps.assign(store, *((id_, "u") for id_ in reversed(ids))))
        await steps.wait_until_blocked(sql, 2)
    statuses = Counter(result.status for result in [*await up, *await down])
    assert statuses == {"assigned": 25, "exists": 1, "task_unavailable": 26}
    await steps.check_invariants(sql)


async def test_a_waiting_assigner_does_not_reassign_tasks_and_tools_of_another_one(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a", "b")
    await steps.register(store, "t", "u")
    async with steps.OpenTransaction(store) as first:
        await first.run(assignment.assign, [Pair(task_id="a", tool_id="t")])
        late = asyncio.create_task(steps.assign(store, ("a", "u"), ("b", "t"), ("b", "u")))
        await steps.wait_until_blocked(sql)
    assert [result.status for result in await late] == ["task_unavailable", "tool_unavailable", "assigned"]
    await steps.check_invariants(sql)


async def test_a_task_that_ends_while_an_assigner_waits_for_it_is_unavailable(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store, "a", "t")
    await steps.register(store, "u")
    async with steps.OpenTransaction(store) as completing:
        await completing.run(completion.complete, [steps.new_ending(made.id)])
        late = asyncio.create_task(steps.assign(store, ("a", "u")))
        await steps.wait_until_blocked(sql)
    assert [result.status for result in await late] == ["task_unavailable"]
    await steps.check_invariants(sql)


async def test_a_task_that_becomes_due_while_an_assigner_waits_for_it_is_assigned(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.register(store, "t")
    made = await steps.add_running_work(store, "a", "other", retry_backoff_seconds=5)
    await steps.complete(store, made.id, "failed")
    await sql.execute("update tasks set due_at = now()")
    async with steps.OpenTransaction(store) as upkeep:
        assert await upkeep.run(due.make_available, 10) == 1
        late = asyncio.create_task(steps.assign(store, ("a", "t")))
        await steps.wait_until_blocked(sql)
    assert [result.status for result in await late] == ["assigned"]
    await steps.check_invariants(sql)


async def test_a_pair_is_assigned_even_if_its_work_ends_before_the_batch_does(
    store: Store, sql: asyncpg.Connection
) -> None:
    # The gate delays only the last pair, so the work of the first one can end before it.
    await steps.submit(store, "a", "b")
    await steps.register(store, "t", "u")
    async with steps.OpenTransaction(store) as gate:
        await gate.session.execute(locks.LOCK, {"ids": [], "task_ids": ["a"], "tool_ids": []})
        assigning = asyncio.create_task(steps.assign(store, ("b", "t"), ("b", "u"), ("a", "u")))
        await steps.wait_until_blocked(sql)
        work_id = await sql.fetchval("select id from work")
        await steps.complete(store, work_id)
    made, refused, last = await assigning
    assert (made.status, made.work.id) == ("assigned", work_id)
    assert (refused.status, refused.work, last.status) == ("task_unavailable", None, "assigned")
    await steps.check_invariants(sql)


async def test_a_tool_deleted_while_an_assigner_waits_for_it_is_not_found(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t")
    async with steps.OpenTransaction(store) as deleting:
        assert await deleting.run(tools.delete, [tools.ToolDeletion("t")]) == ["deleted"]
        late = asyncio.create_task(steps.assign(store, ("a", "t")))
        await steps.wait_until_blocked(sql)
    assert [result.status for result in await late] == ["tool_not_found"]
    await steps.check_invariants(sql)


async def test_a_tool_that_gets_work_while_it_is_deleted_is_busy(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t")
    async with steps.OpenTransaction(store) as assigning:
        await assigning.run(assignment.assign, [Pair(task_id="a", tool_id="t")])
        deleting = asyncio.create_task(steps.run_many(store, tools.delete, [tools.ToolDeletion("t")]))
        await steps.wait_until_blocked(sql)
    assert await deleting == ["busy"]
    await steps.check_invariants(sql)


async def test_an_assigner_that_has_locked_tasks_does_not_block_reports(
    store: Store, sql: asyncpg.Connection
) -> None:
    made = await steps.add_assigned_work(store, "a", "t")
    async with steps.OpenTransaction(store) as assigning:
        await assigning.run(assignment.assign, [Pair(task_id="a", tool_id="t")])
        # The first report also starts the work.
        reporting = asyncio.create_task(steps.report(store, made.id, progress=0.5))
        await steps.wait_until_done_or_blocked(reporting, sql)
        assert reporting.done(), "a report waits for the lock of a task, against the order of locks"
    await steps.check_invariants(sql)


@pytest.mark.parametrize("seed", range(2))
async def test_all_steps_at_once_keep_the_invariants(
    store: Store, sql: asyncpg.Connection, seed: int
) -> None:
    ids = [f"task-{number}" for number in range(25)]
    homes = [f"tool-{number}" for number in range(5)]
    await steps.register(store, *homes, capacity=3)

    async def work_ids(randomness: random.Random) -> list[object]:
        page = await store.run(work.page, work.WorkFilter(), limit=50, after=None)
        return randomness.sample([item.id for item in page.items], min(6, len(page.items)))

    async def play(player: int) -> None:
        randomness = random.Random(seed * 100 + player)
        for _ in range(25):
            match randomness.randrange(7):
                case 0:
                    await steps.submit(store, *randomness.sample(ids, 8), max_attempts=50)
                case 1 | 2:
                    pairs = [(randomness.choice(ids), randomness.choice(homes)) for _ in range(12)]
                    await steps.assign(store, *pairs)
                case 3:
                    endings = [
                        completion.Ending(
                            id_,
                            randomness.choice(["succeeded", "failed", "released", "cancelled"]),
                            NULL,
                            None,
                        )
                        for id_ in await work_ids(randomness)
                    ]
                    await steps.run_many(store, completion.complete, endings)
                case 4:
                    written = [
                        reports.ReportOf(id_, NewReport(progress=0.5)) for id_ in await work_ids(randomness)
                    ]
                    await steps.run_many(store, reports.write, written)
                case 5:
                    deletions = [deletion.TaskDeletion(randomness.choice(ids), randomness.random() < 0.5)]
                    await steps.run_many(store, deletion.delete, deletions)
                case 6:
                    await steps.run_many(
                        store,
                        leases.heartbeat,
                        [leases.Beat(id_) for id_ in sorted(randomness.sample(homes, 3))],
                    )

    await asyncio.gather(*(play(player) for player in range(8)))
    await steps.check_invariants(sql)
    assert await sql.fetchval("select count(*) from work_archive") > 0
