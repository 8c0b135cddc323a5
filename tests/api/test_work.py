"""Work: start, reports, waiting for changes, and completion."""

import asyncio
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.conftest import Running
from tests.support.api import (
    Json,
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

UNKNOWN = "01920000-0000-7000-8000-000000000000"
RECORD_FIELDS = {
    "work_id", "task_id", "tool_id", "task", "tool", "attempt", "outcome", "result", "error", "late",
    "reports",
    "assigned_at", "started_at", "ended_at",
}  # fmt: skip


async def report(http: httpx.AsyncClient, work: str, **fields: Any) -> Json:
    response = await http.post(f"/v1/work/{work}/reports", json=fields)
    assert response.status_code in (200, 201), response.text
    return response.json()


# Reading


async def test_new_work_has_every_field(http: httpx.AsyncClient) -> None:
    await add_tool(http, lease_seconds=30)
    await add_task(http, needs={"n": 1}, payload=[2])
    work = await assign(http)
    assert UUID(work["id"])
    time_to_start = datetime.fromisoformat(work.pop("deadline_at")) - datetime.fromisoformat(
        work.pop("assigned_at")
    )
    assert time_to_start == timedelta(seconds=30)
    assert isinstance(work.pop("version"), int)
    assert work == {
        "id": work["id"], "task_id": "a", "tool_id": "t", "attempt": 1, "state": "assigned",
        "needs": {"n": 1},
        "payload": [2], "progress": None, "cancel_requested": False, "started_at": None,
    }  # fmt: skip


async def test_a_single_work_item_includes_its_reports(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    listed = (await get(http, "/v1/work"))["items"][0]
    work = await get(http, f"/v1/work/{pair.work}")
    assert work == {**listed, "reports": [], "report_count": 0}


async def test_work_is_listed_by_tool_task_and_state(http: httpx.AsyncClient) -> None:
    works = {
        "a": (await add_assigned_work(http, "a", "t")).work,
        "b": (await add_running_work(http, "b", "t")).work,
        "c": (await add_assigned_work(http, "c", "u")).work,
    }
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "abc"), ({"tool_id": "t"}, "ab"), ({"task_id": "c"}, "c"), ({"state": "running"}, "b"),
        ({"state": "assigned"}, "ac"), ({"state": "assigned", "tool_id": "t"}, "a"),
        ({"tool_id": "nobody"}, ""),
    ]  # fmt: skip
    for query, expected in cases:
        listed = ids((await get(http, "/v1/work", **query))["items"])
        assert sorted(listed) == sorted(works[name] for name in expected), query


async def test_paging_lists_each_work_item_once(http: httpx.AsyncClient) -> None:
    works = [(await add_assigned_work(http, f"x{n}")).work for n in range(7)]
    pages = await get_pages(http, "/v1/work", limit=3, tool_id="t")
    assert [len(page) for page in pages if page] == [3, 3, 1]
    assert sorted(ids(flatten(pages))) == sorted(works)


async def test_ended_work_is_read_from_the_archive_with_its_outcome_as_state(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await report(http, pair.work, message="half")
    live = await get(http, f"/v1/work/{pair.work}")
    await complete_work(http, pair.work)
    ended = await get(http, f"/v1/work/{pair.work}")
    assert ended.keys() == live.keys()
    assert (ended["state"], ended["reports"]) == ("succeeded", live["reports"])
    assert ended["version"] > live["version"]
    assert (await get(http, "/v1/work"))["items"] == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("GET", "?wait=60", None),
        ("GET", "?wait=60&after_version=3", None),
        ("GET", "/reports", None),
        ("POST", "/start", None),
        ("POST", "/reports", {}),
        ("POST", "/complete", {"outcome": "succeeded"}),
        ("POST", "/complete", {"outcome": "succeeded", "next_wait_seconds": 60}),
    ],
)
async def test_unknown_work_is_not_found(http: httpx.AsyncClient, method: str, path: str, body: Any) -> None:
    async with asyncio.timeout(5):
        response = await http.request(method, f"/v1/work/{UNKNOWN}{path}", json=body)
    assert_problem(response, 404, "work_not_found")


