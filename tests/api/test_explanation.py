"""Explanations of why a task has not run yet."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from msgspec import Raw

from broker.schemas.tasks import Task
from broker.schemas.values import NULL
from broker.store.verdicts import TaskFacts, ToolsByState, WorkFacts, verdict
from tests.support.api import (
    add_assigned_work,
    add_running_work,
    add_task,
    add_tasks,
    add_tool,
    assert_problem,
    assign,
    complete_work,
    get,
)
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
SOON = NOW + timedelta(seconds=30)
DUE = NOW - timedelta(seconds=1)
ASSIGNED = WorkFacts("xrd-1", assigned_at=NOW - timedelta(seconds=10), deadline_at=SOON)
RUNNING = ASSIGNED._replace(started_at=NOW - timedelta(minutes=5), deadline_at=None)


def facts(
    state: str = "available",
    *,
    seen: float | None = 1,
    tools: ToolsByState = ToolsByState(available=2),  # noqa: B008 - it never changes
    due: datetime = SOON,
    before: int = 0,
    work: WorkFacts | None = None,
    **fields: Any,
) -> TaskFacts:
    values: dict[str, Any] = {
        "id": "a", "needs": Raw(b"{}"), "payload": NULL, "priority": 0, "state": state, "attempt": 1,
        "max_attempts": 3, "retry_backoff_seconds": 1, "timeout_seconds": None, "not_before": None,
        "created_at": NOW, "work_id": uuid4(), "remark": None, "result": NULL, "error": None,
        "ended_at": NOW if state in ("succeeded", "cancelled", "failed") else None,
    }  # fmt: skip
    return TaskFacts(
        Task(**values | fields),
        now=NOW,
        tools=tools,
        before=before,
        assigner_seen_at=None if seen is None else NOW - timedelta(seconds=seen),
        due_at=due if state == "scheduled" else None,
        work=work,
    )


NONE = ToolsByState(available=0)


@pytest.mark.parametrize(
    ("task_facts", "expected", "text"),
    [
        (facts("succeeded"), "ended", "succeeded at 2026-11-25T12:00:00Z, after 1 attempt. "),
        (facts("cancelled"), "ended", "cancelled at 2026-11-25T12:00:00Z"),
        (facts("failed", attempt=3), "failed", "failed at 2026-11-25T12:00:00Z, after 3 attempts"),
        (facts("failed", error="no disk"), "failed", "The last error: no disk. Fix the cause, then retry or"),
        (facts("failed"), "failed", "The tool reported no error text."),
        (
            facts("running", work=RUNNING),
            "running",
            "Tool xrd-1 has been running the task since 2026-11-25T11:55:00Z (5 min). This is attempt 2 of",
        ),
        (facts("running", work=RUNNING._replace(progress=0.29)), "running", "The task is 29% done."),
        (facts("running", work=RUNNING._replace(reported_at=DUE)), "running", "its last report 1 s ago."),
        (
            facts("running", work=RUNNING._replace(reported_at=DUE, message="half\n way")),
            "running",
            "The tool reported 1 s ago: half way.",
        ),
        (facts("running", work=RUNNING._replace(cancel_requested=True)), "running", "the task is cancelled."),
        (
            facts("running", work=RUNNING._replace(cancel_requested=True, cancel_requeue=True)),
            "running",
            "the task becomes available again.",
        ),
        (
            facts("running", work=RUNNING._replace(deadline_at=SOON)),
            "running",
            "The attempt times out at 2026-11-25T12:00:30Z (in 30 s).",
        ),
        (
            facts("assigned", work=ASSIGNED),
            "assigned",
            "Tool xrd-1 has had the task since 2026-11-25T11:59:50Z (10 s) and has not",
        ),
        (
            facts("assigned", work=ASSIGNED),
            "assigned",
            "by 2026-11-25T12:00:30Z (in 30 s), the task becomes available again",
        ),
        (
            facts("assigned", work=ASSIGNED._replace(cancel_requested=True)),
            "assigned",
            "the task is cancelled.",
        ),
        (facts("scheduled", not_before=SOON), "not_before_its_time", "2026-11-25T12:00:30Z (in 30 s)"),
        (
            facts("scheduled", not_before=DUE, due=DUE),
            "not_before_its_time",
            "before 2026-11-25T11:59:59Z, its not_before",
        ),
        (facts("scheduled", error="no disk"), "backing_off", "The last error: no disk"),
        (facts("scheduled", not_before=NOW - timedelta(days=1)), "backing_off", "2026-11-25T12:00:30Z"),
        (facts(seen=None, remark="no", tools=NONE), "no_assigner", "ever"),
        (facts(seen=61, remark="no", tools=NONE), "no_assigner", "for 61 s"),
        (facts(seen=86_400 * 3, remark="no", tools=NONE), "no_assigner", "for 3 days"),
        (facts(seen=60, remark="too big", tools=NONE), "refused_by_assigner", "too big"),
        (facts(tools=NONE), "no_tool_available", "No tool is registered"),
        (
            facts(tools=ToolsByState(0, busy=3, offline=1)),
            "no_tool_available",
            "Registered: 3 busy, 1 offline.",
        ),
        (facts(tools=ToolsByState(0, draining=1)), "no_tool_available", "Registered: 1 draining."),
        (facts(tools=ToolsByState(1)), "waiting_for_assigner", "1 tool is available"),
        (facts(tools=ToolsByState(2)), "waiting_for_assigner", "2 tools are available"),
        (facts(before=0), "waiting_for_assigner", "No other task comes first."),
        (facts(before=1), "waiting_for_assigner", "1 task comes first."),
        (facts(before=1_000), "waiting_for_assigner", " 1,000 tasks come first."),
        (facts(before=1_001), "waiting_for_assigner", "More than 1,000 tasks come first."),
    ],
)
async def test_the_first_applicable_verdict_is_returned(
    task_facts: TaskFacts, expected: str, text: str
) -> None:
    name, detail = verdict(task_facts)
    assert name == expected
    assert text in detail


@pytest.mark.parametrize(
    "task_facts",
    [
        facts("failed", error="é" * 10_000),
        facts("running", work=RUNNING._replace(reported_at=DUE, message="line\n" * 2_000)),
        facts(remark="x" * 10_000),
    ],
)
async def test_long_texts_in_the_detail_are_shortened(task_facts: TaskFacts) -> None:
    _, detail = verdict(task_facts)
    assert len(detail) < 1_000
    assert "\n" not in detail
    assert "…" in detail


async def explain(http: httpx.AsyncClient, task: str = "a") -> tuple[str, str]:
    explanation = await get(http, f"/v1/tasks/{task}/explain")
    assert explanation.keys() == {
        "state", "verdict", "detail", "remark", "available_tools", "assigner_seen_at",
    }  # fmt: skip
    return explanation["state"], explanation["verdict"]


async def test_a_task_is_explained_from_its_submission_to_its_end(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await sql.execute("delete from assigner")
    await add_task(http, max_attempts=1)
    assert await explain(http) == ("available", "no_assigner")
    await sql.execute("insert into assigner (seen_at) values (now())")
    assert await explain(http) == ("available", "no_tool_available")
    await add_tool(http)
    assert await explain(http) == ("available", "waiting_for_assigner")
    await http.put("/v1/tasks/a/remark", json={"text": "too big"})
    assert await explain(http) == ("available", "refused_by_assigner")
    assert (await get(http, "/v1/tasks/a/explain"))["remark"] == "too big"
    work = (await assign(http))["id"]
    assert await explain(http) == ("assigned", "assigned")
    await http.post(f"/v1/work/{work}/start")
    assert await explain(http) == ("running", "running")
    await complete_work(http, work, "failed")
    assert await explain(http) == ("failed", "failed")
    await http.delete("/v1/tasks/a")
    assert await explain(http) == ("cancelled", "ended")


async def test_the_verdict_distinguishes_a_backoff_from_not_before(http: httpx.AsyncClient) -> None:
    await add_task(http, not_before="2100-01-01T00:00:00Z")
    assert await explain(http) == ("scheduled", "not_before_its_time")
    pair = await add_running_work(http, "b", retry_backoff_seconds=3600)
    await complete_work(http, pair.work, "failed", error="no disk")
    assert await explain(http, "b") == ("scheduled", "backing_off")
    assert "no disk" in (await get(http, "/v1/tasks/b/explain"))["detail"]


async def test_a_request_for_candidates_sets_when_an_assigner_was_seen(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_task(http)
    await get(http, "/v1/candidates")
    assert await explain(http) == ("available", "no_tool_available")
    explanation = await get(http, "/v1/tasks/a/explain")
    assert explanation["assigner_seen_at"].endswith("Z")
    seconds = await sql.fetchval("select extract(epoch from now() - seen_at) from assigner")
    assert 0 <= seconds < 15


async def test_only_tools_that_are_available_are_counted(http: httpx.AsyncClient) -> None:
    await add_assigned_work(http, "other", "busy")
    await http.patch("/v1/tools/busy", json={"capacity": 1})
    for number in range(3):
        await add_tool(http, f"t{number}")
    await http.patch("/v1/tools/t0", json={"draining": True})
    await add_task(http)
    assert (await get(http, "/v1/tasks/a/explain"))["available_tools"] == 2


async def detail_of(http: httpx.AsyncClient, task: str = "a") -> str:
    detail: str = (await get(http, f"/v1/tasks/{task}/explain"))["detail"]
    return detail


async def test_the_detail_of_a_running_task_names_its_tool_and_progress(http: httpx.AsyncClient) -> None:
    pair = await add_assigned_work(http, timeout_seconds=3600)
    assigned = r"Tool t has had the task since \S+Z \(\d s\) and has not started it yet\. "
    assert re.match(assigned, await detail_of(http))
    for report in ({"progress": 0.25, "message": "a quarter"}, {"progress": 0.5}):
        await http.post(f"/v1/work/{pair.work}/reports", json=report)
    detail = await detail_of(http)
    running = (
        r"Tool t has been running the task since \S+Z \(\d s\)\. This is attempt 1 of at most 3\."
        r" The task is 50% done\."
    )
    assert re.match(running, detail)
    assert re.search(r"The tool reported \d s ago: a quarter\. ", detail)
    assert re.search(r"The attempt times out at \S+Z \(in (59|60) min\)\.$", detail)
    await http.post(f"/v1/work/{pair.work}/cancel", json={"requeue": True})
    assert "When it stops, the task becomes available again." in await detail_of(http)


async def test_unavailable_tools_are_counted_by_state(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_task(http)
    await get(http, "/v1/candidates")
    assert "No tool is registered" in await detail_of(http)
    await add_running_work(http, "other", "busy")
    for tool in ("d1", "d2", "gone"):
        await add_tool(http, tool)
    for tool, change in (("busy", {"capacity": 1}), ("d1", {"draining": True}), ("d2", {"draining": True})):
        await http.patch(f"/v1/tools/{tool}", json=change)
    await sql.execute("update tools set offline = true where id in ('gone', 'd2')")
    assert await detail_of(http) == "No tool is available. Registered: 1 busy, 1 draining, 2 offline."


async def test_the_detail_counts_the_tasks_that_come_first(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await get(http, "/v1/candidates")
    await add_tasks(http, "older-1", "older-2")
    await add_task(http)
    await add_tasks(http, "younger")
    await add_tasks(http, "later", not_before="2100-01-01T00:00:00Z")
    assert "2 tasks come first." in await detail_of(http)
    await add_tasks(http, "urgent", priority=1)
    assert "3 tasks come first." in await detail_of(http)
    assert "No other task comes first." in await detail_of(http, "urgent")
    await add_tasks(http, *(f"many-{number}" for number in range(1_000)), priority=1)
    assert "More than 1,000 tasks come first." in await detail_of(http)


async def test_explaining_an_unknown_task_is_not_found(http: httpx.AsyncClient) -> None:
    assert_problem(await http.get("/v1/tasks/unknown/explain"), 404, "task_not_found")
