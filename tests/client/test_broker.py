"""Submit tasks from Python, wait for them, and use their handles."""

import asyncio
import concurrent.futures
import pickle
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from broker.client import (
    AsyncBroker,
    AsyncHandle,
    Broker,
    ProblemError,
    SettingError,
    TaskCancelledError,
    TaskFailedError,
)
from broker.client import (
    async_broker as module,
)
from broker.client.long_poll_limit import LongPollLimit
from tests.conftest import Running
from tests.support import api
from tests.support.api import add_tool, assign, complete_work
from tests.support.processes import clean_environment
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER


@pytest_asyncio.fixture(loop_scope="module")
async def submitter(broker: Running, http: httpx.AsyncClient) -> AsyncIterator[AsyncBroker]:
    async with AsyncBroker(broker.url) as submitter:
        yield submitter


async def end(http: httpx.AsyncClient, task: str, outcome: str = "succeeded", **fields: Any) -> None:
    """Complete a task as a tool does."""
    await add_tool(http, "t", capacity=100)
    work = await assign(http, task, "t")
    await complete_work(http, work["id"], outcome, **fields)


async def test_many_tasks_are_submitted_in_few_requests_and_in_order(
    submitter: AsyncBroker, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ITEMS", 4)
    handles = await submitter.submit_many({"id": f"n{n}", "needs": {}, "payload": n} for n in range(10))
    assert [handle.id for handle in handles] == [f"n{n}" for n in range(10)]
    assert [handle.existed for handle in handles] == [False] * 10
    assert (await api.get(http, "/v1/tasks/n7"))["payload"] == 7


async def test_submitting_many_tasks_marks_those_that_existed_before(submitter: AsyncBroker) -> None:
    await submitter.submit({}, id="a")
    handles = await submitter.submit_many([{"id": "a", "needs": {}}, {"needs": {}}])
    assert [handle.existed for handle in handles] == [True, False]
    assert handles[1].id


async def test_large_payloads_are_split_over_several_requests(
    submitter: AsyncBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 2_000)
    handles = await submitter.submit_many({"needs": {}, "payload": "x" * 900} for _ in range(7))
    assert len({handle.id for handle in handles}) == 7


async def test_an_invalid_task_is_named_by_its_position_among_all_tasks(
    submitter: AsyncBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ITEMS", 4)
    tasks = [{"id": f"n{n}", "needs": {}, "priority": 99_999 if n == 6 else 0} for n in range(10)]
    with pytest.raises(ProblemError) as refused:
        await submitter.submit_many(tasks)
    assert [error.field for error in refused.value.errors] == ["items[6].priority"]


async def test_map_yields_results_in_the_order_of_the_payloads(
    submitter: AsyncBroker, http: httpx.AsyncClient
) -> None:
    async def work() -> None:
        await add_tool(http, "t", capacity=3)
        tasks: list[Any] = []
        while len(tasks) < 3:
            tasks = (await api.get(http, "/v1/tasks", state="available"))["items"]
        for task in reversed(tasks):
            await end(http, task["id"], result=2 * task["payload"])

    working = asyncio.create_task(work())
    assert [result async for result in submitter.map({}, [1, 2, 3], timeout=20)] == [2, 4, 6]
    await working


async def test_as_completed_yields_tasks_as_they_end_with_any_outcome(
    submitter: AsyncBroker, http: httpx.AsyncClient
) -> None:
    first, second, third = await submitter.submit_many(
        [{"id": name, "needs": {}, "max_attempts": 1} for name in ("first", "second", "third")]
    )
    ended = submitter.as_completed([first, second, third], timeout=20)
    await end(http, "second", result=[1.5])
    assert await anext(ended) is second
    await end(http, "third", "failed", error="no disk")
    assert await anext(ended) is third
    await first.cancel()
    assert await anext(ended) is first
    assert await anext(ended, None) is None
    assert [handle.task and handle.task.state for handle in (first, second, third)] == [
        "cancelled", "succeeded", "failed",
    ]  # fmt: skip
    assert await second.result_as(list[float]) == [1.5]
    with pytest.raises(msgspec.ValidationError):
        await second.result_as(str)
    with pytest.raises(TaskFailedError, match="no disk"):
        await third.result()
    with pytest.raises(TaskCancelledError):
        await first.result()


async def test_waiting_for_many_tasks_raises_a_timeout_error(submitter: AsyncBroker) -> None:
    handles = await submitter.submit_many([{"needs": {}}] * 3)
    with pytest.raises(TimeoutError):
        [handle async for handle in submitter.as_completed(handles, timeout=0.2)]
    with pytest.raises(TimeoutError):
        [result async for result in submitter.map({}, [1], timeout=0.1)]


async def test_waiting_for_many_tasks_holds_few_requests_open_and_misses_no_end(
    broker: Running, submitter: AsyncBroker, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.client.long_poll_limit._SHORT_SECONDS", 0.05)
    limit = LongPollLimit(2)
    handles = [
        AsyncHandle(submitter.connection, limit, handle.id)
        for handle in await submitter.submit_many([{"id": f"n{n}", "needs": {}} for n in range(12)])
    ]
    ended = submitter.as_completed(handles, timeout=20)
    await end(http, "n11")
    assert (await anext(ended)).id == "n11"
    assert len(broker.server.service.waiters) < 8
    await ended.aclose()


async def test_a_handle_retries_and_explains_its_task_and_reads_its_records(
    submitter: AsyncBroker, http: httpx.AsyncClient
) -> None:
    handle = await submitter.submit({}, 1, max_attempts=1)
    assert (await handle.explain()).state == "available"
    await end(http, handle.id, "failed", error="no disk")
    assert (await handle.wait(20)).state == "failed"
    assert (await handle.retry()).state == "available"
    assert [record.error for record in await handle.records()] == ["no disk"]
    await handle.cancel()
    with pytest.raises(ProblemError) as refused:
        await handle.retry()
    assert refused.value.code == "task_ended"


async def test_a_handle_of_an_id_waits_for_a_task_that_another_program_submitted(
    submitter: AsyncBroker, http: httpx.AsyncClient
) -> None:
    await submitter.submit({}, id="a")
    await end(http, "a", result="done")
    assert await submitter.handle("a").result(20) == "done"
    with pytest.raises(ProblemError) as refused:
        await submitter.handle("b").result(20)
    assert refused.value.code == "task_not_found"


async def test_the_synchronous_broker_offers_all_methods(broker: Running, http: httpx.AsyncClient) -> None:
    def program() -> Iterator[Any]:
        with Broker(broker.url) as submitter:
            results = submitter.map({}, [5], timeout=20)
            yield "mapped"
            yield list(results)
            many = submitter.submit_many([{"id": "x", "needs": {}}, {"id": "y", "needs": {}}])
            yield "submitted"
            yield [handle.id for handle in submitter.as_completed(many, timeout=20)]
            yield submitter.handle("x").result(20)
            waiting = submitter.submit({}, id="z", priority=3)
            yield waiting.explain().verdict
            waiting.cancel()
            yield waiting.wait().state
            yield [record.outcome for record in waiting.records()]

    def step() -> Any:
        return next(steps)

    steps = program()
    assert await asyncio.to_thread(step) == "mapped"
    [task] = (await api.get(http, "/v1/tasks"))["items"]
    await end(http, task["id"], result=task["payload"])
    assert await asyncio.to_thread(step) == [5]
    assert await asyncio.to_thread(step) == "submitted"
    await end(http, "y")
    await end(http, "x", result=[1])
    assert sorted(await asyncio.to_thread(step)) == ["x", "y"]
    assert await asyncio.to_thread(step) == [1]
    assert await asyncio.to_thread(step) in ("no_assigner", "waiting_for_assigner", "no_tool_available")
    assert await asyncio.to_thread(step) == "cancelled"
    assert await asyncio.to_thread(step) == ["cancelled"]
    assert await asyncio.to_thread(next, steps, None) is None


async def test_an_invalid_url_or_key_is_refused_at_once() -> None:
    with pytest.raises(SettingError, match="http://"):
        Broker("localhost:8000")
    with pytest.raises(SettingError, match="port 70000 does not exist"):
        Broker("http://127.0.0.1:70000")
    with pytest.raises(SettingError, match="BROKER_KEY"):
        Broker(key="two\nlines")


async def test_closing_a_broker_ends_the_waits_in_other_threads(
    broker: Running, http: httpx.AsyncClient
) -> None:
    submitter = await asyncio.to_thread(Broker, broker.url)
    handle = await asyncio.to_thread(submitter.submit, {}, id="a")
    waiting = asyncio.create_task(asyncio.to_thread(handle.result))
    await asyncio.sleep(0)
    while submitter._loop._loop.is_running() and handle.asynchronous._limit._wanted == 0:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(submitter.close)
    submitter.close()
    with pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        await asyncio.wait_for(waiting, 10)
    with pytest.raises(RuntimeError, match="closed"):
        submitter.submit({})


async def test_a_program_that_abandons_an_iteration_can_exit(
    broker: Running, http: httpx.AsyncClient
) -> None:
    program = (
        "from broker.client import Broker\n"
        "broker = Broker()\n"
        "never, quick = broker.submit({}), broker.submit({}, id='quick')\n"
        "quick.cancel()\n"
        "ended = broker.as_completed([never, quick])\n"
        "print(next(ended).id)\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        env=clean_environment(BROKER_URL=broker.url),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, printed) == (0, b"quick\n")


async def test_errors_of_tasks_can_be_pickled(submitter: AsyncBroker) -> None:
    handle = await submitter.submit({})
    await handle.cancel()
    with pytest.raises(TaskCancelledError) as cancelled:
        await handle.result(20)
    again = pickle.loads(pickle.dumps(cancelled.value))
    assert (type(again), again.task.id) == (TaskCancelledError, handle.id)


@pytest.mark.parametrize("url", ["http://[::1", "http://x:port"])
async def test_a_malformed_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(SettingError):
        AsyncBroker(url)


async def test_the_client_does_not_use_a_proxy_for_loopback_addresses(
    broker: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with AsyncBroker(broker.url) as submitter:
        assert (await submitter.submit({}, id="a")).id == "a"
    monkeypatch.setenv("HTTP_PROXY", "nonsense://x")
    with pytest.raises(SettingError, match="cannot connect to"):
        AsyncBroker("http://broker.laboratory:8000")
