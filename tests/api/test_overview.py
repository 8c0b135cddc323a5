"""The summaries of the dashboard at /v1/overview: bounded lists without payloads."""

import asyncio
import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest

from broker.store.overview import failures, tools
from tests.conftest import Running
from tests.support import api
from tests.support.api import (
    Json,
    add_assigned_work,
    add_running_work,
    add_task,
    add_tasks,
    add_tool,
    assign,
    complete,
    complete_work,
    expire_deadline,
    get,
    ids,
    wait_for_state,
)
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

LONG = "a very long word " * 100


async def overview(http: httpx.AsyncClient, name: str, **query: Any) -> Json:
    summary: Json = await get(http, f"/v1/overview/{name}", **query)
    return summary


async def report(http: httpx.AsyncClient, work: str, **fields: Any) -> None:
    assert (await http.post(f"/v1/work/{work}/reports", json=fields)).status_code == 201


# Tools


async def test_a_tool_is_listed_with_its_work_and_latest_message(http: httpx.AsyncClient) -> None:
    registered = await add_tool(http, "microscope", skills={"can": ["look"]}, capacity=2)
    await add_task(http, "cells")
    work = await assign(http, "cells", "microscope")
    await report(http, work["id"], progress=0.25, message="a quarter")
    await report(http, work["id"], progress=0.5)
    [tool] = (await overview(http, "tools"))["items"]
    current = await get(http, f"/v1/work/{work['id']}")
    assert datetime.fromisoformat(tool.pop("seen_at")) >= datetime.fromisoformat(registered["seen_at"])
    assert json.loads(tool.pop("skills")) == {"can": ["look"]}
    names = ("id", "task_id", "tool_id", "attempt", "state", "cancel_requested", "deadline_at")
    assert tool == {
        "id": "microscope",
        "state": "idle",
        "load": 1,
        "capacity": 2,
        "work": [
            {name: current[name] for name in (*names, "assigned_at", "started_at")}
            | {"progress": 0.5, "message": "a quarter"}
        ],
    }


async def test_the_oldest_work_of_a_tool_is_listed_up_to_a_limit(http: httpx.AsyncClient) -> None:
    await add_tool(http, "t", capacity=100)
    await add_tasks(http, *(f"a-{number:02}" for number in range(tools.MOST_WORK + 4)))
    for number in range(tools.MOST_WORK + 4):
        await assign(http, f"a-{number:02}")
    [tool] = (await overview(http, "tools"))["items"]
    assert tool["load"] == tools.MOST_WORK + 4
    assert ids(tool["work"], "task_id") == [f"a-{number:02}" for number in range(tools.MOST_WORK)]


async def test_paging_of_tools_does_not_depend_on_their_work(http: httpx.AsyncClient) -> None:
    for number in range(5):
        await add_running_work(http, f"a-{number}", f"t-{number}")
        await add_running_work(http, f"b-{number}", f"t-{number}")
    pages = await api.get_pages(http, "/v1/overview/tools", limit=2)
    assert [ids(page) for page in pages] == [["t-0", "t-1"], ["t-2", "t-3"], ["t-4"]]
    assert all(len(tool["work"]) == 2 for tool in api.flatten(pages))


async def test_long_texts_are_shortened(http: httpx.AsyncClient) -> None:
    await add_tool(http, "t", skills=LONG)
    await add_task(http, "a", needs=LONG)
    await add_task(http, "b", needs=LONG)
    work = (await assign(http, "a"))["id"]
    await report(http, work, message=LONG)
    [tool] = (await overview(http, "tools"))["items"]
    [kind] = (await overview(http, "queue"))["kinds"]
    [task] = (await overview(http, "waiting"))["items"]
    await complete_work(http, work, "failed", error=LONG)
    [failure] = (await overview(http, "failures"))["items"]
    texts = (tool["skills"], tool["work"][0]["message"], kind["needs"], task["needs"])
    assert {len(text) for text in (*texts, failure["message"])} == {500}
    assert len(failure["error"]) <= 500
    assert failure["error"].startswith(LONG[:100])
    assert failure["error"].endswith(LONG[-100:])


# The queue


