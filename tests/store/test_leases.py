"""Leases: every request of a tool renews its lease, and no lease ends earlier than a response stated."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest
from msgspec import Raw
from sqlalchemy import text

from broker.schemas.tools import NewTool, ToolChange
from broker.store import Store, leases, locks, tools, work
from tests.support import steps
from tests.support.shared import SHARED_STORE

pytestmark, database, sql, store = SHARED_STORE

Step = Callable[[Store, UUID], Awaitable[object]]
STEPS: dict[str, Step] = {
    "heartbeat": lambda store, _: store.one(leases.heartbeat, leases.Beat("tool")),
    "start": lambda store, id_: store.one(work.start, work.Start(id_)),
    "report": steps.report,
    "complete": steps.complete,
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_request_of_a_tool_renews_its_lease(store: Store, step: str) -> None:
    made = await steps.add_assigned_work(store)
    before = await steps.get_tool(store, "tool")
    await STEPS[step](store, made.id)
    after = await steps.get_tool(store, "tool")
    assert after.lease_expires_at > before.lease_expires_at
    assert after.seen_at > before.seen_at


@pytest.mark.parametrize("step", STEPS)
async def test_a_request_of_the_earlier_run_does_not_shorten_the_new_lease(
    store: Store, sql: asyncpg.Connection, step: str
) -> None:
    made = await steps.add_assigned_work(store)
    again = tools.Registration(NewTool(skills=Raw(b"{}"), id="tool", lease_seconds=3600), b"new")
    async with steps.OpenTransaction(store) as program:
        await program.run(tools.register, [again])
        late = asyncio.ensure_future(STEPS[step](store, made.id))
        await steps.wait_until_blocked(sql)
    await late
    assert await sql.fetchval("select expires_at - now() from tool_leases") > timedelta(seconds=3500)


@pytest.mark.parametrize("step", ["start", "report", "complete"])
async def test_a_waiting_request_does_not_shorten_a_lease(
    store: Store, sql: asyncpg.Connection, step: str
) -> None:
    made = await steps.add_assigned_work(store)
    async with steps.OpenTransaction(store) as gate:
        await gate.session.execute(locks.LOCK, {"ids": [made.id], "task_ids": [], "tool_ids": []})
        late = asyncio.ensure_future(STEPS[step](store, made.id))
        await steps.wait_until_blocked(sql)
        heartbeat = await store.one(leases.heartbeat, leases.Beat("tool"))
    assert heartbeat is not None
    await late
    assert (await steps.get_tool(store, "tool")).lease_expires_at >= heartbeat.lease_expires_at


async def test_registrations_lock_tools_in_order_with_and_without_resume(
    store: Store, sql: asyncpg.Connection
) -> None:
    """A registration must not hold a later tool while it waits for an earlier one. That could deadlock."""
    await steps.register(store, "a", "b")
    again = [
        tools.Registration(NewTool(skills=Raw(b"{}"), id=id_, resume=resume), id_.encode())
        for id_, resume in (("a", True), ("b", False))
    ]
    async with steps.OpenTransaction(store) as other:
        await other.session.execute(text("select from tools where id = 'a' for update"))
        registering = asyncio.ensure_future(store.many(tools.register, again))
        await steps.wait_until_blocked(sql)
        assert await sql.fetchval(
            "select count(*) from (select from tools where id = 'b' for update nowait) b"
        )
    await registering


async def test_a_changed_lease_length_applies_from_the_next_request_on(
    store: Store, sql: asyncpg.Connection
) -> None:
    await steps.register(store, "tool")
    changed = await store.one(tools.change, tools.Change("tool", ToolChange(lease_seconds=3600)))
    assert changed is not None
    assert changed.lease_seconds == 3600
    await store.one(leases.heartbeat, leases.Beat("tool"))
    assert await sql.fetchval("select expires_at - now() from tool_leases") > timedelta(seconds=3500)
