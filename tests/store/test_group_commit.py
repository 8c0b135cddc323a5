"""Group commit: who shares a set with whom, and what each of them hears."""

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
from broker.store import Store, group_commit, tasks
from broker.store.group_commit import LATER, GroupCommit
from tests.conftest import Running, running_broker
from tests.support import steps as steps_of_store
from tests.support.api import assert_problem
from tests.support.steps import new_task


class Refused(Exception):
    """What somebody's value brings about."""


class Steps:
    """A step under the test's control: each set waits until it is let go, and is answered item by item."""

    def __init__(
        self,
        *,
        held: bool = True,
        guilty: Sequence[int] = (),
        slow: Sequence[int] = (),
        trouble: type[DatabaseTrouble] = TooSlow,
    ) -> None:
        self.begun: list[list[int]] = []
        self.longer: list[list[int]] = []
        self.more_time = asyncio.Event()
        self.group = GroupCommit(self.take, self.take_longer)
        self._slow = slow
        self._trouble = trouble
        self.unavailable = False
        self.missing_answers = 0
        #: How many items of a set have room in it.
        self.room = 1_000_000
        self._guilty = guilty
        self._held = held
        self._gates: list[asyncio.Event] = []

    async def take(self, items: Sequence[int]) -> list[str]:
        gate = asyncio.Event()
        self.begun.append(list(items))
        self._gates.append(gate)
        if self._held:
            await gate.wait()
        if self.unavailable:
            raise Unavailable("gone fishing")
        if any(item in self._slow for item in items):
            raise self._trouble("this takes too long")
        if any(item in self._guilty for item in items):
            raise Refused
        answers = [f"answer to {item}" for item in items][self.missing_answers :]
        return answers[: self.room] + [LATER] * len(answers[self.room :])

    async def take_longer(self, items: Sequence[int]) -> list[str]:
        self.longer.append(list(items))
        await self.more_time.wait()
        return [f"late answer to {item}" for item in items]

    async def call(self, item: int, size: int = 0) -> "asyncio.Task[str]":
        """A caller who has called: the set that it begins, if it does, is under way."""
        caller = asyncio.create_task(self.group.call(item, size))
        await settled()
        return caller

    async def calls(self, *items: int, size: int = 0) -> "list[asyncio.Task[str]]":
        return [await self.call(item, size) for item in items]

    async def let_go(self, number: int) -> None:
        """Have the set with this number answered."""
        self._gates[number].set()
        await settled()

    def let_all_go(self) -> None:
        """Have all sets answered, those to come as well."""
        self._held = False
        for gate in self._gates:
            gate.set()


async def settled() -> None:
    """Everything that is ready has run: nothing here waits for anything but the test's own gates."""
    for _ in range(20):
        await asyncio.sleep(0)


async def heard(*callers: "asyncio.Task[str]") -> list[str | BaseException]:
    """What the callers hear; that they hear something at all is half of the promise."""
    async with asyncio.timeout(2):
        return await asyncio.gather(*callers, return_exceptions=True)


def answers(*items: int) -> list[str]:
    return [f"answer to {item}" for item in items]


async def test_a_call_that_finds_nothing_under_way_begins_at_once_and_alone() -> None:
    steps = Steps()
    caller = await steps.call(1)
    assert steps.begun == [[1]]
    assert not caller.done(), "it was answered before it was committed"
    steps.let_all_go()
    assert await heard(caller) == answers(1)


async def test_calls_that_come_while_two_sets_are_under_way_share_the_next_in_their_order() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 5, 3, 4)
    assert steps.begun == [[1], [2]]
    await steps.let_go(1)
    assert steps.begun == [[1], [2], [5, 3, 4]]
    steps.let_all_go()
    assert await heard(*callers) == answers(1, 2, 5, 3, 4)


async def test_an_item_without_room_in_its_set_is_answered_by_a_later_one() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4, 5, size=10)
    steps.room = 1
    await steps.let_go(0)
    callers += await steps.calls(6)
    steps.let_all_go()
    assert await heard(*callers) == answers(1, 2, 3, 4, 5, 6)
    assert steps.begun == [[1], [2], [3, 4, 5], [6], [4, 5], [5]]
    assert (len(steps.group), steps.group._waiting_bytes) == (0, 0)