async def test_a_work_id_is_accepted_in_upper_case(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    assert (await get(http, f"/v1/work/{pair.work.upper()}"))["id"] == pair.work


# Start


async def test_started_work_is_running(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    response = await http.post(f"/v1/work/{pair.work}/start")
    assert (response.status_code, response.json()["state"]) == (200, "running")
    assert response.json()["started_at"] is not None


async def test_a_repeated_start_changes_nothing(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    first, second = [await http.post(f"/v1/work/{pair.work}/start") for _ in range(2)]
    assert (second.status_code, second.json()) == (200, first.json())


async def test_concurrent_starts_return_the_same_work(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    responses = await asyncio.gather(*(http.post(f"/v1/work/{pair.work}/start") for _ in range(20)))
    assert {response.status_code for response in responses} == {200}
    assert len({response.text for response in responses}) == 1


async def test_requests_about_its_work_renew_the_lease_of_the_tool(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    leases = []
    for path, body in (("start", None), ("reports", {})):
        leases.append((await get(http, "/v1/tools/t"))["lease_expires_at"])
        await http.post(f"/v1/work/{pair.work}/{path}", json=body)
    leases.append((await get(http, "/v1/tools/t"))["lease_expires_at"])
    assert leases == sorted(leases)
    assert leases[0] < leases[-1]


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "cancelled", "released"])
@pytest.mark.parametrize(("path", "body"), [("start", None), ("reports", {})])
async def test_ended_work_refuses_starts_and_reports(
    http: httpx.AsyncClient, outcome: str, path: str, body: Any
) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work, outcome)
    assert_problem(await http.post(f"/v1/work/{pair.work}/{path}", json=body), 409, "work_ended")


# Reports


async def test_a_report_keeps_its_fields(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    name = str(uuid4())
    sent = {"id": name, "progress": 0.25, "message": "läuft ✓", "data": {"t": [1, None]}}
    response = await http.post(f"/v1/work/{pair.work}/reports", json=sent)
    assert response.status_code == 201
    assert response.json().keys() == {"id", "cancel_requested", "lease_expires_at"}
    assert (response.json()["id"], response.json()["cancel_requested"]) == (name, False)
    work = await get(http, f"/v1/work/{pair.work}")
    stored = dict(work["reports"][0])
    assert datetime.fromisoformat(stored.pop("at")).utcoffset() == timedelta(0)
    assert stored == sent
    assert work["progress"] == 0.25


async def test_a_report_may_have_no_body(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    response = await http.post(f"/v1/work/{pair.work}/reports")
    assert response.status_code == 201
    assert UUID(response.json()["id"])


async def test_a_repeated_report_is_kept_once(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    name = str(uuid4())
    responses = [
        await http.post(f"/v1/work/{pair.work}/reports", json={"id": name, "message": text})
        for text in ("one", "two")
    ]
    assert [response.status_code for response in responses] == [201, 200]
    assert [response.json()["id"] for response in responses] == [name, name]
    reports = (await get(http, f"/v1/work/{pair.work}/reports"))["items"]
    assert [item["message"] for item in reports] == ["one"]


async def test_concurrent_reports_with_one_id_are_kept_once(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    body = {"id": str(uuid4())}
    responses = await asyncio.gather(
        *(http.post(f"/v1/work/{pair.work}/reports", json=body) for _ in range(20))
    )
    assert sorted(response.status_code for response in responses) == [200] * 19 + [201]
    assert len((await get(http, f"/v1/work/{pair.work}/reports"))["items"]) == 1


async def test_a_report_repeated_after_the_end_causes_no_other_error(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    name = str(uuid4())
    await report(http, pair.work, id=name)
    await complete_work(http, pair.work)
    response = await http.post(f"/v1/work/{pair.work}/reports", json={"id": name})
    assert response.status_code in (200, 409)


async def test_two_work_items_may_have_reports_with_the_same_id(http: httpx.AsyncClient) -> None:
    name = str(uuid4())
    for task in ("a", "b"):
        pair = await add_running_work(http, task)
        await report(http, pair.work, id=name, message=task)
        assert [r["message"] for r in (await get(http, f"/v1/work/{pair.work}"))["reports"]] == [task]


async def test_the_first_report_starts_the_work(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    await report(http, pair.work, progress=0)
    work = await get(http, f"/v1/work/{pair.work}")
    assert (work["state"], work["progress"]) == ("running", 0)
    assert work["started_at"] is not None
    assert (await get(http, "/v1/tools/t/work"))["items"] == []
    assert (await get(http, "/v1/tasks/a"))["state"] == "running"


async def test_paging_lists_reports_in_order(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    for n in range(7):
        await report(http, pair.work, message=str(n))
    pages = await get_pages(http, f"/v1/work/{pair.work}/reports", limit=3)
    assert [len(page) for page in pages if page] == [3, 3, 1]
    assert [item["message"] for item in flatten(pages)] == list("0123456")
    work = await get(http, f"/v1/work/{pair.work}")
    assert work["reports"] == flatten(pages)


async def test_only_reports_with_progress_change_the_progress_of_the_work(
    http: httpx.AsyncClient,
) -> None:
    pair = await add_running_work(http)
    progress = []
    for fields in ({"progress": 1}, {"message": "hm"}, {"progress": 0.5}):
        await report(http, pair.work, **fields)
        progress.append((await get(http, f"/v1/work/{pair.work}"))["progress"])
    assert progress == [1, 1, 0.5]


# Waiting for changes of work


async def test_the_version_grows_with_every_change(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    versions = []

    async def read_version() -> None:
        versions.append((await get(http, f"/v1/work/{pair.work}"))["version"])

    await read_version()
    await http.post(f"/v1/work/{pair.work}/start")
    await read_version()
    await report(http, pair.work)
    await read_version()
    await http.delete("/v1/tasks/a")
    await read_version()
    await complete_work(http, pair.work, "cancelled")
    await read_version()
    assert versions == sorted(set(versions))


async def test_repeated_requests_do_not_change_the_version(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    name = str(uuid4())
    await report(http, pair.work, id=name)
    await http.delete("/v1/tasks/a")
    version = (await get(http, f"/v1/work/{pair.work}"))["version"]
    await http.post(f"/v1/work/{pair.work}/start")
    await report(http, pair.work, id=name)
    await http.delete("/v1/tasks/a")
    await http.post("/v1/tools/t/heartbeat")
    assert (await get(http, f"/v1/work/{pair.work}"))["version"] == version


@pytest.mark.parametrize("change", ["start", "report", "cancel", "complete", "complete in a batch"])
async def test_a_wait_on_work_returns_at_each_change(
    broker: Running, http: httpx.AsyncClient, change: str
) -> None:
    pair = await (add_assigned_work if change == "start" else add_running_work)(http)
    before = await get(http, f"/v1/work/{pair.work}")
    poll = await start_long_poll(broker, "GET", f"/v1/work/{pair.work}?wait=60")
    if change == "start":
        await http.post(f"/v1/work/{pair.work}/start")
    elif change == "report":
        await report(http, pair.work, message="news")
    elif change == "cancel":
        await http.delete("/v1/tasks/a")
    elif change == "complete":
        await complete_work(http, pair.work)
    else:
        items = [{"work_id": pair.work, "outcome": "failed"}]
        await http.post("/v1/work/complete", json={"items": items})
    after = await finish_long_poll(poll)
    assert after["version"] > before["version"]
    assert after == await get(http, f"/v1/work/{pair.work}")


async def test_a_wait_after_an_older_version_returns_at_once(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    version = (await get(http, f"/v1/work/{pair.work}"))["version"]
    async with asyncio.timeout(5):
        for after in (version - 1, 0):
            assert (await get(http, f"/v1/work/{pair.work}", wait=60, after_version=after))[
                "version"
            ] == version


async def test_a_wait_after_the_current_version_returns_at_the_next(
    broker: Running, http: httpx.AsyncClient
) -> None:
    pair = await add_running_work(http)
    version = (await get(http, f"/v1/work/{pair.work}"))["version"]
    poll = await start_long_poll(broker, "GET", f"/v1/work/{pair.work}?wait=60&after_version={version}")
    await report(http, pair.work)
    assert (await finish_long_poll(poll))["version"] > version


async def test_a_wait_after_a_future_version_times_out(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    version = (await get(http, f"/v1/work/{pair.work}"))["version"]
    path = f"/v1/work/{pair.work}?wait=0.3&after_version={version + 1}"
    assert (await poll_until_timeout(http, "GET", path))["version"] == version


async def test_a_wait_on_work_that_times_out_returns_its_current_state(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    current = await get(http, f"/v1/work/{pair.work}")
    assert await poll_until_timeout(http, "GET", f"/v1/work/{pair.work}?wait=0.3") == current


async def test_a_wait_on_ended_work_returns_at_once(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work)
    version = (await get(http, f"/v1/work/{pair.work}"))["version"]
    async with asyncio.timeout(5):
        for query in ({"wait": 60}, {"wait": 60, "after_version": version + 10}):
            assert (await get(http, f"/v1/work/{pair.work}", **query))["state"] == "succeeded"


async def test_prefer_wait_makes_a_request_for_work_wait(broker: Running, http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    poll = await start_long_poll(broker, "GET", f"/v1/work/{pair.work}", headers={"Prefer": "wait=60"})
    await report(http, pair.work)
    assert len((await finish_long_poll(poll))["reports"]) == 1


MINIMAL = {"Prefer": "wait=60, return=minimal"}


async def test_return_minimal_omits_the_payload_and_the_reports(
    broker: Running, http: httpx.AsyncClient
) -> None:
    pair = await add_running_work(http, payload="x" * 100_000)
    await report(http, pair.work)
    path = f"/v1/work/{pair.work}"
    version = (await get(http, path))["version"]
    response = await http.get(path, headers={"Prefer": "return=minimal"})
    assert response.json() == {"state": "running", "cancel_requested": False, "version": version}
    assert response.headers["Preference-Applied"] == "return=minimal"
    poll = await start_long_poll(broker, "GET", path, headers=MINIMAL)
    await http.post(f"{path}/cancel", json={})
    assert await finish_long_poll(poll) == {
        "state": "running",
        "cancel_requested": True,
        "version": version + 1,
    }
    poll = await start_long_poll(broker, "GET", path, headers=MINIMAL)
    await complete_work(http, pair.work)
    full = await get(http, path)
    for minimal in (await finish_long_poll(poll), (await http.get(path, headers=MINIMAL)).json()):
        assert minimal == {name: full[name] for name in ("state", "cancel_requested", "version")}
    assert (await http.get(f"/v1/work/{UNKNOWN}", headers=MINIMAL)).status_code == 404


# Completion


async def test_completing_archives_the_work_and_ends_the_task(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await report(http, pair.work, message="m")
    response = await complete(http, pair.work, result={"r": [1]})
    assert response.status_code == 200
    assert response.json().keys() == {"archived", "next"}
    record = response.json()["archived"]
    assert response.json()["next"] == []
    assert record.keys() == RECORD_FIELDS
    assert (record["work_id"], record["task_id"], record["tool_id"]) == (pair.work, "a", "t")
    assert (record["attempt"], record["outcome"], record["result"]) == (1, "succeeded", {"r": [1]})
    assert [item["message"] for item in record["reports"]] == ["m"]
    assert (await get(http, "/v1/tasks/a"))["result"] == {"r": [1]}
    assert (await get(http, "/v1/tools/t"))["load"] == 0


async def test_work_that_was_never_started_can_be_completed(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    record = await complete_work(http, pair.work)
    assert (record["outcome"], record["started_at"]) == ("succeeded", None)


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "cancelled", "released"])
async def test_a_repeated_completion_returns_the_same_record(http: httpx.AsyncClient, outcome: str) -> None:
    pair = await add_running_work(http)
    record = await complete_work(http, pair.work, outcome, result=1, error="e")
    assert record["outcome"] == outcome
    assert await complete_work(http, pair.work, outcome, result=2, error="f") == record
    assert len((await get(http, "/v1/archive", tool_id="t"))["items"]) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [("succeeded", "failed"), ("succeeded", "cancelled"), ("failed", "released"), ("released", "cancelled")],
)
async def test_a_completion_with_another_outcome_returns_the_first_outcome(
    http: httpx.AsyncClient, first: str, second: str
) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work, first)
    problem = assert_problem(await complete(http, pair.work, second), 409, "work_ended")
    assert problem["outcome"] == first


async def test_concurrent_completions_agree_on_one_outcome(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    outcomes = ["succeeded", "failed", "cancelled", "released"] * 5
    responses = await asyncio.gather(*(complete(http, pair.work, outcome) for outcome in outcomes))
    [record] = (await get(http, "/v1/archive", task_id="a"))["items"]
    for outcome, response in zip(outcomes, responses, strict=True):
        assert response.status_code == (200 if outcome == record["outcome"] else 409)
    assert (await get(http, "/v1/tools/t"))["load"] == 0


async def test_a_task_is_cancelled_when_its_tool_cancels_the_work(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work, "cancelled", error="stopped by hand")
    task = await get(http, "/v1/tasks/a")
    assert (task["state"], task["error"]) == ("cancelled", "stopped by hand")


async def test_a_tool_that_returns_late_cannot_change_the_next_attempt(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work, "released")
    again = (await assign(http))["id"]
    assert again != pair.work
    for path, body in (("start", None), ("reports", {}), ("complete", {"outcome": "succeeded"})):
        assert_problem(await http.post(f"/v1/work/{pair.work}/{path}", json=body), 409, "work_ended")
    assert (await get(http, f"/v1/work/{again}"))["state"] == "assigned"


async def test_a_completion_can_wait_for_the_next_work(broker: Running, http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await add_task(http, "b")
    body = {"outcome": "succeeded", "next_wait_seconds": 60}
    poll = await start_long_poll(broker, "POST", f"/v1/work/{pair.work}/complete", json=body)
    assert (await get(http, "/v1/tasks/a"))["state"] == "succeeded"
    work = await assign(http, "b")
    response = await finish_long_poll(poll)
    assert response["archived"]["work_id"] == pair.work
    assert response["next"] == [work]


async def test_a_completion_returns_assigned_work_at_once(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    following = await add_assigned_work(http, "b")
    async with asyncio.timeout(5):
        response = await complete(http, pair.work, next_wait_seconds=60)
    assert ids(response.json()["next"]) == [following.work]
    assert ids((await get(http, "/v1/tools/t/work"))["items"]) == [following.work]


async def test_a_repeated_completion_also_waits_for_the_next_work(
    broker: Running, http: httpx.AsyncClient
) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work)
    await add_task(http, "b")
    body = {"outcome": "succeeded", "next_wait_seconds": 60}
    poll = await start_long_poll(broker, "POST", f"/v1/work/{pair.work}/complete", json=body)
    work = await assign(http, "b")
    assert ids((await finish_long_poll(poll))["next"]) == [work["id"]]


async def test_a_completion_whose_wait_times_out_returns_no_next_work(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    body = {"outcome": "succeeded", "next_wait_seconds": 0.3}
    response = await poll_until_timeout(http, "POST", f"/v1/work/{pair.work}/complete", json=body)
    assert (response["archived"]["outcome"], response["next"]) == ("succeeded", [])


async def test_a_refused_completion_does_not_wait(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work)
    async with asyncio.timeout(5):
        assert_problem(await complete(http, pair.work, "failed", next_wait_seconds=60), 409, "work_ended")


# Batches of completions


async def test_a_batch_of_completions_returns_a_status_for_each_in_order(http: httpx.AsyncClient) -> None:
    pairs = [await add_running_work(http, name) for name in ("new", "same", "other")]
    await complete_work(http, pairs[1].work)
    await complete_work(http, pairs[2].work, "failed")
    works = [pairs[2].work, pairs[0].work, UNKNOWN, pairs[1].work]
    items = [{"work_id": work, "outcome": "succeeded", "result": work} for work in works]
    response = await http.post("/v1/work/complete", json={"items": items})
    assert response.status_code == 200
    statuses = ["work_ended", "archived", "work_not_found", "exists"]
    assert response.json() == {
        "items": [{"work_id": work, "status": status} for work, status in zip(works, statuses, strict=True)]
    }
    assert (await get(http, "/v1/tasks/new"))["result"] == pairs[0].work


async def test_a_batch_of_completions_can_be_repeated(http: httpx.AsyncClient) -> None:
    pairs = [await add_running_work(http, f"x{n}") for n in range(10)]
    outcomes = ["succeeded", "failed", "cancelled", "released"] * 3
    items = [{"work_id": p.work, "outcome": o} for p, o in zip(pairs, outcomes, strict=False)]
    for status in ("archived", "exists"):
        response = await http.post("/v1/work/complete", json={"items": items})
        assert {item["status"] for item in response.json()["items"]} == {status}
    assert (await get(http, "/v1/tools/t"))["load"] == 0
    assert len((await get(http, "/v1/archive"))["items"]) == 10


async def test_the_first_completion_of_a_work_item_in_a_batch_wins(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    items = [{"work_id": pair.work, "outcome": outcome} for outcome in ("failed", "succeeded", "failed")]
    response = await http.post("/v1/work/complete", json={"items": items})
    assert [item["status"] for item in response.json()["items"]] == ["archived", "work_ended", "exists"]
    assert (await get(http, f"/v1/archive/{pair.work}"))["outcome"] == "failed"


async def test_a_failure_with_retry_false_in_a_batch_is_the_last_attempt(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    items = [{"work_id": pair.work, "outcome": "failed", "error": "never", "retry": False}]
    await http.post("/v1/work/complete", json={"items": items})
    task = await get(http, "/v1/tasks/a")
    assert (task["state"], task["error"]) == ("failed", "never")


async def test_a_result_that_postgresql_cannot_store_refuses_the_whole_batch(
    http: httpx.AsyncClient,
) -> None:
    pairs = [await add_running_work(http, name) for name in ("a", "b")]
    items = ",".join(
        f'{{"work_id": "{pair.work}", "outcome": "succeeded", "result": {result}}}'
        for pair, result in zip(pairs, ("1", "1e400000"), strict=True)
    )
    response = await http.post(
        "/v1/work/complete", content=f'{{"items": [{items}]}}', headers={"content-type": "application/json"}
    )
    problem = assert_problem(response, 400, "validation_failed")
    assert [error["field"] for error in problem["errors"]] == ["items[1].result"]
    assert (await get(http, "/v1/tasks/b"))["state"] == "running"


async def test_a_thousand_work_items_can_be_completed_in_a_batch(http: httpx.AsyncClient) -> None:
    names = [f"x{n}" for n in range(1000)]
    await add_tasks(http, *names)
    await add_tool(http, capacity=1000)
    pairs = [{"task_id": name, "tool_id": "t"} for name in names]
    assigned = (await http.post("/v1/work/batch", json={"items": pairs})).json()["items"]
    items = [{"work_id": item["work_id"], "outcome": "succeeded"} for item in assigned]
    response = await http.post("/v1/work/complete", json={"items": items})
    assert {item["status"] for item in response.json()["items"]} == {"archived"}
    assert (await get(http, "/v1/tools/t"))["load"] == 0


# Many clients at once


async def test_many_tools_and_assigners_do_every_task_exactly_once(http: httpx.AsyncClient) -> None:
    names = [f"x{n}" for n in range(60)]
    tools = [f"t{n}" for n in range(4)]
    await add_tasks(http, *names)
    for tool in tools:
        await add_tool(http, tool, capacity=2)

    async def work_on(tool: str) -> None:
        while (await get(http, "/v1/tasks", limit=1))["items"]:
            for item in (await get(http, f"/v1/tools/{tool}/work", wait=0.2))["items"]:
                await http.post(f"/v1/work/{item['id']}/start")
                await complete_work(http, item["id"], result=item["task_id"])

    async def assign_candidates() -> None:
        while (await get(http, "/v1/tasks", limit=1))["items"]:
            candidates = await get(http, "/v1/candidates", wait=0.2, limit=20)
            items = [
                {"task_id": task["id"], "tool_id": tool["id"]}
                for task in candidates["tasks"]
                for tool in candidates["tools"]
            ]
            if items:
                await http.post("/v1/work/batch", json={"items": items})

    async with asyncio.timeout(30):
        await asyncio.gather(*(work_on(tool) for tool in tools), *(assign_candidates() for _ in range(3)))
    records = (await get(http, "/v1/archive", limit=1000))["items"]
    assert sorted(ids(records, "task_id")) == sorted(names)
    assert {record["outcome"] for record in records} == {"succeeded"}
    assert {tool["load"] for tool in (await get(http, "/v1/tools"))["items"]} == {0}
