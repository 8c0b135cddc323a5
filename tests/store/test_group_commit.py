"""Group commit: which calls share a set, and the result of each call."""

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from broker.errors import (
    BadRequest,
    DatabaseTrouble,
    Locked,
    Overloaded,
    RowFailed,
    TooSlow,
    Unavailable,
)
from broker.settings import Settings
from broker.store import Store, group_commit, submission
from broker.store.group_commit import LATER, GroupCommit
from tests.conftest import Running, running_broker
from tests.support import steps as steps_of_store
from tests.support.api import assert_problem
from tests.support.steps import new_task


class Refused(Exception):
    """The error of an item that the database refuses."""


class Steps:
    """A step under the test's control: each set waits until the test finishes it."""

    def __init__(
        self,
        *,
        held: bool = True,
        failing: Sequence[int] = (),
        slow: Sequence[int] = (),
        trouble: type[DatabaseTrouble] = TooSlow,
    ) -> None:
        self.begun: list[list[int]] = []
        self.longer: list[list[int]] = []
        self.more_time = asyncio.Event()
        self.group = GroupCommit(self.run_set, self.run_longer)
        self._slow = slow
        self._trouble = trouble
        self.unavailable = False
        self.missing_results = 0
        #: The number of items of a set whose results fit in it.
        self.room = 1_000_000
        self._failing = failing
        self._held = held
        self._gates: list[asyncio.Event] = []

    async def run_set(self, items: Sequence[int]) -> list[str]:
        gate = asyncio.Event()
        self.begun.append(list(items))
        self._gates.append(gate)
        if self._held:
            await gate.wait()
        if self.unavailable:
            raise Unavailable("no database")
        if any(item in self._slow for item in items):
            raise self._trouble("this takes too long")
        if any(item in self._failing for item in items):
            raise Refused
        values = [f"result of {item}" for item in items][self.missing_results :]
        return values[: self.room] + [LATER] * len(values[self.room :])

    async def run_longer(self, items: Sequence[int]) -> list[str]:
        self.longer.append(list(items))
        await self.more_time.wait()
        return [f"late result of {item}" for item in items]

    async def call(self, item: int, size: int = 0) -> "asyncio.Task[str]":
        """Start a call, and return it when its set is under way or the call waits."""
        caller = asyncio.create_task(self.group.call(item, size))
        await run_ready_tasks()
        return caller

    async def calls(self, *items: int, size: int = 0) -> "list[asyncio.Task[str]]":
        return [await self.call(item, size) for item in items]

    async def finish(self, number: int) -> None:
        """Finish the set with this number."""
        self._gates[number].set()
        await run_ready_tasks()

    def finish_all(self) -> None:
        """Finish all sets, including future ones."""
        self._held = False
        for gate in self._gates:
            gate.set()


async def run_ready_tasks() -> None:
    """Let everything run that is ready. Here, only the test's own gates can block a task."""
    for _ in range(20):
        await asyncio.sleep(0)


async def results_of(*callers: "asyncio.Task[str]") -> list[str | BaseException]:
    """Return the results of the callers, or fail if a caller gets none."""
    async with asyncio.timeout(2):
        return await asyncio.gather(*callers, return_exceptions=True)


def results(*items: int) -> list[str]:
    return [f"result of {item}" for item in items]


async def test_a_call_without_a_set_under_way_begins_alone_at_once() -> None:
    steps = Steps()
    caller = await steps.call(1)
    assert steps.begun == [[1]]
    assert not caller.done(), "the call returned before the commit"
    steps.finish_all()
    assert await results_of(caller) == results(1)


async def test_calls_during_two_sets_share_the_next_set_in_order() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 5, 3, 4)
    assert steps.begun == [[1], [2]]
    await steps.finish(1)
    assert steps.begun == [[1], [2], [5, 3, 4]]
    steps.finish_all()
    assert await results_of(*callers) == results(1, 2, 5, 3, 4)


