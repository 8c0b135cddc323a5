"""Cancelling work, retrying tasks, and taking late results."""

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
    answer = await http.post(f"/v1/work/{work}/cancel", json=body)
    assert answer.status_code == 202, answer.text
    found: Json = answer.json()
    return found


async def comes_to(http: httpx.AsyncClient, sql: asyncpg.Connection, work: str, outcome: str) -> Json:
    """The record of running work, once it has come to this end."""
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


async def test_a_cancel_is_told_by_heartbeat_report_poll_and_wait(
    broker: Running, http: httpx.AsyncClient
) -> None:
    pair = await add_running_work(http)
    parked = await start_long_poll(broker, "GET", f"/v1/work/{pair.work}", params={"wait": 60})
    asked = await cancel(http, pair.work)
    assert (asked["cancel_requested"], asked["state"]) == (True, "running")
    assert (await finish_long_poll(parked))["cancel_requested"] is True
    assert (await http.post("/v1/tools/t/heartbeat")).json()["cancel"] == [pair.work]
    report = await http.post(f"/v1/work/{pair.work}/reports", json={})
    assert report.json()["cancel_requested"] is True
    assert (await get(http, "/v1/tasks/a"))["state"] == "running"


async def test_a_cancel_may_have_no_body_and_be_sent_again(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    first = await http.post(f"/v1/work/{pair.work}/cancel")
    second = await http.post(f"/v1/work/{pair.work}/cancel")
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json() == second.json()


@pytest.mark.parametrize("requeue", [False, True])
@pytest.mark.parametrize("outcome", ENDS)
async def test_whatever_way_but_success_it_ends_it_is_what_was_asked_for(
    http: httpx.AsyncClient, sql: asyncpg.Connection, outcome: str, requeue: bool
) -> None:
    pair = await add_running_work(http, max_attempts=1, timeout_seconds=3600)
    await cancel(http, pair.work, requeue=requeue)
    record = await comes_to(http, sql, pair.work, outcome)
    assert record["outcome"] == ("released" if requeue else "cancelled")
    task = await get(http, "/v1/tasks/a")
    assert task["state"] == ("available" if requeue else "cancelled")
    if requeue:
        assert task["attempt"] == 0
    assert (await get(http, "/v1/tools/t"))["load"] == 0
    await steps.check_invariants(sql)


@pytest.mark.parametrize("requeue", [False, True])
async def test_a_success_that_comes_first_stands(http: httpx.AsyncClient, requeue: bool) -> None:
    pair = await add_running_work(http)
    await cancel(http, pair.work, requeue=requeue)
    assert (await complete_work(http, pair.work, result=1))["outcome"] == "succeeded"
    assert (await get(http, "/v1/tasks/a"))["result"] == 1
    ended = assert_problem(await http.post(f"/v1/work/{pair.work}/cancel"), 409, "work_ended")
    assert ended["outcome"] == "succeeded"


async def test_work_not_started_is_asked_too_and_its_tool_sees_it(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http)
    await cancel(http, pair.work)
    [work] = (await get(http, "/v1/tools/t/work"))["items"]
    assert (work["state"], work["cancel_requested"]) == ("assigned", True)
    assert (await complete_work(http, pair.work, "cancelled"))["outcome"] == "cancelled"


@pytest.mark.parametrize("asked", [[False, True], [True, False]])
async def test_a_task_that_is_to_be_cancelled_is_not_queued_again(
    http: httpx.AsyncClient, asked: list[bool]
) -> None:
    pair = await add_running_work(http)
    for requeue in asked:
        await cancel(http, pair.work, requeue=requeue)
    assert (await complete_work(http, pair.work, "failed"))["outcome"] == "cancelled"


async def test_a_deleted_task_is_not_queued_again(http: httpx.AsyncClient) -> None:
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


async def test_of_a_cancel_and_an_end_at_once_each_is_answered_by_what_came_first(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    for number in range(20):
        pair = await add_running_work(http, f"a{number}")
        told, ended = await asyncio.gather(
            http.post(f"/v1/work/{pair.work}/cancel"), complete(http, pair.work, "failed")
        )
        outcome = ended.json()["archived"]["outcome"]
        assert (told.status_code, outcome) in ((202, "cancelled"), (409, "failed"))
    await steps.check_invariants(sql)


async def failed(http: httpx.AsyncClient, task: str = "a") -> str:
    """A task that is held as failed; its work."""
    pair = await add_running_work(http, task, max_attempts=1)
    await complete_work(http, pair.work, "failed", error="broken", result=[1])
    return pair.work


async def test_a_failed_task_is_offered_again_its_attempts_counted_afresh(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await failed(http)
    cursor = (await get(http, "/v1/candidates"))["cursor"]
    parked = await start_long_poll(broker, "GET", "/v1/candidates", params={"wait": 60, "cursor": cursor})
    answer = await http.post("/v1/tasks/a/retry")
    assert answer.status_code == 200
    task = answer.json()
    names = ("state", "attempt", "result", "error", "ended_at")
    assert [task[name] for name in names] == ["available", 0, None, None, None]
    assert [offered["id"] for offered in (await finish_long_poll(parked))["tasks"]] == ["a"]
    assert (await assign(http))["attempt"] == 1
    assert len(await get_records(http)) == 1


async def test_retrying_twice_is_the_same_as_once(http: httpx.AsyncClient) -> None:
    await failed(http)
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
    answer = await http.post("/v1/tasks/a/retry")
    assert (answer.status_code, answer.json()) == (200, before)
    assert before["state"] == state


async def test_an_ended_or_unknown_task_cannot_be_retried(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work)
    assert_problem(await http.post("/v1/tasks/a/retry"), 409, "task_ended")
    await add_task(http, "b")
    await http.delete("/v1/tasks/b")
    assert_problem(await http.post("/v1/tasks/b/retry"), 409, "task_ended")
    assert_problem(await http.post("/v1/tasks/unknown/retry"), 404, "task_not_found")


async def late(http: httpx.AsyncClient, work: str, **fields: Any) -> None:
    """A success that comes after the work has ended; the answer says what can be done with it."""
    problem = assert_problem(await complete(http, work, **fields), 409, "work_ended")
    assert f"POST /v1/archive/{work}/accept" in problem["detail"]


@pytest.mark.parametrize("outcome", ENDS)
async def test_a_late_success_is_kept_in_the_record(
    http: httpx.AsyncClient, sql: asyncpg.Connection, outcome: str
) -> None:
    pair = await add_running_work(http, timeout_seconds=3600)
    before = await comes_to(http, sql, pair.work, outcome)
    assert before["late"] is None
    await late(http, pair.work, result={"n": 1}, error="a warning")
    await late(http, pair.work, result="another")
    record = await get(http, f"/v1/archive/{pair.work}")
    kept = record.pop("late")
    assert kept.pop("at") >= record["ended_at"]
    assert kept == {"outcome": "succeeded", "result": {"n": 1}, "error": "a warning"}
    assert record | {"late": None} == before


async def test_a_late_success_in_a_batch_is_kept_too(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work, "failed")
    items = [{"work_id": pair.work, "outcome": "succeeded", "result": n} for n in (1, 2)]
    answer = await http.post("/v1/work/complete", json={"items": items})
    assert [item["status"] for item in answer.json()["items"]] == ["work_ended"] * 2
    assert (await get(http, f"/v1/archive/{pair.work}"))["late"]["result"] == 1


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "released"])
async def test_a_late_word_that_is_no_success_is_not_kept(http: httpx.AsyncClient, outcome: str) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work)
    assert_problem(await complete(http, pair.work, outcome, result=1), 409, "work_ended")
    assert (await get(http, f"/v1/archive/{pair.work}"))["late"] is None


