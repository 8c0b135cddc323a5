"""`broker cancel` and `broker retry`: changes of tasks by their ids."""

import httpx

from tests.conftest import Running
from tests.support.api import add_running_work, add_task, complete_work, get
from tests.support.cli import run
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER


async def test_cancel_ends_a_waiting_task_and_asks_the_tool_of_a_running_one_to_stop(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_task(http, "waits")
    pair = await add_running_work(http, "runs")
    assert await run(broker.url, "cancel", "waits", "runs") == (0, "", "")
    assert (await get(http, "/v1/tasks/waits"))["state"] == "cancelled"
    assert (await get(http, f"/v1/work/{pair.work}"))["cancel_requested"] is True
    assert await run(broker.url, "cancel", "--force", "runs") == (0, "", "")
    assert (await get(http, "/v1/tasks/runs"))["state"] == "cancelled"


async def test_retry_continues_after_a_task_that_cannot_be_retried(
    broker: Running, http: httpx.AsyncClient
) -> None:
    for task, tool in (("one", "t1"), ("two", "t2")):
        pair = await add_running_work(http, task, tool)
        await complete_work(http, pair.work, "failed", retry=False)
    result = await run(broker.url, "retry", "one", "nowhere", "two")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("Error: nowhere: ")
    assert [(await get(http, f"/v1/tasks/{task}"))["state"] for task in ("one", "two")] == ["available"] * 2