async def test_an_item_that_does_not_fit_in_its_set_runs_in_a_later_one() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4, 5, size=10)
    steps.room = 1
    await steps.finish(0)
    callers += await steps.calls(6)
    steps.finish_all()
    assert await results_of(*callers) == results(1, 2, 3, 4, 5, 6)
    assert steps.begun == [[1], [2], [3, 4, 5], [6], [4, 5], [5]]
    assert (len(steps.group), steps.group._waiting_bytes) == (0, 0)


async def test_at_most_two_sets_are_under_way() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3)
    await steps.finish(0)
    callers += await steps.calls(4, 5)
    assert steps.begun == [[1], [2], [3]]
    steps.finish_all()
    assert await results_of(*callers) == results(1, 2, 3, 4, 5)


async def test_a_caller_that_calls_again_gets_a_result_if_both_sets_end_together() -> None:
    steps = Steps()

    async def twice(item: int) -> str:
        await steps.group.call(item, 0)
        return await steps.group.call(item + 10, 0)

    again = asyncio.create_task(twice(1))
    await run_ready_tasks()
    other = await steps.call(2)
    steps.finish_all()
    assert await results_of(again, other) == results(11, 2)


async def test_a_call_after_a_quiet_time_begins_at_once() -> None:
    steps = Steps()
    first = await steps.call(1)
    await steps.finish(0)
    second = await steps.call(2)
    assert steps.begun == [[1], [2]]
    steps.finish_all()
    assert await results_of(first, second) == results(1, 2)


async def test_a_set_has_at_most_the_maximum_number_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "_LARGEST_SET", 3)
    steps = Steps()
    callers = await steps.calls(*range(9))
    steps.finish_all()
    assert await results_of(*callers) == results(*range(9))
    assert steps.begun == [[0], [1], [2, 3, 4], [5, 6, 7], [8]]


async def test_a_set_has_at_most_the_maximum_bytes_and_a_larger_item_runs_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_commit, "_LARGEST_BYTES", 100)
    steps = Steps()
    sizes = {1: 0, 2: 0, 3: 60, 4: 40, 5: 1, 6: 500, 7: 500, 8: 1}
    callers = [await steps.call(item, size) for item, size in sizes.items()]
    steps.finish_all()
    assert await results_of(*callers) == results(*sizes)
    assert steps.begun == [[1], [2], [3, 4], [5], [6], [7], [8]]


async def test_a_refused_item_does_not_affect_its_set() -> None:
    steps = Steps(failing=[5])
    callers = await steps.calls(*range(10))
    steps.finish_all()
    *_, refused = received = await results_of(*callers[:5], *callers[6:], callers[5])
    assert received[:-1] == results(0, 1, 2, 3, 4, 6, 7, 8, 9)
    assert isinstance(refused, Refused)


async def test_a_refused_item_is_isolated_by_halving_its_set() -> None:
    steps = Steps(failing=[77])
    callers = await steps.calls(*range(258))
    steps.finish_all()
    await results_of(*callers)
    # Two sets of one item, then the set of 256. Each halving runs two sets.
    assert len(steps.begun) == 2 + 1 + 2 * 8


async def test_a_slow_item_gets_more_time_alone_and_does_not_block_others() -> None:
    steps = Steps(slow=[5])
    callers = await steps.calls(*range(10))
    steps.finish_all()
    assert await results_of(*callers[:5], *callers[6:]) == results(0, 1, 2, 3, 4, 6, 7, 8, 9)
    assert await results_of(*await steps.calls(10, 11, 12)) == results(10, 11, 12)
    assert steps.longer == [[5]]
    assert not callers[5].done()
    steps.more_time.set()
    assert await results_of(callers[5]) == ["late result of 5"]


async def test_a_set_with_a_slow_item_runs_item_by_item() -> None:
    steps = Steps(slow=[5])
    callers = await steps.calls(*range(8))
    steps.finish_all()
    steps.more_time.set()
    await results_of(*callers)
    assert steps.begun == [[0], [1], [2, 3, 4, 5, 6, 7], *([item] for item in range(2, 8))]


async def test_a_locked_item_does_not_affect_its_set() -> None:
    steps = Steps(slow=[5], trouble=Locked)
    callers = await steps.calls(*range(10))
    steps.finish_all()
    *received, locked = await results_of(*callers[:5], *callers[6:], callers[5])
    assert received == results(0, 1, 2, 3, 4, 6, 7, 8, 9)
    assert isinstance(locked, Locked)
    assert steps.longer == []


