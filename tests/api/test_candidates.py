"""The assigner: what it is offered, what changed since, and pairing."""

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


async def read_on(
    http: httpx.AsyncClient, cursor: str | None = None, limit: int = 1000
) -> tuple[str, list[Json], list[Json]]:
    """Answers from a cursor on until there is nothing more and nothing new: the cursor, the tasks,
    the tools."""
    tasks: list[Json] = []
    tools: list[Json] = []
    for _ in range(1000):
        query = {} if cursor is None else {"cursor": cursor}
        found = await get(http, "/v1/candidates", limit=limit, **query)
        assert found.keys() == {"cursor", "tasks", "tools", "more"}
        assert len(found["tasks"]) <= limit
        assert len(found["tools"]) <= limit
        cursor = found["cursor"]
        tasks += found["tasks"]
        tools += found["tools"]
        if not (found["more"] or found["tasks"] or found["tools"]):
            return found["cursor"], tasks, tools
    raise AssertionError("there is always more")


async def cursor_at_the_end(http: httpx.AsyncClient) -> str:
    return (await read_on(http))[0]


# All of them, page by page


async def test_without_a_cursor_all_that_is_available_is_offered(http: httpx.AsyncClient) -> None:
    await add_task(http, "a", needs={"n": 1})
    await add_tool(http, "t", skills={"s": 1})
    found = await get(http, "/v1/candidates")
    assert found["tasks"] == [await get(http, "/v1/tasks/a")]
    assert found["tools"] == [await get(http, "/v1/tools/t")]
    assert found["more"] is False


async def test_what_is_not_available_is_not_offered(http: httpx.AsyncClient) -> None:
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
    _, tasks, tools = await read_on(http)
    assert (ids(tasks), ids(tools)) == ([], ["roomy"])


async def test_tasks_are_offered_by_priority_then_older_first(http: httpx.AsyncClient) -> None:
    for name, priority in (("low", -1), ("old", 5), ("new", 5), ("top", 32767), ("plain", 0)):
        await add_task(http, name, priority=priority)
    for limit in (1000, 2, 1):
        _, tasks, _ = await read_on(http, limit=limit)
        assert ids(tasks) == ["top", "old", "new", "plain", "low"]


@pytest.mark.parametrize("limit", [1, 3, 10, 1000])
async def test_pages_together_hold_everything_once(http: httpx.AsyncClient, limit: int) -> None:
    tasks, tools = [f"x{n}" for n in range(10)], [f"t{n}" for n in range(4)]
    await add_tasks(http, *tasks)
    for name in tools:
        await add_tool(http, name)
    _, found_tasks, found_tools = await read_on(http, limit=limit)
    assert (sorted(ids(found_tasks)), sorted(ids(found_tools))) == (tasks, tools)


async def test_more_says_whether_a_page_is_the_last(http: httpx.AsyncClient) -> None:
    await add_tasks(http, "a", "b", "c")
    first = await get(http, "/v1/candidates", limit=2)
    second = await get(http, "/v1/candidates", limit=2, cursor=first["cursor"])
    assert (first["more"], second["more"]) == (True, False)
    assert (len(first["tasks"]), len(second["tasks"])) == (2, 1)


async def test_a_page_can_be_asked_for_again(http: httpx.AsyncClient) -> None:
    await add_tasks(http, *(f"x{n}" for n in range(6)))
    cursor = (await get(http, "/v1/candidates", limit=2))["cursor"]
    first, second = [await get(http, "/v1/candidates", limit=2, cursor=cursor) for _ in range(2)]
    assert ids(first["tasks"]) == ids(second["tasks"])


async def test_the_rest_of_the_pages_is_answered_at_once_even_with_wait(http: httpx.AsyncClient) -> None:
    await add_tasks(http, *(f"x{n}" for n in range(5)))
    cursor = (await get(http, "/v1/candidates", limit=2))["cursor"]
    async with asyncio.timeout(5):
        for count in (2, 1):
            found = await get(http, "/v1/candidates", limit=2, cursor=cursor, wait=60)
            assert len(found["tasks"]) == count
            cursor = found["cursor"]


async def test_a_task_that_comes_while_paging_is_not_missed(http: httpx.AsyncClient) -> None:
    await add_tasks(http, *(f"x{n}" for n in range(6)))
    first = await get(http, "/v1/candidates", limit=2)
    await add_task(http, "urgent", priority=9)
    await add_task(http, "idle", priority=-9)
    _, rest, _ = await read_on(http, first["cursor"], limit=2)
    assert {"urgent", "idle"} <= set(ids(rest))
    assert set(ids(first["tasks"] + rest)) == {*(f"x{n}" for n in range(6)), "urgent", "idle"}


