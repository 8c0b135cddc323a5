"""Notifications: who is told of what, and that a hint which cannot be given never fails a write."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from broker.postgres.cluster import EmbeddedPostgres
from broker.schemas.tasks import TaskRemark
from broker.schemas.tools import ToolChange
from broker.store import (
    Store,
    acceptance,
    assignment,
    cancellation,
    completion,
    deletion,
    due,
    keys,
    leases,
    migration,
    tasks,
    tools,
    work,
)
from broker.store.cancellation import Cancellation
from broker.wake.listener import CANDIDATES, CHANNELS, EVENTS, TASK, TOOL, UPKEEP, WORK
from tests.conftest import run_sql, temporary_folder
from tests.support import steps
from tests.support.waiting import wait_until

FENCE = "broker_test_fence"
IN_AN_HOUR = timedelta(hours=1)
IN_TEN_SECONDS = timedelta(seconds=10)


class Heard:
    """What a listener hears."""

    def __init__(
        self, database: str, listener: asyncpg.Connection, sql: asyncpg.Connection, channels: Iterable[str]
    ) -> None:
        self.database = database
        self._channels = channels
        self._listener = listener
        self._sql = sql
        self._all: list[tuple[str, str]] = []
        self._numbers = count()

    async def listen(self) -> None:
        for channel in (*self._channels, FENCE):
            await self._listener.add_listener(channel, self._hear)

    def _hear(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        self._all.append((channel, payload))

    async def since(self) -> list[tuple[str, str]]:
        """What was heard since the last call, sorted: notifications come in the order of their commits."""
        fence = (FENCE, str(next(self._numbers)))
        await self._sql.execute("select pg_notify($1, $2)", *fence)

        async def passed() -> bool:
            await self._listener.execute("select")
            return fence in self._all

        await wait_until(passed)
        heard, self._all = self._all, []
        assert heard.pop() == fence
        return sorted((channel, ",".join(sorted(payload.split(",")))) for channel, payload in heard)


@pytest.fixture
async def heard(database: str, sql: asyncpg.Connection) -> AsyncIterator[Heard]:
    """What those hear who wait for something."""
    async with steps.open_connection(database) as listener:
        heard = Heard(database, listener, sql, set(CHANNELS) - {EVENTS})
        await heard.listen()
        yield heard


@pytest.fixture
async def told(database: str, sql: asyncpg.Connection) -> AsyncIterator[Heard]:
    """What those are told beside who watch everything."""
    async with steps.open_connection(database) as listener:
        told = Heard(database, listener, sql, [EVENTS])
        await told.listen()
        yield told


async def test_new_tasks_are_for_the_assigner(store: Store, heard: Heard) -> None:
    await steps.submit(store, "a", "b", "c")
    assert await heard.since() == [(CANDIDATES, "*")]


async def test_what_comes_due_before_the_upkeep_looks_by_itself_is_for_it(store: Store, heard: Heard) -> None:
    await steps.submit(store, "later", not_before=datetime.now(UTC) + IN_AN_HOUR)
    assert await heard.since() == []
    await steps.submit(store, "soon", not_before=datetime.now(UTC) + IN_TEN_SECONDS)
    assert await heard.since() == [(UPKEEP, "tasks")]
    await steps.register(store, "hasty", lease_seconds=10)
    await steps.register(store, "patient", lease_seconds=60)
    assert sorted(await heard.since()) == [(CANDIDATES, "*")] * 2 + [(UPKEEP, "tools")] * 2
    await steps.submit(store, "quick", timeout_seconds=10)
    await steps.submit(store, "long", timeout_seconds=60)
    await heard.since()
    [quick] = await steps.assign_all(store, ("quick", "hasty"))
    assert await heard.since() == [(TOOL, "hasty"), (UPKEEP, "work")]
    [long] = await steps.assign_all(store, ("long", "patient"))
    assert await heard.since() == [(TOOL, "patient")]
    await store.one(work.start, work.Start(quick.id))
    assert await heard.since() == [(UPKEEP, "work"), (WORK, f"{quick.id}")]
    await store.one(work.start, work.Start(long.id))
    assert await heard.since() == [(WORK, f"{long.id}")]


async def test_a_known_task_is_no_news(store: Store, heard: Heard) -> None:
    await steps.submit(store, "a")
    await heard.since()
    await steps.submit(store, "a")
    assert await heard.since() == []


async def test_a_new_tool_is_for_the_assigner_and_one_that_registers_anew_for_who_waits_for_its_work_too(
    store: Store, heard: Heard
) -> None:
    await steps.register(store, "t")
    assert await heard.since() == [(CANDIDATES, "*"), (UPKEEP, "tools")]
    await steps.register(store, "t")
    assert await heard.since() == [(CANDIDATES, "*"), (TOOL, "t"), (UPKEEP, "tools")]


async def test_another_length_of_a_lease_is_for_who_waits_for_the_tools_work(
    store: Store, heard: Heard
) -> None:
    await steps.register(store, "t")
    await heard.since()
    await store.one(tools.change, tools.Change("t", ToolChange(lease_seconds=5)))
    assert await heard.since() == [(CANDIDATES, "*"), (TOOL, "t"), (UPKEEP, "tools")]


async def test_a_tool_that_is_back_is_for_the_upkeep_which_watches_its_lease_again(
    store: Store, sql: asyncpg.Connection, heard: Heard
) -> None:
    await steps.register(store, "t")
    await sql.execute("update tool_leases set expires_at = now()")
    await store.run(due.take_offline, 10)
    await heard.since()
    await store.one(leases.heartbeat, leases.Beat("t"))
    assert await heard.since() == [(CANDIDATES, "*"), (UPKEEP, "tools")]


async def test_a_tool_that_changes_is_news_while_it_is_available(store: Store, heard: Heard) -> None:
    await steps.register(store, "t")
    await heard.since()
    await store.one(tools.change, tools.Change("t", ToolChange(capacity=2)))
    assert await heard.since() == [(CANDIDATES, "*")]
    await store.one(tools.change, tools.Change("t", ToolChange(draining=True)))
    assert await heard.since() == []
    await store.one(tools.change, tools.Change("t", ToolChange(draining=False)))
    assert await heard.since() == [(CANDIDATES, "*")]


async def test_an_assignment_is_for_its_tools_and_for_no_other(store: Store, heard: Heard) -> None:
    await steps.submit(store, "a", "b", "c")
    await steps.register(store, "t", "u", "v", capacity=2)
    await steps.assign(store, ("c", "v"), ("a", "t"), ("b", "t"))
    await steps.register(store, "full")
    await heard.since()
    await steps.submit(store, "d", "e")
    assert await heard.since() == [(CANDIDATES, "*")]
    await steps.assign(store, ("d", "full"), ("e", "v"))
    assert await heard.since() == [(TOOL, "full,v")]
    await steps.assign(store, ("d", "full"), ("nothing", "t"))
    assert await heard.since() == []


async def test_a_tool_with_room_left_is_news_to_the_assigner(store: Store, heard: Heard) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t", capacity=2)
    await heard.since()
    await steps.assign(store, ("a", "t"))
    assert await heard.since() == [(CANDIDATES, "*"), (TOOL, "t")]


async def test_starting_and_reporting_are_for_who_watches_the_work(store: Store, heard: Heard) -> None:
    made = await steps.add_assigned_work(store)
    await heard.since()
    await store.one(work.start, work.Start(made.id))
    assert await heard.since() == [(WORK, f"{made.id}")]
    await store.one(work.start, work.Start(made.id))
    assert await heard.since() == []
    await steps.report(store, made.id, progress=0.5)
    assert await heard.since() == [(WORK, f"{made.id}")]


async def test_a_report_that_is_there_already_is_no_news(store: Store, heard: Heard) -> None:
    made = await steps.add_running_work(store)
    id_ = uuid4()
    await steps.report(store, made.id, id=id_)
    await heard.since()
    await steps.report(store, made.id, id=id_)
    assert await heard.since() == []


async def test_a_cancel_that_is_asked_for_is_for_who_watches_the_work(store: Store, heard: Heard) -> None:
    made = await steps.add_running_work(store, "a")
    await heard.since()
    await steps.delete(store, "a")
    assert await heard.since() == [(WORK, f"{made.id}")]
    await steps.delete(store, "a")
    assert await heard.since() == []


async def test_success_is_for_who_waits_for_the_task_and_for_the_assigner_a_tool_with_room(
    store: Store, heard: Heard
) -> None:
    made = await steps.add_running_work(store, "a")
    await heard.since()
    await steps.complete(store, made.id)
    assert await heard.since() == [(CANDIDATES, "*"), (TASK, "a"), (WORK, f"{made.id}")]
    await steps.complete(store, made.id)
    assert await heard.since() == []


async def test_a_failure_with_a_backoff_is_for_upkeep_and_not_for_who_waits_for_the_task(
    store: Store, heard: Heard
) -> None:
    made = await steps.add_running_work(store, "a")
    await heard.since()
    await steps.complete(store, made.id, "failed")
    assert await heard.since() == [(CANDIDATES, "*"), (UPKEEP, "tasks"), (WORK, f"{made.id}")]


async def test_the_last_failure_is_for_who_waits_for_the_task(store: Store, heard: Heard) -> None:
    made = await steps.add_running_work(store, "a", max_attempts=1)
    await heard.since()
    await steps.complete(store, made.id, "failed")
    assert await heard.since() == [(CANDIDATES, "*"), (TASK, "a"), (WORK, f"{made.id}")]


async def test_a_deletion_is_for_who_waits_for_the_task(store: Store, heard: Heard) -> None:
    await steps.submit(store, "a", "b")
    await heard.since()
    await store.many(deletion.delete, [deletion.TaskDeletion("a"), deletion.TaskDeletion("b")])
    assert await heard.since() == [(TASK, "a,b")]


async def test_a_task_that_comes_due_is_for_the_assigner(
    store: Store, heard: Heard, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a", not_before=datetime.now(UTC) + IN_AN_HOUR)
    await sql.execute("update tasks set due_at = now()")
    await heard.since()
    assert await store.run(due.make_available, 10) == 1
    assert await heard.since() == [(CANDIDATES, "*")]


async def test_a_tool_that_is_deleted_is_for_who_waits_for_its_work(store: Store, heard: Heard) -> None:
    await steps.register(store, "t", "u")
    await heard.since()
    await store.many(tools.delete, [tools.ToolDeletion("t"), tools.ToolDeletion("nothing")])
    assert await heard.since() == [(TOOL, "t")]


async def test_renewals_and_remarks_are_no_news(store: Store, heard: Heard) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t", "u")
    await heard.since()
    await store.many(leases.heartbeat, [leases.Beat("t"), leases.Beat("u")])
    await store.many(tasks.remark, [TaskRemark(task_id="a", text="why")])
    assert await heard.since() == []


async def test_steps_over_nothing_are_no_news(store: Store, heard: Heard) -> None:
    await steps.assign(store, ("nothing", "nowhere"))
    await steps.complete(store, uuid4())
    await store.one(work.start, work.Start(uuid4()))
    await steps.delete(store, "nothing")
    await store.one(cancellation.cancel, Cancellation(uuid4()))
    await store.one(acceptance.accept, uuid4())
    await store.one(tasks.retry, "nothing")
    await store.one(leases.heartbeat, leases.Beat("nobody"))
    for chore in due.CHORES:
        await store.run(chore.do, 10)
    await store.run(due.make_available, 10)
    await store.many(tasks.remark, [TaskRemark(task_id="nothing", text="why")])
    await store.one(tools.change, tools.Change("nowhere", ToolChange(capacity=1)))
    assert await heard.since() == []


async def test_what_is_rolled_back_is_no_news(store: Store, heard: Heard) -> None:
    given_up = steps.OpenTransaction(store)
    await (await given_up.begin()).run(tasks.submit, [steps.new_task("a")])
    await given_up.roll_back()
    assert await heard.since() == []


async def test_a_set_is_one_notification_on_each_channel(store: Store, heard: Heard) -> None:
    ids = [f"{number:03}" for number in range(50)]
    await steps.submit(store, *ids)
    assert await heard.since() == [(CANDIDATES, "*")]
    await steps.register(store, "t", capacity=50)
    await heard.since()
    made = await steps.assign_all(store, *((id_, "t") for id_ in ids))
    assert await heard.since() == [(TOOL, "t")]
    works = ",".join(sorted(f"{item.id}" for item in made))
    await store.many(work.start, [work.Start(item.id) for item in made])
    assert await heard.since() == [(WORK, works)]
    await store.many(completion.complete, [steps.new_ending(item.id) for item in made])
    assert await heard.since() == [(CANDIDATES, "*"), (TASK, ",".join(ids)), (WORK, works)]


async def test_a_transaction_of_many_steps_is_one_notification_on_the_assigners_channel(
    store: Store, heard: Heard
) -> None:
    async with steps.OpenTransaction(store) as held:
        for number in range(20):
            await held.run(tasks.submit, [steps.new_task(f"{number}")])
    assert await heard.since() == [(CANDIDATES, "*")]


async def test_who_watches_everything_is_told_of_new_tasks_and_tools_and_of_work_that_is_assigned(
    store: Store, told: Heard
) -> None:
    await steps.submit(store, "a", not_before=datetime.now(UTC) + IN_AN_HOUR)
    await steps.submit(store, "b")
    await steps.submit(store, "b")
    assert await told.since() == [(EVENTS, "task a"), (EVENTS, "task b")]
    await steps.register(store, "t")
    assert await told.since() == [(EVENTS, "tool t")]
    [made] = await steps.assign_all(store, ("b", "t"))
    assert await told.since() == [(EVENTS, f"work {made.id}")]


async def test_who_watches_everything_is_told_of_every_change_of_a_task_that_waits(
    store: Store, told: Heard, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store, "a", max_attempts=2)
    await told.since()
    await steps.complete(store, made.id, "failed")
    assert await told.since() == [(EVENTS, "task a")]
    await sql.execute("update tasks set due_at = now()")
    await told.since()
    assert await store.run(due.make_available, 10) == 1
    assert await told.since() == [(EVENTS, "task a")]
    await store.one(tasks.remark, TaskRemark(task_id="a", text="why"))
    assert await told.since() == [(EVENTS, "task a")]
    [made] = await steps.assign_all(store, ("a", "tool"))
    await steps.complete(store, made.id, "failed")
    assert await told.since() == [(EVENTS, "task a"), (EVENTS, f"work {made.id}")]
    await store.one(tasks.retry, "a")
    assert await told.since() == [(EVENTS, "task a")]


async def test_who_watches_everything_is_told_of_every_change_of_a_tool_but_of_its_load(
    store: Store, told: Heard, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t")
    await told.since()
    for change in (ToolChange(capacity=2), ToolChange(draining=True), ToolChange(draining=False)):
        await store.one(tools.change, tools.Change("t", change))
        assert await told.since() == [(EVENTS, "tool t")]
    [made] = await steps.assign_all(store, ("a", "t"))
    await steps.complete(store, made.id)
    assert await told.since() == [(EVENTS, f"work {made.id}")]
    await sql.execute("update tool_leases set expires_at = now()")
    await store.run(due.take_offline, 10)
    assert await told.since() == [(EVENTS, "tool t")]
    await store.one(leases.heartbeat, leases.Beat("t"))
    assert await told.since() == [(EVENTS, "tool t")]
    await store.one(leases.heartbeat, leases.Beat("t"))
    assert await told.since() == []


async def test_what_the_other_channels_tell_is_not_told_once_more(store: Store, told: Heard) -> None:
    made = await steps.add_assigned_work(store, "a")
    await told.since()
    await store.one(work.start, work.Start(made.id))
    await steps.report(store, made.id, progress=0.5)
    await steps.complete(store, made.id)
    await store.many(tools.delete, [tools.ToolDeletion("tool")])
    assert await told.since() == []


async def test_who_watches_is_told_that_keys_have_changed(store: Store, told: Heard) -> None:
    assert await store.run(keys.create, "k", ["operator"], b"hash")
    assert await told.since() == [(EVENTS, "key *")]
    assert await store.run(keys.revoke, "k")
    assert await told.since() == [(EVENTS, "key *")]


async def test_steps_over_nothing_are_no_events_either(store: Store, told: Heard) -> None:
    await steps.assign(store, ("nothing", "nowhere"))
    await steps.complete(store, uuid4())
    await steps.delete(store, "nothing")
    await store.one(tasks.retry, "nothing")
    await store.one(leases.heartbeat, leases.Beat("nobody"))
    for chore in due.CHORES:
        await store.run(chore.do, 10)
    await store.many(tasks.remark, [TaskRemark(task_id="nothing", text="why")])
    await store.one(tools.change, tools.Change("nowhere", ToolChange(capacity=1)))
    assert await told.since() == []


@pytest.mark.parametrize(("length", "is_told"), [(139, True), (140, False)])
async def test_more_ids_of_a_kind_than_fit_are_a_star(
    store: Store, told: Heard, length: int, is_told: bool
) -> None:
    # 50 ids and the commas between them: 6,999 bytes, and 7,049.
    ids = [f"{number:02}{'x' * (length - 2)}" for number in range(50)]
    await steps.submit(store, *ids)
    [(_, payload)] = await told.since()
    assert payload == ",".join(sorted(f"task {','.join(ids)}".split(",")) if is_told else ["task *"])


@pytest.mark.parametrize(("length", "instead"), [(139, None), (140, "*")])
async def test_more_ids_than_fit_are_a_star(
    store: Store, heard: Heard, sql: asyncpg.Connection, length: int, instead: str | None
) -> None:
    # 50 ids and the commas between them: 6,999 bytes, and 7,049.
    ids = [f"{number:02}{'x' * (length - 2)}" for number in range(50)]
    await sql.execute("alter table tools disable trigger user")
    await sql.execute(
        "insert into tools (id, skills, capacity) select id, '{}', 1 from unnest(cast($1 as text[])) as id",
        ids,
    )
    await sql.execute(
        "insert into tool_leases (tool_id, lease_seconds, expires_at) select id, 60, now() from tools"
    )
    await steps.submit(store, *(f"{number}" for number in range(50)))
    await heard.since()
    await steps.assign_all(store, *((f"{number}", id_) for number, id_ in enumerate(ids)))
    assert await heard.since() == [(TOOL, instead or ",".join(ids))]


RAISES = """
create function public.pg_notify(text, text) returns void language plpgsql as $$
    begin raise exception 'no notification today'; end $$