async def accept(http: httpx.AsyncClient, work: str) -> httpx.Response:
    return await http.post(f"/v1/archive/{work}/accept")


@pytest.mark.parametrize("state", ["available", "scheduled", "failed"])
async def test_a_late_result_is_accepted_while_the_task_waits_or_is_held(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, state: str
) -> None:
    fields = {
        "available": {"retry_backoff_seconds": 0},
        "scheduled": {"retry_backoff_seconds": 3600},
        "failed": {"max_attempts": 1},
    }
    pair = await add_running_work(http, **fields[state])
    await complete_work(http, pair.work, "failed", error="no")
    await late(http, pair.work, result=41)
    assert (await get(http, "/v1/tasks/a"))["state"] == state
    parked = None
    if state != "failed":
        parked = await start_long_poll(broker, "GET", "/v1/tasks/a", params={"wait": 60})
    answer = await accept(http, pair.work)
    assert answer.status_code == 200, answer.text
    record = answer.json()
    assert (record["outcome"], record["result"], record["error"]) == ("succeeded", 41, None)
    assert record["late"]["result"] == 41
    task = await finish_long_poll(parked) if parked else await get(http, "/v1/tasks/a")
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
    under_way = await add_running_work(http, "under way".replace(" ", "-"))
    assert_problem(await accept(http, under_way.work), 404, "work_not_found")


