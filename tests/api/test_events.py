"""The event stream at /v1/events: its events, its positions, and slow or stuck subscribers."""

import asyncio
import contextlib
import json
import socket

import asyncpg
import httpx
import msgspec
import pytest
import uvloop

from broker.api import events as events_api
from broker.background import event_stream
from broker.schemas import overview
from broker.schemas.overview import EVENT_KINDS, TaskEvent, WorkEvent
from broker.store import events as queries
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


# Events


async def test_each_step_of_a_task_sends_an_event(http: httpx.AsyncClient) -> None:
    async with subscribe(http) as subscriber:
        await add_tool(http, "t", capacity=2)
        assert summarize(await subscriber.wait_for("tool")) == {("tool", "t", "idle")}
        await add_task(http, "a", priority=7)
        events = await subscriber.wait_for("task")
        assert events[-1].data == {"id": "a", "state": "available", "priority": 7, "attempt": 0}
        work = (await assign(http, "a", "t"))["id"]
        events = await subscriber.wait_for("work")
        assert summarize(events) == {
            ("task", "a", "assigned"),
            ("tool", "t", "idle"),
            ("work", work, "assigned"),
        }
        assert {each.data["load"] for each in events if each.name == "tool"} == {1}
        await http.post(f"/v1/work/{work}/start")
        assert summarize(await subscriber.wait_for("work")) == {
            ("task", "a", "running"),
            ("work", work, "running"),
        }
        await http.post(f"/v1/work/{work}/reports", json={"progress": 0.5, "message": "half way"})
        [event] = await subscriber.wait_for("work")
        assert (event.data["progress"], event.data["message"]) == (0.5, "half way")
        await http.post(f"/v1/work/{work}/cancel")
        [event] = await subscriber.wait_for("work")
        assert event.data["cancel_requested"] is True
        record = await complete_work(http, work)
        events = await subscriber.wait_for("archive")
        assert summarize(events) == {
            ("task", "a", "succeeded"),
            ("tool", "t", "idle"),
            ("archive", work, "succeeded"),
        }
        assert events[-1].data == {name: record[name] for name in events[-1].data}


async def test_events_contain_the_same_values_as_the_resources(http: httpx.AsyncClient) -> None:
    async with subscribe(http) as subscriber:
        pair = await add_running_work(http, priority=-3)
        events = {each.name: each.data for each in await subscriber.wait_for("work", state="running")}
        events["tool"]["skills"] = json.loads(events["tool"]["skills"])
        for name, path in (("task", "tasks/a"), ("tool", "tools/t"), ("work", f"work/{pair.work}")):
            resource = await get(http, f"/v1/{path}")
            assert events[name] == {key: resource.get(key) for key in events[name]}, name