async def test_no_more_than_two_sets_are_under_way_at_a_time() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3)
    await steps.let_go(0)
    callers += await steps.calls(4, 5)
    assert steps.begun == [[1], [2], [3]]
    steps.let_all_go()
    assert await heard(*callers) == answers(1, 2, 3, 4, 5)


async def test_a_caller_who_calls_again_at_once_is_answered_though_both_sets_ended_together() -> None:
    steps = Steps()

    async def twice(item: int) -> str:
        await steps.group.call(item, 0)
        return await steps.group.call(item + 10, 0)

    again = asyncio.create_task(twice(1))
    await settled()
    other = await steps.call(2)
    steps.let_all_go()
    assert await heard(again, other) == answers(11, 2)


async def test_what_comes_after_a_quiet_time_begins_at_once() -> None:
    steps = Steps()
    first = await steps.call(1)
    await steps.let_go(0)
    second = await steps.call(2)
    assert steps.begun == [[1], [2]]
    steps.let_all_go()
    assert await heard(first, second) == answers(1, 2)


async def test_a_set_has_no_more_than_the_most_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "_LARGEST_SET", 3)
    steps = Steps()
    callers = await steps.calls(*range(9))
    steps.let_all_go()
    assert await heard(*callers) == answers(*range(9))
    assert steps.begun == [[0], [1], [2, 3, 4], [5, 6, 7], [8]]


async def test_a_set_has_no_more_than_the_most_bytes_but_what_is_larger_goes_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_commit, "_LARGEST_BYTES", 100)
    steps = Steps()
    sizes = {1: 0, 2: 0, 3: 60, 4: 40, 5: 1, 6: 500, 7: 500, 8: 1}
    callers = [await steps.call(item, size) for item, size in sizes.items()]
    steps.let_all_go()
    assert await heard(*callers) == answers(*sizes)
    assert steps.begun == [[1], [2], [3, 4], [5], [6], [7], [8]]


async def test_an_item_that_is_refused_fails_alone() -> None:
    steps = Steps(guilty=[5])
    callers = await steps.calls(*range(10))
    steps.let_all_go()
    *_, refused = said = await heard(*callers[:5], *callers[6:], callers[5])
    assert said[:-1] == answers(0, 1, 2, 3, 4, 6, 7, 8, 9)
    assert isinstance(refused, Refused)


async def test_an_item_that_is_refused_costs_its_set_few_tries() -> None:
    steps = Steps(guilty=[77])
    callers = await steps.calls(*range(258))
    steps.let_all_go()
    await heard(*callers)
    # Two alone, then 256 of them: each halving is two tries.
    assert len(steps.begun) == 2 + 1 + 2 * 8


async def test_an_item_that_is_too_slow_gets_more_time_alone_and_holds_up_nobody() -> None:
    steps = Steps(slow=[5])
    callers = await steps.calls(*range(10))
    steps.let_all_go()
    assert await heard(*callers[:5], *callers[6:]) == answers(0, 1, 2, 3, 4, 6, 7, 8, 9)
    assert await heard(*await steps.calls(10, 11, 12)) == answers(10, 11, 12)
    assert steps.longer == [[5]]
    assert not callers[5].done()
    steps.more_time.set()
    assert await heard(callers[5]) == ["late answer to 5"]


async def test_a_set_with_an_item_that_is_too_slow_is_tried_item_by_item() -> None:
    steps = Steps(slow=[5])
    callers = await steps.calls(*range(8))
    steps.let_all_go()
    steps.more_time.set()
    await heard(*callers)
    assert steps.begun == [[0], [1], [2, 3, 4, 5, 6, 7], *([item] for item in range(2, 8))]


async def test_an_item_that_somebody_else_locks_fails_alone() -> None:
    steps = Steps(slow=[5], trouble=Locked)
    callers = await steps.calls(*range(10))
    steps.let_all_go()
    *said, locked = await heard(*callers[:5], *callers[6:], callers[5])
    assert said == answers(0, 1, 2, 3, 4, 6, 7, 8, 9)
    assert isinstance(locked, Locked)
    assert steps.longer == []