async def test_waiting_tasks_are_counted_by_needs_and_priority(http: httpx.AsyncClient) -> None:
    await add_tasks(http, "a-1", "a-2", "a-3", needs={"can": "a", "by": 1})
    await add_task(http, "a-4", needs={"by": 1, "can": "a"})  # the same needs in another order
    await add_tasks(http, "urgent", needs={"can": "a", "by": 1}, priority=9)
    await add_tasks(http, "b-1", "b-2", needs={"can": "b"})
    await add_task(http, "later", needs={"can": "b"}, not_before="2100-01-01T00:00:00Z")
    oldest = await get(http, "/v1/tasks/a-1")
    summary = await overview(http, "queue")
    assert (summary["counted"], summary["more"], summary["unasked"]) == (7, False, [])
    kinds = [(json.loads(kind["needs"])["can"], kind["priority"], kind["tasks"]) for kind in summary["kinds"]]
    assert kinds == [("a", 0, 4), ("b", 0, 2), ("a", 9, 1)]
    first = summary["kinds"][0]
    assert (first["oldest_id"], first["oldest_at"]) == ("a-1", oldest["created_at"])


async def test_the_queue_counts_younger_tasks_that_were_assigned_first(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_task(http, "overtaken", needs={"can": "dance"})
    await sql.execute("update tasks set created_at = now() - interval '1 hour'")
    for number in range(3):
        pair = await add_assigned_work(http, f"later-{number}", "t")
        if number < 2:
            await complete_work(http, pair.work)
    await add_task(http, "young", needs={"can": "sing"})
    kinds = (await overview(http, "queue"))["kinds"]
    assert {kind["oldest_id"]: kind["passed_by"] for kind in kinds} == {"overtaken": 3, "young": 0}


async def test_unused_tools_are_listed_longest_idle_first(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    for tool in ("never", "long-ago", "lately", "at-work", "offline"):
        await add_tool(http, tool, skills={"is": tool})
    await sql.execute("update tools set registered_at = now() - interval '3 hours', offline = id = 'offline'")
    for tool, ago in (("long-ago", "1 hour"), ("lately", "1 minute")):
        await add_task(http, tool)
        await complete_work(http, (await assign(http, tool, tool))["id"])
        await sql.execute(
            "update work_archive set ended_at = now() - cast($1 as text)::interval where tool_id = $2",
            ago,
            tool,
        )
    await add_task(http, "busy")
    await assign(http, "busy", "at-work")
    unasked = (await overview(http, "queue"))["unasked"]
    assert ids(unasked) == ["never", "long-ago"]
    assert json.loads(unasked[0]["skills"]) == {"is": "never"}
    idle = datetime.now(UTC) - datetime.fromisoformat(unasked[1]["since"])
    assert abs(idle - timedelta(hours=1)) < timedelta(minutes=1)


# Reasons why tasks wait


async def test_waiting_tasks_have_the_same_verdict_and_detail_as_explain(http: httpx.AsyncClient) -> None:
    await http.get("/v1/candidates")
    await add_task(http, "remarked")
    await http.put("/v1/tasks/remarked/remark", json={"text": "Nobody can."})
    await add_task(http, "later", not_before="2100-01-01T00:00:00Z", priority=3)
    pair = await add_assigned_work(http, "again", "t", retry_backoff_seconds=3600)
    await complete_work(http, pair.work, "failed", error="no light")
    await add_task(http, "waits")
    await http.patch("/v1/tools/t", json={"draining": True})
    summary = await overview(http, "waiting")
    assert ids(summary["items"]) == ["remarked", "later", "again", "waits"]
    assert summary["available_tools"] == 0
    for item in summary["items"]:
        explained = await get(http, f"/v1/tasks/{item['id']}/explain")
        task = await get(http, f"/v1/tasks/{item['id']}")
        assert item["verdict"] == explained["verdict"]
        assert item["detail"].split("(in")[0] == explained["detail"].split("(in")[0]
        for name in ("state", "priority", "attempt", "max_attempts", "created_at", "remark"):
            assert item[name] == task[name], name
    verdicts = ["refused_by_assigner", "not_before_its_time", "backing_off", "no_tool_available"]
    assert [item["verdict"] for item in summary["items"]] == verdicts
    assert ids((await overview(http, "waiting", limit=2))["items"]) == ["remarked", "later"]


async def test_the_summaries_of_an_empty_broker_are_empty(http: httpx.AsyncClient) -> None:
    assert (await overview(http, "tools"))["items"] == []
    assert (await overview(http, "waiting"))["items"] == []
    assert (await overview(http, "queue"))["kinds"] == []
    assert await overview(http, "timeline") == {"complete": True, "items": []}
    assert await overview(http, "failures") == {"items": [], "next": None}
    buckets = (await overview(http, "history", buckets=3))["items"]
    assert [bucket["wait_median_seconds"] for bucket in buckets] == [None] * 3


# Ended attempts


async def add_three_attempts(http: httpx.AsyncClient, sql: asyncpg.Connection) -> list[str]:
    """Create attempts from 9 to 10, from 10 to 11 and from 11 to 13 o'clock. Return their task ids."""
    task_ids = []
    times = (
        ("a", "t", 9, 10, "succeeded"),
        ("a-2", "u", 10, 11, "failed"),
        ("a-3", "t", 11, 13, "succeeded"),
    )
    for task, tool, begin, end, outcome in times:
        pair = await add_assigned_work(http, task, tool, max_attempts=1)
        await complete_work(http, pair.work, outcome)
        await sql.execute(
            """update work_archive
               set assigned_at = $2, started_at = $2, waiting_since = $3, ended_at = $4,
                   work_id = uuid7_floor($2)
               where work_id = $1""",
            pair.work,
            datetime(2026, 7, 2, begin, tzinfo=UTC),
            datetime(2026, 7, 2, begin, tzinfo=UTC) - timedelta(seconds=5),
            datetime(2026, 7, 2, end, tzinfo=UTC),
        )
        task_ids.append(task)
    return task_ids


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["a-3", "a-2", "a"]),
        ({"limit": 2}, ["a-3", "a-2"]),
        ({"tool_id": "t"}, ["a-3", "a"]),
        ({"task_id": "a-2"}, ["a-2"]),
        ({"since": "2026-07-02T10:30:00Z"}, ["a-3", "a-2"]),
        ({"until": "2026-07-02T10:30:00Z"}, ["a-2", "a"]),
        # One attempt lasts through the whole interval. None begins or ends in it.
        ({"since": "2026-07-02T11:30:00Z", "until": "2026-07-02T12:00:00Z"}, ["a-3"]),
        ({"since": "2026-07-02T13:30:00Z"}, []),
        ({"until": "2026-07-02T08:30:00Z"}, []),
    ],
)
async def test_the_timeline_contains_attempts_that_overlap_the_interval(
    http: httpx.AsyncClient, sql: asyncpg.Connection, query: Json, expected: list[str]
) -> None:
    await add_three_attempts(http, sql)
    timeline = await overview(http, "timeline", **query)
    assert ids(timeline["items"], "task_id") == expected
    assert timeline["complete"] == ("limit" not in query)