async def test_an_item_above_a_limit_of_postgresql_does_not_affect_its_set() -> None:
    steps = Steps(slow=[5], trouble=RowFailed)
    callers = await steps.calls(*range(10))
    steps.finish_all()
    *received, refused = await results_of(*callers[:5], *callers[6:], callers[5])
    assert received == results(0, 1, 2, 3, 4, 6, 7, 8, 9)
    assert isinstance(refused, RowFailed)


async def test_the_rest_of_a_set_is_unavailable_after_two_slow_items_without_success() -> None:
    steps = Steps(slow=range(2, 50))
    callers = await steps.calls(*range(50))
    steps.finish_all()
    steps.more_time.set()
    received = await results_of(*callers)
    assert received[:2] == results(0, 1)
    assert received[2:4] == ["late result of 2", "late result of 3"]
    assert all(isinstance(each, Unavailable) for each in received[4:])
    assert len(steps.begun) == 2 + 1 + 2


async def test_the_rest_of_a_set_is_unavailable_after_four_slow_items() -> None:
    steps = Steps(slow=range(3, 50))
    callers = await steps.calls(*range(50))
    steps.finish_all()
    steps.more_time.set()
    received = await results_of(*callers)
    assert received[:3] == results(0, 1, 2)
    assert received[3:7] == [f"late result of {item}" for item in range(3, 7)]
    assert all(isinstance(each, Unavailable) for each in received[7:])


async def test_closing_fails_items_that_got_more_time() -> None:
    steps = Steps(held=False, slow=[1])
    caller = await steps.call(1)
    assert steps.longer == [[1]]
    await steps.group.close()
    [received] = await results_of(caller)
    assert isinstance(received, Unavailable)


async def test_settled_items_return_their_results_in_order() -> None:
    steps = Steps(held=False, slow=[2])
    steps.more_time.set()
    received = await steps.group.settle([1, 2, 3])
    assert received == ["result of 1", "late result of 2", "result of 3"]


async def test_a_set_fails_without_retries_if_the_database_is_unavailable() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4)
    steps.unavailable = True
    steps.finish_all()
    received = await results_of(*callers)
    assert [str(each) for each in received if isinstance(each, Unavailable)] == ["no database"] * 4
    assert len({id(each) for each in received}) == 4, "callers share an exception and its traceback"
    assert steps.begun == [[1], [2], [3, 4]]


async def test_calls_after_a_failure_succeed() -> None:
    steps = Steps(held=False)
    steps.unavailable = True
    await results_of(await steps.call(1))
    steps.unavailable = False
    assert await results_of(*await steps.calls(2, 3)) == results(2, 3)


async def test_a_caller_that_leaves_before_its_set_removes_its_item() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4)
    callers[2].cancel()
    steps.finish_all()
    received = await results_of(*callers)
    assert isinstance(received[2], asyncio.CancelledError)
    assert steps.begun == [[1], [2], [4]]


async def test_no_empty_set_runs_after_all_waiting_callers_left() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4)
    for caller in callers[2:]:
        caller.cancel()
    steps.finish_all()
    await results_of(*callers)
    assert steps.begun == [[1], [2]]
    assert await results_of(await steps.call(5)) == results(5)


async def test_a_caller_that_leaves_during_its_set_does_not_affect_the_others() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4, 5)
    await steps.finish(0)
    assert steps.begun[-1] == [3, 4, 5]
    callers[3].cancel()
    steps.finish_all()
    received = await results_of(*callers)
    assert isinstance(received.pop(3), asyncio.CancelledError)
    assert received == results(1, 2, 3, 5)


async def test_a_caller_can_leave_a_failing_set() -> None:
    steps = Steps(failing=[4])
    callers = await steps.calls(1, 2, 3, 4, 5)
    await steps.finish(0)
    callers[3].cancel()
    steps.finish_all()
    received = await results_of(*callers)
    assert isinstance(received.pop(3), asyncio.CancelledError)
    assert received == results(1, 2, 3, 5)