async def test_what_came_while_paging_answers_the_wait_after_the_last_page_at_once(
    http: httpx.AsyncClient,
) -> None:
    await add_tasks(http, "a", "b")
    found = await get(http, "/v1/candidates", limit=1)
    await add_task(http, "urgent", priority=9)
    seen = []
    async with asyncio.timeout(5):
        while "urgent" not in seen:
            found = await get(http, "/v1/candidates", limit=1, wait=60, cursor=found["cursor"])
            seen += ids(found["tasks"])
    assert "b" in seen


async def test_a_task_that_went_and_came_back_while_paging_is_offered(http: httpx.AsyncClient) -> None:
    await add_tasks(http, *(f"x{n}" for n in range(6)))
    first = await get(http, "/v1/candidates", limit=3)
    await add_tool(http)
    works = [await assign(http, first["tasks"][0]["id"])]
    middle = await get(http, "/v1/candidates", limit=1, cursor=first["cursor"])
    await complete_work(http, works[0]["id"], "released")
    _, rest, tools = await read_on(http, middle["cursor"], limit=1)
    assert first["tasks"][0]["id"] in ids(rest)
    assert set(ids(first["tasks"] + middle["tasks"] + rest)) == {f"x{n}" for n in range(6)}
    assert "t" in ids(middle["tools"] + tools)


async def test_a_tool_that_changes_while_paging_is_offered_as_it_is(http: httpx.AsyncClient) -> None:
    for n in range(5):
        await add_tool(http, f"t{n}", skills="old")
    first = await get(http, "/v1/candidates", limit=2)
    for tool in first["tools"]:
        await http.patch(f"/v1/tools/{tool['id']}", json={"skills": "new"})
    _, _, rest = await read_on(http, first["cursor"], limit=2)
    seen = {tool["id"]: tool["skills"] for tool in first["tools"] + rest}
    changed = ids(first["tools"])
    assert seen == {f"t{n}": "new" if f"t{n}" in changed else "old" for n in range(5)}


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_between_pages_nothing_is_missed(  # noqa: C901 (all that can happen, in one place)
    http: httpx.AsyncClient, seed: int
) -> None:
    dice = random.Random(seed)
    tasks: dict[str, Json] = {}
    tools: dict[str, Json] = {}
    live: list[str] = []
    cursor: dict[str, str] = {}

    async def anything(number: int) -> None:
        match dice.randrange(7):
            case 0 | 1:
                await add_task(http, f"x{number}", priority=dice.randrange(3), retry_backoff_seconds=0)
            case 2:
                await add_tool(http, f"t{dice.randrange(6)}", skills=number, capacity=2)
            case 3:
                change = {"draining": True} if dice.random() < 0.4 else {"draining": False, "skills": number}
                await http.patch(f"/v1/tools/t{dice.randrange(6)}", json=change)
            case 4 | 5 if tasks and tools:
                pair = {"task_id": dice.choice(sorted(tasks)), "tool_id": dice.choice(sorted(tools))}
                answer = await http.post("/v1/work", json=pair)
                if answer.status_code == 201:
                    live.append(answer.json()["id"])
            case _ if live:
                outcome = dice.choice(["released", "succeeded", "released"])
                await complete_work(http, live.pop(dice.randrange(len(live))), outcome)
            case _:
                pass

    async def look() -> bool:
        found = await get(http, "/v1/candidates", limit=2, **cursor)
        tasks.update({task["id"]: task for task in found["tasks"]})
        tools.update({tool["id"]: tool for tool in found["tools"]})
        cursor["cursor"] = found["cursor"]
        return bool(found["more"] or found["tasks"] or found["tools"])

    for number in range(80):
        await asyncio.gather(*(anything(number * 3 + k) for k in range(3)), look())
    while await look():
        pass
    _, all_tasks, all_tools = await read_on(http)
    timely = {"lease_expires_at", "seen_at"}
    assert set(ids(all_tasks)) <= tasks.keys()
    for tool in all_tools:
        seen = tools[tool["id"]]
        assert {k: v for k, v in seen.items() if k not in timely} == {
            k: v for k, v in tool.items() if k not in timely
        }