"""
EXCEEDS = """
create function public.pg_notify(text, text) returns void language sql as $$
    select pg_catalog.pg_notify($1, repeat('x', 9000)) $$
"""


@pytest.mark.parametrize("broken", [RAISES, EXCEEDS], ids=["it raises", "it exceeds"])
async def test_a_hint_that_cannot_be_given_never_fails_the_write(
    store: Store, heard: Heard, sql: asyncpg.Connection, broken: str
) -> None:
    await sql.execute(broken)
    # Ours is found before PostgreSQL's now, in every connection that begins after this.
    name = await sql.fetchval("select current_database()")
    await run_sql(heard.database, f"alter database {name} set search_path = public, pg_catalog")
    made = await steps.add_running_work(store, "a", max_attempts=1)
    await steps.report(store, made.id, progress=1)
    await steps.complete(store, made.id, "failed")
    await steps.submit(store, "b", not_before=datetime.now(UTC) + IN_AN_HOUR)
    await steps.delete(store, "b")
    assert await heard.since() == []
    assert (await steps.get_task(store, "a")).state == "failed"
    await steps.check_invariants(sql)


async def test_without_any_trigger_every_step_answers_the_same(
    store: Store, heard: Heard, sql: asyncpg.Connection
) -> None:
    await steps.disable_notifications(sql)
    made = await steps.add_running_work(store, "a")
    assert (await steps.assign(store, ("a", "tool")))[0] == assignment.Assigned("exists", made)
    assert (await steps.complete(store, made.id)).status == "ended"
    assert await heard.since() == []
    await steps.check_invariants(sql)


@pytest.fixture(scope="module")
def crowded() -> Iterator[str]:
    """The URL of a server whose queue of notifications is soon full."""
    with temporary_folder() as folder:
        with EmbeddedPostgres(folder / "data", durable=False) as embedded:
            asyncio.run(run_sql(embedded.url(), "alter system set max_notify_queue_pages = 64"))
        with EmbeddedPostgres(folder / "data", durable=False) as embedded:
            yield embedded.url()


async def test_a_listener_that_is_stuck_and_lets_the_queue_fill_up_never_fails_the_write(
    crowded: str,
) -> None:
    await migration.migrate(crowded)
    async with (
        steps.open_connection(crowded) as stuck,
        steps.open_connection(crowded) as other,
        steps.open_store(crowded) as store,
    ):
        await stuck.execute(f"listen {FENCE}")
        await stuck.execute("begin")
        await stuck.execute("select")
        while await other.fetchval("select pg_notification_queue_usage()") < 0.95:
            await other.execute(f"select pg_notify('{FENCE}', gen_random_uuid() || repeat('x', 7000))")
        made = await steps.add_running_work(store, "a")
        await steps.complete(store, made.id)
        assert (await steps.get_task(store, "a")).state == "succeeded"