async def test_calls_above_the_maximum_number_of_waiting_calls_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_commit, "_MOST_WAITING", 3)
    steps = Steps()
    callers = await steps.calls(*range(5))
    with pytest.raises(Overloaded):
        await steps.group.call(5, 0)
    await steps.finish(0)
    callers.append(await steps.call(6))
    steps.finish_all()
    assert await results_of(*callers) == results(0, 1, 2, 3, 4, 6)


async def test_calls_above_the_maximum_waiting_bytes_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_commit, "_MOST_WAITING_BYTES", 100)
    steps = Steps()
    # Calls under way do not count as waiting.
    callers = await steps.calls(0, 1, size=1000) + await steps.calls(2, 3, size=60)
    with pytest.raises(Overloaded):
        await steps.group.call(4, 0)
    await steps.finish(0)
    callers.append(await steps.call(5, 60))
    steps.finish_all()
    assert await results_of(*callers) == results(0, 1, 2, 3, 5)


async def test_closing_fails_calls_under_way() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2)
    await steps.group.close()
    assert all(isinstance(each, Unavailable) for each in await results_of(*callers))


async def test_closing_fails_waiting_calls() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4)
    await steps.group.close()
    received = await results_of(*callers)
    assert all(isinstance(each, Unavailable) for each in received)
    assert steps.begun == [[1], [2]]


async def test_closing_fails_a_call_that_has_just_arrived() -> None:
    steps = Steps()
    caller = asyncio.create_task(steps.group.call(1, 0))
    await asyncio.sleep(0)
    assert steps.begun == [], "its set is already under way"
    await steps.group.close()
    [received] = await results_of(caller)
    assert isinstance(received, Unavailable)


async def test_closing_fails_a_set_that_runs_in_halves() -> None:
    steps = Steps(failing=[3])
    callers = await steps.calls(1, 2, 3, 4, 5, 6)
    await steps.finish(0)
    await steps.finish(2)
    assert steps.begun == [[1], [2], [3, 4, 5, 6], [3, 4]]
    await steps.group.close()
    received = await results_of(*callers)
    assert received[0] == "result of 1"
    assert all(isinstance(each, Unavailable) for each in received[1:])


async def test_a_step_that_returns_too_few_results_fails_its_callers() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4)
    steps.missing_results = 1
    steps.finish_all()
    assert all(isinstance(each, ValueError) for each in await results_of(*callers))


@given(
    failing=st.lists(st.booleans(), max_size=40),
    together=st.integers(1, 40),
    largest=st.integers(1, 12),
)
@settings(max_examples=100, deadline=None)
def test_each_item_has_its_own_result_and_only_the_failing_ones_fail(
    failing: list[bool], together: int, largest: int
) -> None:
    bad = {item for item, fails in enumerate(failing) if fails}

    async def run() -> None:
        steps = Steps(held=False, failing=sorted(bad))
        callers = []
        for item in range(len(failing)):
            callers.append(asyncio.create_task(steps.group.call(item, 1)))
            if item % together == together - 1:
                await asyncio.sleep(0)
        for item, received in enumerate(await results_of(*callers)):
            if item in bad:
                assert isinstance(received, Refused)
            else:
                assert received == f"result of {item}"
        assert all(len(items) <= largest for items in steps.begun)
        succeeded = [item for items in steps.begun if not bad & set(items) for item in items]
        assert sorted(succeeded) == sorted(set(range(len(failing))) - bad), "an item was written twice"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_commit, "_LARGEST_SET", largest)
        asyncio.run(run())


async def test_fifty_concurrent_submissions_are_written_and_each_gets_its_task(
    store: Store, sql: asyncpg.Connection
) -> None:
    ids = [f"task-{number}" for number in range(50)]
    received = await asyncio.gather(*(store.one(submission.submit, new_task(id_)) for id_ in ids))
    assert [(each.task.id, each.created) for each in received] == [(id_, True) for id_ in ids]
    assert await sql.fetch("select id from tasks order by seq") == [(id_,) for id_ in ids]
    transactions = await sql.fetchval("select count(distinct xmin::text) from tasks")
    assert transactions < 10, "the calls did not share transactions"