# What is new since


async def test_with_a_cursor_only_what_is_new_is_offered(http: httpx.AsyncClient) -> None:
    await add_tasks(http, "a", "b")
    await add_tool(http)
    cursor = await cursor_at_the_end(http)
    await add_task(http, "c")
    _, tasks, tools = await read_on(http, cursor)
    assert (ids(tasks), ids(tools)) == (["c"], [])


async def test_with_nothing_new_the_answer_is_empty_and_its_cursor_works(http: httpx.AsyncClient) -> None:
    cursor = await cursor_at_the_end(http)
    for name in ("a", "b", "c"):
        empty = await get(http, "/v1/candidates", cursor=cursor)
        assert (empty["tasks"], empty["tools"], empty["more"]) == ([], [], False)
        await add_task(http, name)
        cursor, tasks, _ = await read_on(http, empty["cursor"])
        assert ids(tasks) == [name]


async def test_an_older_cursor_still_shows_all_since(http: httpx.AsyncClient) -> None:
    old = await cursor_at_the_end(http)
    for name in ("a", "b", "c"):
        await add_task(http, name)
        await cursor_at_the_end(http)
    assert ids((await read_on(http, old))[1]) == ["a", "b", "c"]


@pytest.mark.parametrize("limit", [1, 2])
async def test_what_is_new_comes_page_by_page_too(http: httpx.AsyncClient, limit: int) -> None:
    cursor = await cursor_at_the_end(http)
    names = [f"x{n}" for n in range(5)]
    await add_tasks(http, *names)
    assert sorted(ids((await read_on(http, cursor, limit=limit))[1])) == names


