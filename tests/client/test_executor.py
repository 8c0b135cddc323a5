"""Executors, which run functions on tools like `concurrent.futures` runs them in processes."""

import asyncio
import concurrent.futures
import math
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import Struct

from broker.client import Assigner, Executor, TaskFailedError, Tool, functions
from tests.client.test_programs import at_work
from tests.conftest import Running
from tests.support import api
from tests.support.processes import clean_environment
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER


class Peak(Struct):
    at: float
    height: float


def measure(file: Path, *scales: float, upside_down: bool = False) -> Peak:
    """Check the types of the arguments, and return a value that is not plain JSON."""
    assert isinstance(file, Path)
    height = math.prod(scales)
    return Peak(at=len(file.name), height=-height if upside_down else height)


def untyped(value, **more):  # type: ignore[no-untyped-def]
    return [value, more]


def fail(message: str) -> None:
    raise ValueError(message)


go_on = threading.Event()


def wait_for_it() -> bool:
    return go_on.wait(20)


def unknown_to_the_tool() -> None:
    pass


@asynccontextmanager
async def laboratory(broker: Running) -> AsyncIterator[None]:
    tool = Tool.calling("worker-1", measure, untyped, fail, wait_for_it, capacity=4, url=broker.url)
    async with at_work(tool.work, Assigner(url=broker.url).assign):
        yield


async def ran(broker: Running, program: Callable[[Executor], Any], **options: Any) -> Any:
    """Return the result of a synchronous program with an executor, while a tool and an assigner run."""

    def run() -> Any:
        with Executor(url=broker.url, **options) as executor:
            return program(executor)

    async with laboratory(broker):
        return await asyncio.to_thread(run)


async def test_a_tool_converts_arguments_to_the_annotations_of_the_function(
    broker: Running, http: httpx.AsyncClient
) -> None:
    def program(executor: Executor) -> list[Any]:
        futures = [
            executor.submit(measure, Path("a.raw"), 2, 3.5),
            executor.submit(measure, Path("b.raw"), 2, upside_down=True),
            executor.submit(untyped, {"x": [1]}, more=None),
        ]
        return [future.result(20) for future in futures]

    assert await ran(broker, program) == [
        Peak(at=5, height=7), Peak(at=5, height=-2), [{"x": [1]}, {"more": None}],
    ]  # fmt: skip


async def test_an_executor_replaces_a_process_pool_in_map(broker: Running, http: httpx.AsyncClient) -> None:
    def program(pool: concurrent.futures.Executor) -> list[Any]:
        return [peak.at for peak in pool.map(measure, [Path("a"), Path("bb"), Path("ccc")], timeout=20)]

    assert await ran(broker, program) == [1, 2, 3]


async def test_many_calls_share_few_submissions(broker: Running, http: httpx.AsyncClient) -> None:
    def program(executor: Executor) -> list[Any]:
        return list(executor.map(untyped, range(150), timeout=60))

    assert await ran(broker, program, priority=3) == [[n, {}] for n in range(150)]


async def test_a_future_raises_the_error_of_its_function(broker: Running, http: httpx.AsyncClient) -> None:
    def program(executor: Executor) -> str:
        with pytest.raises(TaskFailedError) as failed:
            executor.submit(fail, "no disk").result(20)
        return str(failed.value)

    assert "ValueError: no disk" in await ran(broker, program, max_attempts=1)


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        (measure, ([],), "does not accept the arguments"),
        (measure, (), "does not accept the arguments"),
        (fail, ("a\0b",), r"items\[0\]\.payload"),
    ],
)
async def test_a_call_that_cannot_succeed_fails_at_the_first_attempt(
    broker: Running, http: httpx.AsyncClient, function: Callable[..., Any], args: Any, message: str
) -> None:
    def program(executor: Executor) -> None:
        good = executor.submit(untyped, 1)
        with pytest.raises(Exception, match=message):
            executor.submit(function, *args).result(20)
        assert good.result(20) == [1, {}]

    await ran(broker, program)


async def test_a_tool_calls_only_its_own_functions(broker: Running, http: httpx.AsyncClient) -> None:
    payload = {"function": "os:system", "args": ["true"]}
    async with laboratory(broker):
        await api.add_task(http, "a", needs={}, payload=payload)
        task = await api.wait_for_state(http, "/v1/tasks/a", "failed")
    assert task["attempt"] == 1
    assert "does not offer the function 'os:system'" in task["error"]


@pytest.mark.parametrize("function", [lambda: 1, len, asyncio.sleep, Path("x").exists])
async def test_a_function_that_other_programs_cannot_import_is_refused_at_once(
    function: Callable[..., Any],
) -> None:
    with (
        Executor(url="http://127.0.0.1:1") as executor,
        pytest.raises(ValueError, match=r"cannot import|`async def`"),
    ):
        executor.submit(function)


async def test_an_argument_without_a_json_form_is_refused_at_once() -> None:
    with (
        Executor(url="http://127.0.0.1:1") as executor,
        pytest.raises(TypeError, match="a value of type object has no JSON form"),
    ):
        executor.submit(untyped, object())


async def test_cancelling_a_future_cancels_its_task(broker: Running, http: httpx.AsyncClient) -> None:
    def program() -> list[concurrent.futures.Future[Any]]:
        with Executor(needs={"nobody": "can"}, url=broker.url) as executor:
            futures = [executor.submit(untyped, n) for n in range(3)]
            asyncio.run_coroutine_threadsafe(until_there_are(http, 3), loop).result(20)
            assert futures[0].cancel()
            executor.shutdown(cancel_futures=True)
        return futures

    loop = asyncio.get_running_loop()
    futures = await asyncio.to_thread(program)
    assert all(future.cancelled() for future in futures)
    assert len(concurrent.futures.wait(futures, timeout=0).done) == 3
    assert (await api.get(http, "/v1/tasks"))["items"] == []