async def test_failures_backoffs_and_retries_send_events(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    pair = await add_running_work(http, max_attempts=2)
    async with subscribe(http) as subscriber:
        await complete_work(http, pair.work, "failed", error="no light")
        events = await subscriber.wait_for("archive")
        assert ("task", "a", "scheduled") in summarize(events)
        assert events[-1].data["error"] == "no light"
        await end_backoff(sql)
        [event] = await subscriber.wait_for("task")
        assert (event.data["state"], event.data["attempt"]) == ("available", 1)
        await http.put("/v1/tasks/a/remark", json={"text": "no tool is free"})
        assert summarize(await subscriber.wait_for("task")) == {("task", "a", "available")}
        second = (await assign(http))["id"]
        await complete_work(http, second, "failed")
        await subscriber.wait_for("archive", work_id=second)
        await http.post("/v1/tasks/a/retry")
        await subscriber.wait_for("task", state="available")


async def test_accepting_a_late_result_sends_events(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http, max_attempts=1)
    await complete_work(http, pair.work, "failed")
    await complete(http, pair.work, "succeeded")
    async with subscribe(http) as subscriber:
        await http.post(f"/v1/archive/{pair.work}/accept")
        events = await subscriber.wait_for("archive")
        assert summarize(events) == {("task", "a", "succeeded"), ("archive", pair.work, "succeeded")}


async def test_deleting_a_task_sends_events_of_the_task_and_its_record(http: httpx.AsyncClient) -> None:
    await add_task(http)
    async with subscribe(http) as subscriber:
        await http.delete("/v1/tasks/a")
        events = await subscriber.wait_for("archive")
        assert [(each.name, each.data.get("state")) for each in events] == [
            ("task", "cancelled"),
            ("archive", None),
        ]
        assert events[-1].data["tool_id"] is None


async def test_each_change_of_a_tool_sends_an_event(http: httpx.AsyncClient, sql: asyncpg.Connection) -> None:
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


async def test_deleting_a_tool_with_work_sends_events(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    pair = await add_running_work(http)
    async with subscribe(http) as subscriber:
        await http.delete("/v1/tools/t?force=true")
        events = await subscriber.wait_for("archive")
        assert summarize(events) >= {("task", "a", "available"), ("archive", pair.work, "lost")}
        if ("tool", "t", "deleted") not in summarize(events):
            await subscriber.wait_for("tool", state="deleted")


# Response


async def test_the_stream_begins_at_once_with_a_position(http: httpx.AsyncClient) -> None:
    async with subscribe(http) as subscriber:
        headers = subscriber.response.headers
        assert headers["content-type"].split(";")[0] == "text/event-stream"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        assert subscriber.raw.startswith("retry: ")
        assert 1_000 <= int(subscriber.raw.split()[1]) <= 3_000


async def test_every_event_matches_its_description(http: httpx.AsyncClient) -> None:
    document = description.make()
    described = document["paths"]["/v1/events"]["get"]
    example = described["responses"]["200"]["content"]["text/event-stream"]["example"]
    examples = {}
    for block in example.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        examples[fields["event"]] = json.loads(fields["data"])
    assert list(examples) == [*EVENTS_BY_NAME]
    async with subscribe(http) as subscriber:
        pair = await add_running_work(http)
        events = await subscriber.wait_for("work", state="running")
        await complete_work(http, pair.work)
        events += await subscriber.wait_for("archive")
        await add_tasks(http, *(f"n{number}" for number in range(600)))
        events += await subscriber.wait_for("resync")
    assert {each.name for each in events} == examples.keys()
    for name, data in [*examples.items(), *((each.name, each.data) for each in events)]:
        event_type = EVENTS_BY_NAME[name]
        assert msgspec.to_builtins(msgspec.convert(data, event_type)).keys() == data.keys()
        assert event_type.__name__ in document["components"]["schemas"]
        assert f"`{name}` (data: `{event_type.__name__}`)." in described["description"]


EVENTS_BY_NAME = {
    "task": TaskEvent,
    "tool": overview.ToolEvent,
    "work": WorkEvent,
    "archive": overview.ArchiveEvent,
    "resync": overview.Resync,
}


async def test_an_idle_stream_is_kept_alive_without_a_statement(
    broker: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "_KEEP_ALIVE_SECONDS", 0.01)
    async with subscribe(http) as subscriber, subscribe(http):
        with recorded_statements(broker) as statements:
            for _ in range(20):
                assert await subscriber._read_event() == {"": ""} or subscriber.raw.endswith(":\n\n")
        assert statements == []


async def test_metrics_count_subscribers_events_and_resyncs(broker: Running, http: httpx.AsyncClient) -> None:
    async def metric(name: str) -> float:
        lines = (await http.get("/metrics")).text.splitlines()
        return float(next(line.split()[1] for line in lines if line.split()[0] == name))

    await wait_for_no_subscribers(broker)
    sent, resyncs = await metric("broker_events_told_total"), await metric("broker_events_resyncs_total")
    async with subscribe(http) as subscriber, subscribe(http):
        assert await metric("broker_events_watchers") == 2
        await add_task(http)
        await subscriber.wait_for("task")
        assert await metric("broker_events_told_total") == sent + 1
        async with subscribe(http, "garbled") as third:
            await third.wait_for("resync")
        assert await metric("broker_events_resyncs_total") == resyncs + 1


# Shared queries


async def test_all_subscribers_share_one_query(broker: Running, http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await add_task(http)
    async with contextlib.AsyncExitStack() as stack:
        subscribers = [await stack.enter_async_context(subscribe(http)) for _ in range(10)]
        before = [subscriber.raw for subscriber in subscribers]
        with recorded_statements(broker) as statements:
            work = (await assign(http))["id"]
            for subscriber in subscribers:
                await subscriber.wait_for("work", id=work)
        assert (
            len({subscriber.raw[len(raw) :] for subscriber, raw in zip(subscribers, before, strict=True)})
            == 1
        )
        assert statements.count(queries.WORKS.text) == 1


async def test_no_query_runs_without_subscribers(broker: Running, http: httpx.AsyncClient) -> None:
    await wait_for_no_subscribers(broker)
    with recorded_statements(broker) as statements:
        received = broker.server.service.listener.received
        pair = await add_running_work(http)
        await complete_work(http, pair.work)

        async def has_received() -> bool:
            return broker.server.service.listener.received > received

        await wait_until(has_received)
        async with subscribe(http):
            pass
    reads = {queries.WORKS.text, queries.TASKS.text, queries.TOOLS.text, queries.RECORDS.text}
    assert not reads & set(statements)


async def test_many_changes_at_once_become_one_resync(http: httpx.AsyncClient) -> None:
    async with subscribe(http) as subscriber:
        await add_tasks(http, *(f"{'n' * 20}{number}" for number in range(1_000)))
        [event] = await subscriber.wait_for("resync")
        assert event.data["of"] == ["task"]
        await add_tool(http, "large", capacity=1_000)
        assert summarize(await subscriber.wait_for("tool", id="large")) >= {("tool", "large", "idle")}
        pairs = [{"task_id": f"{'n' * 20}{number}", "tool_id": "large"} for number in range(1_000)]
        made = await http.post("/v1/work/batch", json={"items": pairs})
        [*_, event] = await subscriber.wait_for("resync")
        assert {"work", "task", "tool"} <= set(event.data["of"])
        endings = [{"work_id": each["work_id"], "outcome": "succeeded"} for each in made.json()["items"]]
        await http.post("/v1/work/complete", json={"items": endings})
        [*_, event] = await subscriber.wait_for("resync")
        assert event.data["of"] == EVERYTHING


# Subscribers that reconnect


async def test_a_returning_subscriber_gets_each_missed_event_once(http: httpx.AsyncClient) -> None:
    async with subscribe(http) as witness:
        async with subscribe(http) as subscriber:
            await add_task(http, "seen")
            await subscriber.wait_for("task", id="seen")
            # The batch may also contain changes of the previous test.
            await subscriber.read_whole_batch()
            position = subscriber.position
        await witness.wait_for("task", id="seen")
        await witness.read_whole_batch()
        start = len(witness.raw)
        for name in ("b", "c"):
            await add_task(http, name)
            await witness.wait_for("task", id=name)
        missed = witness.raw[start:]
        async with subscribe(http, position) as returning:
            await returning.wait_for("task", id="c")
            assert returning.raw.partition("\n")[2] == missed
            await add_task(http, "d")
            assert summarize(await returning.wait_for("task", id="d")) == {("task", "d", "available")}


async def test_a_returning_subscriber_that_missed_nothing_gets_no_event(
    broker: Running, http: httpx.AsyncClient
) -> None:
    async with subscribe(http) as subscriber:
        pass
    await wait_for_no_subscribers(broker)
    async with subscribe(http, subscriber.position) as returning:
        assert await returning.next() == Event(subscriber.position, "", {})


async def test_changes_without_any_subscriber_cause_a_resync(
    broker: Running, http: httpx.AsyncClient
) -> None:
    async with subscribe(http) as subscriber:
        pass
    await wait_for_no_subscribers(broker)
    received = broker.server.service.listener.received
    await add_task(http)

    async def has_received() -> bool:
        return broker.server.service.listener.received > received

    await wait_until(has_received)
    async with subscribe(http, subscriber.position) as returning:
        first = await returning.next()
        assert (first.name, first.data["of"]) == ("resync", EVERYTHING)
    # A new subscriber without a position reads the current state anyway, so it needs no resync.
    async with subscribe(http) as new:
        await add_task(http, "b")
        assert summarize([await new.next()]) == {("task", "b", "available")}


@pytest.mark.parametrize(
    "position",
    ["", "-", "x", "0", "-1", "00000000-1", "{run}-", "{run}-x", "{run}--1", "{run}-99999999", "{run}-²"],
)
async def test_an_invalid_position_causes_a_resync(
    broker: Running, http: httpx.AsyncClient, position: str
) -> None:
    value = position.format(run=broker.server.service.event_stream._run_id).encode()
    async with http.stream("GET", "/v1/events", headers={"Last-Event-ID": value}) as response:
        first = await Subscriber(response).next()
        assert (first.name, first.data["of"]) == ("resync", EVERYTHING)


async def test_a_lost_listener_connection_causes_a_resync(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    async with subscribe(http) as subscriber:
        name = await sql.fetchval("select current_database()")
        for row in await sql.fetch(f"{LISTENERS} and datname = '{name}'"):
            await sql.fetchval("select pg_terminate_backend($1)", row["pid"])
        [event] = await subscriber.wait_for("resync")
        assert event.data["of"] == EVERYTHING
        await add_task(http)
        await subscriber.wait_for("task", id="a")


async def test_a_failed_query_of_events_is_retried(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "_RETRY_SECONDS", 0.02)
    pair = await add_assigned_work(http)
    await wait_for_no_subscribers(broker)
    async with subscribe(http) as subscriber:
        with recorded_statements(broker) as statements:
            await sql.execute("alter table work_reports rename to away")
            try:
                await http.post(f"/v1/work/{pair.work}/start")

                async def has_retried() -> bool:
                    return statements.count(queries.WORKS.text) >= 2

                await wait_until(has_retried)
            finally:
                await sql.execute("alter table away rename to work_reports")
        events = await subscriber.wait_for("work", state="running")
        assert "resync" not in {each.name for each in events}, "no event was lost"


# Slow and disconnected subscribers


async def test_a_slow_subscriber_gets_a_resync_and_needs_little_memory(
    broker: Running, http: httpx.AsyncClient
) -> None:
    stream = broker.server.service.event_stream
    await wait_for_no_subscribers(broker)
    with stuck_subscriber(broker) as connection:

        async def is_subscribed() -> bool:
            return stream.subscriber_count == 1

        await wait_until(is_subscribed)
        [subscriber] = stream._subscribers
        buffers = [each.transport.get_write_buffer_size for each in broker.server.server_state.connections]
        rounds = 0
        async with asyncio.timeout(WITHIN):
            while not any(b"event: resync" in each for each in subscriber._queue):
                stream._publish(large_events(rounds))
                rounds += 1
                assert subscriber._bytes <= event_stream._MOST_BYTES
                assert max(size() for size in buffers) <= 2 * event_stream._MOST_BYTES
                await asyncio.sleep(0.002)  # the time that a client needs to read
        connection.settimeout(WITHIN)
        await read_until(connection, b"event: resync")
        # The stream continues after the resync.
        stream._publish(large_events(rounds))
        await read_until(connection, f'"task_id":"{rounds}"'.encode())
    await wait_for_no_subscribers(broker)


async def read_until(connection: socket.socket, text: bytes) -> None:
    last = b""
    while text not in last:
        last = last[-len(text) :] + await asyncio.to_thread(connection.recv, 2**20)


async def test_a_disconnected_subscriber_frees_its_resources_at_once(
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
