"""Tokens of tools while there are no keys: a void one is refused, the current one renews the lease."""

import asyncio
import json
from typing import Any

import asyncpg
import httpx
import pytest

from broker.store import ownership
from broker.store.leases import Beat
from tests.conftest import Running
from tests.support import api
from tests.support.api import (
    add_assigned_work,
    add_running_work,
    add_tool,
    assert_problem,
    bearer,
    finish_long_poll,
    get,
    recorded_statements,
    start_long_poll,
)
from tests.support.processes import serving, wait_until_ready
from tests.support.shared import SHARED_BROKER
from tests.support.waiting import wait_until

# How the statements begin that look up who may act.
LOOK_UPS = tuple(
    str(each).partition(":")[0].partition("where")[0] for each in (ownership.TOOLS, ownership.WORKS)
)

pytestmark, database, broker, sql, http = SHARED_BROKER

WITH_A_TOKEN: dict[str, Any] = {
    "POST /v1/tools/t/heartbeat": {},
    "GET /v1/tools/t": None,
    "GET /v1/tools/t/work": None,
    "GET /v1/tools/t/work?wait=5": None,
    "PATCH /v1/tools/t": {"draining": True},
    "DELETE /v1/tools/t?force=true": None,
    "GET /v1/work": None,
    "GET /v1/work/WORK": None,
    "GET /v1/work/WORK?wait=5": None,
    "GET /v1/work/WORK/reports": None,
    "POST /v1/work/WORK/start": {},
    "POST /v1/work/WORK/reports": {"progress": 0.5},
    "POST /v1/work/WORK/complete": {"outcome": "succeeded"},
    "POST /v1/work/complete": {"items": [{"work_id": "WORK", "outcome": "succeeded"}]},
    "POST /v1/tasks": {"needs": 1},
    "GET /v1/tasks/a": None,
}
READS = [call for call, body in WITH_A_TOKEN.items() if body is None and call.startswith("GET /v1/")][:-1]


async def call(http: httpx.AsyncClient, call: str, work: str, token: str) -> httpx.Response:
    method, path = call.split()
    body = json.dumps(WITH_A_TOKEN[call]).replace("WORK", work) if WITH_A_TOKEN[call] is not None else None
    headers = bearer(token) | ({"Content-Type": "application/json"} if body else {})
    return await http.request(method, path.replace("WORK", work), content=body, headers=headers)


async def registered_twice(http: httpx.AsyncClient, work: str) -> tuple[str, str]:
    """The void token of a tool, and the current one."""
    tokens = [(await add_tool(http, capacity=100, resume=True))["token"] for _ in range(2)]
    assert (await http.get(f"/v1/work/{work}")).json()["state"] in ("assigned", "running")
    return tokens[0], tokens[1]


@pytest.mark.parametrize("request_", WITH_A_TOKEN)
async def test_without_keys_a_void_token_is_refused_and_changes_nothing(
    http: httpx.AsyncClient, request_: str
) -> None:
    pair = await add_assigned_work(http)
    void, current = await registered_twice(http, pair.work)
    before = await get(http, f"/v1/work/{pair.work}"), (await get(http, "/v1/tools/t"))["state"]
    refused = await call(http, request_, pair.work, void)
    assert "void" in assert_problem(refused, 401, "unauthenticated")["detail"]
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert (await get(http, f"/v1/work/{pair.work}"), (await get(http, "/v1/tools/t"))["state"]) == before
    answer = await call(http, request_, pair.work, current)
    assert answer.status_code < 300, answer.text


@pytest.mark.parametrize("request_", ["start", "reports", "complete"])
async def test_a_void_token_is_refused_before_anybody_looks_how_the_work_ended(
    http: httpx.AsyncClient, request_: str
) -> None:
    pair = await add_running_work(http)
    void = (await add_tool(http, resume=True))["token"]
    await add_tool(http)
    body = {"outcome": "succeeded"} if request_ == "complete" else {}
    refused = await http.post(f"/v1/work/{pair.work}/{request_}", json=body, headers=bearer(void))
    assert_problem(refused, 401, "unauthenticated")
    assert (await get(http, f"/v1/archive/{pair.work}"))["late"] is None


@pytest.mark.parametrize("request_", READS)
async def test_without_keys_whatever_a_tool_asks_about_itself_with_its_token_renews_its_lease(
    http: httpx.AsyncClient, sql: asyncpg.Connection, request_: str
) -> None:
    pair = await add_running_work(http)
    token = (await add_tool(http, capacity=100, resume=True))["token"]
    await sql.execute("update tools set offline = true; update tool_leases set expires_at = now()")
    assert (await call(http, request_.partition("?")[0], pair.work, token)).status_code == 200
    await api.wait_for_state(http, "/v1/tools/t", "idle")


