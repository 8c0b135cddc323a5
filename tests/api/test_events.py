"""/v1/events: whoever watches is told what happens, at once and in short, and keeps nobody else busy."""

import asyncio
import contextlib
import json
import socket

import asyncpg
import httpx
import msgspec
import pytest
import uvloop
from sqlalchemy import TextClause

from broker.api import events as events_api
from broker.background import event_stream as feeds
from broker.schemas import overview
from broker.schemas.overview import EVENT_KINDS, TaskEvent, WorkEvent
from broker.store import events as readings
from tests.conftest import Running
from tests.support import api, description
from tests.support.api import (
    add_assigned_work,
    add_running_work,
    add_task,
    add_tasks,
    add_tool,
    assign,
    complete,
    complete_work,
    end_backoff,
    get,
    recorded_statements,
    take_tool_offline,
)
from tests.support.shared import SHARED_BROKER
from tests.support.subscribers import (
    WITHIN,
    Event,
    Subscriber,
    large_events,
    stuck_subscriber,
    subscribe,
    summarize,
    wait_for_no_subscribers,
)
from tests.support.waiting import wait_until
from tests.wake.test_waking import LISTENERS

NEW_LOOP = uvloop.new_event_loop
pytestmark, database, broker, sql, http = SHARED_BROKER

EVERYTHING = list(EVENT_KINDS)


# What is told


def asked(statement: TextClause) -> str:
    """A statement that is given ids, as it reaches the database."""
    return statement.text.replace(":ids", "$1")


async def test_a_whole_life_is_told_as_it_happens(http: httpx.AsyncClient) -> None:
    async with subscribe(http) as subscriber:
        await add_tool(http, "t", capacity=2)
        assert summarize(await subscriber.wait_for("tool")) == {("tool", "t", "idle")}
        await add_task(http, "a", priority=7)
        seen = await subscriber.wait_for("task")
        assert seen[-1].data == {"id": "a", "state": "available", "priority": 7, "attempt": 0}
        work = (await assign(http, "a", "t"))["id"]
        seen = await subscriber.wait_for("work")
        assert summarize(seen) == {
            ("task", "a", "assigned"),
            ("tool", "t", "idle"),
            ("work", work, "assigned"),
        }
        assert {each.data["load"] for each in seen if each.name == "tool"} == {1}
        await http.post(f"/v1/work/{work}/start")
        assert summarize(await subscriber.wait_for("work")) == {
            ("task", "a", "running"),
            ("work", work, "running"),
        }
        await http.post(f"/v1/work/{work}/reports", json={"progress": 0.5, "message": "half way"})
        [told] = await subscriber.wait_for("work")
        assert (told.data["progress"], told.data["message"]) == (0.5, "half way")
        await http.post(f"/v1/work/{work}/cancel")
        [told] = await subscriber.wait_for("work")
        assert told.data["cancel_requested"] is True
        record = await complete_work(http, work)
        seen = await subscriber.wait_for("archive")
        assert summarize(seen) == {
            ("task", "a", "succeeded"),
            ("tool", "t", "idle"),
            ("archive", work, "succeeded"),
        }
        assert seen[-1].data == {name: record[name] for name in seen[-1].data}


async def test_what_is_told_is_what_is_read(http: httpx.AsyncClient) -> None:
    async with subscribe(http) as subscriber:
        pair = await add_running_work(http, priority=-3)
        told = {each.name: each.data for each in await subscriber.wait_for("work", state="running")}
        told["tool"]["skills"] = json.loads(told["tool"]["skills"])
        for name, path in (("task", "tasks/a"), ("tool", "tools/t"), ("work", f"work/{pair.work}")):
            found = await get(http, f"/v1/{path}")
            assert told[name] == {key: found.get(key) for key in told[name]}, name


