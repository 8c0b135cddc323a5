"""Presence: a tool that asks for work, or waits for it, keeps its lease."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime

import asyncpg
import httpx
import pytest

from broker.background.presence import Presence
from broker.store import Store
from broker.store.address import libpq_url
from broker.store.leases import Beat
from tests.conftest import Serve
from tests.support import steps
from tests.support.api import add_assigned_work, add_running_work, get, take_tool_offline
from tests.support.waiting import wait_until


@pytest.fixture
async def presence(store: Store) -> AsyncIterator[Presence]:
    """Return a running presence."""
    presence = Presence(store)
    presence.start()
    yield presence
    await presence.stop()


async def lease(sql: asyncpg.Connection, tool_id: str) -> datetime:
    expires_at: datetime = await sql.fetchval(
        "select expires_at from tool_leases where tool_id = $1", tool_id
    )
    return expires_at


async def wait_for_renewals(sql: asyncpg.Connection, tool_id: str, times: int) -> None:
    """Wait until the lease was renewed this number of times."""
    for _ in range(times):
        before = await lease(sql, tool_id)

        async def later(before: datetime = before) -> bool:
            return await lease(sql, tool_id) > before

        await wait_until(later)


@contextmanager
def waiting(presence: Presence, tool_id: str) -> Iterator[None]:
    """Let a tool wait for work during the block."""
    presence.arrive(Beat(tool_id))
    try:
        yield
    finally:
        presence.leave(Beat(tool_id))


async def test_a_waiting_tool_keeps_its_lease(
    presence: Presence, store: Store, sql: asyncpg.Connection
) -> None:
    await steps.register(store, "t", lease_seconds=5)
    with waiting(presence, "t"):
        await wait_for_renewals(sql, "t", times=3)


async def test_one_request_for_work_renews_the_lease_once(
    presence: Presence, store: Store, sql: asyncpg.Connection
) -> None:
    await steps.register(store, "t", "other")
    with waiting(presence, "t"):
        pass
    untouched = await lease(sql, "other")
    await wait_for_renewals(sql, "t", times=1)
    assert await lease(sql, "other") == untouched


async def test_leases_of_many_tools_are_renewed_by_one_statement(
    presence: Presence, store: Store, sql: asyncpg.Connection
) -> None:
    ids = [f"t{number}" for number in range(200)]
    await steps.register(store, *ids)
    for tool_id in ids:
        with waiting(presence, tool_id):
            pass
    await wait_for_renewals(sql, ids[-1], times=1)
    assert await sql.fetchval("select count(distinct expires_at) from tool_leases") == 1


async def test_unknown_tools_are_forgotten(presence: Presence, store: Store, sql: asyncpg.Connection) -> None:
    await steps.register(store, "t")
    with waiting(presence, "nobody"), waiting(presence, "t"):
        await wait_for_renewals(sql, "t", times=1)
    assert Beat("nobody") not in presence._due


async def test_a_failed_renewal_is_retried(presence: Presence, store: Store, sql: asyncpg.Connection) -> None:
    await steps.register(store, "t")
    before = await lease(sql, "t")
    await sql.execute("alter table tool_leases rename to away")
    with waiting(presence, "t"):

        async def tried() -> bool:
            return store.engine.pool.checkedin() > 0 and presence._due.get(Beat("t"), 0) > started

        started = asyncio.get_running_loop().time() + 0.6
        await wait_until(tried)
        await sql.execute("alter table away rename to tool_leases")
        await wait_until(lambda: later_than(sql, before))


async def later_than(sql: asyncpg.Connection, before: datetime) -> bool:
    return await lease(sql, "t") > before


async def test_a_tool_that_asks_for_its_work_keeps_its_lease(
    serve: Serve, store: Store, sql: asyncpg.Connection
) -> None:
    broker = await serve()
    await steps.register(store, "t")
    before = await lease(sql, "t")
    assert (await broker.client.get("/v1/tools/t/work")).status_code == 200
    await wait_until(lambda: later_than(sql, before))


async def test_a_short_lease_is_renewed_in_time_next_to_long_ones(
    presence: Presence, store: Store, sql: asyncpg.Connection
) -> None:
    await steps.register(store, "patient", lease_seconds=3600)
    with waiting(presence, "patient"):
        await wait_for_renewals(sql, "patient", times=1)
        await steps.register(store, "hasty", lease_seconds=5)
        with waiting(presence, "hasty"):
            await wait_for_renewals(sql, "hasty", times=2)


async def test_a_lease_that_becomes_shorter_is_renewed_in_time(
    presence: Presence, store: Store, sql: asyncpg.Connection
) -> None:
    await steps.register(store, "t", lease_seconds=3600)
    with waiting(presence, "t"):
        await wait_for_renewals(sql, "t", times=1)
        await steps.register(store, "t", lease_seconds=5)
        presence.plan_renewal(Beat("t"), 5)
        await wait_for_renewals(sql, "t", times=2)


async def test_the_earlier_of_two_planned_renewals_stays(store: Store) -> None:
    presence = Presence(store)
    now = asyncio.get_running_loop().time()
    presence.plan_renewal(Beat("t"), 5)
    presence.plan_renewal(Beat("t"), 3600)
    assert presence._due[Beat("t")] - now < 5


async def test_outdated_renewals_of_a_tool_do_not_accumulate(store: Store) -> None:
    presence = Presence(store)
    for number in range(20_000):
        presence.plan_renewal(Beat("t"), 40_000 - number)
    assert len(presence._in_order) < 2_000


async def test_tools_get_more_time_after_the_service_was_unreachable(
    http: httpx.AsyncClient, sql: asyncpg.Connection, database: str
) -> None:
    running = await add_running_work(http, "running", "old")
    waits = await add_assigned_work(http, "waits", "old")
    late = "now() - interval '1 hour'"
    other = await asyncpg.connect(libpq_url(database))
    async with other.transaction():
        await other.execute(f"update tool_leases set expires_at = {late}")
        await other.execute(f"update work set deadline_at = {late} where state = 'assigned'")
        await other.execute("notify broker_upkeep, 'tools'")
        await other.execute("notify broker_upkeep, 'work'")
    await other.close()

    async def given_more_time() -> bool:
        return bool(
            await sql.fetchval(
                "select (select expires_at > now() from tool_leases)"
                " and (select deadline_at > now() from work where state = 'assigned')"
            )
        )

    await wait_until(given_more_time)
    assert (await get(http, f"/v1/work/{running.work}"))["state"] == "running"
    assert (await get(http, f"/v1/work/{waits.work}"))["state"] == "assigned"
    await take_tool_offline(http, sql, "old")
