"""Submitting from Python: many tasks at once, and what can be done with them afterwards."""

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
    broker as module,
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


async def end(http: httpx.AsyncClient, task: str, outcome: str = "succeeded", **said: Any) -> None:
    """A tool does a task."""
    await add_tool(http, "t", capacity=100)
    work = await assign(http, task, "t")
    await complete_work(http, work["id"], outcome, **said)


async def test_many_tasks_are_submitted_in_few_calls_and_in_order(
    submitter: AsyncBroker, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ITEMS", 4)
    handles = await submitter.submit_many({"id": f"n{n}", "needs": {}, "payload": n} for n in range(10))
    assert [handle.id for handle in handles] == [f"n{n}" for n in range(10)]
    assert [handle.existed for handle in handles] == [False] * 10
    assert (await api.get(http, "/v1/tasks/n7"))["payload"] == 7


async def test_what_was_submitted_before_is_told_apart(submitter: AsyncBroker) -> None:
    await submitter.submit({}, id="a")
    handles = await submitter.submit_many([{"id": "a", "needs": {}}, {"needs": {}}])
    assert [handle.existed for handle in handles] == [True, False]
    assert handles[1].id


async def test_big_payloads_share_calls_only_as_far_as_they_fit(
    submitter: AsyncBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 2_000)
    handles = await submitter.submit_many({"needs": {}, "payload": "x" * 900} for _ in range(7))
    assert len({handle.id for handle in handles}) == 7


async def test_a_bad_one_is_named_by_its_place_among_all(
    submitter: AsyncBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ITEMS", 4)
    tasks = [{"id": f"n{n}", "needs": {}, "priority": 99_999 if n == 6 else 0} for n in range(10)]
    with pytest.raises(ProblemError) as refused:
        await submitter.submit_many(tasks)
    assert [error.field for error in refused.value.errors] == ["items[6].priority"]


async def test_results_come_in_the_order_of_the_payloads(
    submitter: AsyncBroker, http: httpx.AsyncClient
) -> None:
    async def work() -> None:
        await add_tool(http, "t", capacity=3)
        found = []
        while len(found) < 3:
            found = (await api.get(http, "/v1/tasks", state="available"))["items"]
        for task in reversed(found):
            await end(http, task["id"], result=2 * task["payload"])

    working = asyncio.create_task(work())
    assert [result async for result in submitter.map({}, [1, 2, 3], timeout=20)] == [2, 4, 6]
    await working


async def test_tasks_are_told_as_they_end_however_they_do(
    submitter: AsyncBroker, http: httpx.AsyncClient
) -> None:
    first, second, third = await submitter.submit_many(
        [{"id": name, "needs": {}, "max_attempts": 1} for name in ("first", "second", "third")]
    )
    told = submitter.as_completed([first, second, third], timeout=20)
    await end(http, "second", result=[1.5])
    assert await anext(told) is second
    await end(http, "third", "failed", error="no disk")
    assert await anext(told) is third
    await first.cancel()
    assert await anext(told) is first
    assert await anext(told, None) is None
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


async def test_who_waits_in_vain_for_many_is_told_when_the_time_is_over(submitter: AsyncBroker) -> None:
    handles = await submitter.submit_many([{"needs": {}}] * 3)
    with pytest.raises(TimeoutError):
        [handle async for handle in submitter.as_completed(handles, timeout=0.2)]
    with pytest.raises(TimeoutError):
        [result async for result in submitter.map({}, [1], timeout=0.1)]


async def test_however_many_are_waited_for_few_wait_at_the_broker_and_all_are_told(
    broker: Running, submitter: AsyncBroker, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.client.long_poll_limit._SHORT_SECONDS", 0.05)
    limit = LongPollLimit(2)
    handles = [
        AsyncHandle(submitter.connection, limit, handle.id)
        for handle in await submitter.submit_many([{"id": f"n{n}", "needs": {}} for n in range(12)])
    ]
    told = submitter.as_completed(handles, timeout=20)
    await end(http, "n11")
    assert (await anext(told)).id == "n11"
    assert len(broker.server.service.waiters) < 8
    await told.aclose()


async def test_a_task_can_be_retried_explained_and_read_about(
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


async def test_a_task_that_was_submitted_elsewhere_is_waited_for_by_its_id(
    submitter: AsyncBroker, http: httpx.AsyncClient
) -> None:
    await submitter.submit({}, id="a")
    await end(http, "a", result="done")
    assert await submitter.handle("a").result(20) == "done"
    with pytest.raises(ProblemError) as refused:
        await submitter.handle("b").result(20)
    assert refused.value.code == "task_not_found"


async def test_a_synchronous_program_does_all_of_it(broker: Running, http: httpx.AsyncClient) -> None:
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
    found = (await api.get(http, "/v1/tasks"))["items"]
    await end(http, found[0]["id"], result=found[0]["payload"])
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


async def test_what_is_no_url_or_no_key_is_told_at_once() -> None:
    with pytest.raises(SettingError, match="http://"):
        Broker("localhost:8000")
    with pytest.raises(SettingError, match="no port 70000"):
        Broker("http://127.0.0.1:70000")
    with pytest.raises(SettingError, match="BROKER_KEY"):
        Broker(key="two\nlines")


async def test_who_waits_on_a_broker_that_is_closed_is_told(broker: Running, http: httpx.AsyncClient) -> None:
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


async def test_who_stops_early_ends_the_waiting_and_the_program_ends(
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


async def test_errors_of_tasks_go_from_process_to_process(submitter: AsyncBroker) -> None:
    handle = await submitter.submit({})
    await handle.cancel()
    with pytest.raises(TaskCancelledError) as cancelled:
        await handle.result(20)
    again = pickle.loads(pickle.dumps(cancelled.value))
    assert (type(again), again.task.id) == (TaskCancelledError, handle.id)


@pytest.mark.parametrize("url", ["http://[::1", "http://x:port"])
async def test_what_cannot_be_called_is_told_at_once(url: str) -> None:
    with pytest.raises(SettingError):
        AsyncBroker(url)


async def test_a_proxy_is_not_asked_for_what_is_on_this_machine(
    broker: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with AsyncBroker(broker.url) as submitter:
        assert (await submitter.submit({}, id="a")).id == "a"
    monkeypatch.setenv("HTTP_PROXY", "nonsense://x")
    with pytest.raises(SettingError, match="cannot be called"):
        AsyncBroker("http://broker.laboratory:8000")