async def test_failing_waiting_and_failing_for_good_are_told(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    pair = await add_running_work(http, max_attempts=2)
    async with subscribe(http) as subscriber:
        await complete_work(http, pair.work, "failed", error="no light")
        seen = await subscriber.wait_for("archive")
        assert ("task", "a", "scheduled") in summarize(seen)
        assert seen[-1].data["error"] == "no light"
        await end_backoff(sql)
        [told] = await subscriber.wait_for("task")
        assert (told.data["state"], told.data["attempt"]) == ("available", 1)
        await http.put("/v1/tasks/a/remark", json={"text": "no tool is free"})
        assert summarize(await subscriber.wait_for("task")) == {("task", "a", "available")}
        second = (await assign(http))["id"]
        await complete_work(http, second, "failed")
        await subscriber.wait_for("archive", work_id=second)
        await http.post("/v1/tasks/a/retry")
        await subscriber.wait_for("task", state="available")


async def test_a_late_result_that_is_accepted_is_told(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http, max_attempts=1)
    await complete_work(http, pair.work, "failed")
    await complete(http, pair.work, "succeeded")
    async with subscribe(http) as subscriber:
        await http.post(f"/v1/archive/{pair.work}/accept")
        seen = await subscriber.wait_for("archive")
        assert summarize(seen) == {("task", "a", "succeeded"), ("archive", pair.work, "succeeded")}


async def test_a_task_that_is_deleted_is_told_with_its_record(http: httpx.AsyncClient) -> None:
    await add_task(http)
    async with subscribe(http) as subscriber:
        await http.delete("/v1/tasks/a")
        seen = await subscriber.wait_for("archive")
        assert [(each.name, each.data.get("state")) for each in seen] == [
            ("task", "cancelled"),
            ("archive", None),
        ]
        assert seen[-1].data["tool_id"] is None


async def test_a_tool_that_is_drained_silent_back_and_deleted_is_told(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http)
    async with subscribe(http) as subscriber:
        await http.patch("/v1/tools/t", json={"draining": True})
        assert summarize(await subscriber.wait_for("tool")) == {("tool", "t", "draining")}
        await http.patch("/v1/tools/t", json={"draining": False})
        assert summarize(await subscriber.wait_for("tool")) == {("tool", "t", "idle")}
        await take_tool_offline(http, sql)
        await subscriber.wait_for("tool", state="offline")
        await http.post("/v1/tools/t/heartbeat")
        await subscriber.wait_for("tool", state="idle")
        await http.delete("/v1/tools/t")
        await subscriber.wait_for("tool", state="deleted")


async def test_work_that_is_lost_with_its_tool_is_told(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    pair = await add_running_work(http)
    async with subscribe(http) as subscriber:
        await http.delete("/v1/tools/t?force=true")
        seen = await subscriber.wait_for("archive")
        assert summarize(seen) >= {("task", "a", "available"), ("archive", pair.work, "lost")}
        if ("tool", "t", "deleted") not in summarize(seen):
            await subscriber.wait_for("tool", state="deleted")


# How it is answered


async def test_it_begins_at_once_and_says_where_one_is(http: httpx.AsyncClient) -> None:
    async with subscribe(http) as subscriber:
        headers = subscriber.response.headers
        assert headers["content-type"].split(";")[0] == "text/event-stream"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        assert subscriber.raw.startswith("retry: ")
        assert 1_000 <= int(subscriber.raw.split()[1]) <= 3_000


async def test_every_event_is_as_it_is_described(http: httpx.AsyncClient) -> None:
    document = description.make()
    described = document["paths"]["/v1/events"]["get"]
    example = described["responses"]["200"]["content"]["text/event-stream"]["example"]
    shown = {}
    for block in example.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        shown[fields["event"]] = json.loads(fields["data"])
    assert list(shown) == [*EVENTS_BY_NAME]
    async with subscribe(http) as subscriber:
        pair = await add_running_work(http)
        seen = await subscriber.wait_for("work", state="running")
        await complete_work(http, pair.work)
        seen += await subscriber.wait_for("archive")
        await add_tasks(http, *(f"n{number}" for number in range(600)))
        seen += await subscriber.wait_for("resync")
    assert {each.name for each in seen} == shown.keys()
    for name, data in [*shown.items(), *((each.name, each.data) for each in seen)]:
        form = EVENTS_BY_NAME[name]
        assert msgspec.to_builtins(msgspec.convert(data, form)).keys() == data.keys()
        assert form.__name__ in document["components"]["schemas"]
        assert f"`{name}`: a `{form.__name__}`." in described["description"]


EVENTS_BY_NAME = {
    "task": TaskEvent,
    "tool": overview.ToolEvent,
    "work": WorkEvent,
    "archive": overview.ArchiveEvent,
    "resync": overview.Resync,
}


async def test_a_connection_that_is_quiet_is_kept_alive_and_costs_no_statement(
    broker: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "_KEEP_ALIVE_SECONDS", 0.01)
    async with subscribe(http) as subscriber, subscribe(http):
        with recorded_statements(broker) as told:
            for _ in range(20):
                assert await subscriber._read_event() == {"": ""} or subscriber.raw.endswith(":\n\n")
        assert told == []


async def test_metrics_tell_who_watches_and_how_much_is_told(
    broker: Running, http: httpx.AsyncClient
) -> None:
    async def metric(name: str) -> float:
        lines = (await http.get("/metrics")).text.splitlines()
        return float(next(line.split()[1] for line in lines if line.split()[0] == name))

    await wait_for_no_subscribers(broker)
    told, resyncs = await metric("broker_events_told_total"), await metric("broker_events_resyncs_total")
    async with subscribe(http) as subscriber, subscribe(http):
        assert await metric("broker_events_watchers") == 2
        await add_task(http)
        await subscriber.wait_for("task")
        assert await metric("broker_events_told_total") == told + 1
        async with subscribe(http, "garbled") as third:
            await third.wait_for("resync")
        assert await metric("broker_events_resyncs_total") == resyncs + 1


# What all share


async def test_all_who_watch_are_told_the_same_from_one_reading(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_tool(http)
    await add_task(http)
    async with contextlib.AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(subscribe(http)) for _ in range(10)]
        before = [subscriber.raw for subscriber in watchers]
        with recorded_statements(broker) as told:
            work = (await assign(http))["id"]
            for subscriber in watchers:
                await subscriber.wait_for("work", id=work)
        assert (
            len({subscriber.raw[len(raw) :] for subscriber, raw in zip(watchers, before, strict=True)}) == 1
        )
        assert told.count(asked(readings.WORKS)) == 1


async def test_nothing_is_read_while_nobody_watches(broker: Running, http: httpx.AsyncClient) -> None:
    await wait_for_no_subscribers(broker)
    with recorded_statements(broker) as told:
        heard = broker.server.service.listener.received
        pair = await add_running_work(http)
        await complete_work(http, pair.work)

        async def was_heard() -> bool:
            return broker.server.service.listener.received > heard

        await wait_until(was_heard)
        async with subscribe(http):
            pass
    reads = {asked(readings.WORKS), asked(readings.TASKS), asked(readings.TOOLS), asked(readings.RECORDS)}
    assert not reads & set(told)


async def test_very_much_at_once_is_told_as_one_word_and_the_rest_one_by_one(http: httpx.AsyncClient) -> None:
    async with subscribe(http) as subscriber:
        await add_tasks(http, *(f"{'n' * 20}{number}" for number in range(1_000)))
        [told] = await subscriber.wait_for("resync")
        assert told.data["of"] == ["task"]
        await add_tool(http, "large", capacity=1_000)
        assert summarize(await subscriber.wait_for("tool", id="large")) >= {("tool", "large", "idle")}
        pairs = [{"task_id": f"{'n' * 20}{number}", "tool_id": "large"} for number in range(1_000)]
        made = await http.post("/v1/work/batch", json={"items": pairs})
        [*_, told] = await subscriber.wait_for("resync")
        assert {"work", "task", "tool"} <= set(told.data["of"])
        endings = [{"work_id": each["work_id"], "outcome": "succeeded"} for each in made.json()["items"]]
        await http.post("/v1/work/complete", json={"items": endings})
        [*_, told] = await subscriber.wait_for("resync")
        assert told.data["of"] == EVERYTHING


# Who was away


async def test_who_comes_back_is_told_what_was_missed_and_nothing_twice(http: httpx.AsyncClient) -> None:
    async with subscribe(http) as witness:
        async with subscribe(http) as subscriber:
            await add_task(http, "seen")
            await subscriber.wait_for("task", id="seen")
            # The changes of the test before may come with it.
            await subscriber.read_whole_batch()
            position = subscriber.position
        await witness.wait_for("task", id="seen")
        await witness.read_whole_batch()
        begin = len(witness.raw)
        for name in ("b", "c"):
            await add_task(http, name)
            await witness.wait_for("task", id=name)
        missed = witness.raw[begin:]
        async with subscribe(http, position) as back:
            await back.wait_for("task", id="c")
            assert back.raw.partition("\n")[2] == missed
            await add_task(http, "d")
            assert summarize(await back.wait_for("task", id="d")) == {("task", "d", "available")}


async def test_who_has_missed_nothing_is_told_nothing(broker: Running, http: httpx.AsyncClient) -> None:
    async with subscribe(http) as subscriber:
        pass
    await wait_for_no_subscribers(broker)
    async with subscribe(http, subscriber.position) as back:
        assert await back.next() == Event(subscriber.position, "", {})


async def test_what_happened_while_nobody_watched_is_to_be_read_anew(
    broker: Running, http: httpx.AsyncClient
) -> None:
    async with subscribe(http) as subscriber:
        pass
    await wait_for_no_subscribers(broker)
    heard = broker.server.service.listener.received
    await add_task(http)

    async def was_heard() -> bool:
        return broker.server.service.listener.received > heard

    await wait_until(was_heard)
    async with subscribe(http, subscriber.position) as back:
        first = await back.next()
        assert (first.name, first.data["of"]) == ("resync", EVERYTHING)
    # Who comes without having been there reads anyway.
    async with subscribe(http) as new:
        await add_task(http, "b")
        assert summarize([await new.next()]) == {("task", "b", "available")}


@pytest.mark.parametrize(
    "position",
    ["", "-", "x", "0", "-1", "00000000-1", "{run}-", "{run}-x", "{run}--1", "{run}-99999999", "{run}-²"],
)
async def test_a_position_that_means_nothing_is_answered_by_reading_anew(
    broker: Running, http: httpx.AsyncClient, position: str
) -> None:
    given_ = position.format(run=broker.server.service.event_stream._run_id).encode()
    async with http.stream("GET", "/v1/events", headers={"Last-Event-ID": given_}) as answer:
        first = await Subscriber(answer).next()
        assert (first.name, first.data["of"]) == ("resync", EVERYTHING)


async def test_a_listener_that_was_away_is_made_up_for(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    async with subscribe(http) as subscriber:
        name = await sql.fetchval("select current_database()")
        for row in await sql.fetch(f"{LISTENERS} and datname = '{name}'"):
            await sql.fetchval("select pg_terminate_backend($1)", row["pid"])
        [told] = await subscriber.wait_for("resync")
        assert told.data["of"] == EVERYTHING
        await add_task(http)
        await subscriber.wait_for("task", id="a")


async def test_what_cannot_be_read_is_told_once_it_can(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "_RETRY_SECONDS", 0.02)
    pair = await add_assigned_work(http)
    await wait_for_no_subscribers(broker)
    async with subscribe(http) as subscriber:
        with recorded_statements(broker) as told:
            await sql.execute("alter table work_reports rename to away")
            try:
                await http.post(f"/v1/work/{pair.work}/start")

                async def was_tried_again() -> bool:
                    return told.count(asked(readings.WORKS)) >= 2

                await wait_until(was_tried_again)
            finally:
                await sql.execute("alter table away rename to work_reports")
        seen = await subscriber.wait_for("work", state="running")
        assert "resync" not in {each.name for each in seen}, "nothing was missed"


# Who is slow, and who leaves


async def test_who_reads_too_slowly_is_told_to_read_anew_and_takes_no_memory(
    broker: Running, http: httpx.AsyncClient
) -> None:
    feed = broker.server.service.event_stream
    await wait_for_no_subscribers(broker)
    with stuck_subscriber(broker) as connection:

        async def watches() -> bool:
            return feed.subscriber_count == 1

        await wait_until(watches)
        [subscriber] = feed._subscribers
        buffers = [each.transport.get_write_buffer_size for each in broker.server.server_state.connections]
        rounds = 0
        async with asyncio.timeout(WITHIN):
            while not any(b"event: resync" in each for each in subscriber._queue):
                feed._publish(large_events(rounds))
                rounds += 1
                assert subscriber._bytes <= feeds._MOST_BYTES
                assert max(size() for size in buffers) <= 2 * feeds._MOST_BYTES
                await asyncio.sleep(0.002)  # as long as who reads would need
        connection.settimeout(WITHIN)
        await read_until(connection, b"event: resync")
        # From there it goes on.
        feed._publish(large_events(rounds))
        await read_until(connection, f'"task_id":"{rounds}"'.encode())
    await wait_for_no_subscribers(broker)


async def read_until(connection: socket.socket, text: bytes) -> None:
    last = b""
    while text not in last:
        last = last[-len(text) :] + await asyncio.to_thread(connection.recv, 2**20)


async def test_who_leaves_in_the_midst_of_it_frees_everything_at_once(
    broker: Running, http: httpx.AsyncClient
) -> None:
    service = broker.server.service
    await wait_for_no_subscribers(broker)
    waiters = api.waiting_count(broker)
    with stuck_subscriber(broker):

        async def is_stuck() -> bool:
            for subscriber in service.event_stream._subscribers:
                service.event_stream._publish(large_events(1))
                return len(subscriber._queue) > 1
            return False

        await wait_until(is_stuck)

    async def nothing_is_left() -> bool:
        return (
            not (service.event_stream.subscriber_count or service.wait_limits.count)
            and api.waiting_count(broker) <= waiters
        )

    await wait_until(nothing_is_left)
