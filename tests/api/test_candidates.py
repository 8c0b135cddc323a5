"""Requests of an assigner: candidates, changes since a cursor, and assignments."""

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx
import pytest

from broker.settings import Settings
from tests.conftest import Running, running_broker, temporary_database
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
    finish_long_poll,
    get,
    ids,
    poll_until_timeout,
    start_long_poll,
)
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

TOMORROW = (datetime.now(UTC) + timedelta(days=1)).isoformat()


async def read_to_end(
    http: httpx.AsyncClient, cursor: str | None = None, limit: int = 1000
) -> tuple[str, list[Json], list[Json]]:
    """Read candidates from a cursor to the end. Return the last cursor, the tasks and the tools."""
    tasks: list[Json] = []
    tools: list[Json] = []
    for _ in range(1000):
        query = {} if cursor is None else {"cursor": cursor}
        page = await get(http, "/v1/candidates", limit=limit, **query)
        assert page.keys() == {"cursor", "tasks", "tools", "more"}
        assert len(page["tasks"]) <= limit
        assert len(page["tools"]) <= limit
        cursor = page["cursor"]
        tasks += page["tasks"]
        tools += page["tools"]
        if not (page["more"] or page["tasks"] or page["tools"]):
            return page["cursor"], tasks, tools
    raise AssertionError("the candidates do not end")


async def cursor_at_end(http: httpx.AsyncClient) -> str:
    return (await read_to_end(http))[0]


# All candidates, page by page


async def test_without_a_cursor_all_available_tasks_and_tools_are_offered(http: httpx.AsyncClient) -> None:
    await add_task(http, "a", needs={"n": 1})
    await add_tool(http, "t", skills={"s": 1})
    page = await get(http, "/v1/candidates")
    assert page["tasks"] == [await get(http, "/v1/tasks/a")]
    assert page["tools"] == [await get(http, "/v1/tools/t")]
    assert page["more"] is False


async def test_unavailable_tasks_and_tools_are_not_offered(http: httpx.AsyncClient) -> None:
    await add_task(http, "scheduled", not_before=TOMORROW)
    await add_assigned_work(http, "assigned", "roomy")
    await add_running_work(http, "running", "roomy")
    await complete_work(
        http, (await add_assigned_work(http, "failed", "roomy", max_attempts=1)).work, "failed"
    )
    await complete_work(
        http, (await add_assigned_work(http, "backing-off", "roomy", retry_backoff_seconds=99)).work, "failed"
    )
    await complete_work(http, (await add_assigned_work(http, "done", "roomy")).work)
    await add_tool(http, "full")
    await add_task(http, "b")
    await assign(http, "b", "full")
    await add_tool(http, "draining")
    await http.patch("/v1/tools/draining", json={"draining": True})
    _, tasks, tools = await read_to_end(http)
    assert (ids(tasks), ids(tools)) == ([], ["roomy"])


async def test_tasks_are_offered_by_priority_then_by_age(http: httpx.AsyncClient) -> None:
    for name, priority in (("low", -1), ("old", 5), ("new", 5), ("top", 32767), ("plain", 0)):
        await add_task(http, name, priority=priority)
    for limit in (1000, 2, 1):
        _, tasks, _ = await read_to_end(http, limit=limit)
        assert ids(tasks) == ["top", "old", "new", "plain", "low"]


@pytest.mark.parametrize("limit", [1, 3, 10, 1000])
async def test_the_pages_contain_each_task_and_tool_once(http: httpx.AsyncClient, limit: int) -> None:
    tasks, tools = [f"x{n}" for n in range(10)], [f"t{n}" for n in range(4)]
    await add_tasks(http, *tasks)
    for name in tools:
        await add_tool(http, name)
    _, found_tasks, found_tools = await read_to_end(http, limit=limit)
    assert (sorted(ids(found_tasks)), sorted(ids(found_tools))) == (tasks, tools)