async def test_an_item_that_exceeds_a_limit_of_postgresql_fails_alone() -> None:
    steps = Steps(slow=[5], trouble=RowFailed)
    callers = await steps.calls(*range(10))
    steps.let_all_go()
    *said, refused = await heard(*callers[:5], *callers[6:], callers[5])
    assert said == answers(0, 1, 2, 3, 4, 6, 7, 8, 9)
    assert isinstance(refused, RowFailed)


async def test_where_every_item_is_too_slow_the_others_are_asked_to_come_again() -> None:
    steps = Steps(slow=range(2, 50))
    callers = await steps.calls(*range(50))
    steps.let_all_go()
    steps.more_time.set()
    said = await heard(*callers)
    assert said[:2] == answers(0, 1)
    assert said[2:4] == ["late answer to 2", "late answer to 3"]
    assert all(isinstance(each, Unavailable) for each in said[4:])
    assert len(steps.begun) == 2 + 1 + 2


async def test_of_a_set_with_many_items_that_are_too_slow_the_rest_is_asked_to_come_again() -> None:
    steps = Steps(slow=range(3, 50))
    callers = await steps.calls(*range(50))
    steps.let_all_go()
    steps.more_time.set()
    said = await heard(*callers)
    assert said[:3] == answers(0, 1, 2)
    assert said[3:7] == [f"late answer to {item}" for item in range(3, 7)]
    assert all(isinstance(each, Unavailable) for each in said[7:])


async def test_closing_lets_go_of_whoever_got_more_time() -> None:
    steps = Steps(held=False, slow=[1])
    caller = await steps.call(1)
    assert steps.longer == [[1]]
    await steps.group.close()
    [said] = await heard(caller)
    assert isinstance(said, Unavailable)


async def test_items_that_are_settled_one_by_one_are_answered_in_their_order() -> None:
    steps = Steps(held=False, slow=[2])
    steps.more_time.set()
    said = await steps.group.settle([1, 2, 3])
    assert said == ["answer to 1", "late answer to 2", "answer to 3"]


async def test_where_the_database_is_gone_all_of_a_set_fail_and_nothing_is_tried_again() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4)
    steps.unavailable = True
    steps.let_all_go()
    said = await heard(*callers)
    assert [str(each) for each in said if isinstance(each, Unavailable)] == ["gone fishing"] * 4
    assert len({id(each) for each in said}) == 4, "callers share an exception, and with it a traceback"
    assert steps.begun == [[1], [2], [3, 4]]


async def test_after_a_failure_the_next_calls_are_answered() -> None:
    steps = Steps(held=False)
    steps.unavailable = True
    await heard(await steps.call(1))
    steps.unavailable = False
    assert await heard(*await steps.calls(2, 3)) == answers(2, 3)


async def test_a_caller_who_leaves_before_its_set_begins_takes_its_item_back() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4)
    callers[2].cancel()
    steps.let_all_go()
    said = await heard(*callers)
    assert isinstance(said[2], asyncio.CancelledError)
    assert steps.begun == [[1], [2], [4]]


async def test_where_all_who_waited_have_left_no_empty_set_is_taken() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4)
    for caller in callers[2:]:
        caller.cancel()
    steps.let_all_go()
    await heard(*callers)
    assert steps.begun == [[1], [2]]
    assert await heard(await steps.call(5)) == answers(5)


async def test_a_caller_who_leaves_while_its_set_is_under_way_loses_nothing_for_the_others() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4, 5)
    await steps.let_go(0)
    assert steps.begun[-1] == [3, 4, 5]
    callers[3].cancel()
    steps.let_all_go()
    said = await heard(*callers)
    assert isinstance(said.pop(3), asyncio.CancelledError)
    assert said == answers(1, 2, 3, 5)


async def test_a_caller_who_leaves_a_set_that_fails_is_not_missed() -> None:
    steps = Steps(guilty=[4])
    callers = await steps.calls(1, 2, 3, 4, 5)
    await steps.let_go(0)
    callers[3].cancel()
    steps.let_all_go()
    said = await heard(*callers)
    assert isinstance(said.pop(3), asyncio.CancelledError)
    assert said == answers(1, 2, 3, 5)


