"""Tokens of tools: each statement checks the token against a row that it has locked."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import pytest
from msgspec import Raw

from broker.schemas.tools import NewTool, ToolChange
from broker.schemas.work import NewReport
from broker.store import Store, completion, keys, leases, ownership, reports, tools, work
from broker.store.completion import Ended
from broker.store.leases import Beat
from broker.store.ownership import VOID, Token
from tests.support import steps
from tests.support.shared import SHARED_STORE

pytestmark, database, sql, store = SHARED_STORE

# `steps.register` uses a tool's id as the hash of its token.
OLD = Token("tool", b"tool")
NEW = Token("tool", b"new")


class Action(NamedTuple):
    """A step of a tool, and its result for an invalid token."""

    run: Callable[[Store, UUID, Token], Awaitable[Any]]
    refused: Any = None


def ending(id_: UUID, token: Token, **fields: Any) -> completion.Ending:
    return steps.new_ending(id_, token=token, **fields)


def change(token: Token) -> tools.Change:
    return tools.Change("tool", ToolChange(draining=True), token)


ACTIONS = {
    "start": Action(lambda store, id_, token: store.one(work.start, work.Start(id_, token))),
    "report": Action(
        lambda store, id_, token: store.one(reports.write, reports.ReportOf(id_, NewReport(), token))
    ),
    "complete": Action(
        lambda store, id_, token: store.one(completion.complete, ending(id_, token)), Ended(VOID, None)
    ),
    "complete briefly": Action(
        lambda store, id_, token: store.one(completion.complete_briefly, ending(id_, token)), VOID
    ),
    "heartbeat": Action(lambda store, _, token: store.one(leases.heartbeat, Beat(*token)), VOID),
    "renew": Action(lambda store, _, token: store.one(leases.keep, Beat(*token)), VOID),
    "drain": Action(lambda store, _, token: store.one(tools.change, change(token)), VOID),
    "delete": Action(
        lambda store, _, token: store.one(tools.delete, tools.ToolDeletion("tool", True, token)), VOID
    ),
}


def registration(*, resume: bool = False) -> tools.Registration:
    return tools.Registration(NewTool(skills=Raw(b"{}"), id="tool", resume=resume), NEW.hash)


async def untouched(sql: asyncpg.Connection) -> list[Any]:
    """Return everything that a step could have changed."""
    return await sql.fetch("""
        select w.state, w.version, t.draining, t.offline, t.load, l.expires_at
        from work w join tools t on t.id = w.tool_id join tool_leases l on l.tool_id = t.id
    """)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("action", ACTIONS)
async def test_a_step_that_waits_for_a_new_registration_is_refused(
    store: Store, sql: asyncpg.Connection, action: str, resume: bool
) -> None:
    made = await steps.add_assigned_work(store)
    async with steps.OpenTransaction(store) as program:
        await program.run(tools.register, [registration(resume=resume)])
        late = asyncio.ensure_future(ACTIONS[action].run(store, made.id, OLD))
        await steps.wait_until_blocked(sql)
    before = await untouched(sql)
    assert await late == ACTIONS[action].refused
    assert await untouched(sql) == before
    assert before[0]["state"] == "assigned"
    await steps.check_invariants(sql)


@pytest.mark.parametrize("action", ACTIONS)
async def test_a_void_token_is_refused_and_the_current_one_is_accepted(
    store: Store, sql: asyncpg.Connection, action: str
) -> None:
    made = await steps.add_assigned_work(store)
    await store.one(tools.register, registration())
    before = await untouched(sql)
    assert await ACTIONS[action].run(store, made.id, OLD) == ACTIONS[action].refused
    assert await untouched(sql) == before
    assert await ACTIONS[action].run(store, made.id, NEW) != ACTIONS[action].refused
    await steps.check_invariants(sql)


@pytest.mark.parametrize("action", ["start", "report"])
async def test_work_that_starts_during_a_new_registration_is_lost(
    store: Store, sql: asyncpg.Connection, action: str
) -> None:
    made = await steps.add_assigned_work(store)
    item = {"start": work.Start(made.id, OLD), "report": reports.ReportOf(made.id, NewReport(), OLD)}[action]
    step: Any = {"start": work.start, "report": reports.write}[action]
    async with steps.OpenTransaction(store) as starting:
        assert await starting.run(step, [item]) != [None]
        registering = asyncio.ensure_future(store.one(tools.register, registration()))
        await steps.wait_until_blocked(sql)
    assert (await registering).tool is not None
    assert (await steps.get_tool(store, "tool")).load == 0
    [record] = await steps.get_records(store)
    assert record.outcome == "lost"
    await steps.check_invariants(sql)


async def test_each_token_of_a_set_has_its_own_result(store: Store, sql: asyncpg.Connection) -> None:
    first, second = (
        await steps.add_assigned_work(store, "a"),
        await steps.add_assigned_work(store, "b", "other"),
    )
    await store.one(tools.register, registration())
    void, heartbeat, other = await steps.run_many(
        store, leases.heartbeat, [Beat(*OLD), Beat(*NEW), Beat("other", b"other")]
    )
    assert void == VOID
    assert VOID not in (heartbeat, other)
    tokens = (OLD, NEW, Token("other", b"other"))
    started = await steps.run_many(
        store, work.start, [work.Start(first.id, OLD), work.Start(first.id, NEW), work.Start(second.id)]
    )
    assert [each is not None for each in started] == [False, True, True]
    reported = await steps.run_many(
        store, reports.write, [reports.ReportOf(first.id, NewReport(), token) for token in tokens[:2]]
    )
    assert [each is not None for each in reported] == [False, True]
    assert await sql.fetchval("select count(*) from work_reports") == 1
    fates = await steps.run_many(
        store,
        completion.complete_briefly,
        [
            ending(first.id, OLD, outcome="failed"),
            ending(first.id, NEW),
            ending(second.id, tokens[2]),
            ending(first.id, NEW),
        ],
    )
    assert fates == [VOID, "ended", "ended", "same"]
    drained = await steps.run_many(store, tools.change, [change(OLD), change(NEW)])
    assert drained[0] == VOID
    assert drained[1] is not None
    await steps.check_invariants(sql)


async def test_a_late_success_with_a_void_token_is_not_stored(store: Store) -> None:
    made = await steps.add_running_work(store)
    await store.one(tools.register, registration())
    assert await store.one(completion.complete, ending(made.id, OLD)) == Ended(VOID, None)
    [record] = await steps.get_records(store)
    assert (record.outcome, record.late) == ("lost", None)
    # A request without a token comes from a client with a key.
    assert (await steps.complete(store, made.id)).status == "other"
    [record] = await steps.get_records(store)
    assert record.late is not None


async def test_a_void_token_does_not_bring_a_tool_back_online(store: Store, sql: asyncpg.Connection) -> None:
    await steps.register(store, "tool")
    await store.one(tools.register, registration())
    await sql.execute("update tools set offline = true; update tool_leases set expires_at = now()")
    for step in (leases.heartbeat, leases.keep):
        assert await store.one(step, Beat(*OLD)) == VOID
        assert await sql.fetchval("select offline from tools") is True
    assert await store.one(leases.keep, Beat(*NEW)) == 60
    assert await sql.fetchval("select offline from tools") is False


async def test_a_token_of_another_tool_is_not_checked(store: Store) -> None:
    made = await steps.add_assigned_work(store)
    await steps.register(store, "other")
    assert await store.one(work.start, work.Start(made.id, Token("other", b"other"))) is not None
    assert await store.one(completion.complete_briefly, ending(made.id, Token("other", b"other"))) == "ended"


@pytest.mark.parametrize("action", ["start", "report", "heartbeat"])
async def test_a_step_that_waits_for_the_revocation_of_its_key_is_refused(
    store: Store, sql: asyncpg.Connection, action: str
) -> None:
    made = await steps.add_assigned_work(store)
    await sql.execute("update tools set registered_by = 'lab'")
    assert await store.run(keys.create, "lab", ["tool"], b"hash")
    async with steps.OpenTransaction(store) as revoking:
        assert await revoking.run(keys.revoke, "lab")
        late = asyncio.ensure_future(ACTIONS[action].run(store, made.id, OLD))
        await steps.wait_until_blocked(sql)
    assert await late == ACTIONS[action].refused
    assert await sql.fetchval("select expires_at <= now() from tool_leases")


async def test_the_lease_has_the_current_token_whatever_version_writes_it(
    store: Store, sql: asyncpg.Connection
) -> None:
    """Processes of the previous version do not know that leases have a copy of the token."""
    await sql.execute("insert into tools (id, skills, capacity, token_hash) values ('tool', '1', 1, 'tool')")
    await sql.execute("""
        insert into tool_leases (tool_id, lease_seconds, seen_at, expires_at)
        values ('tool', 60, now(), now() + interval '60 s')
    """)
    assert await store.one(leases.keep, Beat(*OLD)) == 60
    await sql.execute("update tools set token_hash = 'new'")
    assert await store.one(leases.keep, Beat(*OLD)) == VOID
    assert await store.one(leases.keep, Beat(*NEW)) == 60
    await sql.execute("update tools set token_hash = null")
    assert await store.one(leases.keep, Beat(*NEW)) == VOID


async def test_tokens_of_unknown_tools_are_void(store: Store) -> None:
    await steps.register(store, "tool")
    nobody = Token("nobody", b"nobody")
    assert await store.run(ownership.void, [OLD, NEW, nobody, None]) == {NEW, nobody}