async def test_an_attempt_in_the_timeline_equals_its_record(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http, "a", "t")
    record = await complete_work(http, pair.work)
    [attempt] = (await overview(http, "timeline"))["items"]
    assert attempt == {name: record[name] for name in attempt}
    await add_task(http, "never-assigned")
    await http.delete("/v1/tasks/never-assigned")
    assert len((await overview(http, "timeline"))["items"]) == 1


async def test_history_counts_outcomes_and_measures_waits_and_runs(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_three_attempts(http, sql)
    span = {"since": "2026-07-02T09:30:00Z", "until": "2026-07-02T13:30:00Z"}
    summary = await overview(http, "history", buckets=4, **span)
    assert (summary["since"], summary["until"], summary["bucket_seconds"]) == (*span.values(), 3600.0)
    assert summary["complete"]
    buckets = [
        (b["at"][11:16], b["succeeded"], b["failed"], b["run_median_seconds"]) for b in summary["items"]
    ]
    assert buckets == [
        ("09:30", 1, 0, 3600),
        ("10:30", 0, 1, 3600),
        ("11:30", 0, 0, None),
        ("12:30", 1, 0, 7200),
    ]
    assert [b["wait_p95_seconds"] for b in summary["items"]] == [5, 5, None, 5]


async def test_the_wait_of_a_task_begins_when_it_becomes_available(http: httpx.AsyncClient) -> None:
    began = datetime.now(UTC)
    await add_tool(http, "t")
    soon = datetime.now(UTC) + timedelta(seconds=0.2)
    await add_task(http, "a", not_before=soon.isoformat())
    await wait_for_state(http, "/v1/tasks/a", "available")
    await complete_work(http, (await assign(http, "a"))["id"])
    buckets = (await overview(http, "history", buckets=1))["items"]
    waited = (datetime.now(UTC) - began).total_seconds() - 0.2
    assert 0 <= buckets[0]["wait_median_seconds"] <= waited


@pytest.mark.parametrize(
    "query",
    [
        "since=2026-07-02T09:30:00Z&until=2026-07-02T09:30:00Z",
        "since=2100-01-01T00:00:00Z",
        "until=0001-01-01T00:00:00Z",
    ],
)
async def test_an_empty_interval_has_no_history(http: httpx.AsyncClient, query: str) -> None:
    assert (await get(http, f"/v1/overview/history?{query}"))["items"] == []


async def test_failures_are_listed_with_the_current_state_of_their_tasks(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    failed = await add_running_work(http, "failed", "t", max_attempts=1)
    await report(http, failed.work, message="looks bad")
    await report(http, failed.work, progress=0.9)
    await complete_work(http, failed.work, "failed", error="no light")
    late = await add_running_work(http, "late", "t", timeout_seconds=100, retry_backoff_seconds=3600)
    await expire_deadline(sql, late.work)
    await wait_for_state(http, "/v1/tasks/late", "scheduled")
    assert (await complete(http, late.work)).status_code == 409
    retried = await add_running_work(http, "retried", "t", retry_backoff_seconds=0)
    await complete_work(http, retried.work, "failed")
    await complete_work(http, (await assign(http, "retried", "t"))["id"])
    summary = await overview(http, "failures")
    items = [(f["task_id"], f["outcome"], f["late"], f["task_state"], f["message"]) for f in summary["items"]]
    assert items == [
        ("retried", "failed", False, "succeeded", None),
        ("late", "timed_out", True, "scheduled", None),
        ("failed", "failed", False, "failed", "looks bad"),
    ]
    assert summary["items"][-1]["error"] == "no light"
    paged = await api.get_pages(http, "/v1/overview/failures", limit=1)
    assert api.flatten(paged) == summary["items"]
    moment = summary["items"][1]["ended_at"]
    assert ids((await overview(http, "failures", until=moment))["items"], "task_id") == ["failed"]
    assert ids((await overview(http, "failures", since=moment))["items"], "task_id") == ["retried", "late"]


async def test_large_reports_are_read_only_for_the_newest_failures(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http, "t", capacity=100)
    for number in range(20):
        pair = await add_assigned_work(http, f"a-{number:02}", "t")
        await report(http, pair.work, message=f"report of {number}")
        longer = failures._MOST_REPORT_BYTES * (1 if number == 19 else 0.8)
        await report(http, pair.work, data="x" * int(longer))
        await complete_work(http, pair.work, "failed", retry=False)
    # The reports of the newest failure are larger than the limit for one failure.
    sizes = [row[0] for row in await sql.fetch("select bytes from work_archive order by task_id desc")]
    assert sizes[0] > failures._MOST_REPORT_BYTES > max(sizes[1:])
    so_far = list(itertools.accumulate(sizes[1:]))
    read = sum(size <= failures._MOST_BYTES_IN_ALL for size in so_far)
    assert 0 < read < len(so_far)
    messages = [failure["message"] for failure in (await overview(http, "failures"))["items"]]
    expected = [f"report of {number}" for number in reversed(range(20))]
    assert messages == [None, *expected[1 : 1 + read], *[None] * (len(so_far) - read)]


async def test_the_last_message_of_a_failure_with_a_large_payload_is_read(http: httpx.AsyncClient) -> None:
    await add_tool(http, "t")
    await add_task(http, "a", payload="x" * 2 * failures._MOST_REPORT_BYTES)
    work = (await assign(http, "a", "t"))["id"]
    await report(http, work, message="half way", data="y" * 50_000)
    await complete_work(http, work, "failed", result="z" * 2 * failures._MOST_REPORT_BYTES)
    [failure] = (await overview(http, "failures"))["items"]
    assert failure["message"] == "half way"


# Cost


async def test_simultaneous_requests_for_a_summary_share_a_query(
    broker: Running, http: httpx.AsyncClient
) -> None:
    with api.recorded_statements(broker) as statements:
        await asyncio.gather(*(overview(http, "queue") for _ in range(50)))
    assert len(statements) <= 8
