"""Waking: the register of waiters, the long poll, the sweep, and the listener that wakes the waiters."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pytest
from structlog.testing import capture_logs

from broker.errors import Unavailable
from broker.schemas.work import Work
from broker.store import Store, tasks, work
from broker.store.address import Address
from broker.wake.departure import Departure
from broker.wake.listener import CANDIDATES, CHANNELS, TOOL, UPKEEP, Listener
from broker.wake.longpoll import Seen, long_poll
from broker.wake.sweep import Sweep
from broker.wake.waiters import Waiter, Waiters
from tests.conftest import Serve, with_database
from tests.support import steps
from tests.support.waiting import wait_until

# Longer than any test waits. A wait that ends sooner was woken.
LONG = 60.0
LISTENERS = (
    "select pid from pg_stat_activity"
    " where application_name = 'broker listener' and datname = current_database()"
)


async def nowhere(**_: object) -> asyncpg.Connection:
    raise OSError


@pytest.fixture
def waiters() -> Waiters:
    return Waiters()


@pytest.fixture
async def listener(waiters: Waiters, database: str) -> AsyncIterator[Listener]:
    """Return a connected listener."""
    listener = Listener(waiters, Address(database).connect)
    listener.start()
    async with asyncio.timeout(steps.PATIENCE_SECONDS):
        await listener.connected.wait()
    yield listener
    await listener.stop()


class CountedState:
    """A state to read, which counts its reads."""

    def __init__(self) -> None:
        self.value = ""
        self.count = 0
        self._read = asyncio.Condition()

    async def __call__(self) -> str:
        self.count += 1
        async with self._read:
            self._read.notify_all()
        return self.value

    async def times(self, count: int) -> None:
        """Wait until this number of reads."""
        async with asyncio.timeout(steps.PATIENCE_SECONDS), self._read:
            await self._read.wait_for(lambda: self.count >= count)


@pytest.fixture
def state() -> CountedState:
    return CountedState()


Wait = Callable[..., "asyncio.Task[str]"]


@pytest.fixture
async def poll(waiters: Waiters, state: CountedState) -> AsyncIterator[Wait]:
    """Return a function that begins long polls."""
    begun = []

    def begin(seconds: float = LONG, key: str = "a", **given: object) -> "asyncio.Task[str]":
        waiting = long_poll(waiters, state, until=bool, seconds=seconds, topic=TOOL, key=key, **given)
        begun.append(asyncio.create_task(waiting))
        return begun[-1]

    yield begin
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)


async def within_patience(task: Awaitable[str]) -> str:
    async with asyncio.timeout(steps.PATIENCE_SECONDS):
        return await task


# The register


async def test_a_waiter_woken_before_it_waits_does_not_sleep(waiters: Waiters) -> None:
    with waiters.register(TOOL, "a") as waiter:
        waiters.wake(TOOL, ["a"])
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            await waiter.wait(LONG)


async def test_a_notification_ends_only_one_wait(waiters: Waiters) -> None:
    with waiters.register(TOOL, "a") as waiter:
        waiters.wake(TOOL, ["a"])
        await waiter.wait(LONG)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await waiter.wait(0.05)
        assert loop.time() - began > 0.04


async def test_only_the_waiters_of_a_key_are_woken(waiters: Waiters) -> None:
    with (
        waiters.register(TOOL, "a") as a,
        waiters.register(TOOL, "b") as b,
        waiters.register(CANDIDATES, "a") as c,
    ):
        waits = [asyncio.create_task(waiter.wait(LONG)) for waiter in (a, b, c)]
        await asyncio.sleep(0)
        waiters.wake(TOOL, ["a", "nobody"])
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        assert (done, pending) == ({waits[0]}, {waits[1], waits[2]})
        waiters.wake_topic(TOOL)
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        assert (done, pending) == ({waits[1]}, {waits[2]})
        waiters.release()
        await waits[2]


async def test_waking_one_topic_visits_no_waiter_of_another(
    waiters: Waiters, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unread(dict[str, set[Waiter]]):
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("the waiters of another topic were visited")

        items = keys = values = __iter__  # type: ignore[assignment]

    with waiters.register(TOOL, "a"), waiters.register(CANDIDATES) as waiter:
        monkeypatch.setitem(waiters._by_topic, TOOL, Unread(waiters._by_topic[TOOL]))
        waiters.wake_topic(CANDIDATES)
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            assert await waiter.wait(LONG)


async def test_all_waiters_of_a_key_are_woken(waiters: Waiters) -> None:
    with waiters.register(TOOL, "a") as first, waiters.register(TOOL, "a") as second:
        waits = [asyncio.create_task(waiter.wait(LONG)) for waiter in (first, second)]
        await asyncio.sleep(0)
        waiters.wake(TOOL, ["a"])
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            await asyncio.gather(*waits)


async def test_the_register_removes_waiters_that_leave(waiters: Waiters) -> None:
    with waiters.register(TOOL, "a"), waiters.register(TOOL, "a"), waiters.register(TOOL, "b"):
        assert len(waiters) == 3
    with pytest.raises(ZeroDivisionError), waiters.register(TOOL, "a"):
        _ = 1 / 0
    assert len(waiters) == 0
    assert not waiters._by_topic


# The long poll


async def test_a_long_poll_without_a_wait_reads_once(
    poll: Wait, state: CountedState, waiters: Waiters
) -> None:
    assert await poll(0) == ""
    assert (state.count, len(waiters)) == (1, 0)


async def test_a_long_poll_returns_an_existing_result_at_once(poll: Wait, state: CountedState) -> None:
    state.value = "work"
    assert await within_patience(poll()) == "work"
    assert state.count == 1


async def test_a_notification_lets_a_long_poll_read_again(
    poll: Wait, state: CountedState, waiters: Waiters
) -> None:
    waiting = poll()
    await state.times(1)
    waiters.wake(TOOL, ["a"])
    await state.times(2)
    state.value = "work"
    waiters.wake(TOOL, ["a"])
    assert await within_patience(waiting) == "work"
    assert state.count == 3


async def test_a_change_during_a_read_is_not_missed(waiters: Waiters, poll: Wait) -> None:
    reads = []

    async def read_state() -> str:
        reads.append("work" if reads else "")
        if len(reads) == 1:
            # The change and its notification come after this read, but before it returns.
            waiters.wake(TOOL, ["a"])
        return reads[-1]

    waiting = long_poll(waiters, read_state, until=bool, seconds=LONG, topic=TOOL, key="a")
    assert await within_patience(waiting) == "work"
    assert len(reads) == 2


async def test_a_long_poll_reads_again_when_its_time_is_up(poll: Wait, state: CountedState) -> None:
    waiting = poll(0.05)
    await state.times(1)
    state.value = "just in time"
    assert await within_patience(waiting) == "just in time"


async def test_a_long_poll_skips_the_last_read_if_changes_always_notify(
    poll: Wait, state: CountedState
) -> None:
    waiting = poll(0.05, read_last=False)
    await state.times(1)
    state.value = "the next request has it"
    assert await within_patience(waiting) == ""
    assert state.count == 1


async def test_a_release_ends_all_long_polls_and_prevents_new_waits(
    poll: Wait, state: CountedState, waiters: Waiters
) -> None:
    waiting = [poll(key=str(number)) for number in range(50)]
    await state.times(50)
    waiters.release()
    assert await within_patience(asyncio.gather(*waiting)) == [""] * 50
    assert await within_patience(poll()) == ""
    assert len(waiters) == 0


async def test_a_disconnected_client_ends_its_long_poll(
    poll: Wait, state: CountedState, waiters: Waiters
) -> None:
    departure = Departure()
    waiting = poll(departure=departure)
    await state.times(1)
    departure.leave()
    assert await within_patience(waiting) == ""
    assert (state.count, len(waiters)) == (1, 0)


async def test_a_client_that_has_already_disconnected_does_not_wait(poll: Wait, state: CountedState) -> None:
    departure = Departure()
    departure.leave()
    assert await within_patience(poll(departure=departure)) == ""
    assert state.count == 1


async def test_a_departure_after_the_long_poll_wakes_nothing(poll: Wait, state: CountedState) -> None:
    departure = Departure()
    state.value = "work"
    assert await within_patience(poll(departure=departure)) == "work"
    departure.leave()
    assert departure.has_left


async def test_a_finished_long_poll_leaves_no_task_and_no_waiter(
    poll: Wait, state: CountedState, waiters: Waiters
) -> None:
    before = asyncio.all_tasks()
    state.value = "work"
    waiting = poll(departure=Departure())
    await within_patience(waiting)
    await wait_until(lambda: nothing_but(before))
    assert len(waiters) == 0


async def nothing_but(tasks: "set[asyncio.Task[object]]") -> bool:
    return asyncio.all_tasks() <= tasks


async def test_an_error_while_reading_ends_the_long_poll(waiters: Waiters) -> None:
    async def read_state() -> str:
        raise LookupError("no such tool")

    with pytest.raises(LookupError):
        await long_poll(waiters, read_state, until=bool, seconds=LONG, topic=TOOL)
    assert len(waiters) == 0


# A state that is handed over


async def accepted(state: str) -> str:
    return f"{state}, accepted"


async def test_a_long_poll_returns_a_state_that_is_handed_over_without_a_read(
    poll: Wait, state: CountedState, waiters: Waiters
) -> None:
    waiting = [poll(accept=accepted), poll(accept=accepted), poll(key="b", accept=accepted)]
    await state.times(3)
    await asyncio.sleep(0)
    waiters.hand_over(TOOL, "a", "work")
    # The notification of the same change.
    waiters.wake(TOOL, ["a"])
    assert await within_patience(asyncio.gather(*waiting[:2])) == ["work, accepted"] * 2
    assert state.count == 3
    assert not waiting[2].done()


async def test_a_long_poll_whose_accepted_state_is_no_result_waits_on(
    poll: Wait, state: CountedState, waiters: Waiters
) -> None:
    async def refuse(_: str) -> str:
        return ""

    waiting = poll(accept=refuse)
    await state.times(1)
    await asyncio.sleep(0)
    waiters.hand_over(TOOL, "a", "work")
    await asyncio.sleep(0.01)
    assert (waiting.done(), state.count) == (False, 1)
    state.value = "work"
    waiters.wake(TOOL, ["a"])
    assert await within_patience(waiting) == "work"


async def test_a_hand_over_during_a_read_causes_another_read(waiters: Waiters) -> None:
    reads = []

    async def read_state() -> str:
        reads.append("newer work" if reads else "")
        if len(reads) == 1:
            waiters.hand_over(TOOL, "a", "work")
        return reads[-1]

    waiting = long_poll(waiters, read_state, until=bool, seconds=LONG, topic=TOOL, key="a", accept=accepted)
    assert await within_patience(waiting) == "newer work"


async def test_a_request_cancelled_at_the_moment_of_the_hand_over_leaves_the_register(
    poll: Wait, state: CountedState, waiters: Waiters
) -> None:
    waiting = poll(accept=accepted)
    await state.times(1)
    await asyncio.sleep(0)
    waiters.hand_over(TOOL, "a", "work")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(waiters) == 0
    state.value = "work"
    assert await within_patience(poll(accept=accepted)) == "work"


# A state that was read before the request registers


async def test_a_long_poll_that_has_seen_the_state_waits_without_a_read(
    poll: Wait, state: CountedState, waiters: Waiters
) -> None:
    moment = waiters.moment(TOOL)
    waiters.wake(TOOL, ["b", "c"])
    waiters.wake(CANDIDATES, ["a"])
    waiters.wake_topic(CANDIDATES)
    waiting = poll(seen=Seen("", moment), accept=accepted)
    await asyncio.sleep(0.01)
    assert (waiting.done(), state.count, len(waiters)) == (False, 0, 1)
    waiters.hand_over(TOOL, "a", "work")
    assert await within_patience(waiting) == "work, accepted"
    assert state.count == 0


MISSED: dict[str, Callable[[Waiters], None]] = {
    "a notification": lambda waiters: waiters.wake(TOOL, ["b", "a"]),
    "an older notification": lambda waiters: [waiters.wake(TOOL, keys) for keys in (["a"], ["b"])],
    "a notification without ids": lambda waiters: waiters.wake_topic(TOOL),
    "more notifications than are remembered": lambda waiters: [
        waiters.wake(TOOL, [str(number)]) for number in range(2_000)
    ],
}


@pytest.mark.parametrize("missed", MISSED)
async def test_a_long_poll_that_has_seen_the_state_reads_after_it_missed(
    poll: Wait, state: CountedState, waiters: Waiters, missed: str
) -> None:
    waiters.wake(TOOL, ["a"])
    moment = waiters.moment(TOOL)
    MISSED[missed](waiters)
    state.value = "work"
    assert await within_patience(poll(seen=Seen("", moment))) == "work"


async def test_a_long_poll_that_has_seen_the_state_reads_after_a_sweep_without_it(
    poll: Wait, state: CountedState, waiters: Waiters
) -> None:
    moment = waiters.moment(TOOL)
    await Sweep(waiters, seemingly_connected(waiters), {}, seconds=LONG).sweep()
    state.value = "work"
    assert await within_patience(poll(seen=Seen("", moment))) == "work"


async def test_a_long_poll_that_has_seen_the_state_does_not_wait_after_a_release(
    poll: Wait, state: CountedState, waiters: Waiters
) -> None:
    moment = waiters.moment(TOOL)
    waiters.release()
    assert await within_patience(poll(seen=Seen("", moment))) == ""
    assert state.count == 0


# The sweep


@asynccontextmanager
async def sweeping(
    waiters: Waiters, listener: Listener, *ready: str, seconds: float = LONG
) -> AsyncIterator[list[list[str]]]:
    """Run a sweep that finds some tools ready, and yield the keys of each query."""
    queries: list[list[str]] = []

    async def ready_keys(keys: Sequence[str]) -> list[str]:
        queries.append(sorted(keys))
        return [key for key in keys if key in ready]

    sweep = Sweep(waiters, listener, {TOOL: ready_keys}, seconds=seconds)
    sweep.start()
    yield queries
    await sweep.stop()


def seemingly_connected(waiters: Waiters) -> Listener:
    """Return a listener that does not listen but seems to be connected."""
    listener = Listener(waiters, nowhere)
    listener.connected.set()
    return listener


async def test_a_sweep_finds_ready_waiters_with_one_query(waiters: Waiters) -> None:
    keys = [(TOOL, "a"), (TOOL, "b"), (TOOL, "c")]
    async with (
        waiting_for(waiters, *keys) as waits,
        sweeping(waiters, seemingly_connected(waiters), "b", seconds=0.02) as queries,
    ):
        await within_patience(waits[1])
        assert queries[0] == ["a", "b", "c"]
        assert not waits[0].done()
        assert not waits[2].done()


async def test_every_sweep_wakes_waiters_without_a_key(waiters: Waiters) -> None:
    async with (
        waiting_for(waiters, (CANDIDATES, "")) as waits,
        sweeping(waiters, seemingly_connected(waiters), seconds=0.02),
    ):
        await within_patience(waits[0])


@pytest.mark.parametrize("turn", ["comes", "goes"])
async def test_a_sweep_follows_each_change_of_the_listeners_connection(waiters: Waiters, turn: str) -> None:
    listener = seemingly_connected(waiters)
    if turn == "goes":
        listener.connected.clear()
    async with waiting_for(waiters, (TOOL, "a")) as waits, sweeping(waiters, listener, "a"):
        listener.connection_changed.wake()
        await within_patience(waits[0])


async def test_a_listener_that_cannot_connect_logs_each_reason_once(
    waiters: Waiters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.wake.listener._LAST_RETRY_SECONDS", 0)
    reasons = [OSError("no"), OSError("no"), OSError("no"), OSError("full"), OSError("full")]
    tried = asyncio.Event()

    async def connect(**_: object) -> asyncpg.Connection:
        if not reasons:
            tried.set()
            await asyncio.Event().wait()
        raise reasons.pop(0)

    listener = Listener(waiters, connect)
    with capture_logs() as logs:
        listener.start()
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            await tried.wait()
        await listener.stop()
    assert [line["error"] for line in logs] == ["OSError('no')", "OSError('full')"]


async def test_a_sweep_runs_every_second_while_the_listener_is_down(waiters: Waiters) -> None:
    async with waiting_for(waiters, (TOOL, "a")) as waits, sweeping(waiters, Listener(waiters, nowhere), "a"):
        await within_patience(waits[0])


async def test_a_failed_sweep_is_retried(waiters: Waiters) -> None:
    failed = asyncio.Event()

    async def ready_keys(keys: Sequence[str]) -> Sequence[str]:
        if not failed.is_set():
            failed.set()
            raise Unavailable
        return keys

    sweep = Sweep(waiters, seemingly_connected(waiters), {TOOL: ready_keys}, seconds=0.02)
    async with waiting_for(waiters, (TOOL, "a")) as waits:
        sweep.start()
        await within_patience(waits[0])
        assert failed.is_set()
        await sweep.stop()


async def test_the_time_between_sweeps_has_jitter(waiters: Waiters) -> None:
    sweep = Sweep(waiters, seemingly_connected(waiters), {}, seconds=30)
    chosen = [sweep._pause_seconds() for _ in range(1000)]
    assert min(chosen) >= 15
    assert max(chosen) <= 30
    assert max(chosen) - min(chosen) > 13


async def test_a_sweep_finds_tools_with_work_to_start_and_missing_tools(store: Store) -> None:
    await steps.register(store, "idle", "assigned", "running")
    await steps.add_assigned_work(store, "x", "assigned")
    started = await steps.add_assigned_work(store, "y", "running")
    await store.one(work.start, work.Start(started.id))
    ids = ["idle", "assigned", "running", "gone"]
    assert set(await store.run(work.ready_tools, ids)) == {"assigned", "gone"}


async def test_a_sweep_finds_ended_and_missing_tasks(store: Store, sql: asyncpg.Connection) -> None:
    await steps.submit(store, "waits", "held")
    await steps.add_assigned_work(store, "runs")
    await steps.complete(store, (await steps.add_assigned_work(store, "ends", "other")).id)
    await sql.execute("update tasks set state = 'failed', ended_at = now() where id = 'held'")
    ids = ["waits", "runs", "ends", "held", "unknown"]
    assert set(await store.run(tasks.ready_tasks, ids)) == {"ends", "held", "unknown"}


# The listener


@asynccontextmanager
async def waiting_for(waiters: Waiters, *keys: tuple[str, str]) -> AsyncIterator[list["asyncio.Task[None]"]]:
    """Start a wait for each of these topics and keys, and yield the waits."""

    async def wait(topic: str, key: str) -> None:
        with waiters.register(topic, key) as waiter:
            await waiter.wait(LONG)

    waits = [asyncio.create_task(wait(*key)) for key in keys]
    before = len(waiters)
    while len(waiters) < before + len(keys):
        await asyncio.sleep(0)
    yield waits
    for task in waits:
        task.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


@pytest.mark.parametrize("channel", CHANNELS)
async def test_a_notification_wakes_the_waiters_that_it_names(
    listener: Listener, waiters: Waiters, sql: asyncpg.Connection, channel: str
) -> None:
    other = CHANNELS[CHANNELS.index(channel) - 1]
    keys = [(channel, "a"), (channel, "b"), (channel, "c"), (other, "a")]
    async with waiting_for(waiters, *keys) as waits:
        await sql.execute("select pg_notify($1, 'a,c')", channel)
        done, _ = await asyncio.wait(waits[:1])
        done, pending = await asyncio.wait(waits, timeout=0)
        assert (done, pending) == ({waits[0], waits[2]}, {waits[1], waits[3]})
        await sql.execute("select pg_notify($1, '*')", channel)
        await waits[1]
        assert not waits[3].done()


async def test_a_lost_listener_reports_the_loss_and_reconnects(
    listener: Listener, waiters: Waiters, sql: asyncpg.Connection
) -> None:
    assert await listener.connection_changed.wait(LONG), "it did not connect"
    [lost] = await sql.fetch(LISTENERS)
    assert await sql.fetchval("select pg_terminate_backend($1)", lost["pid"])
    assert await listener.connection_changed.wait(LONG), "it did not notice the loss"
    assert not listener.connected.is_set()
    # The new connection triggers a sweep, which replaces the lost notifications.
    assert await listener.connection_changed.wait(LONG), "it did not reconnect"
    assert listener.connected.is_set()
    async with waiting_for(waiters, (TOOL, "a")) as waits:
        await sql.execute("select pg_notify($1, 'a')", TOOL)
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            await asyncio.gather(*waits)


async def test_a_listener_without_a_database_retries(waiters: Waiters, postgres: str) -> None:
    listener = Listener(waiters, Address(with_database(postgres, "nowhere")).connect)
    listener.start()
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(listener.connected.wait(), 0.5)
        assert listener._task is not None
        assert not listener._task.done()
    finally:
        await listener.stop()


async def test_a_stopped_listener_closes_its_connection(
    waiters: Waiters, database: str, sql: asyncpg.Connection
) -> None:
    listener = Listener(waiters, Address(database).connect)
    listener.start()
    async with asyncio.timeout(steps.PATIENCE_SECONDS):
        await listener.connected.wait()
    await listener.stop()
    assert not listener.connected.is_set()

    async def gone() -> bool:
        return not await sql.fetch(LISTENERS)

    await wait_until(gone)


# All parts together


async def test_waiting_tools_hold_no_connection_and_only_the_assigned_one_reads(
    store: Store, listener: Listener, waiters: Waiters
) -> None:
    ids = [f"{number:02}" for number in range(40)]
    await steps.register(store, *ids)
    await steps.submit(store, "a")
    reads: list[str] = []

    async def work_of(tool: str) -> list[Work]:
        async def read_state() -> list[Work]:
            assigned = await store.one(work.assigned_to, tool)
            assert assigned is not None
            reads.append(tool)
            return assigned.items

        return await long_poll(waiters, read_state, until=bool, seconds=LONG, topic=TOOL, key=tool)

    async def all_wait() -> bool:
        return len(reads) == len(waiters) == 40 and store.engine.pool.checkedout() == 0

    waiting = {tool: asyncio.create_task(work_of(tool)) for tool in ids}
    await wait_until(all_wait)
    [made] = await steps.assign_all(store, ("a", "17"))
    async with asyncio.timeout(steps.PATIENCE_SECONDS):
        assert await waiting["17"] == [made]
    assert reads[40:] == ["17"]
    assert store.engine.pool.checkedout() == 0
    waiters.release()
    await asyncio.gather(*waiting.values())


async def test_a_waiting_request_ends_without_triggers(
    serve: Serve, store: Store, sql: asyncpg.Connection
) -> None:
    await steps.disable_notifications(sql)
    broker = await serve(fallback_seconds=0.1)
    await steps.register(store, "t")
    paths = ["/v1/candidates?cursor=", "/v1/tools/t/work", "/v1/tasks/a"]
    await steps.submit(store, "a")
    first = (await broker.client.get("/v1/candidates")).json()
    paths[0] += first["cursor"]
    waits = [asyncio.create_task(broker.client.get(path, params={"wait": 60})) for path in paths[1:]]
    await steps.wait_for_long_polls(broker, 2)
    [made] = await steps.assign_all(store, ("a", "t"))
    async with asyncio.timeout(steps.PATIENCE_SECONDS):
        assert [item["id"] for item in (await waits[0]).json()["items"]] == [str(made.id)]
        await steps.complete(store, made.id)
        assert (await waits[1]).json()["state"] == "succeeded"
        news = (await broker.client.get(paths[0], params={"wait": 60})).json()
    assert [tool["id"] for tool in news["tools"]] == ["t"]


async def test_a_client_that_disconnects_leaves_the_register(serve: Serve, store: Store) -> None:
    broker = await serve()
    await steps.register(store, "t")
    waiting = [
        asyncio.create_task(broker.client.get("/v1/tools/t/work", params={"wait": 60})) for _ in range(5)
    ]
    await steps.wait_for_long_polls(broker, 5)
    for request in waiting:
        request.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

    async def only_upkeep_waits() -> bool:
        return broker.server.service.waiters.keys().keys() == {UPKEEP}

    await wait_until(only_upkeep_waits)