async def test_a_task_that_came_back_is_new(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    cursor = await cursor_at_the_end(http)
    await complete_work(http, pair.work, "released")
    assert ids((await read_on(http, cursor))[1]) == ["a"]


@pytest.mark.parametrize(
    "how", ["work ends", "task is deleted", "capacity grows", "draining ends", "registers again"]
)
async def test_a_tool_that_became_available_is_new(http: httpx.AsyncClient, how: str) -> None:
    await add_tool(http)
    await add_tasks(http, "a", "b")
    work = (await assign(http))["id"]
    if how in ("draining ends", "registers again"):
        await complete_work(http, work)
        await http.patch("/v1/tools/t", json={"draining": True})
    cursor, _, tools = await read_on(http)
    assert tools == []
    if how == "work ends":
        await complete_work(http, work)
    elif how == "task is deleted":
        await http.delete("/v1/tasks/a")
    elif how == "registers again":
        await add_tool(http)
    else:
        await http.patch(
            "/v1/tools/t", json={"capacity": 2} if how == "capacity grows" else {"draining": False}
        )
    assert ids((await read_on(http, cursor))[2]) == ["t"]


@pytest.mark.parametrize("change", [{"skills": 2}, {"capacity": 7}])
async def test_a_tool_that_changed_while_available_is_new(http: httpx.AsyncClient, change: Json) -> None:
    await add_tool(http)
    cursor = await cursor_at_the_end(http)
    await http.patch("/v1/tools/t", json=change)
    tools = (await read_on(http, cursor))[2]
    assert [{key: tool[key] for key in change} for tool in tools] == [change]


async def test_remarks_and_lease_renewals_are_no_change(http: httpx.AsyncClient) -> None:
    await add_task(http)
    await add_tool(http)
    cursor = await cursor_at_the_end(http)
    await http.put("/v1/tasks/a/remark", json={"text": "hm"})
    await http.post("/v1/tasks/remarks", json={"items": [{"task_id": "a", "text": "hm, hm"}]})
    await http.post("/v1/tools/t/heartbeat")
    await get(http, "/v1/tools/t/work")
    found = await poll_until_timeout(http, "GET", f"/v1/candidates?wait=0.3&cursor={cursor}")
    assert (found["tasks"], found["tools"], found["more"]) == ([], [], False)


async def test_a_task_that_is_gone_again_is_not_offered(http: httpx.AsyncClient) -> None:
    cursor = await cursor_at_the_end(http)
    await add_tasks(http, "a", "b")
    await http.delete("/v1/tasks/a")
    assert ids((await read_on(http, cursor))[1]) == ["b"]


async def test_a_long_transaction_elsewhere_hides_nothing_and_repeats_nothing(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    async with sql.transaction():
        await sql.fetchval("select pg_current_xact_id()")
        await add_task(http)
        cursor, tasks, _ = await read_on(http)
        assert ids(tasks) == ["a"]
        found = await poll_until_timeout(http, "GET", f"/v1/candidates?wait=0.3&cursor={cursor}")
        assert found["tasks"] == []
        await add_task(http, "b")
        assert ids((await read_on(http, cursor))[1]) == ["b"]


async def test_readers_beside_many_writers_miss_nothing(http: httpx.AsyncClient) -> None:
    seen: set[str] = set()
    names = {f"x{n}" for n in range(200)}

    async def read() -> None:
        cursor: dict[str, str] = {}
        while not names <= seen:
            found = await get(http, "/v1/candidates", limit=7, wait=1, **cursor)
            cursor = {"cursor": found["cursor"]}
            seen.update(ids(found["tasks"]))

    async with asyncio.timeout(20):
        await asyncio.gather(read(), *(add_task(http, name) for name in sorted(names)))


# Waiting


async def test_a_wait_with_something_there_is_answered_at_once(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    async with asyncio.timeout(5):
        assert ids((await get(http, "/v1/candidates", wait=60))["tools"]) == ["t"]


@pytest.mark.parametrize("cursor", [False, True])
async def test_a_wait_in_vain_ends_empty_with_a_cursor(http: httpx.AsyncClient, cursor: bool) -> None:
    query = f"&cursor={await cursor_at_the_end(http)}" if cursor else ""
    found = await poll_until_timeout(http, "GET", f"/v1/candidates?wait=0.3{query}")
    assert (found["tasks"], found["tools"], found["more"]) == ([], [], False)
    await add_task(http)
    assert ids((await read_on(http, found["cursor"]))[1]) == ["a"]


@pytest.mark.parametrize("cursor", [False, True])
@pytest.mark.parametrize("event", ["task", "batch", "tool"])
async def test_an_assigner_is_woken_by_what_comes(
    broker: Running, http: httpx.AsyncClient, event: str, cursor: bool
) -> None:
    query = f"&cursor={await cursor_at_the_end(http)}" if cursor else ""
    parked = await start_long_poll(broker, "GET", f"/v1/candidates?wait=60{query}")
    if event == "task":
        await add_task(http, "new")
    elif event == "batch":
        await add_tasks(http, "new")
    else:
        await add_tool(http, "new")
    found = await finish_long_poll(parked)
    assert ids(found["tools" if event == "tool" else "tasks"]) == ["new"]


@pytest.mark.parametrize("event", ["release", "release in a batch", "success", "skills", "undrain", "delete"])
async def test_an_assigner_is_woken_by_what_becomes_available_or_changes(
    broker: Running, http: httpx.AsyncClient, event: str
) -> None:
    await add_tool(http)
    await add_task(http)
    work = (await assign(http))["id"]
    if event == "undrain":
        await http.patch("/v1/tools/t", json={"draining": True, "capacity": 5})
    elif event == "skills":
        await http.patch("/v1/tools/t", json={"capacity": 5})
    cursor = await cursor_at_the_end(http)
    parked = await start_long_poll(broker, "GET", f"/v1/candidates?wait=60&cursor={cursor}")
    if event == "release in a batch":
        await http.post("/v1/work/complete", json={"items": [{"work_id": work, "outcome": "released"}]})
    elif event in ("release", "success"):
        await complete_work(http, work, "released" if event == "release" else "succeeded")
    elif event == "delete":
        await http.delete("/v1/tasks/a")
    else:
        await http.patch("/v1/tools/t", json={"skills": 5} if event == "skills" else {"draining": False})
    found = await finish_long_poll(parked)
    cursor, tasks, tools = await read_on(http, found["cursor"])
    assert "t" in ids(found["tools"] + tools)
    assert ("a" in ids(found["tasks"] + tasks)) == event.startswith("release")


async def test_every_waiting_assigner_is_woken(broker: Running, http: httpx.AsyncClient) -> None:
    parked = [await start_long_poll(broker, "GET", "/v1/candidates?wait=60") for _ in range(5)]
    await add_task(http)
    assert [ids((await finish_long_poll(one))["tasks"]) for one in parked] == [["a"]] * 5


async def test_prefer_wait_parks_an_assigner(broker: Running, http: httpx.AsyncClient) -> None:
    parked = await start_long_poll(broker, "GET", "/v1/candidates", headers={"Prefer": "wait=60"})
    await add_task(http)
    assert ids((await finish_long_poll(parked))["tasks"]) == ["a"]


async def test_what_was_handed_out_is_there_still_for_the_same_cursor(http: httpx.AsyncClient) -> None:
    cursor = await cursor_at_the_end(http)
    await add_task(http)
    async with asyncio.timeout(5):
        for _ in range(3):
            assert ids((await get(http, "/v1/candidates", cursor=cursor, wait=60))["tasks"]) == ["a"]


# Odd cursors


async def test_a_cursor_of_another_database_has_expired(
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
                answer = await other.client.get("/v1/candidates", params={"cursor": cursor, "wait": wait})
                assert_problem(answer, 410, "cursor_expired")


@pytest.mark.parametrize("limit", [1, 1000])
async def test_a_cursor_that_is_not_whole_is_refused(http: httpx.AsyncClient, limit: int) -> None:
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


async def test_no_damage_to_a_cursor_breaks_the_broker(http: httpx.AsyncClient) -> None:
    await add_tasks(http, "a", "b")
    dice = random.Random(7)
    for limit in (1, 1000):
        cursor = (await get(http, "/v1/candidates", limit=limit))["cursor"]
        for _ in range(150):
            place = dice.randrange(len(cursor))
            damaged = cursor[:place] + dice.choice("AZaz09-_") + cursor[place + 1 :]
            answer = await http.get("/v1/candidates", params={"cursor": damaged})
            assert answer.status_code in (200, 400, 410), f"{damaged}: {answer.text[:300]}"


# Pairing


async def test_a_pair_makes_work(http: httpx.AsyncClient) -> None:
    await add_task(http)
    await add_tool(http)
    answer = await http.post("/v1/work", json={"task_id": "a", "tool_id": "t"})
    assert answer.status_code == 201
    assert (answer.json()["task_id"], answer.json()["tool_id"], answer.json()["state"]) == (
        "a",
        "t",
        "assigned",
    )
    assert (await get(http, "/v1/tasks/a"))["work_id"] == answer.json()["id"]


@pytest.mark.parametrize("meanwhile", ["nothing", "started", "full", "draining"])
async def test_the_same_pair_again_is_the_same_work(http: httpx.AsyncClient, meanwhile: str) -> None:
    await add_task(http)
    await add_tool(http, capacity=1 if meanwhile == "full" else 2)
    work = await assign(http)
    if meanwhile == "started":
        await http.post(f"/v1/work/{work['id']}/start")
    if meanwhile == "draining":
        await http.patch("/v1/tools/t", json={"draining": True})
    answer = await http.post("/v1/work", json={"task_id": "a", "tool_id": "t"})
    assert (answer.status_code, answer.json()["id"]) == (200, work["id"])
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
async def test_a_pair_that_cannot_be_is_refused_alone_and_in_a_batch(
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


async def test_a_batch_pairs_each_for_itself_in_order(http: httpx.AsyncClient) -> None:
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
    answer = await http.post("/v1/work/batch", json={"items": items})
    found = answer.json()["items"]
    assert answer.status_code == 200
    assert [(item["task_id"], item["tool_id"], item["status"]) for item in found] == pairs
    works = {work["task_id"]: work["id"] for work in (await get(http, "/v1/work"))["items"]}
    for item in found:
        there = item["status"] in ("assigned", "exists")
        assert item["work_id"] == (works[item["task_id"]] if there else None)


async def test_an_earlier_pair_wins_over_a_later_one(http: httpx.AsyncClient) -> None:
    names = [f"x{n}" for n in range(20)]
    await add_tasks(http, *names)
    await add_tool(http, capacity=5)
    order = names[10:] + names[:10]
    answer = await http.post(
        "/v1/work/batch", json={"items": [{"task_id": name, "tool_id": "t"} for name in order]}
    )
    won = [item["task_id"] for item in answer.json()["items"] if item["status"] == "assigned"]
    assert won == order[:5]


async def test_a_later_pair_gets_the_room_that_an_earlier_one_could_not_use(http: httpx.AsyncClient) -> None:
    await add_tasks(http, "a", "b")
    await add_tool(http, "t")
    await add_tool(http, "u")
    pairs = [("a", "u"), ("a", "t"), ("b", "t")]
    items = [{"task_id": task, "tool_id": tool} for task, tool in pairs]
    found = (await http.post("/v1/work/batch", json={"items": items})).json()["items"]
    assert [item["status"] for item in found] == ["assigned", "task_unavailable", "assigned"]


async def test_a_batch_of_pairs_sent_again_answers_exists(http: httpx.AsyncClient) -> None:
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
    found = (await http.post("/v1/work/batch", json={"items": pairs})).json()["items"]
    assert [item["status"] for item in found] == ["assigned"] * 9_990 + ["tool_unavailable"] * 10
    assert (await get(http, "/v1/tools/t"))["load"] == 9_990


# Races


async def nothing_is_overfull(http: httpx.AsyncClient, capacity: int, expected: int) -> None:
    works = (await get(http, "/v1/work", limit=1000))["items"]
    assert len(works) == expected
    assert len({work["task_id"] for work in works}) == len(works)
    for tool in (await get(http, "/v1/tools"))["items"]:
        assert tool["load"] == sum(work["tool_id"] == tool["id"] for work in works) <= capacity


def shuffled(pairs: Sequence[Json], seed: int) -> list[Json]:
    return random.Random(seed).sample(pairs, len(pairs))


async def test_assigners_that_race_pair_no_task_twice_and_fill_no_tool_beyond_its_capacity(
    http: httpx.AsyncClient,
) -> None:
    tasks, tools = [f"x{n}" for n in range(12)], [f"t{n}" for n in range(3)]
    await add_tasks(http, *tasks)
    for tool in tools:
        await add_tool(http, tool, capacity=2)
    pairs = [{"task_id": task, "tool_id": tool} for task in tasks for tool in tools]
    attempts = shuffled(pairs, 1) + shuffled(pairs, 2)
    answers = await asyncio.gather(*(http.post("/v1/work", json=pair) for pair in attempts))
    assert {answer.status_code for answer in answers} <= {200, 201, 409}
    assert sum(answer.status_code == 201 for answer in answers) == 6
    await nothing_is_overfull(http, capacity=2, expected=6)


async def test_batches_that_race_pair_no_task_twice_and_fill_no_tool_beyond_its_capacity(
    http: httpx.AsyncClient,
) -> None:
    tasks, tools = [f"x{n}" for n in range(40)], [f"t{n}" for n in range(5)]
    await add_tasks(http, *tasks)
    for tool in tools:
        await add_tool(http, tool, capacity=3)
    pairs = [{"task_id": task, "tool_id": tool} for task in tasks for tool in tools]
    bodies = [{"items": shuffled(pairs, seed)} for seed in range(10)]
    answers = await asyncio.gather(*(http.post("/v1/work/batch", json=body) for body in bodies))
    assert {answer.status_code for answer in answers} == {200}, [answer.text[:300] for answer in answers]
    found = [item for answer in answers for item in answer.json()["items"]]
    assert sum(item["status"] == "assigned" for item in found) == 15
    await nothing_is_overfull(http, capacity=3, expected=15)


async def test_assigners_of_two_brokers_on_one_database_do_not_get_in_each_others_way(
    http: httpx.AsyncClient, database: str
) -> None:
    tasks = [f"x{n}" for n in range(20)]
    await add_tasks(http, *tasks)
    await add_tool(http, capacity=7)
    pairs = [{"task_id": task, "tool_id": "t"} for task in tasks]
    async with running_broker(Settings(database_url=database)) as other:
        clients = [http, other.client]
        answers = await asyncio.gather(
            *(
                client.post("/v1/work", json=p)
                for seed, client in enumerate(clients)
                for p in shuffled(pairs, seed)
            )
        )
    assert {answer.status_code for answer in answers} <= {200, 201, 409}
    await nothing_is_overfull(http, capacity=7, expected=7)


async def test_assigning_beside_deleting_leaves_every_task_in_one_place(http: httpx.AsyncClient) -> None:
    tasks = [f"x{n}" for n in range(30)]
    await add_tasks(http, *tasks)
    await add_tool(http, capacity=100)
    calls = [http.post("/v1/work", json={"task_id": task, "tool_id": "t"}) for task in tasks]
    calls += [http.delete(f"/v1/tasks/{task}") for task in tasks]
    random.Random(3).shuffle(calls)
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} <= {201, 204, 409}
    assert {(await get(http, f"/v1/tasks/{task}"))["state"] for task in tasks} == {"cancelled"}
    assert (await get(http, "/v1/tools/t"))["load"] == 0
    assert (await get(http, "/v1/work"))["items"] == []
