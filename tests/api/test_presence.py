"""Tools that crash, fall silent, return, restart or are deleted: their tasks become available again."""

import asyncio
import math
from typing import Any

import asyncpg
import httpx
import pytest

from broker.access.keyring import hashed
from broker.store import leases
from tests.conftest import Running
from tests.support import steps
from tests.support.api import (
    add_assigned_work,
    add_running_work,
    add_task,
    add_tool,
    assert_problem,
    assign,
    complete,
    complete_work,
    expire_deadline,
    finish_long_poll,
    get,
    get_records,
    start_long_poll,
    take_tool_offline,
    wait_for_state,
)
from tests.support.shared import SHARED_BROKER
from tests.support.waiting import wait_until

pytestmark, database, broker, sql, http = SHARED_BROKER

REQUESTS = {
    "heartbeat": ("POST", "/v1/tools/t/heartbeat"),
    "polling for work": ("GET", "/v1/tools/t/work"),
    "starting lost work": ("POST", "/v1/work/WORK/start"),
    "reporting on lost work": ("POST", "/v1/work/WORK/reports"),
    "completing lost work": ("POST", "/v1/work/WORK/complete"),
    "completing a batch": ("POST", "/v1/work/complete"),
    "registering": ("POST", "/v1/tools"),
}


async def test_a_silent_tool_goes_offline_and_its_work_returns_at_once(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    running = await add_running_work(http, "running")
    assigned = await add_assigned_work(http, "waits")
    tool = await take_tool_offline(http, sql)
    assert tool["load"] == 0
    for task, attempt in (("running", 1), ("waits", 0)):
        task_now = await get(http, f"/v1/tasks/{task}")
        assert (task_now["state"], task_now["attempt"], task_now["work_id"]) == ("available", attempt, None)
    for pair in (running, assigned):
        [record] = await get_records(http, pair.task)
        assert (record["outcome"], record["work_id"], record["error"]) == (
            "lost", pair.work, "The tool's lease expired.",
        )  # fmt: skip
    await steps.check_invariants(sql)


async def test_a_tool_without_work_goes_offline_and_is_not_a_candidate(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http)
    await add_task(http)
    await take_tool_offline(http, sql)
    assert (await get(http, "/v1/candidates"))["tools"] == []
    refused = await http.post("/v1/work", json={"task_id": "a", "tool_id": "t"})
    assert_problem(refused, 409, "tool_unavailable")


@pytest.mark.parametrize("request_name", REQUESTS)
async def test_the_next_request_of_an_offline_tool_brings_it_back_online(
    http: httpx.AsyncClient, sql: asyncpg.Connection, request_name: str
) -> None:
    pair = await add_running_work(http)
    await take_tool_offline(http, sql)
    method, path = REQUESTS[request_name]
    bodies: dict[str, Any] = {
        "registering": {"id": "t", "skills": {}, "capacity": 100},
        "completing lost work": {"outcome": "failed"},
        "completing a batch": {"items": [{"work_id": pair.work, "outcome": "failed"}]},
    }
    response = await http.request(method, path.replace("WORK", pair.work), json=bodies.get(request_name, {}))
    assert response.status_code in (200, 409), response.text
    assert (await get(http, "/v1/tools/t"))["state"] == "idle"
    await assign(http, "a")


async def test_a_tool_that_returns_wakes_a_waiting_assigner(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http)
    await take_tool_offline(http, sql)
    cursor = (await get(http, "/v1/candidates"))["cursor"]
    poll = await start_long_poll(broker, "GET", "/v1/candidates", params={"wait": 60, "cursor": cursor})
    await http.post("/v1/tools/t/heartbeat")
    assert [tool["id"] for tool in (await finish_long_poll(poll))["tools"]] == ["t"]


async def test_requests_of_other_clients_do_not_bring_a_tool_back_online(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http)
    await take_tool_offline(http, sql)
    await http.patch("/v1/tools/t", json={"capacity": 3})
    assert (await get(http, "/v1/tools/t"))["state"] == "offline"


async def test_lost_work_with_a_cancel_request_is_cancelled_with_its_task(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    pair = await add_running_work(http)
    assert (await http.delete("/v1/tasks/a")).status_code == 202
    await take_tool_offline(http, sql)
    assert (await get(http, "/v1/tasks/a"))["state"] == "cancelled"
    assert (await get(http, f"/v1/archive/{pair.work}"))["outcome"] == "cancelled"


async def test_losing_the_last_attempt_fails_the_task_and_wakes_waiting_clients(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_running_work(http, max_attempts=1)
    poll = await start_long_poll(broker, "GET", "/v1/tasks/a", params={"wait": 60})
    await take_tool_offline(http, sql)
    assert (await finish_long_poll(poll))["state"] == "failed"


async def test_work_not_started_in_time_is_lost_and_does_not_count_as_an_attempt(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    pair = await add_assigned_work(http, max_attempts=1)
    for _ in range(2):
        await expire_deadline(sql, pair.work)
        task = await wait_for_state(http, "/v1/tasks/a", "available")
        assert task["attempt"] == 0
        record = await get(http, f"/v1/archive/{pair.work}")
        assert (record["outcome"], record["started_at"], record["attempt"]) == ("lost", None, 1)
        assert (await get(http, "/v1/tools/t"))["load"] == 0
        pair = pair._replace(work=(await assign(http))["id"])


async def test_a_heartbeat_does_not_move_the_deadline_and_a_start_removes_it(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    deadline = (await get(http, f"/v1/work/{pair.work}"))["deadline_at"]
    await http.post("/v1/tools/t/heartbeat")
    assert (await get(http, f"/v1/work/{pair.work}"))["deadline_at"] == deadline
    assert (await http.post(f"/v1/work/{pair.work}/start")).json()["deadline_at"] is None


async def test_work_past_its_timeout_ends_and_its_task_backs_off(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    pair = await add_running_work(http, timeout_seconds=3600)
    await expire_deadline(sql, pair.work)
    task = await wait_for_state(http, "/v1/tasks/a", "scheduled")
    assert (task["attempt"], task["error"]) == (1, "The work ran longer than the task's timeout_seconds.")
    [record] = await get_records(http)
    assert (record["outcome"], record["work_id"]) == ("timed_out", pair.work)
    assert_problem(await complete(http, pair.work, "failed"), 409, "work_ended")


async def test_work_with_a_short_timeout_times_out(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http, timeout_seconds=0.2, retry_backoff_seconds=0)
    await wait_for_state(http, "/v1/tasks/a", "available")
    assert (await get(http, f"/v1/work/{pair.work}"))["state"] == "timed_out"


async def test_a_timeout_of_the_last_attempt_fails_the_task(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    pair = await add_running_work(http, timeout_seconds=3600, max_attempts=1)
    await expire_deadline(sql, pair.work)
    assert (await wait_for_state(http, "/v1/tasks/a", "failed"))["ended_at"] is not None


async def test_registering_again_loses_work_that_the_earlier_run_had_started(
    broker: Running, http: httpx.AsyncClient
) -> None:
    running = await add_running_work(http, "running")
    assigned = await add_assigned_work(http, "waits")
    await http.patch("/v1/tools/t", json={"draining": True})
    poll = await start_long_poll(broker, "GET", f"/v1/work/{running.work}", params={"wait": 60})
    again = await add_tool(http, capacity=5)
    assert (again["load"], again["capacity"], again["state"]) == (1, 5, "idle")
    assert (await finish_long_poll(poll))["state"] == "lost"
    [record] = await get_records(http, "running")
    assert (record["outcome"], record["error"]) == ("lost", "The tool was restarted.")
    task = await get(http, "/v1/tasks/running")
    assert (task["state"], task["attempt"]) == ("available", 1)
    assert [work["id"] for work in (await get(http, "/v1/tools/t/work"))["items"]] == [assigned.work]


async def test_registering_with_resume_keeps_started_work(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await add_tool(http, capacity=5, resume=True)
    assert (await get(http, f"/v1/work/{pair.work}"))["state"] == "running"
    assert (await complete_work(http, pair.work))["outcome"] == "succeeded"


async def test_every_registration_issues_a_new_token(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    first, second = (await add_tool(http))["token"], (await add_tool(http))["token"]
    assert first != second
    stored = await sql.fetchval("select token_hash from tools")
    assert stored == hashed(second[-43:])
    assert stored != hashed(first[-43:])
    assert second.encode() not in await sql.fetchval("select cast(cast(t as text) as bytea) from tools t")


async def test_force_deletes_a_tool_with_its_work(broker: Running, http: httpx.AsyncClient) -> None:
    running = await add_running_work(http, "running")
    await add_assigned_work(http, "waits")
    assert_problem(await http.delete("/v1/tools/t"), 409, "tool_busy")
    assert_problem(await http.delete("/v1/tools/t?force=false"), 409, "tool_busy")
    poll = await start_long_poll(broker, "GET", f"/v1/work/{running.work}", params={"wait": 60})
    assert (await http.delete("/v1/tools/t?force=true")).status_code == 204
    assert (await finish_long_poll(poll))["state"] == "lost"
    assert_problem(await http.get("/v1/tools/t"), 404, "tool_not_found")
    for task, attempt in (("running", 1), ("waits", 0)):
        [record] = await get_records(http, task)
        assert (record["outcome"], record["tool_id"], record["error"]) == (
            "lost",
            "t",
            "The tool was deleted.",
        )
        task_now = await get(http, f"/v1/tasks/{task}")
        assert (task_now["state"], task_now["attempt"]) == ("available", attempt)
    assert_problem(await http.post(f"/v1/work/{running.work}/start"), 409, "work_ended")
    assert_problem(await http.delete("/v1/tools/t?force=true"), 404, "tool_not_found")


async def test_a_long_poll_renews_the_lease(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http, lease_seconds=5)
    before = await get(http, "/v1/tools/t")
    poll = await start_long_poll(broker, "GET", "/v1/tools/t/work", params={"wait": 60})
    await wait_until(lambda: _renewed_after(http, before["lease_expires_at"]))
    await add_task(http)
    await assign(http)
    await finish_long_poll(poll)


async def test_a_lease_shortened_during_a_long_poll_is_renewed_in_time(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_tool(http, lease_seconds=3600)
    poll = await start_long_poll(broker, "GET", "/v1/tools/t/work", params={"wait": 60})
    presence, loop = broker.server.service.presence, asyncio.get_running_loop()

    async def renewal_is_due_soon() -> bool:
        return presence._due.get(leases.Beat("t"), math.inf) < loop.time() + 5

    async def renewal_is_due_within_an_hour() -> bool:
        return 60 < presence._due.get(leases.Beat("t"), math.inf) - loop.time() < 3600

    await wait_until(renewal_is_due_within_an_hour)
    assert (await http.patch("/v1/tools/t", json={"lease_seconds": 5})).status_code == 200
    await wait_until(renewal_is_due_soon)
    await add_task(http)
    await assign(http)
    await finish_long_poll(poll)


async def _renewed_after(http: httpx.AsyncClient, moment: str) -> bool:
    return (await get(http, "/v1/tools/t"))["lease_expires_at"] > moment