async def test_without_keys_a_tool_that_waits_for_a_change_of_its_work_keeps_its_lease(
    broker: Running, http: httpx.AsyncClient
) -> None:
    pair = await add_running_work(http)
    token = (await add_tool(http, capacity=100, resume=True, lease_seconds=5))["token"]
    before = (await get(http, "/v1/tools/t"))["lease_expires_at"]
    parked = await start_long_poll(broker, "GET", f"/v1/work/{pair.work}?wait=60", headers=bearer(token))

    async def renewed_twice() -> bool:
        presence = broker.server.service.presence
        [beat] = [beat for beat in presence._waiting if beat.tool_id == "t"]
        assert beat.token_hash
        return bool((await get(http, "/v1/tools/t"))["lease_expires_at"] > before)

    for _ in range(2):
        await wait_until(renewed_twice)
        before = (await get(http, "/v1/tools/t"))["lease_expires_at"]
    await http.post(f"/v1/work/{pair.work}/cancel")
    assert (await finish_long_poll(parked))["cancel_requested"] is True


async def test_without_keys_who_waits_for_work_is_refused_once_another_program_registers(
    broker: Running, http: httpx.AsyncClient
) -> None:
    token = (await add_tool(http))["token"]
    parked = await start_long_poll(broker, "GET", "/v1/tools/t/work?wait=60", headers=bearer(token))
    await add_tool(http)
    async with asyncio.timeout(5):
        assert_problem(await parked, 401, "unauthenticated")
    assert Beat("t") not in broker.server.service.presence._waiting


@pytest.mark.parametrize("token", ["bt_", "bt_dA_short", "bt_!!_" + "A" * 43])
async def test_without_keys_what_begins_like_a_token_and_is_none_is_refused(
    http: httpx.AsyncClient, token: str
) -> None:
    assert_problem(await http.get("/v1/tools", headers=bearer(token)), 401, "unauthenticated")


async def test_without_keys_neither_a_key_nor_a_current_token_closes_anything(
    http: httpx.AsyncClient,
) -> None:
    token = (await add_tool(http))["token"]
    pair = await add_assigned_work(http, "a", "other")
    for headers in (bearer("bk_whatever"), bearer("anything"), bearer(token)):
        assert (await http.get("/v1/tools", headers=headers)).status_code == 200
        assert (await http.get("/v1/tools/other/work", headers=headers)).status_code == 200
    assert (await http.post(f"/v1/work/{pair.work}/start", headers=bearer(token))).status_code == 200


async def test_a_token_of_a_deleted_tool_is_void(http: httpx.AsyncClient) -> None:
    token = (await add_tool(http))["token"]
    assert (await http.delete("/v1/tools/t")).status_code == 204
    for method, path in (("POST", "/v1/tools/t/heartbeat"), ("GET", "/v1/tools/t/work")):
        assert_problem(await http.request(method, path, headers=bearer(token)), 401, "unauthenticated")


async def test_without_keys_a_token_costs_the_life_cycle_no_statement(
    broker: Running, http: httpx.AsyncClient
) -> None:
    pair = await add_assigned_work(http)
    token = (await add_tool(http, capacity=100, resume=True))["token"]
    for request_ in (
        "GET /v1/tools/t/work",
        "POST /v1/tools/t/heartbeat",
        "POST /v1/work/WORK/start",
        "POST /v1/work/WORK/reports",
        "POST /v1/work/WORK/complete",
    ):
        await broker.server.service.keyring.know(asyncio.get_running_loop().time())
        with recorded_statements(broker) as seen:
            assert (await call(http, request_, pair.work, token)).status_code < 300
        assert not [each for each in seen if each.startswith(LOOK_UPS)], request_


async def test_a_start_that_another_process_lets_in_with_a_void_token_is_refused(database: str) -> None:
    """Each process remembers for two seconds that a token was good; the statement does not."""
    here = {"BROKER_DATABASE_URL": database}
    with serving(**here) as (_, first), serving(**here) as (_, second):
        await wait_until_ready(first)
        await wait_until_ready(second)
        async with (
            httpx.AsyncClient(base_url=first, timeout=30) as one,
            httpx.AsyncClient(base_url=second, timeout=30) as two,
        ):
            pair = await add_assigned_work(one, "shared", "twice")
            old = (await add_tool(one, "twice", resume=True))["token"]
            assert (await two.get("/v1/tools/twice", headers=bearer(old))).status_code == 200
            new = (await add_tool(one, "twice"))["token"]
            for path in (f"/v1/work/{pair.work}/start", "/v1/tools/twice/heartbeat"):
                assert_problem(await two.post(path, headers=bearer(old)), 401, "unauthenticated")
            drained = await two.patch("/v1/tools/twice", json={"draining": True}, headers=bearer(old))
            assert_problem(drained, 401, "unauthenticated")
            found = await two.get("/v1/tools/twice/work", headers=bearer(new))
            assert [item["state"] for item in found.json()["items"]] == ["assigned"]
            assert (await two.post(f"/v1/work/{pair.work}/start", headers=bearer(new))).status_code == 200
