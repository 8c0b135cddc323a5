"""The end of event streams, and refused streams. Each test has its own broker."""

import asyncio
import contextlib

import pytest
import uvloop

from broker.store import Store, keys
from tests.conftest import Serve
from tests.support.api import assert_problem, bearer, make_key
from tests.support.subscribers import large_events, stuck_subscriber, subscribe
from tests.support.waiting import wait_until

NEW_LOOP = uvloop.new_event_loop


async def test_a_disconnected_subscriber_no_longer_counts_towards_the_limit(serve: Serve) -> None:
    client = (running := await serve(max_waits_per_client=1)).client
    async with subscribe(client):
        assert_problem(await client.get("/v1/events"), 429, "too_many_requests")
    service = running.server.service

    async def is_disconnected() -> bool:
        return not (service.event_stream.subscriber_count or service.wait_limits.count)

    await wait_until(is_disconnected)
    async with subscribe(client):
        assert (service.event_stream.subscriber_count, service.wait_limits.count) == (1, 1)


async def test_every_stream_ends_at_once_when_the_broker_stops(serve: Serve) -> None:
    running = await serve()
    async with contextlib.AsyncExitStack() as stack:
        subscribers = [await stack.enter_async_context(subscribe(running.client)) for _ in range(3)]
        async with asyncio.timeout(2):
            stopping = asyncio.create_task(running.stop())
            for subscriber in subscribers:
                await subscriber.wait_for_end()
        await stack.aclose()
        async with asyncio.timeout(2):
            await stopping


async def test_a_stuck_subscriber_does_not_delay_the_stop(serve: Serve) -> None:
    running = await serve()
    with stuck_subscriber(running):

        async def is_stuck() -> bool:
            for subscriber in running.server.service.event_stream._subscribers:
                running.server.service.event_stream._publish(large_events(1))
                return len(subscriber._queue) > 1
            return False

        await wait_until(is_stuck)
        async with asyncio.timeout(3):
            await running.stop()


async def test_revoking_a_key_ends_only_its_own_streams_at_once(serve: Serve, store: Store) -> None:
    good, bad = await make_key(store, "good", "operator"), await make_key(store, "bad", "operator")
    client = (await serve()).client
    async with subscribe(client, **bearer(bad)) as revoked, subscribe(client, **bearer(good)) as other:
        assert await store.run(keys.revoke, "bad")
        await revoked.wait_for_end()
        admin = await make_key(store, "admin", "admin")
        await client.post("/v1/tasks", json={"id": "a", "needs": 1}, headers=bearer(admin))
        await other.wait_for("task", id="a")
    assert_problem(await client.get("/v1/events", headers=bearer(bad)), 401, "unauthenticated")


async def test_creating_the_first_key_ends_streams_without_a_key(serve: Serve, store: Store) -> None:
    client = (await serve()).client
    async with subscribe(client) as subscriber:
        await make_key(store, "first", "admin")
        await subscriber.wait_for_end()


async def test_a_stream_ends_within_two_seconds_if_the_revocation_notification_is_lost(
    serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = await make_key(store, "bad", "operator")
    submitter = await make_key(store, "submitter", "submitter")
    running = await serve()
    async with subscribe(running.client, **bearer(bad)) as subscriber:
        receive = running.server.service.event_stream.receive
        monkeypatch.setattr(
            running.server.service.event_stream,
            "receive",
            lambda channel, payload: payload == "key *" or receive(channel, payload),
        )
        assert await store.run(keys.revoke, "bad")
        running.server.service.keyring._read_at = float("-inf")  # as if two seconds had passed
        await running.client.post("/v1/tasks", json={"needs": 1}, headers=bearer(submitter))
        await subscriber.wait_for_end()
        assert "event:" not in subscriber.raw
