"""Explanations: whoever waits for a task is told why."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from msgspec import Raw

from broker.schemas import NULL, Task
from broker.store.explanation import Facts, verdict
from tests import helpers
from tests.helpers import add_task, add_tool, assign, assigned, completed, get, is_problem, started

pytestmark = pytest.mark.asyncio(loop_scope="module")
database = helpers.shared_database
broker = helpers.shared_broker
sql = helpers.shared_sql
http = helpers.shared_http

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
SOON = NOW + timedelta(seconds=30)
DUE = NOW - timedelta(seconds=1)


def facts(
    state: str = "available",
    *,
    seen: float | None = 1,
    tools: int = 2,
    due: datetime = SOON,
    **fields: Any,
) -> Facts:
    values: dict[str, Any] = {
        "id": "a", "needs": Raw(b"{}"), "payload": NULL, "priority": 0, "state": state, "attempt": 1,
        "max_attempts": 3, "retry_backoff_seconds": 1, "timeout_seconds": None, "not_before": None,
        "created_at": NOW, "work_id": uuid4(), "remark": None, "result": NULL, "error": None,
        "ended_at": None,
    }  # fmt: skip
    due_at = due if state == "scheduled" else None
    seen_at = None if seen is None else NOW - timedelta(seconds=seen)
    return Facts(Task(**values | fields), tools, seen_at, NOW, due_at)


@pytest.mark.parametrize(
    ("given", "word", "says"),
    [
        (facts("succeeded"), "ended", "succeeded"),
        (facts("cancelled"), "ended", "cancelled"),
        (facts("failed", attempt=3, error="no disk"), "failed", "3 attempts"),
        (facts("failed", attempt=1, error="no disk"), "failed", "no disk"),
        (facts("running"), "running", "attempt 2"),
        (facts("assigned"), "assigned", "waits for its tool"),
        (facts("scheduled", not_before=SOON), "not_before_its_time", "2026-11-25T12:00:30Z"),
        (facts("scheduled", not_before=DUE, due=DUE), "not_before_its_time", "2026-11-25T11:59:59Z"),
        (facts("scheduled", error="no disk"), "backing_off", "no disk"),
        (facts("scheduled", not_before=NOW - timedelta(days=1)), "backing_off", "2026-11-25T12:00:30Z"),
        (facts(seen=None, remark="no", tools=0), "no_assigner", "ever"),
        (facts(seen=61, remark="no", tools=0), "no_assigner", "61 s"),
        (facts(seen=60, remark="too big", tools=0), "refused_by_assigner", "too big"),
        (facts(tools=0), "no_tool_available", "busy, draining or offline"),
        (facts(tools=1), "waiting_for_assigner", "1 tool "),
        (facts(tools=2), "waiting_for_assigner", "2 tools "),
    ],
)
async def test_the_first_verdict_that_holds_is_told(given: Facts, word: str, says: str) -> None:
    told, detail = verdict(given)
    assert told == word
    assert says in detail


async def explained(http: httpx.AsyncClient, task: str = "a") -> tuple[str, str]:
    found = await get(http, f"/v1/tasks/{task}/explain")
    assert found.keys() == {
        "state", "verdict", "detail", "remark", "available_tools", "assigner_seen_at",
    }  # fmt: skip
    return found["state"], found["verdict"]


async def test_a_task_is_explained_from_its_submission_to_its_end(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await sql.execute("delete from assigner")
    await add_task(http, max_attempts=1)
    assert await explained(http) == ("available", "no_assigner")
    await sql.execute("insert into assigner (seen_at) values (now())")
    assert await explained(http) == ("available", "no_tool_available")
    await add_tool(http)
    assert await explained(http) == ("available", "waiting_for_assigner")
    await http.put("/v1/tasks/a/remark", json={"text": "too big"})
    assert await explained(http) == ("available", "refused_by_assigner")
    assert (await get(http, "/v1/tasks/a/explain"))["remark"] == "too big"
    work = (await assign(http))["id"]
    assert await explained(http) == ("assigned", "assigned")
    await http.post(f"/v1/work/{work}/start")
    assert await explained(http) == ("running", "running")
    await completed(http, work, "failed")
    assert await explained(http) == ("failed", "failed")
    await http.delete("/v1/tasks/a")
    assert await explained(http) == ("cancelled", "ended")


async def test_what_waits_for_its_time_or_backs_off_is_told_apart(http: httpx.AsyncClient) -> None:
    await add_task(http, not_before="2100-01-01T00:00:00Z")
    assert await explained(http) == ("scheduled", "not_before_its_time")
    pair = await started(http, "b", retry_backoff_seconds=3600)
    await completed(http, pair.work, "failed", error="no disk")
    assert await explained(http, "b") == ("scheduled", "backing_off")
    assert "no disk" in (await get(http, "/v1/tasks/b/explain"))["detail"]


async def test_an_assigner_that_asks_has_been_seen(http: httpx.AsyncClient, sql: asyncpg.Connection) -> None:
    await add_task(http)
    await get(http, "/v1/candidates")
    assert await explained(http) == ("available", "no_tool_available")
    found = await get(http, "/v1/tasks/a/explain")
    assert found["assigner_seen_at"].endswith("Z")
    seconds = await sql.fetchval("select extract(epoch from now() - seen_at) from assigner")
    assert 0 <= seconds < 15


async def test_only_tools_that_are_available_are_counted(http: httpx.AsyncClient) -> None:
    await assigned(http, "other", "busy")
    await http.patch("/v1/tools/busy", json={"capacity": 1})
    for number in range(3):
        await add_tool(http, f"t{number}")
    await http.patch("/v1/tools/t0", json={"draining": True})
    await add_task(http)
    assert (await get(http, "/v1/tasks/a/explain"))["available_tools"] == 2


async def test_an_unknown_task_is_not_explained(http: httpx.AsyncClient) -> None:
    is_problem(await http.get("/v1/tasks/unknown/explain"), 404, "task_not_found")
