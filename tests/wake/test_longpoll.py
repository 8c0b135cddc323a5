"""The long poll, from outside: a parked request is woken by what concerns it, and by nothing else."""

import asyncio

import asyncpg
import httpx

from broker.client import Assigner, AsyncBroker, Job, Tool
from broker.wake.listener import UPKEEP
from tests.conftest import Running, Serve
from tests.support import steps
from tests.support.api import recorded_statements
from tests.support.steps import sleeping_count

Parked = asyncio.Task[httpx.Response]


async def park(broker: Running, *paths: str) -> list[Parked]:
    """Requests that have looked and are parked when this returns."""
    parked = [asyncio.create_task(broker.client.get(path, params={"wait": 60})) for path in paths]
    service = broker.server.service
    async with asyncio.timeout(20):
        while sleeping_count(service.waiters) < len(paths):
            await asyncio.sleep(0.01)
    return parked


async def test_an_assignment_wakes_its_tool_and_no_other_request_looks(serve: Serve) -> None:
    broker = await serve(fallback_seconds=60)
    for name in ("a", "b", "c"):
        await broker.client.post("/v1/tools", json={"id": name, "skills": {}})
    await broker.client.post("/v1/tasks", json={"id": "job", "needs": {}})
    woken, *others = await park(broker, *(f"/v1/tools/{name}/work" for name in ("a", "b", "c")))

    with recorded_statements(broker) as seen:
        work = (await broker.client.post("/v1/work", json={"task_id": "job", "tool_id": "a"})).json()
        async with asyncio.timeout(5):
            answer = await woken
        looks = [statement for statement in seen if "join sized w on w.tool_id" in statement]

    assert [item["id"] for item in answer.json()["items"]] == [work["id"]]
    assert len(looks) == 1, "somebody else looked, too"
    assert not any(other.done() for other in others)
    for other in others:
        other.cancel()


async def test_parked_requests_hold_no_connection(broker: Running) -> None:
    await broker.client.post("/v1/tools", json={"id": "t", "skills": {}})
    parked = await park(broker, *["/v1/tools/t/work"] * 200)
    # What the service does by itself now and then takes one for a moment.
    async with asyncio.timeout(5):
        while broker.server.service.store.engine.pool.checkedout():
            await asyncio.sleep(0.01)
    await broker.stop()
    answers = await asyncio.gather(*parked)
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, '{"items":[]}')}


async def test_a_client_that_leaves_costs_nothing_more(broker: Running) -> None:
    await broker.client.post("/v1/tools", json={"id": "t", "skills": {}})
    [parked] = await park(broker, "/v1/tools/t/work")
    parked.cancel()
    async with asyncio.timeout(5):
        while broker.server.service.waiters.keys().keys() != {UPKEEP}:  # which always waits
            await asyncio.sleep(0.01)


async def test_it_never_lets_go_of_an_idle_connection_before_its_client_does(broker: Running) -> None:
    await broker.client.get("/health")
    left = [
        connection.timeout_keep_alive_task.when() - asyncio.get_running_loop().time()
        for connection in broker.server.server_state.connections
    ]
    assert left
    assert min(left) > 60  # nginx lets go after 60 s, httpx after 5


async def test_without_any_notification_everything_still_completes(
    serve: Serve, sql: asyncpg.Connection
) -> None:
    await steps.disable_notifications(sql)
    broker = await serve(fallback_seconds=0.4)
    tool = Tool("t", {}, url=broker.url)

    @tool.handler
    def work(job: Job) -> int:
        job.report(0.5)
        return job.payload + 1

    doing = [asyncio.create_task(tool.work()), asyncio.create_task(Assigner(url=broker.url).assign())]
    async with AsyncBroker(broker.url) as submitter:
        handles = [await submitter.submit({}, number) for number in range(3)]
        assert [await handle.result(timeout=30) for handle in handles] == [1, 2, 3]
    for task in doing:
        task.cancel()
    await asyncio.gather(*doing, return_exceptions=True)


async def test_a_lost_listener_is_found_again_and_hints_that_were_missed_are_made_up_for(
    serve: Serve, sql: asyncpg.Connection
) -> None:
    broker = await serve(fallback_seconds=60)
    await broker.client.post("/v1/tools", json={"id": "t", "skills": {}})
    await broker.client.post("/v1/tasks", json={"id": "job", "needs": {}})
    [parked] = await park(broker, "/v1/tools/t/work")
    killed = await sql.fetchval(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
        " where application_name = 'broker listener' and datname = current_database()"
    )
    assert killed == 1
    await broker.client.post("/v1/work", json={"task_id": "job", "tool_id": "t"})
    async with asyncio.timeout(10):
        assert len((await parked).json()["items"]) == 1
        while (await broker.client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.02)
