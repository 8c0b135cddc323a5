"""/v1/overview: what whoever watches is told, without payloads, and no more than can be looked at."""

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


async def overview(http: httpx.AsyncClient, what: str, **query: Any) -> Json:
    found: Json = await get(http, f"/v1/overview/{what}", **query)
    return found


async def report(http: httpx.AsyncClient, work: str, **fields: Any) -> None:
    assert (await http.post(f"/v1/work/{work}/reports", json=fields)).status_code == 201


# Tools


async def test_a_tool_is_told_with_its_work_and_what_was_last_said_about_it(http: httpx.AsyncClient) -> None:
    tool = await add_tool(http, "microscope", skills={"can": ["look"]}, capacity=2)
    await add_task(http, "cells")
    work = await assign(http, "cells", "microscope")
    await report(http, work["id"], progress=0.25, message="a quarter")
    await report(http, work["id"], progress=0.5)
    [told] = (await overview(http, "tools"))["items"]
    now = await get(http, f"/v1/work/{work['id']}")
    assert datetime.fromisoformat(told.pop("seen_at")) >= datetime.fromisoformat(tool["seen_at"])
    assert json.loads(told.pop("skills")) == {"can": ["look"]}
    kept = ("id", "task_id", "tool_id", "attempt", "state", "cancel_requested", "deadline_at")
    assert told == {
        "id": "microscope",
        "state": "idle",
        "load": 1,
        "capacity": 2,
        "work": [
            {name: now[name] for name in (*kept, "assigned_at", "started_at")}
            | {"progress": 0.5, "message": "a quarter"}
        ],
    }


async def test_of_much_work_of_one_tool_the_oldest_is_told(http: httpx.AsyncClient) -> None:
    await add_tool(http, "t", capacity=100)
    await add_tasks(http, *(f"a-{number:02}" for number in range(tools.MOST_WORK + 4)))
    for number in range(tools.MOST_WORK + 4):
        await assign(http, f"a-{number:02}")
    [told] = (await overview(http, "tools"))["items"]
    assert told["load"] == tools.MOST_WORK + 4
    assert ids(told["work"], "task_id") == [f"a-{number:02}" for number in range(tools.MOST_WORK)]


async def test_tools_are_told_page_by_page_whatever_work_they_have(http: httpx.AsyncClient) -> None:
    for number in range(5):
        await add_running_work(http, f"a-{number}", f"t-{number}")
        await add_running_work(http, f"b-{number}", f"t-{number}")
    found = await api.get_pages(http, "/v1/overview/tools", limit=2)
    assert [ids(page) for page in found] == [["t-0", "t-1"], ["t-2", "t-3"], ["t-4"]]
    assert all(len(tool["work"]) == 2 for tool in api.flatten(found))


async def test_long_texts_are_cut(http: httpx.AsyncClient) -> None:
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


async def test_what_waits_is_counted_by_needs_and_priority(http: httpx.AsyncClient) -> None:
    await add_tasks(http, "a-1", "a-2", "a-3", needs={"can": "a", "by": 1})
    await add_task(http, "a-4", needs={"by": 1, "can": "a"})  # the same, in another order
    await add_tasks(http, "urgent", needs={"can": "a", "by": 1}, priority=9)
    await add_tasks(http, "b-1", "b-2", needs={"can": "b"})
    await add_task(http, "later", needs={"can": "b"}, not_before="2100-01-01T00:00:00Z")
    oldest = await get(http, "/v1/tasks/a-1")
    found = await overview(http, "queue")
    assert (found["counted"], found["more"], found["unasked"]) == (7, False, [])
    told = [(json.loads(kind["needs"])["can"], kind["priority"], kind["tasks"]) for kind in found["kinds"]]
    assert told == [("a", 0, 4), ("b", 0, 2), ("a", 9, 1)]
    first = found["kinds"][0]
    assert (first["oldest_id"], first["oldest_at"]) == ("a-1", oldest["created_at"])


