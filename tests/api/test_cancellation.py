"""Cancelling work, retrying tasks, and accepting late results."""

import asyncio
from typing import Any

import asyncpg
import httpx
import pytest

from tests.conftest import Running
from tests.support import api, steps
from tests.support.api import (
    Json,
    add_assigned_work,
    add_running_work,
    add_task,
    assert_problem,
    assign,
    complete,
    complete_work,
    end_backoff,
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

UNKNOWN = "01920000-0000-7000-8000-000000000000"
ENDS = ("failed", "cancelled", "released", "lost", "timed_out")


async def cancel(http: httpx.AsyncClient, work: str, **body: Any) -> Json:
    response = await http.post(f"/v1/work/{work}/cancel", json=body)
    assert response.status_code == 202, response.text
    work_item: Json = response.json()
    return work_item


async def end_work(http: httpx.AsyncClient, sql: asyncpg.Connection, work: str, outcome: str) -> Json:
    """End running work with this outcome, and return its record."""
    if outcome == "lost":
        await take_tool_offline(http, sql)
    elif outcome == "timed_out":
        await expire_deadline(sql, work)
    else:
        await complete_work(http, work, outcome)
    await wait_until(lambda: _has_ended(http, work))
    record: Json = await get(http, f"/v1/archive/{work}")
    return record


async def _has_ended(http: httpx.AsyncClient, work: str) -> bool:
    return (await http.get(f"/v1/archive/{work}")).status_code == 200


async def test_heartbeats_reports_and_waits_return_the_cancel_request(
    broker: Running, http: httpx.AsyncClient
) -> None:
    pair = await add_running_work(http)
    poll = await start_long_poll(broker, "GET", f"/v1/work/{pair.work}", params={"wait": 60})
    work = await cancel(http, pair.work)
    assert (work["cancel_requested"], work["state"]) == (True, "running")
    assert (await finish_long_poll(poll))["cancel_requested"] is True
    assert (await http.post("/v1/tools/t/heartbeat")).json()["cancel"] == [pair.work]
    report = await http.post(f"/v1/work/{pair.work}/reports", json={})
    assert report.json()["cancel_requested"] is True
    assert (await get(http, "/v1/tasks/a"))["state"] == "running"


async def test_a_cancel_may_omit_its_body_and_be_repeated(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    first = await http.post(f"/v1/work/{pair.work}/cancel")
    second = await http.post(f"/v1/work/{pair.work}/cancel")
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json() == second.json()


@pytest.mark.parametrize("requeue", [False, True])
@pytest.mark.parametrize("outcome", ENDS)
async def test_work_with_a_cancel_request_ends_as_requested_unless_it_succeeds(
    http: httpx.AsyncClient, sql: asyncpg.Connection, outcome: str, requeue: bool
) -> None:
    pair = await add_running_work(http, max_attempts=1, timeout_seconds=3600)
    await cancel(http, pair.work, requeue=requeue)
    record = await end_work(http, sql, pair.work, outcome)
    assert record["outcome"] == ("released" if requeue else "cancelled")
    task = await get(http, "/v1/tasks/a")
    assert task["state"] == ("available" if requeue else "cancelled")
    if requeue:
        assert task["attempt"] == 0
    assert (await get(http, "/v1/tools/t"))["load"] == 0
    await steps.check_invariants(sql)


@pytest.mark.parametrize("requeue", [False, True])
async def test_a_success_before_the_deletion_is_kept(http: httpx.AsyncClient, requeue: bool) -> None:
    pair = await add_running_work(http)
    await cancel(http, pair.work, requeue=requeue)
    assert (await complete_work(http, pair.work, result=1))["outcome"] == "succeeded"
    assert (await get(http, "/v1/tasks/a"))["result"] == 1
    ended = assert_problem(await http.post(f"/v1/work/{pair.work}/cancel"), 409, "work_ended")
    assert ended["outcome"] == "succeeded"


async def test_work_that_has_not_started_can_be_asked_to_cancel(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    await cancel(http, pair.work)
    [work] = (await get(http, "/v1/tools/t/work"))["items"]
    assert (work["state"], work["cancel_requested"]) == ("assigned", True)
    assert (await complete_work(http, pair.work, "cancelled"))["outcome"] == "cancelled"


@pytest.mark.parametrize("requeue_flags", [[False, True], [True, False]])
async def test_a_cancel_without_requeue_prevails_over_one_with_requeue(
    http: httpx.AsyncClient, requeue_flags: list[bool]
) -> None:
    pair = await add_running_work(http)
    for requeue in requeue_flags:
        await cancel(http, pair.work, requeue=requeue)
    assert (await complete_work(http, pair.work, "failed"))["outcome"] == "cancelled"


async def test_a_requeue_request_does_not_bring_back_a_deleted_task(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    assert (await http.delete("/v1/tasks/a")).status_code == 202
    await cancel(http, pair.work, requeue=True)
    assert (await http.delete("/v1/tasks/a")).status_code == 202
    assert (await complete_work(http, pair.work, "failed"))["outcome"] == "cancelled"
    assert (await http.delete("/v1/tasks/a")).status_code == 204


async def test_ended_or_unknown_work_cannot_be_cancelled(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work, "failed")
    ended = assert_problem(await http.post(f"/v1/work/{pair.work}/cancel"), 409, "work_ended")
    assert ended["outcome"] == "failed"
    assert_problem(await http.post(f"/v1/work/{UNKNOWN}/cancel"), 404, "work_not_found")


async def test_a_cancel_and_a_completion_at_the_same_time_agree_on_the_outcome(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    for number in range(20):
        pair = await add_running_work(http, f"a{number}")
        cancellation, ended = await asyncio.gather(
            http.post(f"/v1/work/{pair.work}/cancel"), complete(http, pair.work, "failed")
        )
        outcome = ended.json()["archived"]["outcome"]
        assert (cancellation.status_code, outcome) in ((202, "cancelled"), (409, "failed"))
    await steps.check_invariants(sql)


async def add_failed_task(http: httpx.AsyncClient, task: str = "a") -> str:
    """Add a task and let its last attempt fail. Return the id of the work."""
    pair = await add_running_work(http, task, max_attempts=1)
    await complete_work(http, pair.work, "failed", error="broken", result=[1])
    return pair.work


async def test_a_retried_task_is_offered_again_and_counts_attempts_from_zero(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_failed_task(http)
    cursor = (await get(http, "/v1/candidates"))["cursor"]
    poll = await start_long_poll(broker, "GET", "/v1/candidates", params={"wait": 60, "cursor": cursor})
    response = await http.post("/v1/tasks/a/retry")
    assert response.status_code == 200
    task = response.json()
    names = ("state", "attempt", "result", "error", "ended_at")
    assert [task[name] for name in names] == ["available", 0, None, None, None]
    assert [offered["id"] for offered in (await finish_long_poll(poll))["tasks"]] == ["a"]
    assert (await assign(http))["attempt"] == 1
    assert len(await get_records(http)) == 1


async def test_a_repeated_retry_changes_nothing(http: httpx.AsyncClient) -> None:
    await add_failed_task(http)
    first, second = await http.post("/v1/tasks/a/retry"), await http.post("/v1/tasks/a/retry")
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()


@pytest.mark.parametrize("state", ["scheduled", "available", "assigned", "running"])
async def test_a_retry_of_a_live_task_changes_nothing(http: httpx.AsyncClient, state: str) -> None:
    match state:
        case "scheduled":
            await add_task(http, not_before="2100-01-01T00:00:00Z")
        case "available":
            await add_task(http)
        case "assigned":
            await add_assigned_work(http)
        case "running":
            await add_running_work(http)
    before = await get(http, "/v1/tasks/a")
    response = await http.post("/v1/tasks/a/retry")
    assert (response.status_code, response.json()) == (200, before)
    assert before["state"] == state


async def test_an_ended_or_unknown_task_cannot_be_retried(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work)
    assert_problem(await http.post("/v1/tasks/a/retry"), 409, "task_ended")
    await add_task(http, "b")
    await http.delete("/v1/tasks/b")
    assert_problem(await http.post("/v1/tasks/b/retry"), 409, "task_ended")
    assert_problem(await http.post("/v1/tasks/unknown/retry"), 404, "task_not_found")


async def complete_late(http: httpx.AsyncClient, work: str, **fields: Any) -> None:
    """Report success for work that has ended. The response must name the request that accepts it."""
    problem = assert_problem(await complete(http, work, **fields), 409, "work_ended")
    assert f"POST /v1/archive/{work}/accept" in problem["detail"]


@pytest.mark.parametrize("outcome", ENDS)
async def test_a_late_success_is_kept_in_the_record(
    http: httpx.AsyncClient, sql: asyncpg.Connection, outcome: str
) -> None:
    pair = await add_running_work(http, timeout_seconds=3600)
    before = await end_work(http, sql, pair.work, outcome)
    assert before["late"] is None
    await complete_late(http, pair.work, result={"n": 1}, error="a warning")
    await complete_late(http, pair.work, result="another")
    record = await get(http, f"/v1/archive/{pair.work}")
    late = record.pop("late")
    assert late.pop("at") >= record["ended_at"]
    assert late == {"outcome": "succeeded", "result": {"n": 1}, "error": "a warning"}
    assert record | {"late": None} == before


async def test_a_late_success_in_a_batch_is_kept_too(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work, "failed")
    items = [{"work_id": pair.work, "outcome": "succeeded", "result": n} for n in (1, 2)]
    response = await http.post("/v1/work/complete", json={"items": items})
    assert [item["status"] for item in response.json()["items"]] == ["work_ended"] * 2
    assert (await get(http, f"/v1/archive/{pair.work}"))["late"]["result"] == 1


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "released"])
async def test_a_late_completion_without_success_is_not_kept(http: httpx.AsyncClient, outcome: str) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work)
    assert_problem(await complete(http, pair.work, outcome, result=1), 409, "work_ended")
    assert (await get(http, f"/v1/archive/{pair.work}"))["late"] is None


async def accept(http: httpx.AsyncClient, work: str) -> httpx.Response:
    return await http.post(f"/v1/archive/{work}/accept")


@pytest.mark.parametrize("state", ["available", "scheduled", "failed"])
async def test_a_late_result_is_accepted_while_the_task_waits_or_has_failed(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, state: str
) -> None:
    fields = {
        "available": {"retry_backoff_seconds": 0},
        "scheduled": {"retry_backoff_seconds": 3600},
        "failed": {"max_attempts": 1},
    }
    pair = await add_running_work(http, **fields[state])
    await complete_work(http, pair.work, "failed", error="no")
    await complete_late(http, pair.work, result=41)
    assert (await get(http, "/v1/tasks/a"))["state"] == state
    poll = None
    if state != "failed":
        poll = await start_long_poll(broker, "GET", "/v1/tasks/a", params={"wait": 60})
    response = await accept(http, pair.work)
    assert response.status_code == 200, response.text
    record = response.json()
    assert (record["outcome"], record["result"], record["error"]) == ("succeeded", 41, None)
    assert record["late"]["result"] == 41
    task = await finish_long_poll(poll) if poll else await get(http, "/v1/tasks/a")
    assert (task["state"], task["result"], task["work_id"]) == ("succeeded", 41, pair.work)
    again = await accept(http, pair.work)
    assert (again.status_code, again.json()) == (200, record)
    assert (await complete(http, pair.work, result=41)).json()["archived"] == record
    assert (await http.post("/v1/tasks", json={"id": "a", "needs": {}})).status_code == 200
    await steps.check_invariants(sql)


async def test_without_a_late_result_there_is_nothing_to_accept(http: httpx.AsyncClient) -> None:
    lost = await add_running_work(http, "lost")
    await complete_work(http, lost.work, "failed")
    assert_problem(await accept(http, lost.work), 409, "nothing_to_accept")
    good = await add_running_work(http, "good")
    await complete_work(http, good.work)
    assert_problem(await accept(http, good.work), 409, "nothing_to_accept")
    assert_problem(await accept(http, UNKNOWN), 404, "work_not_found")
    running = await add_running_work(http, "running")
    assert_problem(await accept(http, running.work), 404, "work_not_found")


@pytest.mark.parametrize("state", ["assigned", "running", "succeeded", "cancelled"])
async def test_a_late_result_is_refused_during_and_after_the_next_attempt(
    http: httpx.AsyncClient, sql: asyncpg.Connection, state: str
) -> None:
    pair = await add_running_work(http, retry_backoff_seconds=0)
    await complete_work(http, pair.work, "failed")
    await complete_late(http, pair.work, result=1)
    if state == "cancelled":
        assert (await http.delete("/v1/tasks/a")).status_code == 204
    else:
        following = (await assign(http))["id"]
        if state in ("running", "succeeded"):
            await http.post(f"/v1/work/{following}/start")
        if state == "succeeded":
            await complete_work(http, following, result=2)
    assert (await get(http, "/v1/tasks/a"))["state"] == state
    assert_problem(await accept(http, pair.work), 409, "task_unavailable")
    assert (await get(http, f"/v1/archive/{pair.work}"))["outcome"] == "failed"
    await steps.check_invariants(sql)


async def test_a_late_result_is_refused_for_a_new_task_with_the_same_id(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    pair = await add_running_work(http, retry_backoff_seconds=0)
    await complete_work(http, pair.work, "failed")
    await complete_late(http, pair.work, result="old")
    assert (await http.delete("/v1/tasks/a")).status_code == 204
    # Retention does this when the record of the cancellation is old enough, and the late one is not.
    await sql.execute("delete from work_archive where outcome = 'cancelled'")
    await sql.execute("delete from ended_tasks")
    await add_task(http, payload="new")
    assert_problem(await accept(http, pair.work), 409, "task_unavailable")
    task = await get(http, "/v1/tasks/a")
    assert (task["state"], task["payload"]) == ("available", "new")


async def test_an_accepted_result_keeps_the_attempt_count_and_ends_the_task_now(
    http: httpx.AsyncClient,
) -> None:
    pair = await add_running_work(http, retry_backoff_seconds=0)
    await complete_work(http, pair.work, "failed")
    await complete_late(http, pair.work)
    for _ in range(2):
        await complete_work(http, (await assign(http))["id"], "failed")
    before = await get(http, "/v1/tasks/a")
    assert (before["state"], before["attempt"]) == ("failed", 3)
    assert (await accept(http, pair.work)).status_code == 200
    task = await get(http, "/v1/tasks/a")
    assert (task["state"], task["attempt"], task["work_id"]) == ("succeeded", 3, pair.work)
    assert task["ended_at"] > before["ended_at"]


async def test_the_record_of_a_task_without_work_is_not_work(http: httpx.AsyncClient) -> None:
    await add_task(http)
    assert (await http.delete("/v1/tasks/a")).status_code == 204
    [record] = await api.get_records(http)
    work = f"/v1/work/{record['work_id']}"
    for response in (
        await http.get(work),
        await http.get(f"{work}/reports"),
        await http.post(f"{work}/start"),
        await http.post(f"{work}/reports", json={}),
        await http.post(f"{work}/cancel"),
        await http.post(f"{work}/complete", json={"outcome": "cancelled"}),
        await http.post(f"{work}/complete", json={"outcome": "succeeded"}),
    ):
        assert_problem(response, 404, "work_not_found")
    items = {"items": [{"work_id": record["work_id"], "outcome": "succeeded"}]}
    response = await http.post("/v1/work/complete", json=items)
    assert response.json()["items"][0]["status"] == "work_not_found"
    assert (await api.get_records(http)) == [record]


async def test_only_one_of_two_late_results_is_accepted(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    works = []
    for _ in range(2):
        pair = await add_running_work(http) if not works else None
        work = pair.work if pair else (await assign(http))["id"]
        await complete_work(http, work, "failed")
        await complete_late(http, work, result=len(works))
        works.append(work)
        await end_backoff(sql)
        await wait_for_state(http, "/v1/tasks/a", "available")
    responses = await asyncio.gather(*(accept(http, work) for work in works))
    assert sorted(response.status_code for response in responses) == [200, 409]
    await steps.check_invariants(sql)


async def test_acceptance_and_assignment_at_the_same_time_do_not_both_succeed(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    for number in range(20):
        pair = await add_running_work(http, f"a{number}", retry_backoff_seconds=0)
        await complete_work(http, pair.work, "failed")
        await complete_late(http, pair.work)
        body = {"task_id": pair.task, "tool_id": pair.tool}
        acceptance, assignment = await asyncio.gather(
            accept(http, pair.work), http.post("/v1/work", json=body)
        )
        assert (acceptance.status_code, assignment.status_code) in ((200, 409), (409, 201))
    await steps.check_invariants(sql)