async def test_concurrent_submissions_of_one_id_create_one_task(
    store: Store, sql: asyncpg.Connection
) -> None:
    received = await asyncio.gather(*(store.one(submission.submit, new_task("same")) for _ in range(20)))
    assert sum(each.created for each in received) == 1
    assert {each.task.id for each in received} == {"same"}
    assert await sql.fetchval("select count(*) from tasks") == 1


async def test_a_value_that_postgresql_refuses_does_not_affect_other_submissions(
    store: Store, sql: asyncpg.Connection
) -> None:
    # The API would refuse this value. The store passes it on.
    new = {f"task-{number}": Raw(b"1") for number in range(20)} | {"task-7": Raw(b'"\xff"')}
    calls = (store.one(submission.submit, new_task(id_, payload=payload)) for id_, payload in new.items())
    received = dict(zip(new, await asyncio.gather(*calls, return_exceptions=True), strict=True))
    assert isinstance(received.pop("task-7"), BadRequest)
    assert [each.task.id for each in received.values()] == list(received)
    assert {row["id"] for row in await sql.fetch("select id from tasks")} == received.keys()


LARGE = "x" * 2**20
SLEEP = """
create function sleep() returns trigger language plpgsql as $$
    begin
        perform pg_sleep(60) from new_rows where id = 'slow';
        return null;
    end
$$;
create trigger sleep after insert on tasks referencing new table as new_rows
for each statement execute function sleep();
"""


async def test_a_large_request_that_is_too_slow_gets_413_and_the_others_succeed(
    database: str, sql: asyncpg.Connection
) -> None:
    await sql.execute(SLEEP)
    async with running_broker(Settings(database_url=database, database_timeout_seconds=0.5)) as broker:
        ids = [*(f"task-{number}" for number in range(10)), "slow", "last"]
        slow = {"id": "slow", "needs": {}, "payload": LARGE}
        bodies = (slow if id_ == "slow" else {"id": id_, "needs": {}} for id_ in ids)
        requests = (broker.client.post("/v1/tasks", json=body) for body in bodies)
        received = dict(zip(ids, await asyncio.gather(*requests), strict=True))
        problem = assert_problem(received.pop("slow"), 413, "payload_too_large")
        assert "BROKER_DATABASE_TIMEOUT_SECONDS" in problem["detail"]
        assert {response.status_code for response in received.values()} == {201}
        batch = {"items": [{"id": "one", "needs": {}}, slow]}
        assert_problem(await broker.client.post("/v1/tasks/batch", json=batch), 413, "payload_too_large")
        assert (await broker.client.get("/v1/tasks/one")).status_code == 404
        assert (await broker.client.get("/health/ready")).status_code == 200


async def test_a_small_request_that_is_too_slow_gets_503_and_not_413(
    database: str, sql: asyncpg.Connection
) -> None:
    await sql.execute(SLEEP)
    async with running_broker(Settings(database_url=database, database_timeout_seconds=0.5)) as broker:
        body = {"id": "slow", "needs": {}}
        assert_problem(await broker.client.post("/v1/tasks", json=body), 503, "unavailable")
        # The database is fast again.
        await sql.execute("drop trigger sleep on tasks")
        assert (await broker.client.post("/v1/tasks", json=body)).status_code == 201


async def test_a_slow_item_does_not_affect_independent_items(database: str, sql: asyncpg.Connection) -> None:
    await sql.execute(SLEEP)
    async with steps_of_store.open_store(database, timeout_seconds=0.5) as store:
        ids = ["one", "slow", "two"]
        with pytest.raises(TooSlow):
            await store.each(submission.submit, [new_task(id_) for id_ in ids])
    assert {row["id"] for row in await sql.fetch("select id from tasks")} == {"one", "two"}


async def test_a_request_gets_503_if_too_many_wait(broker: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(group_commit, "_MOST_WAITING", 0)
        refused = await broker.client.post("/v1/tasks", json={"id": "a", "needs": {}})
    assert_problem(refused, 503, "unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await broker.client.post("/v1/tasks", json={"id": "a", "needs": {}})).status_code == 201