async def test_beyond_the_most_that_may_wait_callers_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "_MOST_WAITING", 3)
    steps = Steps()
    callers = await steps.calls(*range(5))
    with pytest.raises(Overloaded):
        await steps.group.call(5, 0)
    await steps.let_go(0)
    callers.append(await steps.call(6))
    steps.let_all_go()
    assert await heard(*callers) == answers(0, 1, 2, 3, 4, 6)


async def test_beyond_the_most_bytes_that_may_wait_callers_are_sent_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_commit, "_MOST_WAITING_BYTES", 100)
    steps = Steps()
    # What is under way waits no more.
    callers = await steps.calls(0, 1, size=1000) + await steps.calls(2, 3, size=60)
    with pytest.raises(Overloaded):
        await steps.group.call(4, 0)
    await steps.let_go(0)
    callers.append(await steps.call(5, 60))
    steps.let_all_go()
    assert await heard(*callers) == answers(0, 1, 2, 3, 5)


async def test_closing_lets_go_of_whoever_waits_for_what_is_under_way() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2)
    await steps.group.close()
    assert all(isinstance(each, Unavailable) for each in await heard(*callers))


async def test_closing_lets_go_of_whoever_waits_for_a_set_to_come() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4)
    await steps.group.close()
    said = await heard(*callers)
    assert all(isinstance(each, Unavailable) for each in said)
    assert steps.begun == [[1], [2]]


async def test_closing_lets_go_of_whoever_has_only_just_called() -> None:
    steps = Steps()
    caller = asyncio.create_task(steps.group.call(1, 0))
    await asyncio.sleep(0)
    assert steps.begun == [], "too late: its set is under way"
    await steps.group.close()
    [said] = await heard(caller)
    assert isinstance(said, Unavailable)


async def test_closing_lets_go_of_a_set_that_is_tried_by_halves() -> None:
    steps = Steps(guilty=[3])
    callers = await steps.calls(1, 2, 3, 4, 5, 6)
    await steps.let_go(0)
    await steps.let_go(2)
    assert steps.begun == [[1], [2], [3, 4, 5, 6], [3, 4]]
    await steps.group.close()
    said = await heard(*callers)
    assert said[0] == "answer to 1"
    assert all(isinstance(each, Unavailable) for each in said[1:])


async def test_a_step_that_answers_too_few_fails_its_callers() -> None:
    steps = Steps()
    callers = await steps.calls(1, 2, 3, 4)
    steps.missing_answers = 1
    steps.let_all_go()
    assert all(isinstance(each, ValueError) for each in await heard(*callers))


@given(
    guilty=st.lists(st.booleans(), max_size=40),
    together=st.integers(1, 40),
    largest=st.integers(1, 12),
)
@settings(max_examples=100, deadline=None)
def test_whatever_comes_each_item_has_its_own_answer_and_exactly_the_guilty_fail(
    guilty: list[bool], together: int, largest: int
) -> None:
    bad = {item for item, is_guilty in enumerate(guilty) if is_guilty}

    async def run() -> None:
        steps = Steps(held=False, guilty=sorted(bad))
        callers = []
        for item in range(len(guilty)):
            callers.append(asyncio.create_task(steps.group.call(item, 1)))
            if item % together == together - 1:
                await asyncio.sleep(0)
        for item, said in enumerate(await heard(*callers)):
            if item in bad:
                assert isinstance(said, Refused)
            else:
                assert said == f"answer to {item}"
        assert all(len(items) <= largest for items in steps.begun)
        succeeded = [item for items in steps.begun if not bad & set(items) for item in items]
        assert sorted(succeeded) == sorted(set(range(len(guilty))) - bad), "an item was written twice"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_commit, "_LARGEST_SET", largest)
        asyncio.run(run())


async def test_fifty_that_come_at_once_are_all_written_and_each_hears_of_its_own(
    store: Store, sql: asyncpg.Connection
) -> None:
    ids = [f"task-{number}" for number in range(50)]
    told = await asyncio.gather(*(store.one(tasks.submit, new_task(id_)) for id_ in ids))
    assert [(each.task.id, each.created) for each in told] == [(id_, True) for id_ in ids]
    assert await sql.fetch("select id from tasks order by seq") == [(id_,) for id_ in ids]
    transactions = await sql.fetchval("select count(distinct xmin::text) from tasks")
    assert transactions < 10, "they did not share"


