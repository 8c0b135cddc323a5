"""New work goes straight to the waiting request of its tool, in the process that assigned it."""

import asyncio
from operator import itemgetter
from typing import Any

import asyncpg
import httpx
import pytest

from broker.settings import Settings
from tests.conftest import Running, Serve, running_broker
from tests.support import steps
from tests.support.api import (
    Json,
    add_assigned_work,
    add_task,
    add_tasks,
    add_tool,
    assert_problem,
    assign,
    bearer,
    complete,
    finish_long_poll,
    get,
    ids,
    recorded_statements,
    start_long_poll,
)

LOOK = "join sized w on w.tool_id"


@pytest.fixture
async def broker(serve: Serve, sql: asyncpg.Connection) -> Running:
    """Return a broker without notifications, so only a hand-over ends a wait before the sweep."""
    await steps.disable_notifications(sql)
    return await serve(fallback_seconds=60)


async def assign_many(http: httpx.AsyncClient, *pairs: tuple[str, str]) -> list[str]:
    """Assign tasks to tools in one request, and return the ids of the work."""
    items = [{"task_id": task, "tool_id": tool} for task, tool in pairs]
    response = await http.post("/v1/work/batch", json={"items": items})
    assert {item["status"] for item in response.json()["items"]} == {"assigned"}, response.text
    return ids(response.json()["items"], "work_id")


async def wait_for_work(broker: Running, tool: str = "t", **request: Any) -> "asyncio.Task[httpx.Response]":
    return await start_long_poll(broker, "GET", f"/v1/tools/{tool}/work?wait=30", **request)


async def test_assigned_work_reaches_the_waiting_tool_without_a_read(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_tool(http)
    await add_task(http, needs=[1.10], payload={"n": 1})
    poll = await wait_for_work(broker)
    with recorded_statements(broker) as statements:
        work = await assign(http)
        assert (await finish_long_poll(poll))["items"] == [work]
    assert not [statement for statement in statements if LOOK in statement]
    assert (await get(http, "/v1/tools/t/work"))["items"] == [work]


async def test_a_batch_hands_each_waiting_tool_all_of_its_work(
    broker: Running, http: httpx.AsyncClient
) -> None:
    for tool in ("one", "two", "absent"):
        await add_tool(http, tool, capacity=2)
    await add_tasks(http, "a", "b", "c", "d", payload={"n": 1})
    polls = [await wait_for_work(broker, tool) for tool in ("one", "two")]
    with recorded_statements(broker) as statements:
        work_ids = await assign_many(http, ("a", "one"), ("b", "two"), ("c", "absent"), ("d", "one"))
        one, two = [(await finish_long_poll(poll))["items"] for poll in polls]
    assert not [statement for statement in statements if LOOK in statement]
    assert [ids(one), ids(two)] == [[work_ids[0], work_ids[3]], [work_ids[1]]]
    assert sorted(one, key=itemgetter("id")) == (await get(http, "/v1/tools/one/work"))["items"]
    assert two == (await get(http, "/v1/tools/two/work"))["items"]
    assert ids((await get(http, "/v1/tools/absent/work"))["items"]) == [work_ids[2]]


async def test_a_batch_for_tools_that_do_not_wait_here_reads_no_payload(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_tool(http)
    await add_tool(http, "other")
    await add_task(http)
    poll = await wait_for_work(broker, "other")
    with recorded_statements(broker) as statements:
        await assign_many(http, ("a", "t"))
    assert not [statement for statement in statements if "as payload" in statement]
    poll.cancel()


async def test_a_repeated_pair_of_a_batch_hands_its_work_over_once(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_tool(http, capacity=2)
    await add_task(http)
    poll = await wait_for_work(broker)
    pair = {"task_id": "a", "tool_id": "t"}
    response = await http.post("/v1/work/batch", json={"items": [pair, pair]})
    assert ids(response.json()["items"], "status") == ["assigned", "exists"]
    assert len((await finish_long_poll(poll))["items"]) == 1


async def test_all_waiting_requests_of_a_tool_get_its_work(broker: Running, http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await add_task(http)
    polls = [await wait_for_work(broker) for _ in range(3)]
    work = await assign(http)
    assert [(await finish_long_poll(poll))["items"] for poll in polls] == [[work]] * 3


@pytest.mark.parametrize("is_batch", [False, True])
async def test_work_is_not_handed_to_a_request_with_an_old_token(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, is_batch: bool
) -> None:
    token = (await add_tool(http))["token"]
    await add_task(http)
    poll = await wait_for_work(broker, headers=bearer(token))
    await sql.execute("update tools set token_hash = 'another'")
    await (assign_many(http, ("a", "t")) if is_batch else assign(http))
    assert_problem(await poll, 401, "unauthenticated")


async def test_a_broker_that_stops_at_the_moment_of_the_hand_over_loses_no_work(
    broker: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_tool(http)
    await add_task(http)
    poll = await wait_for_work(broker)
    waiters = broker.server.service.waiters
    hand_over = waiters.hand_over

    def release_and_hand_over(topic: str, key: str, state: object) -> None:
        waiters.release()
        hand_over(topic, key, state)

    monkeypatch.setattr(waiters, "hand_over", release_and_hand_over)
    work = await assign(http)
    assert (await finish_long_poll(poll))["items"] == []
    assert (await get(http, "/v1/tools/t/work"))["items"] == [work]


async def test_a_completion_of_the_last_work_waits_without_a_read(
    broker: Running, http: httpx.AsyncClient
) -> None:
    pair = await add_assigned_work(http)
    await add_task(http, "b")
    body = {"outcome": "succeeded", "next_wait_seconds": 30}
    with recorded_statements(broker) as statements:
        poll = await start_long_poll(broker, "POST", f"/v1/work/{pair.work}/complete", json=body)
        work = await assign(http, "b")
        assert (await finish_long_poll(poll))["next"] == [work]
    assert not [statement for statement in statements if LOOK in statement]


# Work from another process


@pytest.mark.parametrize("capacity", [1, 3])
async def test_work_assigned_between_a_completion_and_its_wait_is_never_missed(
    serve: Serve, database: str, capacity: int
) -> None:
    broker = await serve(fallback_seconds=120)
    http = broker.client
    tasks = [f"task-{number}" for number in range(300)]
    await add_tool(http, capacity=capacity)
    await add_tasks(http, *tasks)
    ended: list[str] = []

    async def assign_at_once(another: httpx.AsyncClient) -> None:
        for task in tasks:
            pair = {"task_id": task, "tool_id": "t"}
            while (response := await another.post("/v1/work", json=pair)).status_code == 409:
                assert response.json()["code"] == "tool_unavailable"
            assert response.status_code == 201, response.text

    async def do_work() -> None:
        items: list[Json] = []
        while len(ended) < len(tasks):
            items = items or (await get(http, "/v1/tools/t/work", wait=60))["items"]
            is_last = len(ended) == len(tasks) - 1
            response = await complete(http, items[0]["id"], next_wait_seconds=0 if is_last else 60)
            ended.append(items[0]["task_id"])
            items = response.json()["next"]

    # A missed wait would last until the sweep, for at least 60 s.
    async with (
        running_broker(Settings(database_url=database)) as another,
        asyncio.timeout(50),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(assign_at_once(another.client))
        group.create_task(do_work())
    assert sorted(ended) == sorted(tasks)