async def test_a_future_that_is_cancelled_before_its_submission_leaves_no_task(
    broker: Running, http: httpx.AsyncClient
) -> None:
    def program() -> None:
        with Executor(needs={"nobody": "can"}, url=broker.url) as executor:
            for n in range(20):
                executor.submit(untyped, n).cancel()

    await asyncio.to_thread(program)
    assert (await api.get(http, "/v1/tasks"))["items"] == []


async def test_cancelling_a_future_asks_its_running_task_to_stop(
    broker: Running, http: httpx.AsyncClient
) -> None:
    def program(executor: Executor) -> None:
        future = executor.submit(wait_for_it)
        asyncio.run_coroutine_threadsafe(until_there_are(http, 1, "running"), loop).result(20)
        assert future.cancel()
        executor.shutdown()
        go_on.set()

    go_on.clear()
    loop = asyncio.get_running_loop()
    await ran(broker, program)


async def test_an_executor_that_is_shut_down_accepts_no_calls() -> None:
    executor = Executor(url="http://127.0.0.1:1")
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError):
        executor.submit(untyped, 1)


async def until_there_are(http: httpx.AsyncClient, count: int, state: str | None = None) -> None:
    async with asyncio.timeout(20):
        while (
            len((await http.get("/v1/tasks", params={"state": state} if state else {})).json()["items"])
            < count
        ):
            await asyncio.sleep(0.01)


async def test_at_most_max_workers_tasks_are_submitted_at_once(
    broker: Running, http: httpx.AsyncClient
) -> None:
    def program() -> None:
        with Executor(2, needs={"nobody": "can"}, url=broker.url) as executor:
            futures = [executor.submit(untyped, n) for n in range(5)]
            for left in (5, 4, 3):
                asyncio.run_coroutine_threadsafe(until_there_are(http, min(2, left)), loop).result(20)
                futures.pop(0).cancel()
            executor.shutdown(cancel_futures=True)

    loop = asyncio.get_running_loop()
    running = asyncio.create_task(asyncio.to_thread(program))
    most = 0
    while not running.done():
        most = max(most, len((await api.get(http, "/v1/tasks"))["items"]))
    await running
    # The program has waited until there were two tasks.
    assert most <= 2
    assert (await api.get(http, "/v1/tasks"))["items"] == []


async def test_an_unknown_option_is_refused_at_once() -> None:
    with pytest.raises(
        TypeError, match="unknown option 'priorty'; the options of a task are priority, not_b"
    ):
        Executor(priorty=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="max_workers"):
        Executor(max_workers=0)


async def test_leaving_an_executor_waits_for_its_calls_after_an_earlier_shutdown(
    broker: Running, http: httpx.AsyncClient
) -> None:
    def program(executor: Executor) -> concurrent.futures.Future[Any]:
        future = executor.submit(untyped, 1)
        executor.shutdown(wait=False)
        return future

    assert (await ran(broker, program)).done()


@pytest.mark.parametrize("end", ["", "executor.shutdown(wait=False)\n"])
async def test_a_program_waits_for_its_calls_before_it_exits(
    broker: Running, http: httpx.AsyncClient, end: str
) -> None:
    program = (
        "from broker.client import Executor\n"
        "from tests.client.test_executor import untyped\n"
        "executor = Executor()\n"
        "futures = [executor.submit(untyped, n) for n in range(20)]\n"
    )
    async with laboratory(broker):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program + end), env=clean_environment(BROKER_URL=broker.url)
        )
        assert await asyncio.wait_for(process.wait(), 30) == 0
    archived = await api.get(http, "/v1/archive", outcome="succeeded", limit=1000)
    assert len(archived["items"]) == 20


async def test_a_callback_can_shut_the_executor_down_without_a_deadlock(
    broker: Running, http: httpx.AsyncClient
) -> None:
    def program(executor: Executor) -> list[Any]:
        futures = [executor.submit(untyped, n) for n in range(5)]
        futures[0].add_done_callback(lambda _: executor.shutdown())
        return [future.result(20)[0] for future in futures]

    assert await ran(broker, program) == list(range(5))


async def test_an_executor_refuses_calls_after_a_fork_and_says_what_to_do(
    broker: Running, http: httpx.AsyncClient
) -> None:
    executor = Executor(url=broker.url)
    executor._loop._pid += 1  # as in a child process
    with pytest.raises(RuntimeError, match="before a fork"):
        executor.submit(untyped, 1)
    executor._loop._pid -= 1
    executor._futures.clear()
    await asyncio.to_thread(executor.shutdown)


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (Iterable[float], [1, 2], [1, 2]),
        (str | Path, "a", "a"),
        (os.PathLike, "a", Path("a")),
        (Path, "a", Path("a")),
        (list[Path], ["a"], [Path("a")]),
        (object, {"a": 1}, {"a": 1}),
        (Peak, {"at": 1, "height": 2}, Peak(at=1, height=2)),
    ],
)
async def test_an_argument_is_converted_to_its_annotation_where_json_allows_it(
    hint: Any, value: Any, expected: Any
) -> None:
    assert functions._converted(msgspec.Raw(msgspec.json.encode(value)), hint) == expected


async def test_a_result_that_contradicts_its_annotation_is_returned_unchanged() -> None:
    def announces() -> int:
        return 1

    assert functions.returned(announces, msgspec.Raw(b'"text"')) == "text"