async def test_more_is_false_on_the_last_page(http: httpx.AsyncClient) -> None:
    await add_tasks(http, "a", "b", "c")
    first = await get(http, "/v1/candidates", limit=2)
    second = await get(http, "/v1/candidates", limit=2, cursor=first["cursor"])
    assert (first["more"], second["more"]) == (True, False)
    assert (len(first["tasks"]), len(second["tasks"])) == (2, 1)


async def test_the_same_cursor_returns_the_same_page_again(http: httpx.AsyncClient) -> None:
    await add_tasks(http, *(f"x{n}" for n in range(6)))
    cursor = (await get(http, "/v1/candidates", limit=2))["cursor"]
    first, second = [await get(http, "/v1/candidates", limit=2, cursor=cursor) for _ in range(2)]
    assert ids(first["tasks"]) == ids(second["tasks"])


async def test_further_pages_do_not_wait(http: httpx.AsyncClient) -> None:
    await add_tasks(http, *(f"x{n}" for n in range(5)))
    cursor = (await get(http, "/v1/candidates", limit=2))["cursor"]
    async with asyncio.timeout(5):
        for count in (2, 1):
            page = await get(http, "/v1/candidates", limit=2, cursor=cursor, wait=60)
            assert len(page["tasks"]) == count
            cursor = page["cursor"]


async def test_a_task_submitted_while_paging_is_offered(http: httpx.AsyncClient) -> None:
    await add_tasks(http, *(f"x{n}" for n in range(6)))
    first = await get(http, "/v1/candidates", limit=2)
    await add_task(http, "urgent", priority=9)
    await add_task(http, "idle", priority=-9)
    _, rest, _ = await read_to_end(http, first["cursor"], limit=2)
    assert {"urgent", "idle"} <= set(ids(rest))
    assert set(ids(first["tasks"] + rest)) == {*(f"x{n}" for n in range(6)), "urgent", "idle"}


async def test_a_wait_after_the_last_page_returns_tasks_submitted_while_paging_at_once(
    http: httpx.AsyncClient,
) -> None:
    await add_tasks(http, "a", "b")
    page = await get(http, "/v1/candidates", limit=1)
    await add_task(http, "urgent", priority=9)
    seen = []
    async with asyncio.timeout(5):
        while "urgent" not in seen:
            page = await get(http, "/v1/candidates", limit=1, wait=60, cursor=page["cursor"])
            seen += ids(page["tasks"])
    assert "b" in seen


async def test_a_task_assigned_and_released_while_paging_is_offered(http: httpx.AsyncClient) -> None:
    await add_tasks(http, *(f"x{n}" for n in range(6)))
    first = await get(http, "/v1/candidates", limit=3)
    await add_tool(http)
    works = [await assign(http, first["tasks"][0]["id"])]
    middle = await get(http, "/v1/candidates", limit=1, cursor=first["cursor"])
    await complete_work(http, works[0]["id"], "released")
    _, rest, tools = await read_to_end(http, middle["cursor"], limit=1)
    assert first["tasks"][0]["id"] in ids(rest)
    assert set(ids(first["tasks"] + middle["tasks"] + rest)) == {f"x{n}" for n in range(6)}
    assert "t" in ids(middle["tools"] + tools)


async def test_a_tool_changed_while_paging_is_offered_in_its_current_form(http: httpx.AsyncClient) -> None:
    for n in range(5):
        await add_tool(http, f"t{n}", skills="old")
    first = await get(http, "/v1/candidates", limit=2)
    for tool in first["tools"]:
        await http.patch(f"/v1/tools/{tool['id']}", json={"skills": "new"})
    _, _, rest = await read_to_end(http, first["cursor"], limit=2)
    seen = {tool["id"]: tool["skills"] for tool in first["tools"] + rest}
    changed = ids(first["tools"])
    assert seen == {f"t{n}": "new" if f"t{n}" in changed else "old" for n in range(5)}