@pytest.mark.parametrize("state", ["assigned", "running", "succeeded", "cancelled"])
async def test_a_late_result_is_not_taken_from_under_the_next_attempt(
    http: httpx.AsyncClient, sql: asyncpg.Connection, state: str
) -> None:
    pair = await add_running_work(http, retry_backoff_seconds=0)
    await complete_work(http, pair.work, "failed")
    await late(http, pair.work, result=1)
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


async def test_a_late_result_is_not_taken_for_another_task_that_has_its_id(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    pair = await add_running_work(http, retry_backoff_seconds=0)
    await complete_work(http, pair.work, "failed")
    await late(http, pair.work, result="old")
    assert (await http.delete("/v1/tasks/a")).status_code == 204
    # What retention does when the record of its end is old, and this one is not.
    await sql.execute("delete from work_archive where outcome = 'cancelled'")
    await sql.execute("delete from ended_tasks")
    await add_task(http, payload="new")
    assert_problem(await accept(http, pair.work), 409, "task_unavailable")
    task = await get(http, "/v1/tasks/a")
    assert (task["state"], task["payload"]) == ("available", "new")


async def test_an_accepted_result_leaves_the_task_its_counts_and_ends_it_now(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http, retry_backoff_seconds=0)
    await complete_work(http, pair.work, "failed")
    await late(http, pair.work)
    for _ in range(2):
        await complete_work(http, (await assign(http))["id"], "failed")
    before = await get(http, "/v1/tasks/a")
    assert (before["state"], before["attempt"]) == ("failed", 3)
    assert (await accept(http, pair.work)).status_code == 200
    task = await get(http, "/v1/tasks/a")
    assert (task["state"], task["attempt"], task["work_id"]) == ("succeeded", 3, pair.work)
    assert task["ended_at"] > before["ended_at"]


async def test_what_a_task_without_work_leaves_is_a_record_and_no_work(http: httpx.AsyncClient) -> None:
    await add_task(http)
    assert (await http.delete("/v1/tasks/a")).status_code == 204
    [record] = await api.get_records(http)
    work = f"/v1/work/{record['work_id']}"
    for answer in (
        await http.get(work),
        await http.get(f"{work}/reports"),
        await http.post(f"{work}/start"),
        await http.post(f"{work}/reports", json={}),
        await http.post(f"{work}/cancel"),
        await http.post(f"{work}/complete", json={"outcome": "cancelled"}),
        await http.post(f"{work}/complete", json={"outcome": "succeeded"}),
    ):
        assert_problem(answer, 404, "work_not_found")
    items = {"items": [{"work_id": record["work_id"], "outcome": "succeeded"}]}
    answer = await http.post("/v1/work/complete", json=items)
    assert answer.json()["items"][0]["status"] == "work_not_found"
    assert (await api.get_records(http)) == [record]


async def test_of_two_late_results_of_a_task_one_is_taken(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    works = []
    for _ in range(2):
        pair = await add_running_work(http) if not works else None
        work = pair.work if pair else (await assign(http))["id"]
        await complete_work(http, work, "failed")
        await late(http, work, result=len(works))
        works.append(work)
        await end_backoff(sql)
        await wait_for_state(http, "/v1/tasks/a", "available")
    answers = await asyncio.gather(*(accept(http, work) for work in works))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    await steps.check_invariants(sql)


async def test_of_an_acceptance_and_an_assignment_at_once_one_wins(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    for number in range(20):
        pair = await add_running_work(http, f"a{number}", retry_backoff_seconds=0)
        await complete_work(http, pair.work, "failed")
        await late(http, pair.work)
        body = {"task_id": pair.task, "tool_id": pair.tool}
        taken, made = await asyncio.gather(accept(http, pair.work), http.post("/v1/work", json=body))
        assert (taken.status_code, made.status_code) in ((200, 409), (409, 201))
    await steps.check_invariants(sql)