async def test_the_same_id_twice_at_once_is_created_once(store: Store, sql: asyncpg.Connection) -> None:
    told = await asyncio.gather(*(store.one(tasks.submit, new_task("same")) for _ in range(20)))
    assert sum(each.created for each in told) == 1
    assert {each.task.id for each in told} == {"same"}
    assert await sql.fetchval("select count(*) from tasks") == 1


async def test_a_value_that_postgresql_refuses_fails_alone(store: Store, sql: asyncpg.Connection) -> None:
    # The API would refuse it; the store hands it on.
    new = {f"task-{number}": Raw(b"1") for number in range(20)} | {"task-7": Raw(b'"\xff"')}
    calls = (store.one(tasks.submit, new_task(id_, payload=payload)) for id_, payload in new.items())
    told = dict(zip(new, await asyncio.gather(*calls, return_exceptions=True), strict=True))
    assert isinstance(told.pop("task-7"), BadRequest)
    assert [each.task.id for each in told.values()] == list(told)
    assert {row["id"] for row in await sql.fetch("select id from tasks")} == told.keys()


LARGE = "x" * 2**20
SLEEP = """
create function sleep() returns trigger language plpgsql as $$
    begin
        perform pg_sleep(60) from new_rows where id = 'guilty';
        return null;
    end
$$;
create trigger sleep after insert on tasks referencing new table as new_rows
for each statement execute function sleep();
"""


async def test_a_large_request_that_is_too_slow_for_the_database_gets_413_and_the_others_succeed(
    database: str, sql: asyncpg.Connection
) -> None:
    await sql.execute(SLEEP)
    async with running_broker(Settings(database_url=database, database_timeout_seconds=0.5)) as broker:
        ids = [*(f"task-{number}" for number in range(10)), "guilty", "last"]
        guilty = {"id": "guilty", "needs": {}, "payload": LARGE}
        bodies = (guilty if id_ == "guilty" else {"id": id_, "needs": {}} for id_ in ids)
        requests = (broker.client.post("/v1/tasks", json=body) for body in bodies)
        told = dict(zip(ids, await asyncio.gather(*requests), strict=True))
        problem = assert_problem(told.pop("guilty"), 413, "payload_too_large")
        assert "BROKER_DATABASE_TIMEOUT_SECONDS" in problem["detail"]
        assert {answer.status_code for answer in told.values()} == {201}
        batch = {"items": [{"id": "one", "needs": {}}, guilty]}
        assert_problem(await broker.client.post("/v1/tasks/batch", json=batch), 413, "payload_too_large")
        assert (await broker.client.get("/v1/tasks/one")).status_code == 404
        assert (await broker.client.get("/health/ready")).status_code == 200


async def test_a_small_request_that_is_too_slow_is_never_told_to_send_less(
    database: str, sql: asyncpg.Connection
) -> None:
    await sql.execute(SLEEP)
    async with running_broker(Settings(database_url=database, database_timeout_seconds=0.5)) as broker:
        body = {"id": "guilty", "needs": {}}
        assert_problem(await broker.client.post("/v1/tasks", json=body), 503, "unavailable")
        # The database is fast again.
        await sql.execute("drop trigger sleep on tasks")
        assert (await broker.client.post("/v1/tasks", json=body)).status_code == 201


async def test_of_items_that_are_each_for_itself_one_that_is_too_slow_keeps_no_other_from_success(
    database: str, sql: asyncpg.Connection
) -> None:
    await sql.execute(SLEEP)
    async with steps_of_store.open_store(database, timeout_seconds=0.5) as store:
        ids = ["one", "guilty", "two"]
        with pytest.raises(TooSlow):
            await store.each(tasks.submit, [new_task(id_) for id_ in ids])
    assert {row["id"] for row in await sql.fetch("select id from tasks")} == {"one", "two"}


async def test_where_too_much_waits_the_client_is_asked_to_come_again(
    broker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(group_commit, "_MOST_WAITING", 0)
        refused = await broker.client.post("/v1/tasks", json={"id": "a", "needs": {}})
    assert_problem(refused, 503, "unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await broker.client.post("/v1/tasks", json={"id": "a", "needs": {}})).status_code == 201
