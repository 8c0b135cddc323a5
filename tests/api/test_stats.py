"""The counts at /v1/stats: every state, all at the same moment, and at low cost."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import get_args

import asyncpg
import httpx

from broker.schemas import states
from broker.store import stats
from broker.store.address import libpq_url
from broker.store.connections import SETTINGS
from tests.conftest import Running
from tests.store.test_plans_of_a_backlog import every_node, rows_of
from tests.support import api, steps
from tests.support.api import (
    Json,
    add_assigned_work,
    add_running_work,
    add_task,
    add_tasks,
    add_tool,
    assert_problem,
    assign,
    complete_work,
    expire_deadline,
    get,
    take_tool_offline,
    wait_for_state,
)
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

TASKS = dict.fromkeys(get_args(states.LiveTaskState), 0)
TOOLS = dict.fromkeys(states.TOOL_STATES, 0) | {"room": 0}
WORK = dict.fromkeys(states.WORK_STATES, 0) | {"cancel_requested": 0}
OUTCOMES = dict.fromkeys(states.OUTCOMES, 0)
MINUTE = {"submitted": 0} | OUTCOMES


async def get_stats(http: httpx.AsyncClient) -> Json:
    counts: Json = await get(http, "/v1/stats")
    return counts


async def test_the_counts_of_an_empty_broker_are_zero(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await sql.execute("delete from assigner")
    current = await get_stats(http)
    at = datetime.fromisoformat(current.pop("at"))
    assert abs(datetime.now(UTC) - at) < timedelta(seconds=30)
    assert current == {
        "tasks": TASKS,
        "tools": TOOLS,
        "work": WORK,
        "last_minute": MINUTE,
        "oldest_available_seconds": None,
        "assigner_seen_at": None,
    }


async def test_every_state_is_counted(http: httpx.AsyncClient, sql: asyncpg.Connection) -> None:
    await add_tool(http, "offline")
    await take_tool_offline(http, sql, "offline")
    await add_tool(http, "draining", capacity=5)
    await http.patch("/v1/tools/draining", json={"draining": True})
    await add_tool(http, "busy")
    await add_tool(http, "idle", capacity=10)
    for kind, count in {"scheduled": 1, "available": 2, "assigned": 3, "running": 4, "failed": 5}.items():
        for number in range(count):
            task = f"{kind}-{number}"
            later = {"not_before": "2100-01-01T00:00:00Z"} if kind == "scheduled" else {}
            await add_task(http, task, **later)
            if kind in ("assigned", "running", "failed"):
                tool = "busy" if task == "running-0" else "idle"
                work = (await assign(http, task, tool))["id"]
                if kind == "running":
                    await http.post(f"/v1/work/{work}/start")
                if kind == "failed":
                    await complete_work(http, work, "failed", retry=False)
                if task in ("assigned-0", "running-0"):
                    await http.post(f"/v1/work/{work}/cancel")
    current = await get_stats(http)
    assert current["tasks"] == {"scheduled": 1, "available": 2, "assigned": 3, "running": 4, "failed": 5}
    assert current["tools"] == {"idle": 1, "busy": 1, "draining": 1, "offline": 1, "room": 4}
    assert current["work"] == {"assigned": 3, "running": 4, "cancel_requested": 2}
    assert current["last_minute"] == MINUTE | {"submitted": 15, "failed": 5}


async def test_only_outcomes_of_the_last_minute_are_counted(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    for number, outcome in enumerate(("succeeded", "failed", "released"), 1):
        for each in range(number):
            pair = await add_running_work(http, f"{outcome}-{each}")
            await complete_work(http, pair.work, outcome)
    pair = await add_assigned_work(http, "lost")
    await expire_deadline(sql, pair.work)
    await wait_for_state(http, "/v1/tasks/lost", "available")
    pair = await add_running_work(http, "timed_out", timeout_seconds=1000)
    await expire_deadline(sql, pair.work)
    await wait_for_state(http, "/v1/tasks/timed_out", "scheduled")
    await add_task(http, "cancelled")
    await http.delete("/v1/tasks/cancelled")
    ended = {"succeeded": 1, "failed": 2, "cancelled": 1, "released": 3, "lost": 1, "timed_out": 1}
    assert (await get_stats(http))["last_minute"] == {"submitted": 9} | ended

    await sql.execute("update work_archive set ended_at = now() - interval '61 s'")
    assert (await get_stats(http))["last_minute"] == MINUTE | {"submitted": 7}, (
        "records older than a minute do not count"
    )


async def test_a_task_counts_as_submitted_once_and_only_in_its_first_minute(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http, capacity=100)
    await add_tasks(http, "old-live", "old-deleted", "old-done")
    await sql.execute("update tasks set created_at = now() - interval '61 s'")
    await add_tasks(http, "live", "deleted", "done", "done-at-last", retry_backoff_seconds=0)
    for task in ("old-deleted", "deleted"):
        await http.delete(f"/v1/tasks/{task}")
    for task, outcome in {"old-done": "succeeded", "done": "succeeded", "done-at-last": "failed"}.items():
        await complete_work(http, (await assign(http, task))["id"], outcome)
    await complete_work(http, (await assign(http, "done-at-last"))["id"])
    current = (await get_stats(http))["last_minute"]
    assert current == MINUTE | {"submitted": 4, "succeeded": 3, "failed": 1, "cancelled": 2}


async def test_the_oldest_available_task_is_the_first_submitted(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_assigned_work(http, "is-at-work")
    await add_task(http, "waits-longest", priority=-5)
    await add_task(http, "comes-first", priority=5)
    for task, age in {"is-at-work": 3000, "waits-longest": 200, "comes-first": 10}.items():
        await sql.execute(f"update tasks set created_at = now() - interval '{age} s' where id = $1", task)
    assert 200 <= (await get_stats(http))["oldest_available_seconds"] < 230
    await http.delete("/v1/tasks/waits-longest")
    assert 10 <= (await get_stats(http))["oldest_available_seconds"] < 40
    await assign(http, "comes-first")
    assert (await get_stats(http))["oldest_available_seconds"] is None


async def test_the_age_of_the_oldest_task_is_never_negative(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_task(http)
    await sql.execute("update tasks set created_at = now() + interval '1 hour'")
    assert (await get_stats(http))["oldest_available_seconds"] == 0


async def test_the_time_of_the_last_request_of_an_assigner_is_returned(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await sql.execute("delete from assigner")
    assert (await get_stats(http))["assigner_seen_at"] is None
    await get(http, "/v1/candidates")
    current = await get_stats(http)
    silence = datetime.fromisoformat(current["at"]) - datetime.fromisoformat(current["assigner_seen_at"])
    assert timedelta(0) <= silence < timedelta(seconds=30)


async def test_acknowledged_tasks_are_counted(http: httpx.AsyncClient) -> None:
    for number in range(1, 20):
        await add_task(http, f"n{number}")
        current = await get_stats(http)
        assert current["tasks"]["available"] == current["last_minute"]["submitted"] == number


async def test_all_counts_are_from_the_same_moment(http: httpx.AsyncClient) -> None:
    """While tasks change their state, each is counted in exactly one state."""
    count, capacity = 8, 5
    await add_tool(http, capacity=capacity)
    await add_tasks(http, *(f"n{number}" for number in range(count)))

    async def assign_and_release(task: str) -> None:
        for _ in range(10):
            if (made := await http.post("/v1/work", json={"task_id": task, "tool_id": "t"})).is_success:
                await http.post(f"/v1/work/{made.json()['id']}/start")
                await complete_work(http, made.json()["id"], "released")

    changes = asyncio.gather(*(assign_and_release(f"n{number}") for number in range(count)))
    samples = []
    while not changes.done():
        samples.append(await get_stats(http))
    await changes
    for counts in samples:
        tasks, work, tools = counts["tasks"], counts["work"], counts["tools"]
        assert sum(tasks.values()) == count
        assert (tasks["assigned"], tasks["running"]) == (work["assigned"], work["running"])
        assert tools["room"] == capacity - work["assigned"] - work["running"]
    assert len({json.dumps(each["tasks"]) for each in samples}) > 1, "no task changed its state"


async def test_simultaneous_requests_for_stats_share_a_query(
    broker: Running, http: httpx.AsyncClient
) -> None:
    with api.recorded_statements(broker) as statements:
        responses = await asyncio.gather(*(get_stats(http) for _ in range(100)))
    queries = len({response["at"] for response in responses})
    assert statements.count(stats.READ.text) == queries
    assert queries <= 10


async def test_a_request_during_a_slow_query_waits_for_the_next_query(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await get_stats(http)
    async with sql.transaction():
        await sql.execute("lock table assigner in access exclusive mode")
        slow = asyncio.create_task(get_stats(http))
        await steps.wait_until_blocked(sql)
        meanwhile = asyncio.create_task(get_stats(http))
        await asyncio.sleep(0.1)  # the minimum duration of the first query
    first = await slow
    began = time.monotonic()
    second = await meanwhile
    assert 0.5 < time.monotonic() - began < 5
    assert second["at"] > first["at"]


async def test_stats_are_unavailable_while_the_database_cannot_be_read(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await sql.execute("alter table assigner rename to away")
    try:
        responses = await asyncio.gather(*(http.get("/v1/stats") for _ in range(5)))
    finally:
        await sql.execute("alter table away rename to assigner")
    for response in responses:
        assert_problem(response, 503, "unavailable")
    assert (await get_stats(http))["tasks"] == TASKS


async def test_an_unknown_parameter_is_refused(http: httpx.AsyncClient) -> None:
    assert_problem(await http.get("/v1/stats?since=yesterday"), 400, "validation_failed")


async def test_the_query_reads_no_waiting_task_and_no_old_record(
    http: httpx.AsyncClient, sql: asyncpg.Connection, database: str
) -> None:
    """The query counts tasks and finds records by an index, so old rows do not slow it down."""
    many, recent = 20_000, 100
    await sql.execute(
        "insert into tasks (id, needs, payload, priority, state, due_at, ended_at, max_attempts,"
        " retry_backoff_seconds, created_at)"
        " select state || number, '1', '2', number % 10, state,"
        " case state when 'scheduled' then now() + interval '1 hour' end,"
        " case state when 'failed' then now() end, 3, 1, now() - interval '1 hour'"
        " from generate_series(1, $1) number, unnest(array['available', 'scheduled', 'failed']) state",
        many,
    )
    await sql.execute(
        "insert into work_archive (work_id, task_id, tool_id, attempt, outcome, result, reports,"
        f" assigned_at, started_at, ended_at, submitted_at, {steps.TASK_COLUMNS})"
        " select uuid7(), 'ended-' || number, 't', 1, 'succeeded', '1', '[]', at, at, at, at,"
        f" {steps.TASK_VALUES}"
        " from (select number, now() - case when number <= $2 then interval '5 s' else interval '1 hour' end"
        " as at from generate_series(1, $1) number) r",
        many,
        recent,
    )
    await sql.execute("analyze work_archive")
    all_visible = False
    async with asyncio.timeout(10):
        # Repeated, because a concurrent transaction can keep pages from becoming all-visible.
        while not all_visible:
            await sql.execute("vacuum analyze tasks")
            all_visible = await sql.fetchval(
                "select relallvisible > 0.97 * relpages from pg_class where relname = 'tasks'"
            )
    connection = await asyncpg.connect(libpq_url(database), server_settings=SETTINGS)
    try:
        explain = f"explain (analyze, timing off, format json) {stats.READ.text}"
        nodes = list(every_node(json.loads(await connection.fetchval(explain))))
    finally:
        await connection.close()
    on_tasks = [node for node in nodes if node.get("Relation Name") == "tasks"]
    assert sum(node.get("Heap Fetches", 0) for node in on_tasks) < many / 10
    assert sum(rows_of(node) for node in on_tasks if node["Node Type"] != "Index Only Scan") <= 2
    records = [node for node in nodes if str(node.get("Relation Name")).startswith("work_archive")]
    assert sum(map(rows_of, records)) == recent
    current = await get_stats(http)
    assert current["tasks"] == TASKS | {"available": many, "scheduled": many, "failed": many}
    assert current["last_minute"] == MINUTE | {"submitted": recent, "succeeded": recent}
