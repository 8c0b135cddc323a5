"""Tasks: submission, reading, waiting for their end, deletion, and the remarks of assigners."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from tests.conftest import Running
from tests.support.api import (
    add_assigned_work,
    add_running_work,
    add_task,
    add_tasks,
    add_tool,
    assert_problem,
    assign,
    complete,
    complete_work,
    finish_long_poll,
    flatten,
    get,
    get_pages,
    ids,
    poll_until_timeout,
    start_long_poll,
)
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

TOMORROW = datetime.now(UTC) + timedelta(days=1)
UNKNOWN = "00000000-0000-7000-8000-000000000000"
ONE_ATTEMPT = {"max_attempts": 1}


# Submission


async def test_a_new_task_has_every_field_and_its_defaults(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/tasks", json={"id": "a", "needs": {"x": 1}})
    task = response.json()
    assert response.status_code == 201
    assert datetime.fromisoformat(task.pop("created_at")).utcoffset() == timedelta(0)
    assert task == {
        "id": "a", "needs": {"x": 1}, "payload": None, "priority": 0, "state": "available", "attempt": 0,
        "max_attempts": 3, "retry_backoff_seconds": 1, "timeout_seconds": None, "not_before": None,
        "work_id": None, "remark": None, "result": None, "error": None, "ended_at": None,
    }  # fmt: skip


async def test_a_task_keeps_its_submitted_fields(http: httpx.AsyncClient) -> None:
    fields = {
        "id": "a", "needs": ["x"], "payload": {"y": 1.5}, "priority": -32768, "max_attempts": 1000,
        "retry_backoff_seconds": 86400, "timeout_seconds": 0.25,
    }  # fmt: skip
    await http.post("/v1/tasks", json=fields)
    task = await get(http, "/v1/tasks/a")
    assert {key: task[key] for key in fields} == fields


async def test_a_task_without_an_id_gets_a_uuid(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/tasks", json={"needs": 1})
    assert response.status_code == 201
    assert UUID(response.json()["id"]).version == 7


@pytest.mark.parametrize("name", ["a", "7", "A.b_c~d:e-f", "x" * 128, "0-", "018f-A~"])
async def test_a_valid_id_works_in_bodies_and_paths(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.post("/v1/tasks", json={"id": name, "needs": 1})).status_code == 201
    assert (await get(http, f"/v1/tasks/{name}"))["id"] == name


async def test_submitting_a_known_id_returns_the_existing_task(http: httpx.AsyncClient) -> None:
    first = await add_task(http, needs={"x": 1}, priority=5)
    response = await http.post("/v1/tasks", json={"id": "a", "needs": {"y": 2}, "priority": 9})
    assert (response.status_code, response.json()) == (200, first)
    assert await get(http, "/v1/tasks/a") == first


async def test_submitting_the_id_of_an_ended_task_returns_that_task(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    await complete_work(http, pair.work, result={"r": 1})
    response = await http.post("/v1/tasks", json={"id": "a", "needs": {"y": 2}})
    assert response.status_code == 200
    assert (response.json()["state"], response.json()["result"], response.json()["needs"]) == (
        "succeeded",
        {"r": 1},
        {},
    )
    assert (await get(http, "/v1/tasks"))["items"] == []


async def test_submitting_the_id_of_a_deleted_task_returns_that_task(http: httpx.AsyncClient) -> None:
    await add_task(http)
    await http.delete("/v1/tasks/a")
    response = await http.post("/v1/tasks", json={"id": "a", "needs": {}})
    assert (response.status_code, response.json()["state"]) == (200, "cancelled")


async def test_concurrent_submissions_of_one_id_create_one_task(http: httpx.AsyncClient) -> None:
    bodies = [{"id": "a", "needs": number} for number in range(30)]
    responses = await asyncio.gather(*(http.post("/v1/tasks", json=body) for body in bodies))
    assert sorted(response.status_code for response in responses) == [200] * 29 + [201]
    assert len({response.text for response in responses}) == 1


async def test_a_task_with_not_before_is_scheduled(http: httpx.AsyncClient) -> None:
    task = await add_task(http, not_before=TOMORROW.isoformat())
    assert task["state"] == "scheduled"
    assert datetime.fromisoformat(task["not_before"]) == TOMORROW


async def test_a_time_with_any_offset_is_returned_in_utc(http: httpx.AsyncClient) -> None:
    task = await add_task(http, not_before="2999-12-31T23:30:00.25+05:30")
    assert task["not_before"].startswith("2999-12-31T18:00:00.25")
    assert task["not_before"].endswith("Z")


async def test_a_not_before_in_the_past_has_no_effect(http: httpx.AsyncClient) -> None:
    assert (await add_task(http, not_before="2001-01-01T00:00:00Z"))["state"] == "available"


async def test_a_scheduled_task_becomes_available_at_its_time(
    broker: Running, http: httpx.AsyncClient
) -> None:
    cursor = (await get(http, "/v1/candidates"))["cursor"]
    poll = await start_long_poll(broker, "GET", f"/v1/candidates?wait=60&cursor={cursor}")
    due = datetime.now(UTC) + timedelta(seconds=0.4)
    assert (await add_task(http, not_before=due.isoformat()))["state"] == "scheduled"
    assert ids((await finish_long_poll(poll))["tasks"]) == ["a"]
    assert (await get(http, "/v1/tasks/a"))["state"] == "available"


@pytest.mark.parametrize("depth", [1, 199, 200])
async def test_json_may_nest_200_deep(http: httpx.AsyncClient, depth: int) -> None:
    value = json.loads("[" * depth + "]" * depth)
    await add_task(http, needs=value, payload=value)
    task = await get(http, "/v1/tasks/a")
    assert (task["needs"], task["payload"]) == (value, value)


async def test_a_payload_may_be_large(http: httpx.AsyncClient) -> None:
    payload = "x" * (16 * 2**20)
    await add_task(http, payload=payload)
    assert (await get(http, "/v1/tasks/a"))["payload"] == payload


# Batches


async def test_a_batch_returns_created_or_exists_in_order(http: httpx.AsyncClient) -> None:
    await add_task(http, "b")
    items = [{"id": name, "needs": {}} for name in ("c", "b", "a")] + [{"needs": 1}]
    response = await http.post("/v1/tasks/batch", json={"items": items})
    results = response.json()["items"]
    assert response.status_code == 200
    assert [(item["id"], item["status"]) for item in results[:3]] == [
        ("c", "created"),
        ("b", "exists"),
        ("a", "created"),
    ]
    assert UUID(results[3]["id"]).version == 7
    assert results[3]["status"] == "created"


async def test_a_repeated_batch_creates_nothing(http: httpx.AsyncClient) -> None:
    items = [{"id": f"x{n}", "needs": n} for n in range(20)]
    await http.post("/v1/tasks/batch", json={"items": items})
    again = (await http.post("/v1/tasks/batch", json={"items": items})).json()["items"]
    assert again == [{"id": item["id"], "status": "exists"} for item in items]


async def test_the_first_of_two_items_with_one_id_creates_the_task(http: httpx.AsyncClient) -> None:
    items = [{"id": "a", "needs": 1}, {"id": "a", "needs": 2}]
    response = await http.post("/v1/tasks/batch", json={"items": items})
    assert [item["status"] for item in response.json()["items"]] == ["created", "exists"]
    assert (await get(http, "/v1/tasks/a"))["needs"] == 1


async def test_a_batch_returns_exists_for_ended_tasks(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    await complete_work(http, pair.work)
    response = await http.post("/v1/tasks/batch", json={"items": [{"id": "a", "needs": 1}]})
    assert response.json()["items"] == [{"id": "a", "status": "exists"}]


async def test_a_batch_with_an_invalid_item_names_it_and_writes_nothing(http: httpx.AsyncClient) -> None:
    items: list[dict[str, Any]] = [{"id": f"x{n}", "needs": n} for n in range(20)]
    del items[13]["needs"]
    problem = assert_problem(
        await http.post("/v1/tasks/batch", json={"items": items}), 400, "validation_failed"
    )
    assert [error["field"] for error in problem["errors"]] == ["items[13].needs"]
    assert (await get(http, "/v1/tasks"))["items"] == []


async def test_a_task_value_that_postgresql_cannot_store_refuses_the_whole_batch(
    http: httpx.AsyncClient,
) -> None:
    items = ",".join(f'{{"id": "x{n}", "needs": {"1e400000" if n == 13 else n}}}' for n in range(20))
    response = await http.post(
        "/v1/tasks/batch", content=f'{{"items": [{items}]}}', headers={"content-type": "application/json"}
    )
    problem = assert_problem(response, 400, "validation_failed")
    assert [error["field"] for error in problem["errors"]] == ["items[13].needs"]
    assert (await get(http, "/v1/tasks"))["items"] == []


async def test_ten_thousand_tasks_fit_in_a_batch(http: httpx.AsyncClient) -> None:
    items = ",".join(f'{{"id":"t{n}","needs":0}}' for n in range(10_000))
    response = await http.post(
        "/v1/tasks/batch", content=f'{{"items":[{items}]}}', headers={"content-type": "application/json"}
    )
    results = response.json()["items"]
    assert response.status_code == 200
    assert ids(results) == [f"t{n}" for n in range(10_000)]
    assert {item["status"] for item in results} == {"created"}


async def test_batches_that_share_ids_create_each_task_once(http: httpx.AsyncClient) -> None:
    names = [f"x{n}" for n in range(50)]
    orders = [names[k:] + names[:k] for k in range(0, 50, 5)]
    bodies = [{"items": [{"id": name, "needs": 0} for name in order]} for order in orders]
    responses = await asyncio.gather(*(http.post("/v1/tasks/batch", json=body) for body in bodies))
    assert {response.status_code for response in responses} == {200}
    created = [
        item["id"]
        for response in responses
        for item in response.json()["items"]
        if item["status"] == "created"
    ]
    assert sorted(created) == sorted(names)


# Lists


async def test_paging_lists_each_task_once(http: httpx.AsyncClient) -> None:
    names = [f"x{n}" for n in range(11)]
    await add_tasks(http, *names)
    pages = await get_pages(http, "/v1/tasks", limit=4)
    assert [len(page) for page in pages if page] == [4, 4, 3]
    assert sorted(ids(flatten(pages))) == sorted(names)


async def test_a_page_contains_100_items_by_default(http: httpx.AsyncClient) -> None:
    await add_tasks(http, *(f"x{n}" for n in range(101)))
    assert [len(page) for page in await get_pages(http, "/v1/tasks")] == [100, 1]


async def test_paging_of_tasks_is_stable_during_insertions_and_deletions(http: httpx.AsyncClient) -> None:
    names = [f"x{n}" for n in range(20)]
    await add_tasks(http, *names)
    first = await get(http, "/v1/tasks", limit=5)
    await http.delete(f"/v1/tasks/{first['items'][0]['id']}")
    await http.delete(f"/v1/tasks/{first['items'][-1]['id']}")
    await add_tasks(http, "new-1", "new-2")
    rest = ids(flatten(await get_pages(http, "/v1/tasks", limit=5, after=first["next"])))
    assert sorted(ids(first["items"]) + [name for name in rest if name in names]) == sorted(names)


async def test_only_live_tasks_are_listed(http: httpx.AsyncClient) -> None:
    done = await add_assigned_work(http, "done")
    await complete_work(http, done.work)
    failed = await add_assigned_work(http, "failed", **ONE_ATTEMPT)
    await complete_work(http, failed.work, "failed")
    await add_task(http, "deleted")
    await http.delete("/v1/tasks/deleted")
    assert ids((await get(http, "/v1/tasks"))["items"]) == ["failed"]


async def test_tasks_are_listed_by_state(http: httpx.AsyncClient) -> None:
    await add_task(http, "scheduled", not_before=TOMORROW.isoformat())
    await add_task(http, "available")
    await add_assigned_work(http, "assigned")
    await add_running_work(http, "running")
    failed = await add_assigned_work(http, "failed", **ONE_ATTEMPT)
    await complete_work(http, failed.work, "failed")
    for state in ("scheduled", "available", "assigned", "running", "failed"):
        items = (await get(http, "/v1/tasks", state=state))["items"]
        assert [(item["id"], item["state"]) for item in items] == [(state, state)]


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ({"kind": "image"}, ["image", "both"]),
        ({"opts": {"deep": True}}, ["both"]),
        ({"tags": ["b"]}, ["tags"]),
        ({"kind": "none"}, []),
        ({}, ["both", "image", "tags"]),
        ("scalar", ["scalar"]),
        (None, ["null"]),
    ],
)
async def test_tasks_are_filtered_by_the_content_of_their_needs(
    http: httpx.AsyncClient, needs: Any, expected: list[str]
) -> None:
    await add_task(http, "image", needs={"kind": "image"})
    await add_task(http, "both", needs={"kind": "image", "opts": {"deep": True, "x": 1}})
    await add_task(http, "tags", needs={"tags": ["a", "b"]})
    await add_task(http, "scalar", needs="scalar")
    await add_task(http, "null", needs=None)
    assert sorted(ids((await get(http, "/v1/tasks", needs=json.dumps(needs)))["items"])) == sorted(expected)


async def test_tasks_are_filtered_by_age(http: httpx.AsyncClient) -> None:
    await add_task(http)
    assert (await get(http, "/v1/tasks", older_than_seconds=60))["items"] == []
    assert ids((await get(http, "/v1/tasks", older_than_seconds=0))["items"]) == ["a"]


async def test_filters_combine_and_apply_to_all_pages(http: httpx.AsyncClient) -> None:
    for n in range(5):
        await add_task(http, f"x{n}", needs={"odd": bool(n % 2)})
    await assign_to_new_tool(http, "x1")
    pages = await get_pages(http, "/v1/tasks", needs='{"odd":false}', state="available", limit=2)
    assert sorted(ids(flatten(pages))) == ["x0", "x2", "x4"]


async def assign_to_new_tool(http: httpx.AsyncClient, task: str) -> None:
    await add_tool(http)
    await assign(http, task)


# Reading and waiting


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "?wait=60"), ("DELETE", "")])
async def test_an_unknown_task_is_not_found(http: httpx.AsyncClient, method: str, path: str) -> None:
    async with asyncio.timeout(5):
        assert_problem(await http.request(method, f"/v1/tasks/nobody{path}"), 404, "task_not_found")


async def test_a_task_shows_each_state_until_its_end(http: httpx.AsyncClient) -> None:
    await add_task(http)
    await add_tool(http)
    versions = [await get(http, "/v1/tasks/a")]
    work = (await assign(http))["id"]
    versions.append(await get(http, "/v1/tasks/a"))
    await http.post(f"/v1/work/{work}/start")
    versions.append(await get(http, "/v1/tasks/a"))
    await complete_work(http, work, result=[1])
    versions.append(await get(http, "/v1/tasks/a"))
    assert [task["state"] for task in versions] == ["available", "assigned", "running", "succeeded"]
    assert [task["work_id"] for task in versions[:3]] == [None, work, work]
    assert [task["result"] for task in versions] == [None, None, None, [1]]
    assert [task["ended_at"] is None for task in versions] == [True, True, True, False]


async def test_an_ended_task_has_every_field_of_a_live_one(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http, needs={"n": 1}, payload="p", priority=3)
    live = await get(http, "/v1/tasks/a")
    await complete_work(http, pair.work)
    ended = await get(http, "/v1/tasks/a")
    assert ended.keys() == live.keys()
    for key in ("id", "needs", "payload", "priority", "max_attempts", "created_at"):
        assert ended[key] == live[key]


@pytest.mark.parametrize("outcome", ["succeeded", "cancelled"])
async def test_a_wait_for_a_task_returns_when_it_ends(
    broker: Running, http: httpx.AsyncClient, outcome: str
) -> None:
    pair = await add_running_work(http)
    poll = await start_long_poll(broker, "GET", "/v1/tasks/a?wait=60")
    await complete_work(http, pair.work, outcome)
    assert (await finish_long_poll(poll))["state"] == outcome


async def test_a_wait_for_a_task_returns_when_it_has_failed(broker: Running, http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http, **ONE_ATTEMPT)
    poll = await start_long_poll(broker, "GET", "/v1/tasks/a?wait=60")
    await complete_work(http, pair.work, "failed", error="broken")
    task = await finish_long_poll(poll)
    assert (task["state"], task["error"]) == ("failed", "broken")


async def test_a_wait_for_a_task_returns_when_it_is_deleted(broker: Running, http: httpx.AsyncClient) -> None:
    await add_task(http)
    poll = await start_long_poll(broker, "GET", "/v1/tasks/a?wait=60")
    await http.delete("/v1/tasks/a")
    assert (await finish_long_poll(poll))["state"] == "cancelled"


async def test_a_wait_for_a_task_returns_when_a_batch_ends_it(
    broker: Running, http: httpx.AsyncClient
) -> None:
    pairs = [await add_running_work(http, name) for name in ("a", "b", "c")]
    polls = [await start_long_poll(broker, "GET", f"/v1/tasks/{pair.task}?wait=60") for pair in pairs]
    items = [{"work_id": pair.work, "outcome": "succeeded", "result": pair.task} for pair in pairs]
    await http.post("/v1/work/complete", json={"items": items})
    assert [(await finish_long_poll(poll))["result"] for poll in polls] == ["a", "b", "c"]


async def test_a_wait_for_a_task_continues_until_its_end(broker: Running, http: httpx.AsyncClient) -> None:
    await add_task(http, retry_backoff_seconds=0)
    await add_tool(http)
    poll = await start_long_poll(broker, "GET", "/v1/tasks/a?wait=60")
    work = (await assign(http))["id"]
    await http.post(f"/v1/work/{work}/start")
    await http.post(f"/v1/work/{work}/reports", json={"progress": 0.5})
    await complete_work(http, work, "released")
    await http.put("/v1/tasks/a/remark", json={"text": "hm"})
    assert not poll.done()
    await http.delete("/v1/tasks/a")
    assert (await finish_long_poll(poll))["state"] == "cancelled"


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
async def test_a_wait_for_an_ended_task_returns_at_once(http: httpx.AsyncClient, outcome: str) -> None:
    pair = await add_assigned_work(http, **ONE_ATTEMPT)
    await complete_work(http, pair.work, outcome)
    async with asyncio.timeout(5):
        assert (await get(http, "/v1/tasks/a", wait=60))["state"] == outcome


async def test_a_wait_for_a_task_that_times_out_returns_its_current_state(http: httpx.AsyncClient) -> None:
    await add_running_work(http)
    assert (await poll_until_timeout(http, "GET", "/v1/tasks/a?wait=0.3"))["state"] == "running"


async def test_prefer_wait_makes_a_request_for_a_task_wait(broker: Running, http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    poll = await start_long_poll(broker, "GET", "/v1/tasks/a", headers={"Prefer": "wait=60"})
    await complete_work(http, pair.work)
    assert (await finish_long_poll(poll))["state"] == "succeeded"


# Attempts


async def test_a_task_backs_off_after_a_failed_attempt(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http, retry_backoff_seconds=3600)
    await complete_work(http, pair.work, "failed", error="no")
    task = await get(http, "/v1/tasks/a")
    assert (task["state"], task["attempt"], task["work_id"], task["ended_at"]) == ("scheduled", 1, None, None)
    assert_problem(
        await http.post("/v1/work", json={"task_id": "a", "tool_id": "t"}), 409, "task_unavailable"
    )


async def test_without_a_backoff_a_failed_task_is_available_at_once(
    broker: Running, http: httpx.AsyncClient
) -> None:
    pair = await add_running_work(http, retry_backoff_seconds=0)
    cursor = (await get(http, "/v1/candidates"))["cursor"]
    poll = await start_long_poll(broker, "GET", f"/v1/candidates?wait=60&cursor={cursor}&limit=1000")
    await complete_work(http, pair.work, "failed")
    page = await finish_long_poll(poll)
    while "a" not in ids(page["tasks"]):
        async with asyncio.timeout(5):
            page = await get(http, "/v1/candidates", wait=60, cursor=page["cursor"])
    assert (await assign(http))["attempt"] == 2


async def test_a_task_is_failed_after_its_last_attempt(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await add_task(http, max_attempts=2, retry_backoff_seconds=0)
    for attempt in (1, 2):
        async with asyncio.timeout(5):
            while (await http.post("/v1/work", json={"task_id": "a", "tool_id": "t"})).status_code != 201:
                await get(http, "/v1/candidates", wait=1)
        work = await get(http, "/v1/tools/t/work")
        assert work["items"][0]["attempt"] == attempt
        await complete_work(http, work["items"][0]["id"], "failed", error=f"attempt {attempt}")
    task = await get(http, "/v1/tasks/a")
    assert (task["state"], task["attempt"], task["error"]) == ("failed", 2, "attempt 2")
    assert task["ended_at"] is not None


async def test_released_work_does_not_count_as_an_attempt(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http, **ONE_ATTEMPT)
    await complete_work(http, pair.work, "released")
    task = await get(http, "/v1/tasks/a")
    assert (task["state"], task["attempt"]) == ("available", 0)
    assert (await assign(http))["attempt"] == 1


async def test_a_failure_with_retry_false_is_the_last_attempt(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http, max_attempts=10)
    await complete_work(http, pair.work, "failed", retry=False, error="never")
    task = await get(http, "/v1/tasks/a")
    assert (task["state"], task["attempt"], task["error"]) == ("failed", 1, "never")


# Deletion


@pytest.mark.parametrize("state", ["available", "scheduled", "assigned", "failed"])
async def test_a_task_that_is_not_running_is_deleted_at_once(http: httpx.AsyncClient, state: str) -> None:
    if state == "assigned":
        await add_assigned_work(http)
    elif state == "failed":
        await complete_work(http, (await add_assigned_work(http, **ONE_ATTEMPT)).work, "failed")
    else:
        await add_task(http, not_before=TOMORROW.isoformat() if state == "scheduled" else None)
    assert (await get(http, "/v1/tasks/a"))["state"] == state
    response = await http.delete("/v1/tasks/a")
    assert (response.status_code, response.content) == (204, b"")
    task = await get(http, "/v1/tasks/a")
    assert task["state"] == "cancelled"
    assert task["ended_at"] is not None


async def test_a_repeated_delete_changes_nothing(http: httpx.AsyncClient) -> None:
    await add_task(http)
    assert [(await http.delete("/v1/tasks/a")).status_code for _ in range(2)] == [204, 204]
    assert len((await get(http, "/v1/archive", task_id="a"))["items"]) == 1


async def test_deleting_a_succeeded_task_changes_nothing(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    await complete_work(http, pair.work, result=1)
    assert (await http.delete("/v1/tasks/a")).status_code == 204
    assert (await get(http, "/v1/tasks/a"))["state"] == "succeeded"


async def test_deleting_an_assigned_task_frees_its_tool_and_leaves_a_record(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    await http.delete("/v1/tasks/a")
    assert (await get(http, "/v1/tools/t"))["load"] == 0
    assert (await get(http, "/v1/tools/t/work"))["items"] == []
    record = await get(http, f"/v1/archive/{pair.work}")
    assert (record["outcome"], record["tool_id"], record["started_at"]) == ("cancelled", "t", None)


@pytest.mark.parametrize("state", ["available", "scheduled", "failed"])
async def test_deleting_a_task_without_work_leaves_a_record(http: httpx.AsyncClient, state: str) -> None:
    if state == "failed":
        await complete_work(http, (await add_assigned_work(http, **ONE_ATTEMPT)).work, "failed")
    else:
        await add_task(http, not_before=TOMORROW.isoformat() if state == "scheduled" else None)
    await http.delete("/v1/tasks/a")
    record = (await get(http, "/v1/archive", task_id="a", outcome="cancelled"))["items"][0]
    assert (record["tool"], record["tool_id"], record["assigned_at"]) == (None, None, None)
    assert (await get(http, f"/v1/archive/{record['work_id']}")) == record
    assert record["task"]["state"] == state


async def test_deleting_a_running_task_asks_its_work_to_cancel(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    assert [(await http.delete("/v1/tasks/a")).status_code for _ in range(2)] == [202, 202]
    work = await get(http, f"/v1/work/{pair.work}")
    assert (work["state"], work["cancel_requested"]) == ("running", True)
    report = await http.post(f"/v1/work/{pair.work}/reports", json={})
    assert report.json()["cancel_requested"] is True


@pytest.mark.parametrize("outcome", ["cancelled", "failed", "released"])
async def test_work_of_a_deleted_task_ends_as_cancelled_unless_it_succeeds(
    http: httpx.AsyncClient, outcome: str
) -> None:
    pair = await add_running_work(http)
    await http.delete("/v1/tasks/a")
    assert (await complete_work(http, pair.work, outcome))["outcome"] == "cancelled"
    assert (await get(http, "/v1/tasks/a"))["state"] == "cancelled"


async def test_work_of_a_deleted_task_may_still_succeed(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await http.delete("/v1/tasks/a")
    assert (await complete_work(http, pair.work, result=1))["outcome"] == "succeeded"
    assert (await get(http, "/v1/tasks/a"))["state"] == "succeeded"


@pytest.mark.parametrize("outcome", ["cancelled", "failed", "released"])
async def test_the_completion_of_cancelled_work_can_be_repeated(
    http: httpx.AsyncClient, outcome: str
) -> None:
    pair = await add_running_work(http)
    await http.delete("/v1/tasks/a")
    record = await complete_work(http, pair.work, outcome, error="stopped")
    assert await complete_work(http, pair.work, outcome, error="stopped") == record


async def test_force_deletes_a_running_task_at_once(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    assert (await http.delete("/v1/tasks/a?force=true")).status_code == 204
    assert (await get(http, f"/v1/archive/{pair.work}"))["outcome"] == "cancelled"
    assert (await get(http, "/v1/tasks/a"))["state"] == "cancelled"
    assert (await get(http, "/v1/tools/t"))["load"] == 0
    assert_problem(await http.post(f"/v1/work/{pair.work}/reports", json={}), 409, "work_ended")
    assert assert_problem(await complete(http, pair.work), 409, "work_ended")["outcome"] == "cancelled"


# Remarks


async def test_a_remark_is_shown_until_the_task_is_assigned(http: httpx.AsyncClient) -> None:
    await add_task(http)
    response = await http.put("/v1/tasks/a/remark", json={"text": "no microscope is free"})
    assert (response.status_code, response.json()["remark"]) == (200, "no microscope is free")
    assert (await get(http, "/v1/tasks/a"))["remark"] == "no microscope is free"
    await assign_to_new_tool(http, "a")
    assert (await get(http, "/v1/tasks/a"))["remark"] is None


async def test_a_remark_replaces_the_previous_one(http: httpx.AsyncClient) -> None:
    await add_task(http)
    for text in ("one", "two", "two"):
        response = await http.put("/v1/tasks/a/remark", json={"text": text})
        assert (response.status_code, response.json()["remark"]) == (200, text)


async def test_a_remark_on_an_unknown_task_is_not_found(http: httpx.AsyncClient) -> None:
    assert_problem(await http.put("/v1/tasks/nobody/remark", json={"text": "x"}), 404, "task_not_found")


async def test_a_text_may_have_10000_characters_of_any_size(http: httpx.AsyncClient) -> None:
    await add_task(http)
    text = "\U0001f52c" * 10_000
    assert (await http.put("/v1/tasks/a/remark", json={"text": text})).json()["remark"] == text


async def test_a_batch_of_remarks_returns_a_status_for_each_task(http: httpx.AsyncClient) -> None:
    await add_tasks(http, "a", "b")
    items = [{"task_id": name, "text": f"about {name}"} for name in ("b", "nobody", "a")]
    for _ in range(2):
        response = await http.post("/v1/tasks/remarks", json={"items": items})
        assert response.status_code == 200
        assert response.json() == {
            "items": [
                {"task_id": "b", "status": "ok"},
                {"task_id": "nobody", "status": "task_not_found"},
                {"task_id": "a", "status": "ok"},
            ]
        }
    assert [(await get(http, f"/v1/tasks/{name}"))["remark"] for name in ("a", "b")] == ["about a", "about b"]


async def test_the_last_of_two_remarks_on_one_task_in_a_batch_stays(http: httpx.AsyncClient) -> None:
    await add_task(http)
    items = [{"task_id": "a", "text": text} for text in ("first", "last")]
    response = await http.post("/v1/tasks/remarks", json={"items": items})
    assert [item["status"] for item in response.json()["items"]] == ["ok", "ok"]
    assert (await get(http, "/v1/tasks/a"))["remark"] == "last"
