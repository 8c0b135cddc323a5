"""Tokens of tools while no keys exist: an invalid token is refused, and the valid token renews the lease."""

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

# The beginnings of the statements that look up owners.
LOOKUPS = tuple(
    str(each).partition(":")[0].partition("where")[0] for each in (ownership.TOOLS, ownership.WORKS)
)

pytestmark, database, broker, sql, http = SHARED_BROKER

REQUESTS_WITH_TOKEN: dict[str, Any] = {
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
READS = [each for each, body in REQUESTS_WITH_TOKEN.items() if body is None and each.startswith("GET /v1/")][
    :-1
]


async def send(http: httpx.AsyncClient, request: str, work: str, token: str) -> httpx.Response:
    method, path = request.split()
    body = (
        json.dumps(REQUESTS_WITH_TOKEN[request]).replace("WORK", work)
        if REQUESTS_WITH_TOKEN[request] is not None
        else None
    )
    headers = bearer(token) | ({"Content-Type": "application/json"} if body else {})
    return await http.request(method, path.replace("WORK", work), content=body, headers=headers)


async def register_twice(http: httpx.AsyncClient, work: str) -> tuple[str, str]:
    """Register a tool twice, and return its invalid token and its valid token."""
    tokens = [(await add_tool(http, capacity=100, resume=True))["token"] for _ in range(2)]
    assert (await http.get(f"/v1/work/{work}")).json()["state"] in ("assigned", "running")
    return tokens[0], tokens[1]


@pytest.mark.parametrize("request_", REQUESTS_WITH_TOKEN)
async def test_without_keys_a_void_token_is_refused_and_changes_nothing(
    http: httpx.AsyncClient, request_: str
) -> None:
    pair = await add_assigned_work(http)
    void, current = await register_twice(http, pair.work)
    before = await get(http, f"/v1/work/{pair.work}"), (await get(http, "/v1/tools/t"))["state"]
    refused = await send(http, request_, pair.work, void)
    assert "token is invalid" in assert_problem(refused, 401, "unauthenticated")["detail"]
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert (await get(http, f"/v1/work/{pair.work}"), (await get(http, "/v1/tools/t"))["state"]) == before
    response = await send(http, request_, pair.work, current)
    assert response.status_code < 300, response.text


@pytest.mark.parametrize("request_", ["start", "reports", "complete"])
async def test_void_token_is_refused_before_the_outcome_of_the_work_is_read(
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
async def test_without_keys_every_request_with_a_token_renews_the_lease_of_its_tool(
    http: httpx.AsyncClient, sql: asyncpg.Connection, request_: str
) -> None:
    pair = await add_running_work(http)
    token = (await add_tool(http, capacity=100, resume=True))["token"]
    await sql.execute("update tools set offline = true; update tool_leases set expires_at = now()")
    assert (await send(http, request_.partition("?")[0], pair.work, token)).status_code == 200
    await api.wait_for_state(http, "/v1/tools/t", "idle")


async def test_without_keys_a_tool_that_waits_for_a_change_of_its_work_keeps_its_lease(
    broker: Running, http: httpx.AsyncClient
) -> None:
    pair = await add_running_work(http)
    token = (await add_tool(http, capacity=100, resume=True, lease_seconds=5))["token"]
    before = (await get(http, "/v1/tools/t"))["lease_expires_at"]
    long_poll = await start_long_poll(broker, "GET", f"/v1/work/{pair.work}?wait=60", headers=bearer(token))

    async def is_renewed() -> bool:
        presence = broker.server.service.presence
        [beat] = [beat for beat in presence._waiting if beat.tool_id == "t"]
        assert beat.token_hash
        return bool((await get(http, "/v1/tools/t"))["lease_expires_at"] > before)

    for _ in range(2):
        await wait_until(is_renewed)
        before = (await get(http, "/v1/tools/t"))["lease_expires_at"]
    await http.post(f"/v1/work/{pair.work}/cancel")
    assert (await finish_long_poll(long_poll))["cancel_requested"] is True


async def test_without_keys_a_long_poll_for_work_ends_when_another_program_registers_the_tool(
    broker: Running, http: httpx.AsyncClient
) -> None:
    token = (await add_tool(http))["token"]
    long_poll = await start_long_poll(broker, "GET", "/v1/tools/t/work?wait=60", headers=bearer(token))
    await add_tool(http)
    async with asyncio.timeout(5):
        assert_problem(await long_poll, 401, "unauthenticated")
    assert Beat("t") not in broker.server.service.presence._waiting


@pytest.mark.parametrize("token", ["bt_", "bt_dA_short", "bt_!!_" + "A" * 43])
async def test_without_keys_a_malformed_token_is_refused(http: httpx.AsyncClient, token: str) -> None:
    assert_problem(await http.get("/v1/tools", headers=bearer(token)), 401, "unauthenticated")


async def test_without_keys_a_request_with_a_key_or_a_valid_token_has_full_access(
    http: httpx.AsyncClient,
) -> None:
    token = (await add_tool(http))["token"]
    pair = await add_assigned_work(http, "a", "other")
    for headers in (bearer("bk_whatever"), bearer("anything"), bearer(token)):
        assert (await http.get("/v1/tools", headers=headers)).status_code == 200
        assert (await http.get("/v1/tools/other/work", headers=headers)).status_code == 200
    assert (await http.post(f"/v1/work/{pair.work}/start", headers=bearer(token))).status_code == 200


async def test_token_of_a_deleted_tool_is_void(http: httpx.AsyncClient) -> None:
    token = (await add_tool(http))["token"]
    assert (await http.delete("/v1/tools/t")).status_code == 204
    for method, path in (("POST", "/v1/tools/t/heartbeat"), ("GET", "/v1/tools/t/work")):
        assert_problem(await http.request(method, path, headers=bearer(token)), 401, "unauthenticated")


async def test_without_keys_a_token_needs_no_additional_sql_statements_in_the_life_cycle(
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
        await broker.server.service.keyring.load(asyncio.get_running_loop().time())
        with recorded_statements(broker) as seen:
            assert (await send(http, request_, pair.work, token)).status_code < 300
        assert not [each for each in seen if each.startswith(LOOKUPS)], request_


async def test_statement_refuses_a_void_token_that_another_process_still_has_cached(database: str) -> None:
    """Each process caches for two seconds that a token is valid. The statement checks it again."""
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
            response = await two.get("/v1/tools/twice/work", headers=bearer(new))
            assert [item["state"] for item in response.json()["items"]] == ["assigned"]
            assert (await two.post(f"/v1/work/{pair.work}/start", headers=bearer(new))).status_code == 200