async def test_who_is_passed_over_is_told_by_how_many(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_task(http, "wallflower", needs={"can": "dance"})
    await sql.execute("update tasks set created_at = now() - interval '1 hour'")
    for number in range(3):
        pair = await add_assigned_work(http, f"later-{number}", "t")
        if number < 2:
            await complete_work(http, pair.work)
    await add_task(http, "young", needs={"can": "sing"})
    kinds = (await overview(http, "queue"))["kinds"]
    assert {kind["oldest_id"]: kind["passed_by"] for kind in kinds} == {"wallflower": 3, "young": 0}


async def test_tools_that_nobody_asks_are_told_idle_for_longest_first(
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


# Why


async def test_why_tasks_wait_is_told_in_the_words_of_explain(http: httpx.AsyncClient) -> None:
    await http.get("/v1/candidates")
    await add_task(http, "remarked")
    await http.put("/v1/tasks/remarked/remark", json={"text": "Nobody can."})
    await add_task(http, "later", not_before="2100-01-01T00:00:00Z", priority=3)
    pair = await add_assigned_work(http, "again", "t", retry_backoff_seconds=3600)
    await complete_work(http, pair.work, "failed", error="no light")
    await add_task(http, "waits")
    await http.patch("/v1/tools/t", json={"draining": True})
    found = await overview(http, "waiting")
    assert ids(found["items"]) == ["remarked", "later", "again", "waits"]
    assert found["available_tools"] == 0
    for told in found["items"]:
        explained = await get(http, f"/v1/tasks/{told['id']}/explain")
        task = await get(http, f"/v1/tasks/{told['id']}")
        assert told["verdict"] == explained["verdict"]
        assert told["detail"].split("(in")[0] == explained["detail"].split("(in")[0]
        for name in ("state", "priority", "attempt", "max_attempts", "created_at", "remark"):
            assert told[name] == task[name], name
    verdicts = ["refused_by_assigner", "not_before_its_time", "backing_off", "no_tool_available"]
    assert [told["verdict"] for told in found["items"]] == verdicts
    assert ids((await overview(http, "waiting", limit=2))["items"]) == ["remarked", "later"]


async def test_an_empty_broker_has_nothing_to_tell(http: httpx.AsyncClient) -> None:
    assert (await overview(http, "tools"))["items"] == []
    assert (await overview(http, "waiting"))["items"] == []
    assert (await overview(http, "queue"))["kinds"] == []
    assert await overview(http, "timeline") == {"complete": True, "items": []}
    assert await overview(http, "failures") == {"items": [], "next": None}
    buckets = (await overview(http, "history", buckets=3))["items"]
    assert [bucket["wait_median_seconds"] for bucket in buckets] == [None] * 3


# What has ended


async def three_attempts(http: httpx.AsyncClient, sql: asyncpg.Connection) -> list[str]:
    """Attempts from 9 to 10, from 10 to 11 and from 11 to 13 o'clock; their works."""
    works = []
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
        works.append(task)
    return works


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["a-3", "a-2", "a"]),
        ({"limit": 2}, ["a-3", "a-2"]),
        ({"tool_id": "t"}, ["a-3", "a"]),
        ({"task_id": "a-2"}, ["a-2"]),
        ({"since": "2026-07-02T10:30:00Z"}, ["a-3", "a-2"]),
        ({"until": "2026-07-02T10:30:00Z"}, ["a-2", "a"]),
        # Nothing begins or ends in it, and one goes on all through it.
        ({"since": "2026-07-02T11:30:00Z", "until": "2026-07-02T12:00:00Z"}, ["a-3"]),
        ({"since": "2026-07-02T13:30:00Z"}, []),
        ({"until": "2026-07-02T08:30:00Z"}, []),
    ],
)
async def test_the_timeline_has_what_was_under_way(
    http: httpx.AsyncClient, sql: asyncpg.Connection, query: Json, found: list[str]
) -> None:
    await three_attempts(http, sql)
    told = await overview(http, "timeline", **query)
    assert ids(told["items"], "task_id") == found
    assert told["complete"] == ("limit" not in query)


async def test_an_attempt_is_told_as_its_record_has_it(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http, "a", "t")
    record = await complete_work(http, pair.work)
    [told] = (await overview(http, "timeline"))["items"]
    assert told == {name: record[name] for name in told}
    await add_task(http, "never-assigned")
    await http.delete("/v1/tasks/never-assigned")
    assert len((await overview(http, "timeline"))["items"]) == 1