@pytest.mark.parametrize("seed", range(4))
async def test_paging_misses_nothing_during_random_changes(  # noqa: C901 (one case for each kind of change)
    http: httpx.AsyncClient, seed: int
) -> None:
    rng = random.Random(seed)
    tasks: dict[str, Json] = {}
    tools: dict[str, Json] = {}
    live: list[str] = []
    cursor: dict[str, str] = {}

    async def change_something(number: int) -> None:
        match rng.randrange(7):
            case 0 | 1:
                await add_task(http, f"x{number}", priority=rng.randrange(3), retry_backoff_seconds=0)
            case 2:
                await add_tool(http, f"t{rng.randrange(6)}", skills=number, capacity=2)
            case 3:
                change = {"draining": True} if rng.random() < 0.4 else {"draining": False, "skills": number}
                await http.patch(f"/v1/tools/t{rng.randrange(6)}", json=change)
            case 4 | 5 if tasks and tools:
                pair = {"task_id": rng.choice(sorted(tasks)), "tool_id": rng.choice(sorted(tools))}
                response = await http.post("/v1/work", json=pair)
                if response.status_code == 201:
                    live.append(response.json()["id"])
            case _ if live:
                outcome = rng.choice(["released", "succeeded", "released"])
                await complete_work(http, live.pop(rng.randrange(len(live))), outcome)
            case _:
                pass

    async def read_page() -> bool:
        page = await get(http, "/v1/candidates", limit=2, **cursor)
        tasks.update({task["id"]: task for task in page["tasks"]})
        tools.update({tool["id"]: tool for tool in page["tools"]})
        cursor["cursor"] = page["cursor"]
        return bool(page["more"] or page["tasks"] or page["tools"])

    for number in range(80):
        await asyncio.gather(*(change_something(number * 3 + k) for k in range(3)), read_page())
    while await read_page():
        pass
    _, all_tasks, all_tools = await read_to_end(http)
    varying = {"lease_expires_at", "seen_at"}
    assert set(ids(all_tasks)) <= tasks.keys()
    for tool in all_tools:
        seen = tools[tool["id"]]
        assert {k: v for k, v in seen.items() if k not in varying} == {
            k: v for k, v in tool.items() if k not in varying
        }


# Changes since a cursor


async def test_with_a_cursor_only_changes_are_offered(http: httpx.AsyncClient) -> None:
    await add_tasks(http, "a", "b")
    await add_tool(http)
    cursor = await cursor_at_end(http)
    await add_task(http, "c")
    _, tasks, tools = await read_to_end(http, cursor)
    assert (ids(tasks), ids(tools)) == (["c"], [])


async def test_an_empty_response_has_a_valid_cursor(http: httpx.AsyncClient) -> None:
    cursor = await cursor_at_end(http)
    for name in ("a", "b", "c"):
        empty = await get(http, "/v1/candidates", cursor=cursor)
        assert (empty["tasks"], empty["tools"], empty["more"]) == ([], [], False)
        await add_task(http, name)
        cursor, tasks, _ = await read_to_end(http, empty["cursor"])
        assert ids(tasks) == [name]


async def test_an_older_cursor_returns_all_later_changes(http: httpx.AsyncClient) -> None:
    old = await cursor_at_end(http)
    for name in ("a", "b", "c"):
        await add_task(http, name)
        await cursor_at_end(http)
    assert ids((await read_to_end(http, old))[1]) == ["a", "b", "c"]


@pytest.mark.parametrize("limit", [1, 2])
async def test_changes_are_paged(http: httpx.AsyncClient, limit: int) -> None:
    cursor = await cursor_at_end(http)
    names = [f"x{n}" for n in range(5)]
    await add_tasks(http, *names)
    assert sorted(ids((await read_to_end(http, cursor, limit=limit))[1])) == names


