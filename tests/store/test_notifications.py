"""Notifications: which channel each change notifies. A notification that fails never fails the write."""

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
    submission,
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


class Notifications:
    """The notifications that a listener receives."""

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
            await self._listener.add_listener(channel, self._receive)

    def _receive(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        self._all.append((channel, payload))

    async def since(self) -> list[tuple[str, str]]:
        """Return the notifications since the last call, sorted, because they come in the order of commits."""
        fence = (FENCE, str(next(self._numbers)))
        await self._sql.execute("select pg_notify($1, $2)", *fence)

        async def passed() -> bool:
            await self._listener.execute("select")
            return fence in self._all

        await wait_until(passed)
        notifications, self._all = self._all, []
        assert notifications.pop() == fence
        return sorted((channel, ",".join(sorted(payload.split(",")))) for channel, payload in notifications)


@pytest.fixture
async def notifications(database: str, sql: asyncpg.Connection) -> AsyncIterator[Notifications]:
    """Receive the notifications for waiting requests."""
    async with steps.open_connection(database) as listener:
        notifications = Notifications(database, listener, sql, set(CHANNELS) - {EVENTS})
        await notifications.listen()
        yield notifications


@pytest.fixture
async def event_notifications(database: str, sql: asyncpg.Connection) -> AsyncIterator[Notifications]:
    """Receive the further notifications for the event stream."""
    async with steps.open_connection(database) as listener:
        event_notifications = Notifications(database, listener, sql, [EVENTS])
        await event_notifications.listen()
        yield event_notifications


async def test_new_tasks_notify_assigners(store: Store, notifications: Notifications) -> None:
    await steps.submit(store, "a", "b", "c")
    assert await notifications.since() == [(CANDIDATES, "*")]


async def test_rows_that_come_due_soon_notify_upkeep(store: Store, notifications: Notifications) -> None:
    await steps.submit(store, "later", not_before=datetime.now(UTC) + IN_AN_HOUR)
    assert await notifications.since() == []
    await steps.submit(store, "soon", not_before=datetime.now(UTC) + IN_TEN_SECONDS)
    assert await notifications.since() == [(UPKEEP, "tasks")]
    await steps.register(store, "hasty", lease_seconds=10)
    await steps.register(store, "patient", lease_seconds=60)
    assert sorted(await notifications.since()) == [(CANDIDATES, "*")] * 2 + [(UPKEEP, "tools")] * 2
    await steps.submit(store, "quick", timeout_seconds=10)
    await steps.submit(store, "long", timeout_seconds=60)
    await notifications.since()
    [quick] = await steps.assign_all(store, ("quick", "hasty"))
    assert await notifications.since() == [(TOOL, "hasty"), (UPKEEP, "work")]
    [long] = await steps.assign_all(store, ("long", "patient"))
    assert await notifications.since() == [(TOOL, "patient")]
    await store.one(work.start, work.Start(quick.id))
    assert await notifications.since() == [(UPKEEP, "work"), (WORK, f"{quick.id}")]
    await store.one(work.start, work.Start(long.id))
    assert await notifications.since() == [(WORK, f"{long.id}")]


async def test_a_repeated_submission_notifies_nobody(store: Store, notifications: Notifications) -> None:
    await steps.submit(store, "a")
    await notifications.since()
    await steps.submit(store, "a")
    assert await notifications.since() == []


async def test_a_new_tool_notifies_assigners_and_a_repeated_registration_also_the_waiting_tool(
    store: Store, notifications: Notifications
) -> None:
    await steps.register(store, "t")
    assert await notifications.since() == [(CANDIDATES, "*"), (UPKEEP, "tools")]
    await steps.register(store, "t")
    assert await notifications.since() == [(CANDIDATES, "*"), (TOOL, "t"), (UPKEEP, "tools")]


async def test_a_changed_lease_length_notifies_the_waiting_tool(
    store: Store, notifications: Notifications
) -> None:
    await steps.register(store, "t")
    await notifications.since()
    await store.one(tools.change, tools.Change("t", ToolChange(lease_seconds=5)))
    assert await notifications.since() == [(CANDIDATES, "*"), (TOOL, "t"), (UPKEEP, "tools")]


async def test_a_tool_that_comes_back_online_notifies_upkeep(
    store: Store, sql: asyncpg.Connection, notifications: Notifications
) -> None:
    await steps.register(store, "t")
    await sql.execute("update tool_leases set expires_at = now()")
    await store.run(due.take_offline, 10)
    await notifications.since()
    await store.one(leases.heartbeat, leases.Beat("t"))
    assert await notifications.since() == [(CANDIDATES, "*"), (UPKEEP, "tools")]


async def test_a_changed_tool_notifies_assigners_while_it_is_available(
    store: Store, notifications: Notifications
) -> None:
    await steps.register(store, "t")
    await notifications.since()
    await store.one(tools.change, tools.Change("t", ToolChange(capacity=2)))
    assert await notifications.since() == [(CANDIDATES, "*")]
    await store.one(tools.change, tools.Change("t", ToolChange(draining=True)))
    assert await notifications.since() == []
    await store.one(tools.change, tools.Change("t", ToolChange(draining=False)))
    assert await notifications.since() == [(CANDIDATES, "*")]


async def test_an_assignment_notifies_only_its_tools(store: Store, notifications: Notifications) -> None:
    await steps.submit(store, "a", "b", "c")
    await steps.register(store, "t", "u", "v", capacity=2)
    await steps.assign(store, ("c", "v"), ("a", "t"), ("b", "t"))
    await steps.register(store, "full")
    await notifications.since()
    await steps.submit(store, "d", "e")
    assert await notifications.since() == [(CANDIDATES, "*")]
    await steps.assign(store, ("d", "full"), ("e", "v"))
    assert await notifications.since() == [(TOOL, "full,v")]
    await steps.assign(store, ("d", "full"), ("nothing", "t"))
    assert await notifications.since() == []


async def test_an_assignment_that_leaves_capacity_notifies_assigners(
    store: Store, notifications: Notifications
) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t", capacity=2)
    await notifications.since()
    await steps.assign(store, ("a", "t"))
    assert await notifications.since() == [(CANDIDATES, "*"), (TOOL, "t")]


async def test_starts_and_reports_notify_requests_that_wait_for_the_work(
    store: Store, notifications: Notifications
) -> None:
    made = await steps.add_assigned_work(store)
    await notifications.since()
    await store.one(work.start, work.Start(made.id))
    assert await notifications.since() == [(WORK, f"{made.id}")]
    await store.one(work.start, work.Start(made.id))
    assert await notifications.since() == []
    await steps.report(store, made.id, progress=0.5)
    assert await notifications.since() == [(WORK, f"{made.id}")]


async def test_a_repeated_report_notifies_nobody(store: Store, notifications: Notifications) -> None:
    made = await steps.add_running_work(store)
    id_ = uuid4()
    await steps.report(store, made.id, id=id_)
    await notifications.since()
    await steps.report(store, made.id, id=id_)
    assert await notifications.since() == []


async def test_a_requested_cancellation_notifies_requests_that_wait_for_the_work(
    store: Store, notifications: Notifications
) -> None:
    made = await steps.add_running_work(store, "a")
    await notifications.since()
    await steps.delete(store, "a")
    assert await notifications.since() == [(WORK, f"{made.id}")]
    await steps.delete(store, "a")
    assert await notifications.since() == []


async def test_a_success_notifies_requests_that_wait_for_the_task_and_assigners(
    store: Store, notifications: Notifications
) -> None:
    made = await steps.add_running_work(store, "a")
    await notifications.since()
    await steps.complete(store, made.id)
    assert await notifications.since() == [(CANDIDATES, "*"), (TASK, "a"), (WORK, f"{made.id}")]
    await steps.complete(store, made.id)
    assert await notifications.since() == []


async def test_a_failure_with_a_backoff_notifies_upkeep_but_not_requests_for_the_task(
    store: Store, notifications: Notifications
) -> None:
    made = await steps.add_running_work(store, "a")
    await notifications.since()
    await steps.complete(store, made.id, "failed")
    assert await notifications.since() == [(CANDIDATES, "*"), (UPKEEP, "tasks"), (WORK, f"{made.id}")]


async def test_the_last_failure_notifies_requests_that_wait_for_the_task(
    store: Store, notifications: Notifications
) -> None:
    made = await steps.add_running_work(store, "a", max_attempts=1)
    await notifications.since()
    await steps.complete(store, made.id, "failed")
    assert await notifications.since() == [(CANDIDATES, "*"), (TASK, "a"), (WORK, f"{made.id}")]


async def test_a_deletion_notifies_requests_that_wait_for_the_task(
    store: Store, notifications: Notifications
) -> None:
    await steps.submit(store, "a", "b")
    await notifications.since()
    await store.many(deletion.delete, [deletion.TaskDeletion("a"), deletion.TaskDeletion("b")])
    assert await notifications.since() == [(TASK, "a,b")]


async def test_a_task_that_comes_due_notifies_assigners(
    store: Store, notifications: Notifications, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a", not_before=datetime.now(UTC) + IN_AN_HOUR)
    await sql.execute("update tasks set due_at = now()")
    await notifications.since()
    assert await store.run(due.make_available, 10) == 1
    assert await notifications.since() == [(CANDIDATES, "*")]


async def test_a_deleted_tool_notifies_requests_that_wait_for_its_work(
    store: Store, notifications: Notifications
) -> None:
    await steps.register(store, "t", "u")
    await notifications.since()
    await store.many(tools.delete, [tools.ToolDeletion("t"), tools.ToolDeletion("nothing")])
    assert await notifications.since() == [(TOOL, "t")]


async def test_lease_renewals_and_remarks_notify_nobody(store: Store, notifications: Notifications) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t", "u")
    await notifications.since()
    await store.many(leases.heartbeat, [leases.Beat("t"), leases.Beat("u")])
    await store.many(tasks.remark, [TaskRemark(task_id="a", text="why")])
    assert await notifications.since() == []


async def test_steps_without_effect_notify_nobody(store: Store, notifications: Notifications) -> None:
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
    assert await notifications.since() == []


async def test_a_rolled_back_transaction_notifies_nobody(store: Store, notifications: Notifications) -> None:
    given_up = steps.OpenTransaction(store)
    await (await given_up.begin()).run(submission.submit, [steps.new_task("a")])
    await given_up.roll_back()
    assert await notifications.since() == []


async def test_a_set_sends_one_notification_on_each_channel(
    store: Store, notifications: Notifications
) -> None:
    ids = [f"{number:03}" for number in range(50)]
    await steps.submit(store, *ids)
    assert await notifications.since() == [(CANDIDATES, "*")]
    await steps.register(store, "t", capacity=50)
    await notifications.since()
    made = await steps.assign_all(store, *((id_, "t") for id_ in ids))
    assert await notifications.since() == [(TOOL, "t")]
    works = ",".join(sorted(f"{item.id}" for item in made))
    await store.many(work.start, [work.Start(item.id) for item in made])
    assert await notifications.since() == [(WORK, works)]
    await store.many(completion.complete, [steps.new_ending(item.id) for item in made])
    assert await notifications.since() == [(CANDIDATES, "*"), (TASK, ",".join(ids)), (WORK, works)]


async def test_a_transaction_of_many_steps_notifies_assigners_once(
    store: Store, notifications: Notifications
) -> None:
    async with steps.OpenTransaction(store) as held:
        for number in range(20):
            await held.run(submission.submit, [steps.new_task(f"{number}")])
    assert await notifications.since() == [(CANDIDATES, "*")]


async def test_new_tasks_tools_and_work_notify_the_event_stream(
    store: Store, event_notifications: Notifications
) -> None:
    await steps.submit(store, "a", not_before=datetime.now(UTC) + IN_AN_HOUR)
    await steps.submit(store, "b")
    await steps.submit(store, "b")
    assert await event_notifications.since() == [(EVENTS, "task a"), (EVENTS, "task b")]
    await steps.register(store, "t")
    assert await event_notifications.since() == [(EVENTS, "tool t")]
    [made] = await steps.assign_all(store, ("b", "t"))
    assert await event_notifications.since() == [(EVENTS, f"work {made.id}")]


async def test_changes_of_a_waiting_task_notify_the_event_stream(
    store: Store, event_notifications: Notifications, sql: asyncpg.Connection
) -> None:
    made = await steps.add_running_work(store, "a", max_attempts=2)
    await event_notifications.since()
    await steps.complete(store, made.id, "failed")
    assert await event_notifications.since() == [(EVENTS, "task a")]
    await sql.execute("update tasks set due_at = now()")
    await event_notifications.since()
    assert await store.run(due.make_available, 10) == 1
    assert await event_notifications.since() == [(EVENTS, "task a")]
    await store.one(tasks.remark, TaskRemark(task_id="a", text="why"))
    assert await event_notifications.since() == [(EVENTS, "task a")]
    [made] = await steps.assign_all(store, ("a", "tool"))
    await steps.complete(store, made.id, "failed")
    assert await event_notifications.since() == [(EVENTS, "task a"), (EVENTS, f"work {made.id}")]
    await store.one(tasks.retry, "a")
    assert await event_notifications.since() == [(EVENTS, "task a")]


async def test_changes_of_a_tool_except_its_load_notify_the_event_stream(
    store: Store, event_notifications: Notifications, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t")
    await event_notifications.since()
    for change in (ToolChange(capacity=2), ToolChange(draining=True), ToolChange(draining=False)):
        await store.one(tools.change, tools.Change("t", change))
        assert await event_notifications.since() == [(EVENTS, "tool t")]
    [made] = await steps.assign_all(store, ("a", "t"))
    await steps.complete(store, made.id)
    assert await event_notifications.since() == [(EVENTS, f"work {made.id}")]
    await sql.execute("update tool_leases set expires_at = now()")
    await store.run(due.take_offline, 10)
    assert await event_notifications.since() == [(EVENTS, "tool t")]
    await store.one(leases.heartbeat, leases.Beat("t"))
    assert await event_notifications.since() == [(EVENTS, "tool t")]
    await store.one(leases.heartbeat, leases.Beat("t"))
    assert await event_notifications.since() == []


async def test_changes_on_other_channels_do_not_notify_the_event_stream_again(
    store: Store, event_notifications: Notifications
) -> None:
    made = await steps.add_assigned_work(store, "a")
    await event_notifications.since()
    await store.one(work.start, work.Start(made.id))
    await steps.report(store, made.id, progress=0.5)
    await steps.complete(store, made.id)
    await store.many(tools.delete, [tools.ToolDeletion("tool")])
    assert await event_notifications.since() == []


async def test_changed_keys_notify_the_event_stream(store: Store, event_notifications: Notifications) -> None:
    assert await store.run(keys.create, "k", ["operator"], b"hash")
    assert await event_notifications.since() == [(EVENTS, "key *")]
    assert await store.run(keys.revoke, "k")
    assert await event_notifications.since() == [(EVENTS, "key *")]


async def test_steps_without_effect_do_not_notify_the_event_stream(
    store: Store, event_notifications: Notifications
) -> None:
    await steps.assign(store, ("nothing", "nowhere"))
    await steps.complete(store, uuid4())
    await steps.delete(store, "nothing")
    await store.one(tasks.retry, "nothing")
    await store.one(leases.heartbeat, leases.Beat("nobody"))
    for chore in due.CHORES:
        await store.run(chore.do, 10)
    await store.many(tasks.remark, [TaskRemark(task_id="nothing", text="why")])
    await store.one(tools.change, tools.Change("nowhere", ToolChange(capacity=1)))
    assert await event_notifications.since() == []


@pytest.mark.parametrize(("length", "fits"), [(139, True), (140, False)])
async def test_an_event_notification_with_too_many_ids_is_a_star(
    store: Store, event_notifications: Notifications, length: int, fits: bool
) -> None:
    # 50 ids and the commas between them: 6,999 bytes, and 7,049.
    ids = [f"{number:02}{'x' * (length - 2)}" for number in range(50)]
    await steps.submit(store, *ids)
    [(_, payload)] = await event_notifications.since()
    assert payload == ",".join(sorted(f"task {','.join(ids)}".split(",")) if fits else ["task *"])


@pytest.mark.parametrize(("length", "star"), [(139, None), (140, "*")])
async def test_a_notification_with_too_many_ids_is_a_star(
    store: Store, notifications: Notifications, sql: asyncpg.Connection, length: int, star: str | None
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
    await notifications.since()
    await steps.assign_all(store, *((f"{number}", id_) for number, id_ in enumerate(ids)))
    assert await notifications.since() == [(TOOL, star or ",".join(ids))]


RAISES = """
create function public.pg_notify(text, text) returns void language plpgsql as $$
    begin raise exception 'no notification today'; end $$
"""
EXCEEDS = """
create function public.pg_notify(text, text) returns void language sql as $$
    select pg_catalog.pg_notify($1, repeat('x', 9000)) $$
"""


@pytest.mark.parametrize("broken", [RAISES, EXCEEDS], ids=["it raises", "it exceeds"])
async def test_a_failing_notification_does_not_fail_the_write(
    store: Store, notifications: Notifications, sql: asyncpg.Connection, broken: str
) -> None:
    await sql.execute(broken)
    # From now on, new connections find this function before PostgreSQL's own.
    name = await sql.fetchval("select current_database()")
    await run_sql(notifications.database, f"alter database {name} set search_path = public, pg_catalog")
    made = await steps.add_running_work(store, "a", max_attempts=1)
    await steps.report(store, made.id, progress=1)
    await steps.complete(store, made.id, "failed")
    await steps.submit(store, "b", not_before=datetime.now(UTC) + IN_AN_HOUR)
    await steps.delete(store, "b")
    assert await notifications.since() == []
    assert (await steps.get_task(store, "a")).state == "failed"
    await steps.check_invariants(sql)


async def test_steps_return_the_same_without_triggers(
    store: Store, notifications: Notifications, sql: asyncpg.Connection
) -> None:
    await steps.disable_notifications(sql)
    made = await steps.add_running_work(store, "a")
    assert (await steps.assign(store, ("a", "tool")))[0] == assignment.Assigned("exists", made.id, made)
    assert (await steps.complete(store, made.id)).status == "ended"
    assert await notifications.since() == []
    await steps.check_invariants(sql)


@pytest.fixture(scope="module")
def crowded() -> Iterator[str]:
    """Start a server with a small notification queue, and yield its URL."""
    with temporary_folder() as folder:
        with EmbeddedPostgres(folder / "data", durable=False) as embedded:
            asyncio.run(run_sql(embedded.url(), "alter system set max_notify_queue_pages = 64"))
        with EmbeddedPostgres(folder / "data", durable=False) as embedded:
            yield embedded.url()


async def test_writes_succeed_while_a_stuck_listener_nearly_fills_the_queue(
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
