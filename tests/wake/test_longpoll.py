"""Long polls over HTTP: a waiting request wakes for its own changes, and for no others."""

import asyncio

import asyncpg
import httpx

from broker.client import Assigner, AsyncBroker, Job, Tool
from broker.wake.listener import UPKEEP
from tests.conftest import Running, Serve
from tests.support import steps
from tests.support.api import add_assigned_work, recorded_statements, start_long_poll
from tests.support.steps import sleeping_count

WaitingRequest = asyncio.Task[httpx.Response]


async def start_waiting(broker: Running, *paths: str) -> list[WaitingRequest]:
    """Start requests, and return them when they have read once and are waiting."""
    waiting = [asyncio.create_task(broker.client.get(path, params={"wait": 60})) for path in paths]
    service = broker.server.service
    async with asyncio.timeout(20):
        while sleeping_count(service.waiters) < len(paths):
            await asyncio.sleep(0.01)
    return waiting


async def test_an_assignment_wakes_only_its_tool(serve: Serve) -> None:
    broker = await serve(fallback_seconds=60)
    for name in ("a", "b", "c"):
        await broker.client.post("/v1/tools", json={"id": name, "skills": {}})
    await broker.client.post("/v1/tasks", json={"id": "job", "needs": {}})
    woken, *others = await start_waiting(broker, *(f"/v1/tools/{name}/work" for name in ("a", "b", "c")))

    with recorded_statements(broker) as seen:
        work = (await broker.client.post("/v1/work", json={"task_id": "job", "tool_id": "a"})).json()
        async with asyncio.timeout(5):
            response = await woken
        reads = [statement for statement in seen if "join sized w on w.tool_id" in statement]

    assert [item["id"] for item in response.json()["items"]] == [work["id"]]
    assert len(reads) <= 1, "another request also read"
    assert not any(other.done() for other in others)
    for other in others:
        other.cancel()


async def test_waiting_requests_hold_no_connection(broker: Running) -> None:
    await broker.client.post("/v1/tools", json={"id": "t", "skills": {}})
    waiting = await start_waiting(broker, *["/v1/tools/t/work"] * 200)
    # Background tasks of the service may use a connection for a moment.
    async with asyncio.timeout(5):
        while broker.server.service.store.engine.pool.checkedout():
            await asyncio.sleep(0.01)
    await broker.stop()
    responses = await asyncio.gather(*waiting)
    assert {(response.status_code, response.text) for response in responses} == {(200, '{"items":[]}')}


async def test_a_client_that_disconnects_leaves_no_waiter(broker: Running) -> None:
    await broker.client.post("/v1/tools", json={"id": "t", "skills": {}})
    [waiting] = await start_waiting(broker, "/v1/tools/t/work")
    waiting.cancel()
    async with asyncio.timeout(5):
        while broker.server.service.waiters.keys().keys() != {UPKEEP}:  # which always waits
            await asyncio.sleep(0.01)


async def test_a_client_that_disconnects_after_a_large_body_leaves_no_waiter(broker: Running) -> None:
    pair = await add_assigned_work(broker.client)
    result = "a" * 200_000  # uvicorn stops reading from the client after 64 KiB
    body = {"outcome": "succeeded", "result": result, "next_wait_seconds": 60}
    waiting = await start_long_poll(broker, "POST", f"/v1/work/{pair.work}/complete", json=body)
    waiting.cancel()
    async with asyncio.timeout(5):
        while broker.server.service.waiters.keys().keys() != {UPKEEP}:
            await asyncio.sleep(0.01)


async def test_the_server_keeps_idle_connections_longer_than_clients_do(broker: Running) -> None:
    await broker.client.get("/health")
    keep_alive_seconds = [
        connection.timeout_keep_alive_task.when() - asyncio.get_running_loop().time()
        for connection in broker.server.server_state.connections
    ]
    assert keep_alive_seconds
    assert min(keep_alive_seconds) > 60  # nginx closes idle connections after 60 s, httpx after 5 s


async def test_tasks_complete_without_any_notification(serve: Serve, sql: asyncpg.Connection) -> None:
    await steps.disable_notifications(sql)
    broker = await serve(fallback_seconds=0.4)
    tool = Tool("t", {}, url=broker.url)

    @tool.handler
    def work(job: Job) -> int:
        job.report(0.5)
        return job.payload + 1

    running = [asyncio.create_task(tool.work()), asyncio.create_task(Assigner(url=broker.url).assign())]
    async with AsyncBroker(broker.url) as submitter:
        handles = [await submitter.submit({}, number) for number in range(3)]
        assert [await handle.result(timeout=30) for handle in handles] == [1, 2, 3]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_lost_listener_reconnects_and_missed_notifications_are_replaced(
    serve: Serve, sql: asyncpg.Connection
) -> None:
    broker = await serve(fallback_seconds=60)
    await broker.client.post("/v1/tools", json={"id": "t", "skills": {}})
    await broker.client.post("/v1/tasks", json={"id": "job", "needs": {}})
    [waiting] = await start_waiting(broker, "/v1/tools/t/work")
    killed = await sql.fetchval(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
        " where application_name = 'broker listener' and datname = current_database()"
    )
    assert killed == 1
    await broker.client.post("/v1/work", json={"task_id": "job", "tool_id": "t"})
    async with asyncio.timeout(10):
        assert len((await waiting).json()["items"]) == 1
        while (await broker.client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.02)