async def test_history_counts_outcomes_and_measures_waits_and_runs(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await three_attempts(http, sql)
    span = {"since": "2026-07-02T09:30:00Z", "until": "2026-07-02T13:30:00Z"}
    found = await overview(http, "history", buckets=4, **span)
    assert (found["since"], found["until"], found["bucket_seconds"]) == (*span.values(), 3600.0)
    assert found["complete"]
    told = [(b["at"][11:16], b["succeeded"], b["failed"], b["run_median_seconds"]) for b in found["items"]]
    assert told == [
        ("09:30", 1, 0, 3600),
        ("10:30", 0, 1, 3600),
        ("11:30", 0, 0, None),
        ("12:30", 1, 0, 7200),
    ]
    assert [b["wait_p95_seconds"] for b in found["items"]] == [5, 5, None, 5]


async def test_a_wait_is_counted_from_when_the_task_could_be_done(http: httpx.AsyncClient) -> None:
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
async def test_a_span_that_holds_no_time_has_no_history(http: httpx.AsyncClient, query: str) -> None:
    assert (await get(http, f"/v1/overview/history?{query}"))["items"] == []


async def test_failures_are_told_with_what_became_of_their_tasks(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    held = await add_running_work(http, "held", "t", max_attempts=1)
    await report(http, held.work, message="looks bad")
    await report(http, held.work, progress=0.9)
    await complete_work(http, held.work, "failed", error="it was")
    late = await add_running_work(http, "late", "t", timeout_seconds=100, retry_backoff_seconds=3600)
    await expire_deadline(sql, late.work)
    await wait_for_state(http, "/v1/tasks/late", "scheduled")
    assert (await complete(http, late.work)).status_code == 409
    over = await add_running_work(http, "over", "t", retry_backoff_seconds=0)
    await complete_work(http, over.work, "failed")
    await complete_work(http, (await assign(http, "over", "t"))["id"])
    found = await overview(http, "failures")
    told = [(f["task_id"], f["outcome"], f["late"], f["task_state"], f["message"]) for f in found["items"]]
    assert told == [
        ("over", "failed", False, "succeeded", None),
        ("late", "timed_out", True, "scheduled", None),
        ("held", "failed", False, "failed", "looks bad"),
    ]
    assert found["items"][-1]["error"] == "it was"
    paged = await api.get_pages(http, "/v1/overview/failures", limit=1)
    assert api.flatten(paged) == found["items"]
    moment = found["items"][1]["ended_at"]
    assert ids((await overview(http, "failures", until=moment))["items"], "task_id") == ["held"]
    assert ids((await overview(http, "failures", since=moment))["items"], "task_id") == ["over", "late"]


async def test_of_very_long_reports_only_those_of_the_newest_failures_are_read(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http, "t", capacity=100)
    for number in range(20):
        pair = await add_assigned_work(http, f"a-{number:02}", "t")
        await report(http, pair.work, message=f"of {number}")
        longer = failures._MOST_REPORT_BYTES * (1 if number == 19 else 0.8)
        await report(http, pair.work, data="x" * int(longer))
        await complete_work(http, pair.work, "failed", retry=False)
    # Of the newest one there is too much.
    sizes = [row[0] for row in await sql.fetch("select bytes from work_archive order by task_id desc")]
    assert sizes[0] > failures._MOST_REPORT_BYTES > max(sizes[1:])
    so_far = list(itertools.accumulate(sizes[1:]))
    read = sum(size <= failures._MOST_BYTES_IN_ALL for size in so_far)
    assert 0 < read < len(so_far)
    told = [failure["message"] for failure in (await overview(http, "failures"))["items"]]
    said = [f"of {number}" for number in reversed(range(20))]
    assert told == [None, *said[1 : 1 + read], *[None] * (len(so_far) - read)]


async def test_the_last_message_of_a_failure_is_read_beside_a_large_payload(http: httpx.AsyncClient) -> None:
    await add_tool(http, "t")
    await add_task(http, "a", payload="x" * 2 * failures._MOST_REPORT_BYTES)
    work = (await assign(http, "a", "t"))["id"]
    await report(http, work, message="half way", data="y" * 50_000)
    await complete_work(http, work, "failed", result="z" * 2 * failures._MOST_REPORT_BYTES)
    [failure] = (await overview(http, "failures"))["items"]
    assert failure["message"] == "half way"


# What it costs


async def test_who_asks_for_the_same_at_the_same_time_shares_a_reading(
    broker: Running, http: httpx.AsyncClient
) -> None:
    with api.recorded_statements(broker) as told:
        await asyncio.gather(*(overview(http, "queue") for _ in range(50)))
    assert len(told) <= 8
