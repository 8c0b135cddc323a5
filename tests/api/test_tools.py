"""Tools: registration, reading, changes, deletion, heartbeats, and polling for work."""

import asyncio
from datetime import datetime
from uuid import UUID

import asyncpg
import httpx
import pytest

from broker.settings import Settings
from tests.conftest import Running, running_broker
from tests.support.api import (
    add_assigned_work,
    add_running_work,
    add_task,
    add_tasks,
    add_tool,
    assert_problem,
    assign,
    complete_work,
    finish_long_poll,
    flatten,
    get,
    get_pages,
    ids,
    poll_until_timeout,
    start_long_poll,
    waiting_count,
)
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

TOOL_FIELDS = {
    "id", "skills", "capacity", "load", "state", "lease_seconds", "lease_expires_at", "registered_at",
    "seen_at",
}  # fmt: skip


async def test_a_new_tool_has_every_field_and_its_defaults(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/tools", json={"id": "t", "skills": {"does": ["x"]}})
    tool = response.json()
    assert response.status_code == 201
    assert tool.keys() == TOOL_FIELDS | {"token"}
    assert {key: tool[key] for key in ("id", "skills", "capacity", "load", "state", "lease_seconds")} == {
        "id": "t", "skills": {"does": ["x"]}, "capacity": 1, "load": 0, "state": "idle", "lease_seconds": 60,
    }  # fmt: skip


async def test_a_tool_without_an_id_gets_a_uuid(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/tools", json={"skills": None})
    assert response.status_code == 201
    assert UUID(response.json()["id"]).version == 7


async def test_times_are_returned_in_utc_with_z(http: httpx.AsyncClient) -> None:
    tool = await add_tool(http)
    for key in ("lease_expires_at", "registered_at", "seen_at"):
        assert tool[key].endswith("Z")
        assert datetime.fromisoformat(tool[key])


async def test_the_lease_ends_lease_seconds_after_the_tool_was_seen(http: httpx.AsyncClient) -> None:
    tool = await add_tool(http, lease_seconds=5.5)
    lease = datetime.fromisoformat(tool["lease_expires_at"]) - datetime.fromisoformat(tool["seen_at"])
    assert abs(lease.total_seconds() - 5.5) < 0.1


async def test_a_token_is_shown_only_at_registration(http: httpx.AsyncClient) -> None:
    token = (await add_tool(http))["token"]
    for path in ("/v1/tools/t", "/v1/tools", "/v1/candidates"):
        assert token not in (await http.get(path)).text
    assert "token" not in (await http.patch("/v1/tools/t", json={"capacity": 2})).json()


async def test_a_tool_that_registers_again_is_updated_and_gets_a_new_token(http: httpx.AsyncClient) -> None:
    first = await add_tool(http, skills={"a": 1}, capacity=3, lease_seconds=30)
    response = await http.post("/v1/tools", json={"id": "t", "skills": {"b": 2}})
    again = response.json()
    assert response.status_code == 200
    assert again["token"] != first["token"]
    assert (again["skills"], again["capacity"], again["lease_seconds"]) == ({"b": 2}, 1, 60)
    assert again["registered_at"] >= first["registered_at"]


async def test_registering_again_ends_draining(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await http.patch("/v1/tools/t", json={"draining": True})
    assert (await add_tool(http))["state"] == "idle"


async def test_work_not_started_stays_assigned_when_the_tool_registers_again(
    http: httpx.AsyncClient,
) -> None:
    pair = await add_assigned_work(http)
    assert (await add_tool(http))["load"] == 1
    assert ids((await get(http, "/v1/tools/t/work"))["items"]) == [pair.work]


async def test_concurrent_registrations_of_one_id_create_one_tool(http: httpx.AsyncClient) -> None:
    body = {"id": "t", "skills": {}}
    responses = await asyncio.gather(*(http.post("/v1/tools", json=body) for _ in range(20)))
    assert sorted(response.status_code for response in responses) == [200] * 19 + [201]


async def test_a_tool_can_be_read(http: httpx.AsyncClient) -> None:
    await add_tool(http, skills=[1, {"x": None}], capacity=4)
    tool = await get(http, "/v1/tools/t")
    assert tool.keys() == TOOL_FIELDS
    assert (tool["skills"], tool["capacity"]) == ([1, {"x": None}], 4)


async def test_a_tool_without_free_capacity_is_busy_until_work_ends(http: httpx.AsyncClient) -> None:
    await add_tool(http, capacity=2)
    await add_tasks(http, "a", "b")
    states = [(await get(http, "/v1/tools/t"))["state"]]
    works = []
    for task in ("a", "b"):
        works.append((await assign(http, task))["id"])
        states.append((await get(http, "/v1/tools/t"))["state"])
    await complete_work(http, works[0])
    states.append((await get(http, "/v1/tools/t"))["state"])
    assert states == ["idle", "idle", "busy", "idle"]


async def test_load_counts_assigned_and_running_work(http: httpx.AsyncClient) -> None:
    await add_assigned_work(http, "a")
    await add_running_work(http, "b")
    assert (await get(http, "/v1/tools/t"))["load"] == 2


async def test_paging_lists_each_tool_once(http: httpx.AsyncClient) -> None:
    names = [f"t{n}" for n in range(7)]
    for name in names:
        await add_tool(http, name)
    pages = await get_pages(http, "/v1/tools", limit=3)
    assert [len(page) for page in pages] in ([3, 3, 1], [3, 3, 1, 0])
    assert sorted(ids(flatten(pages))) == names


async def test_paging_of_tools_is_stable_during_insertions_and_deletions(http: httpx.AsyncClient) -> None:
    names = [f"t{n}" for n in range(0, 12, 2)]
    for name in names:
        await add_tool(http, name)
    first = await get(http, "/v1/tools", limit=2)
    await http.delete(f"/v1/tools/{first['items'][-1]['id']}")
    await add_tool(http, "a-new-one")
    rest = flatten(await get_pages(http, "/v1/tools", limit=2, after=first["next"]))
    listed = ids(first["items"]) + [name for name in ids(rest) if name != "a-new-one"]
    assert sorted(listed) == sorted(names)


async def test_an_empty_list_has_no_next(http: httpx.AsyncClient) -> None:
    assert await get(http, "/v1/tools") == {"items": [], "next": None}


async def test_tools_are_listed_by_state(http: httpx.AsyncClient) -> None:
    for name in ("idle", "busy", "draining"):
        await add_tool(http, name)
    await add_task(http)
    await assign(http, "a", "busy")
    await http.patch("/v1/tools/draining", json={"draining": True})
    for state in ("idle", "busy", "draining"):
        assert ids((await get(http, "/v1/tools", state=state))["items"]) == [state]
    assert (await get(http, "/v1/tools", state="offline"))["items"] == []


@pytest.mark.parametrize(("field", "value"), [("skills", [1]), ("capacity", 7), ("lease_seconds", 86400)])
async def test_a_patch_changes_only_the_given_field(
    http: httpx.AsyncClient, field: str, value: object
) -> None:
    before = await add_tool(http, skills={"a": 1}, capacity=2)
    response = await http.patch("/v1/tools/t", json={field: value})
    varying = {"token", "lease_expires_at", "seen_at"}
    assert response.status_code == 200
    assert response.json().keys() == TOOL_FIELDS
    expected = {**before, field: value}
    assert {k: v for k, v in response.json().items() if k not in varying} == {
        k: v for k, v in expected.items() if k not in varying
    }
    assert (await get(http, "/v1/tools/t"))[field] == value


async def test_a_patch_without_a_body_changes_nothing(http: httpx.AsyncClient) -> None:
    await add_tool(http, capacity=3)
    response = await http.patch("/v1/tools/t")
    assert (response.status_code, response.json()["capacity"]) == (200, 3)


async def test_skills_can_be_set_to_null(http: httpx.AsyncClient) -> None:
    await add_tool(http, skills={"a": 1})
    assert (await http.patch("/v1/tools/t", json={"skills": None})).json()["skills"] is None


async def test_a_draining_tool_finishes_its_work_and_gets_no_more(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    assert (await http.patch("/v1/tools/t", json={"draining": True})).json()["state"] == "draining"
    await add_task(http, "b")
    assert_problem(
        await http.post("/v1/work", json={"task_id": "b", "tool_id": "t"}), 409, "tool_unavailable"
    )
    assert ids((await get(http, "/v1/tools/t/work"))["items"]) == [pair.work]
    assert (await complete_work(http, pair.work))["outcome"] == "succeeded"


async def test_draining_can_end(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await http.patch("/v1/tools/t", json={"draining": True})
    assert (await http.patch("/v1/tools/t", json={"draining": False})).json()["state"] == "idle"
    await add_task(http)
    await assign(http)


async def test_a_capacity_below_the_load_keeps_work_and_allows_no_more(
    http: httpx.AsyncClient,
) -> None:
    pairs = [await add_assigned_work(http, name) for name in ("a", "b")]
    await add_task(http, "c")
    tool = (await http.patch("/v1/tools/t", json={"capacity": 1})).json()
    assert (tool["capacity"], tool["load"], tool["state"]) == (1, 2, "busy")
    pair = {"task_id": "c", "tool_id": "t"}
    for work in (pairs[0].work, pairs[1].work):
        assert_problem(await http.post("/v1/work", json=pair), 409, "tool_unavailable")
        await complete_work(http, work)
    assert (await http.post("/v1/work", json=pair)).status_code == 201


async def test_a_deleted_tool_is_not_found(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    response = await http.delete("/v1/tools/t")
    assert (response.status_code, response.content) == (204, b"")
    assert_problem(await http.get("/v1/tools/t"), 404, "tool_not_found")
    assert_problem(await http.delete("/v1/tools/t"), 404, "tool_not_found")


@pytest.mark.parametrize("state", ["assigned", "running"])
async def test_a_tool_with_unfinished_work_cannot_be_deleted(http: httpx.AsyncClient, state: str) -> None:
    pair = await (add_assigned_work if state == "assigned" else add_running_work)(http)
    assert_problem(await http.delete("/v1/tools/t"), 409, "tool_busy")
    await complete_work(http, pair.work)
    assert (await http.delete("/v1/tools/t")).status_code == 204


async def test_a_deleted_tool_may_register_again(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await http.delete("/v1/tools/t")
    assert (await http.post("/v1/tools", json={"id": "t", "skills": 1})).status_code == 201


async def test_records_of_a_deleted_tool_stay_in_the_archive(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    await complete_work(http, pair.work)
    await http.delete("/v1/tools/t")
    assert (await get(http, f"/v1/archive/{pair.work}"))["tool"]["id"] == "t"


async def test_a_heartbeat_renews_the_lease(http: httpx.AsyncClient) -> None:
    before = (await add_tool(http))["lease_expires_at"]
    response = await http.post("/v1/tools/t/heartbeat")
    assert response.status_code == 200
    assert response.json().keys() == {"lease_expires_at", "cancel"}
    assert response.json()["lease_expires_at"] > before
    assert response.json()["cancel"] == []


async def test_a_heartbeat_can_be_repeated(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    first, second = [await http.post("/v1/tools/t/heartbeat") for _ in range(2)]
    assert (first.status_code, second.status_code) == (200, 200)


async def test_a_heartbeat_names_the_work_whose_cancel_is_requested(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await add_running_work(http, "b")
    assert (await http.delete("/v1/tasks/a")).status_code == 202
    for _ in range(2):
        assert (await http.post("/v1/tools/t/heartbeat")).json()["cancel"] == [pair.work]


async def test_a_tool_shows_the_lease_that_its_heartbeat_returned(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    promised = (await http.post("/v1/tools/t/heartbeat")).json()["lease_expires_at"]
    assert (await get(http, "/v1/tools/t"))["lease_expires_at"] >= promised


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/heartbeat"),
        ("GET", "/work"),
        ("GET", "/work?wait=60"),
    ],
)
async def test_an_unknown_tool_is_not_found(http: httpx.AsyncClient, method: str, path: str) -> None:
    async with asyncio.timeout(5):
        assert_problem(await http.request(method, f"/v1/tools/nobody{path}"), 404, "tool_not_found")


async def test_a_poll_returns_all_work_of_the_tool_that_has_not_started(http: httpx.AsyncClient) -> None:
    first = await add_assigned_work(http, "a", needs={"n": 1}, payload=[1])
    second = await add_assigned_work(http, "b")
    await add_running_work(http, "c")
    await add_assigned_work(http, "d", "another")
    response = await get(http, "/v1/tools/t/work")
    assert response.keys() == {"items"}
    assert sorted(ids(response["items"])) == sorted([first.work, second.work])
    item = next(item for item in response["items"] if item["id"] == first.work)
    assert (item["task_id"], item["tool_id"], item["needs"], item["payload"]) == ("a", "t", {"n": 1}, [1])


async def test_a_poll_returns_assigned_work_at_once_and_repeatedly(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    async with asyncio.timeout(5):
        for _ in range(3):
            assert ids((await get(http, "/v1/tools/t/work", wait=60))["items"]) == [pair.work]


async def test_a_poll_for_work_that_times_out_is_empty(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    assert await poll_until_timeout(http, "GET", "/v1/tools/t/work?wait=0.3") == {"items": []}


async def test_running_work_does_not_end_a_poll_for_work(http: httpx.AsyncClient) -> None:
    await add_running_work(http)
    assert await poll_until_timeout(http, "GET", "/v1/tools/t/work?wait=0.3") == {"items": []}


async def test_an_assignment_wakes_its_tool_and_no_other(broker: Running, http: httpx.AsyncClient) -> None:
    await add_tool(http, "t")
    await add_tool(http, "other")
    await add_task(http)
    other = await start_long_poll(broker, "GET", "/v1/tools/other/work?wait=60")
    poll = await start_long_poll(broker, "GET", "/v1/tools/t/work?wait=60")
    work = await assign(http)
    assert ids((await finish_long_poll(poll))["items"]) == [work["id"]]
    assert not other.done()
    other.cancel()


async def test_a_batch_of_assignments_wakes_each_of_its_tools(
    broker: Running, http: httpx.AsyncClient
) -> None:
    names = [f"t{n}" for n in range(20)]
    await add_tasks(http, *names)
    for name in names:
        await add_tool(http, name)
    polls = [await start_long_poll(broker, "GET", f"/v1/tools/{name}/work?wait=60") for name in names]
    items = [{"task_id": name, "tool_id": name} for name in names]
    await http.post("/v1/work/batch", json={"items": items})
    bodies = [await finish_long_poll(poll) for poll in polls]
    assert [ids(body["items"], "task_id") for body in bodies] == [[name] for name in names]


async def test_an_assignment_ends_every_long_poll_of_its_tool(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_tool(http)
    await add_task(http)
    polls = [await start_long_poll(broker, "GET", "/v1/tools/t/work?wait=60") for _ in range(3)]
    work = await assign(http)
    for poll in polls:
        assert ids((await finish_long_poll(poll))["items"]) == [work["id"]]


async def test_prefer_wait_waits_like_the_parameter(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    assert await poll_until_timeout(http, "GET", "/v1/tools/t/work", headers={"Prefer": "wait=1"}) == {
        "items": []
    }
    assert await poll_until_timeout(
        http, "GET", "/v1/tools/t/work", headers={"Prefer": "respond-async, wait=1"}
    ) == {"items": []}


async def test_prefer_wait_is_limited_to_the_range(broker: Running, http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await add_task(http)
    poll = await start_long_poll(broker, "GET", "/v1/tools/t/work", headers={"Prefer": "wait=100000"})
    work = await assign(http)
    assert ids((await finish_long_poll(poll))["items"]) == [work["id"]]


async def test_wait_parameter_overrides_prefer_wait(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    async with asyncio.timeout(5):
        response = await http.get("/v1/tools/t/work?wait=0", headers={"Prefer": "wait=60"})
    assert response.json() == {"items": []}


@pytest.mark.parametrize(
    "preference", ["wait=soon", "wait", "wait=", "wait=-5", "handling=lenient", ";;=,", "wait=NaN"]
)
async def test_an_invalid_preference_is_ignored(http: httpx.AsyncClient, preference: str) -> None:
    await add_tool(http)
    async with asyncio.timeout(5):
        response = await http.get("/v1/tools/t/work", headers={"Prefer": preference})
    assert (response.status_code, response.json()) == (200, {"items": []})


async def test_deleting_a_tool_ends_its_long_polls(broker: Running, http: httpx.AsyncClient) -> None:
    await add_tool(http)
    poll = await start_long_poll(broker, "GET", "/v1/tools/t/work?wait=60")
    await http.delete("/v1/tools/t")
    async with asyncio.timeout(5):
        response = await poll
    assert response.status_code in (200, 404)


async def test_a_disconnected_client_is_removed_from_the_waiters_and_loses_no_work(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_tool(http)
    await add_task(http)
    before = waiting_count(broker)
    poll = await start_long_poll(broker, "GET", "/v1/tools/t/work?wait=60")
    poll.cancel()
    async with asyncio.timeout(5):
        while waiting_count(broker) > before:
            await asyncio.sleep(0.005)
    work = await assign(http)
    assert ids((await get(http, "/v1/tools/t/work", wait=60))["items"]) == [work["id"]]


async def test_waiting_requests_hold_no_database_connection_and_no_transaction(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http)
    polls = [await start_long_poll(broker, "GET", "/v1/tools/t/work?wait=60") for _ in range(30)]
    others = (
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(5):
        await get(http, "/v1/tools")
        while await sql.fetchval(f"{others} and state <> 'idle'"):  # the broker renews leases
            await asyncio.sleep(0.01)
    assert await sql.fetchval(others) < 20
    for poll in polls:
        poll.cancel()


async def test_a_broker_that_stops_ends_long_polls_at_once_with_empty_lists(
    database: str, http: httpx.AsyncClient
) -> None:
    await add_tool(http)
    async with running_broker(Settings(database_url=database, fallback_seconds=60)) as other:
        poll = await start_long_poll(other, "GET", "/v1/tools/t/work?wait=60")
        async with asyncio.timeout(5):
            await other.stop()
        assert await finish_long_poll(poll) == {"items": []}