async def test_a_released_task_counts_as_a_change(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    cursor = await cursor_at_end(http)
    await complete_work(http, pair.work, "released")
    assert ids((await read_to_end(http, cursor))[1]) == ["a"]


@pytest.mark.parametrize(
    "change", ["work ends", "task is deleted", "capacity grows", "draining ends", "registers again"]
)
async def test_a_tool_that_becomes_available_counts_as_a_change(http: httpx.AsyncClient, change: str) -> None:
    await add_tool(http)
    await add_tasks(http, "a", "b")
    work = (await assign(http))["id"]
    if change in ("draining ends", "registers again"):
        await complete_work(http, work)
        await http.patch("/v1/tools/t", json={"draining": True})
    cursor, _, tools = await read_to_end(http)
    assert tools == []
    if change == "work ends":
        await complete_work(http, work)
    elif change == "task is deleted":
        await http.delete("/v1/tasks/a")
    elif change == "registers again":
        await add_tool(http)
    else:
        await http.patch(
            "/v1/tools/t", json={"capacity": 2} if change == "capacity grows" else {"draining": False}
        )
    assert ids((await read_to_end(http, cursor))[2]) == ["t"]


@pytest.mark.parametrize("change", [{"skills": 2}, {"capacity": 7}])
async def test_a_change_of_an_available_tool_is_offered(http: httpx.AsyncClient, change: Json) -> None:
    await add_tool(http)
    cursor = await cursor_at_end(http)
    await http.patch("/v1/tools/t", json=change)
    tools = (await read_to_end(http, cursor))[2]
    assert [{key: tool[key] for key in change} for tool in tools] == [change]


async def test_remarks_and_lease_renewals_do_not_count_as_changes(http: httpx.AsyncClient) -> None:
    await add_task(http)
    await add_tool(http)
    cursor = await cursor_at_end(http)
    await http.put("/v1/tasks/a/remark", json={"text": "hm"})
    await http.post("/v1/tasks/remarks", json={"items": [{"task_id": "a", "text": "hm, hm"}]})
    await http.post("/v1/tools/t/heartbeat")
    await get(http, "/v1/tools/t/work")
    page = await poll_until_timeout(http, "GET", f"/v1/candidates?wait=0.3&cursor={cursor}")
    assert (page["tasks"], page["tools"], page["more"]) == ([], [], False)


async def test_a_deleted_task_is_not_offered(http: httpx.AsyncClient) -> None:
    cursor = await cursor_at_end(http)
    await add_tasks(http, "a", "b")
    await http.delete("/v1/tasks/a")
    assert ids((await read_to_end(http, cursor))[1]) == ["b"]


async def test_an_unrelated_long_transaction_hides_and_repeats_nothing(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    async with sql.transaction():
        await sql.fetchval("select pg_current_xact_id()")
        await add_task(http)
        cursor, tasks, _ = await read_to_end(http)
        assert ids(tasks) == ["a"]
        page = await poll_until_timeout(http, "GET", f"/v1/candidates?wait=0.3&cursor={cursor}")
        assert page["tasks"] == []
        await add_task(http, "b")
        assert ids((await read_to_end(http, cursor))[1]) == ["b"]


async def test_a_reader_misses_nothing_among_many_writers(http: httpx.AsyncClient) -> None:
    seen: set[str] = set()
    names = {f"x{n}" for n in range(200)}

    async def read() -> None:
        cursor: dict[str, str] = {}
        while not names <= seen:
            page = await get(http, "/v1/candidates", limit=7, wait=1, **cursor)
            cursor = {"cursor": page["cursor"]}
            seen.update(ids(page["tasks"]))

    async with asyncio.timeout(20):
        await asyncio.gather(read(), *(add_task(http, name) for name in sorted(names)))


# Waiting


async def test_a_wait_returns_existing_candidates_at_once(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    async with asyncio.timeout(5):
        assert ids((await get(http, "/v1/candidates", wait=60))["tools"]) == ["t"]


@pytest.mark.parametrize("cursor", [False, True])
async def test_a_wait_that_times_out_returns_an_empty_page_with_a_cursor(
    http: httpx.AsyncClient, cursor: bool
) -> None:
    query = f"&cursor={await cursor_at_end(http)}" if cursor else ""
    page = await poll_until_timeout(http, "GET", f"/v1/candidates?wait=0.3{query}")
    assert (page["tasks"], page["tools"], page["more"]) == ([], [], False)
    await add_task(http)
    assert ids((await read_to_end(http, page["cursor"]))[1]) == ["a"]


@pytest.mark.parametrize("cursor", [False, True])
@pytest.mark.parametrize("event", ["task", "batch", "tool"])
async def test_new_tasks_and_tools_wake_a_waiting_assigner(
    broker: Running, http: httpx.AsyncClient, event: str, cursor: bool
) -> None:
    query = f"&cursor={await cursor_at_end(http)}" if cursor else ""
    poll = await start_long_poll(broker, "GET", f"/v1/candidates?wait=60{query}")
    if event == "task":
        await add_task(http, "new")
    elif event == "batch":
        await add_tasks(http, "new")
    else:
        await add_tool(http, "new")
    page = await finish_long_poll(poll)
    assert ids(page["tools" if event == "tool" else "tasks"]) == ["new"]


@pytest.mark.parametrize("event", ["release", "release in a batch", "success", "skills", "undrain", "delete"])
async def test_changed_and_newly_available_candidates_wake_a_waiting_assigner(
    broker: Running, http: httpx.AsyncClient, event: str
) -> None:
    await add_tool(http)
    await add_task(http)
    work = (await assign(http))["id"]
    if event == "undrain":
        await http.patch("/v1/tools/t", json={"draining": True, "capacity": 5})
    elif event == "skills":
        await http.patch("/v1/tools/t", json={"capacity": 5})
    cursor = await cursor_at_end(http)
    poll = await start_long_poll(broker, "GET", f"/v1/candidates?wait=60&cursor={cursor}")
    if event == "release in a batch":
        await http.post("/v1/work/complete", json={"items": [{"work_id": work, "outcome": "released"}]})
    elif event in ("release", "success"):
        await complete_work(http, work, "released" if event == "release" else "succeeded")
    elif event == "delete":
        await http.delete("/v1/tasks/a")
    else:
        await http.patch("/v1/tools/t", json={"skills": 5} if event == "skills" else {"draining": False})
    page = await finish_long_poll(poll)
    cursor, tasks, tools = await read_to_end(http, page["cursor"])
    assert "t" in ids(page["tools"] + tools)
    assert ("a" in ids(page["tasks"] + tasks)) == event.startswith("release")


async def test_every_waiting_assigner_is_woken(broker: Running, http: httpx.AsyncClient) -> None:
    polls = [await start_long_poll(broker, "GET", "/v1/candidates?wait=60") for _ in range(5)]
    await add_task(http)
    assert [ids((await finish_long_poll(poll))["tasks"]) for poll in polls] == [["a"]] * 5


async def test_prefer_wait_makes_an_assigner_wait(broker: Running, http: httpx.AsyncClient) -> None:
    poll = await start_long_poll(broker, "GET", "/v1/candidates", headers={"Prefer": "wait=60"})
    await add_task(http)
    assert ids((await finish_long_poll(poll))["tasks"]) == ["a"]


async def test_candidates_stay_available_for_the_same_cursor(http: httpx.AsyncClient) -> None:
    cursor = await cursor_at_end(http)
    await add_task(http)
    async with asyncio.timeout(5):
        for _ in range(3):
            assert ids((await get(http, "/v1/candidates", cursor=cursor, wait=60))["tasks"]) == ["a"]


# Invalid cursors


async def test_a_cursor_of_another_database_is_expired(
    http: httpx.AsyncClient, postgres: str, template: str
) -> None:
    await add_tasks(http, "a", "b")
    cursors = [(await get(http, "/v1/candidates", limit=limit))["cursor"] for limit in (1, 1000)]
    async with (
        temporary_database(postgres, template) as url,
        running_broker(Settings(database_url=url)) as other,
    ):
        for cursor in cursors:
            for wait in (0, 60):
                response = await other.client.get("/v1/candidates", params={"cursor": cursor, "wait": wait})
                assert_problem(response, 410, "cursor_expired")


@pytest.mark.parametrize("limit", [1, 1000])
async def test_a_truncated_or_extended_cursor_is_refused(http: httpx.AsyncClient, limit: int) -> None:
    await add_tasks(http, "a", "b")
    cursor = (await get(http, "/v1/candidates", limit=limit))["cursor"]
    for garbled in (
        cursor[:-4],
        cursor[1:],
        cursor[: len(cursor) // 2],
        cursor + "AAAA",
        "A" + cursor,
        cursor * 2,
    ):
        assert_problem(await http.get("/v1/candidates", params={"cursor": garbled}), 400, "validation_failed")


async def test_a_damaged_cursor_causes_no_server_error(http: httpx.AsyncClient) -> None:
    await add_tasks(http, "a", "b")
    rng = random.Random(7)
    for limit in (1, 1000):
        cursor = (await get(http, "/v1/candidates", limit=limit))["cursor"]
        for _ in range(150):
            position = rng.randrange(len(cursor))
            damaged = cursor[:position] + rng.choice("AZaz09-_") + cursor[position + 1 :]
            response = await http.get("/v1/candidates", params={"cursor": damaged})
            assert response.status_code in (200, 400, 410), f"{damaged}: {response.text[:300]}"


# Assignments


async def test_assigning_a_pair_creates_work(http: httpx.AsyncClient) -> None:
    await add_task(http)
    await add_tool(http)
    response = await http.post("/v1/work", json={"task_id": "a", "tool_id": "t"})
    assert response.status_code == 201
    assert (response.json()["task_id"], response.json()["tool_id"], response.json()["state"]) == (
        "a",
        "t",
        "assigned",
    )
    assert (await get(http, "/v1/tasks/a"))["work_id"] == response.json()["id"]


@pytest.mark.parametrize("meanwhile", ["nothing", "started", "full", "draining"])
async def test_assigning_the_same_pair_again_returns_the_same_work(
    http: httpx.AsyncClient, meanwhile: str
) -> None:
    await add_task(http)
    await add_tool(http, capacity=1 if meanwhile == "full" else 2)
    work = await assign(http)
    if meanwhile == "started":
        await http.post(f"/v1/work/{work['id']}/start")
    if meanwhile == "draining":
        await http.patch("/v1/tools/t", json={"draining": True})
    response = await http.post("/v1/work", json={"task_id": "a", "tool_id": "t"})
    assert (response.status_code, response.json()["id"]) == (200, work["id"])
    assert (await get(http, "/v1/tools/t"))["load"] == 1


@pytest.mark.parametrize(
    ("task", "tool", "status", "code"),
    [
        ("unknown", "t", 404, "task_not_found"),
        ("unknown", "unknown", 404, "task_not_found"),
        ("unknown", "full", 404, "task_not_found"),
        ("free", "unknown", 404, "tool_not_found"),
        ("taken", "unknown", 409, "task_unavailable"),
        ("taken", "t", 409, "task_unavailable"),
        ("taken", "draining", 409, "task_unavailable"),
        ("scheduled", "t", 409, "task_unavailable"),
        ("failed", "t", 409, "task_unavailable"),
        ("done", "t", 409, "task_unavailable"),
        ("deleted", "t", 409, "task_unavailable"),
        ("free", "full", 409, "tool_unavailable"),
        ("free", "draining", 409, "tool_unavailable"),
    ],
)
async def test_an_impossible_pair_is_refused_alone_and_in_a_batch(
    http: httpx.AsyncClient, task: str, tool: str, status: int, code: str
) -> None:
    await add_tasks(http, "free", "deleted")
    await add_assigned_work(http, "done", "worker")
    await complete_work(http, (await assign(http, "done", "worker"))["id"])
    await complete_work(
        http, (await add_assigned_work(http, "failed", "worker", max_attempts=1)).work, "failed"
    )
    await add_task(http, "scheduled", not_before=TOMORROW)
    await http.delete("/v1/tasks/deleted")
    await add_tool(http, "t")
    await add_tool(http, "full")
    await add_task(http, "taken")
    await assign(http, "taken", "full")
    await add_tool(http, "draining")
    await http.patch("/v1/tools/draining", json={"draining": True})
    pair = {"task_id": task, "tool_id": tool}
    assert_problem(await http.post("/v1/work", json=pair), status, code)
    batch = await http.post("/v1/work/batch", json={"items": [pair]})
    assert batch.json() == {"items": [{**pair, "status": code, "work_id": None}]}


async def test_a_batch_assigns_each_pair_independently_and_in_order(http: httpx.AsyncClient) -> None:
    await add_tasks(http, "a", "b", "c", "d")
    await add_tool(http, "one")
    await add_tool(http, "two", capacity=2)
    pairs = [
        ("a", "one", "assigned"), ("b", "one", "tool_unavailable"), ("a", "two", "task_unavailable"),
        ("a", "one", "exists"), ("nobody", "one", "task_not_found"), ("b", "nobody", "tool_not_found"),
        ("b", "two", "assigned"), ("c", "two", "assigned"), ("d", "two", "tool_unavailable"),
        ("c", "two", "exists"),
    ]  # fmt: skip
    items = [{"task_id": task, "tool_id": tool} for task, tool, _ in pairs]
    response = await http.post("/v1/work/batch", json={"items": items})
    results = response.json()["items"]
    assert response.status_code == 200
    assert [(item["task_id"], item["tool_id"], item["status"]) for item in results] == pairs
    works = {work["task_id"]: work["id"] for work in (await get(http, "/v1/work"))["items"]}
    for item in results:
        has_work = item["status"] in ("assigned", "exists")
        assert item["work_id"] == (works[item["task_id"]] if has_work else None)


async def test_an_earlier_pair_wins_over_a_later_one(http: httpx.AsyncClient) -> None:
    names = [f"x{n}" for n in range(20)]
    await add_tasks(http, *names)
    await add_tool(http, capacity=5)
    order = names[10:] + names[:10]
    response = await http.post(
        "/v1/work/batch", json={"items": [{"task_id": name, "tool_id": "t"} for name in order]}
    )
    won = [item["task_id"] for item in response.json()["items"] if item["status"] == "assigned"]
    assert won == order[:5]


async def test_a_refused_pair_does_not_use_capacity(http: httpx.AsyncClient) -> None:
    await add_tasks(http, "a", "b")
    await add_tool(http, "t")
    await add_tool(http, "u")
    pairs = [("a", "u"), ("a", "t"), ("b", "t")]
    items = [{"task_id": task, "tool_id": tool} for task, tool in pairs]
    results = (await http.post("/v1/work/batch", json={"items": items})).json()["items"]
    assert [item["status"] for item in results] == ["assigned", "task_unavailable", "assigned"]


async def test_a_repeated_batch_of_pairs_returns_exists(http: httpx.AsyncClient) -> None:
    names = [f"x{n}" for n in range(10)]
    await add_tasks(http, *names)
    await add_tool(http, capacity=10)
    items = [{"task_id": name, "tool_id": "t"} for name in names]
    first, second = [
        (await http.post("/v1/work/batch", json={"items": items})).json()["items"] for _ in range(2)
    ]
    assert {item["status"] for item in first} == {"assigned"}
    assert second == [{**item, "status": "exists"} for item in first]


async def test_ten_thousand_pairs_fit_in_a_batch(http: httpx.AsyncClient) -> None:
    items = [{"id": f"x{n}", "needs": 0} for n in range(10_000)]
    await http.post("/v1/tasks/batch", json={"items": items})
    await add_tool(http, capacity=9_990)
    pairs = [{"task_id": item["id"], "tool_id": "t"} for item in items]
    results = (await http.post("/v1/work/batch", json={"items": pairs})).json()["items"]
    assert [item["status"] for item in results] == ["assigned"] * 9_990 + ["tool_unavailable"] * 10
    assert (await get(http, "/v1/tools/t"))["load"] == 9_990


# Races


async def check_loads(http: httpx.AsyncClient, capacity: int, expected: int) -> None:
    works = (await get(http, "/v1/work", limit=1000))["items"]
    assert len(works) == expected
    assert len({work["task_id"] for work in works}) == len(works)
    for tool in (await get(http, "/v1/tools"))["items"]:
        assert tool["load"] == sum(work["tool_id"] == tool["id"] for work in works) <= capacity


def shuffled(pairs: Sequence[Json], seed: int) -> list[Json]:
    return random.Random(seed).sample(pairs, len(pairs))


async def test_concurrent_assignments_respect_tasks_and_capacities(
    http: httpx.AsyncClient,
) -> None:
    tasks, tools = [f"x{n}" for n in range(12)], [f"t{n}" for n in range(3)]
    await add_tasks(http, *tasks)
    for tool in tools:
        await add_tool(http, tool, capacity=2)
    pairs = [{"task_id": task, "tool_id": tool} for task in tasks for tool in tools]
    attempts = shuffled(pairs, 1) + shuffled(pairs, 2)
    responses = await asyncio.gather(*(http.post("/v1/work", json=pair) for pair in attempts))
    assert {response.status_code for response in responses} <= {200, 201, 409}
    assert sum(response.status_code == 201 for response in responses) == 6
    await check_loads(http, capacity=2, expected=6)


async def test_concurrent_batches_respect_tasks_and_capacities(
    http: httpx.AsyncClient,
) -> None:
    tasks, tools = [f"x{n}" for n in range(40)], [f"t{n}" for n in range(5)]
    await add_tasks(http, *tasks)
    for tool in tools:
        await add_tool(http, tool, capacity=3)
    pairs = [{"task_id": task, "tool_id": tool} for task in tasks for tool in tools]
    bodies = [{"items": shuffled(pairs, seed)} for seed in range(10)]
    responses = await asyncio.gather(*(http.post("/v1/work/batch", json=body) for body in bodies))
    assert {response.status_code for response in responses} == {200}, [
        response.text[:300] for response in responses
    ]
    results = [item for response in responses for item in response.json()["items"]]
    assert sum(item["status"] == "assigned" for item in results) == 15
    await check_loads(http, capacity=3, expected=15)


async def test_concurrent_assignments_through_two_brokers_respect_capacities(
    http: httpx.AsyncClient, database: str
) -> None:
    tasks = [f"x{n}" for n in range(20)]
    await add_tasks(http, *tasks)
    await add_tool(http, capacity=7)
    pairs = [{"task_id": task, "tool_id": "t"} for task in tasks]
    async with running_broker(Settings(database_url=database)) as other:
        clients = [http, other.client]
        responses = await asyncio.gather(
            *(
                client.post("/v1/work", json=p)
                for seed, client in enumerate(clients)
                for p in shuffled(pairs, seed)
            )
        )
    assert {response.status_code for response in responses} <= {200, 201, 409}
    await check_loads(http, capacity=7, expected=7)


async def test_concurrent_assignment_and_deletion_leave_every_task_cancelled(http: httpx.AsyncClient) -> None:
    tasks = [f"x{n}" for n in range(30)]
    await add_tasks(http, *tasks)
    await add_tool(http, capacity=100)
    requests = [http.post("/v1/work", json={"task_id": task, "tool_id": "t"}) for task in tasks]
    requests += [http.delete(f"/v1/tasks/{task}") for task in tasks]
    random.Random(3).shuffle(requests)
    responses = await asyncio.gather(*requests)
    assert {response.status_code for response in responses} <= {201, 204, 409}
    assert {(await get(http, f"/v1/tasks/{task}"))["state"] for task in tasks} == {"cancelled"}
    assert (await get(http, "/v1/tools/t"))["load"] == 0
    assert (await get(http, "/v1/work"))["items"] == []
