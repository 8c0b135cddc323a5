"""How /v1/events ends, and for whom it does not begin: brokers of their own."""

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


async def test_who_waits_for_too_much_is_told_so_and_who_leaves_gives_the_place_back(serve: Serve) -> None:
    client = (running := await serve(max_waits_per_client=1)).client
    async with subscribe(client):
        assert_problem(await client.get("/v1/events"), 429, "too_many_requests")
    service = running.server.service

    async def left() -> bool:
        return not (service.event_stream.subscriber_count or service.wait_limits.count)

    await wait_until(left)
    async with subscribe(client):
        assert (service.event_stream.subscriber_count, service.wait_limits.count) == (1, 1)


async def test_when_the_service_stops_every_stream_ends_at_once(serve: Serve) -> None:
    running = await serve()
    async with contextlib.AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(subscribe(running.client)) for _ in range(3)]
        async with asyncio.timeout(2):
            stopping = asyncio.create_task(running.stop())
            for subscriber in watchers:
                await subscriber.wait_for_end()
        await stack.aclose()
        async with asyncio.timeout(2):
            await stopping


async def test_a_client_that_is_stuck_holds_up_no_stop(serve: Serve) -> None:
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


async def test_a_key_that_is_revoked_ends_what_it_watches_at_once_and_no_other(
    serve: Serve, store: Store
) -> None:
    good, bad = await make_key(store, "good", "operator"), await make_key(store, "bad", "operator")
    client = (await serve()).client
    async with subscribe(client, **bearer(bad)) as ending, subscribe(client, **bearer(good)) as staying:
        assert await store.run(keys.revoke, "bad")
        await ending.wait_for_end()
        admin = await make_key(store, "admin", "admin")
        await client.post("/v1/tasks", json={"id": "a", "needs": 1}, headers=bearer(admin))
        await staying.wait_for("task", id="a")
    assert_problem(await client.get("/v1/events", headers=bearer(bad)), 401, "unauthenticated")


async def test_the_first_key_ends_what_somebody_watches_without_one(serve: Serve, store: Store) -> None:
    client = (await serve()).client
    async with subscribe(client) as subscriber:
        await make_key(store, "first", "admin")
        await subscriber.wait_for_end()


async def test_nothing_is_told_to_a_key_whose_end_was_not_heard(
    serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = await make_key(store, "bad", "operator")
    submitter = await make_key(store, "submitter", "submitter")
    running = await serve()
    async with subscribe(running.client, **bearer(bad)) as subscriber:
        heard = running.server.service.event_stream.receive
        monkeypatch.setattr(
            running.server.service.event_stream,
            "receive",
            lambda channel, said: said == "key *" or heard(channel, said),
        )
        assert await store.run(keys.revoke, "bad")
        running.server.service.keyring._read_at = float("-inf")  # two seconds later
        await running.client.post("/v1/tasks", json={"needs": 1}, headers=bearer(submitter))
        await subscriber.wait_for_end()
        assert "event:" not in subscriber.raw
