"""The Python client against a real broker: what a scientist's program relies on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker.client import (
    Assigner,
    AsyncBroker,
    AsyncWork,
    Broker,
    FailedError,
    ProblemError,
    TaskCancelledError,
    TaskFailedError,
    Tool,
    Work,
    contains,
)
from broker.settings import Settings
from tests.conftest import Running, a_broker


@asynccontextmanager
async def at_work(*doings: Callable[[], Any]) -> AsyncIterator[None]:
    """Tools and assigners, working for as long as the block runs; their errors are the test's."""
    tasks = [asyncio.create_task(doing()) for doing in doings]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for error in results:
            if isinstance(error, Exception):
                raise error


@pytest.fixture
async def submitter(broker: Running) -> AsyncIterator[AsyncBroker]:
    async with AsyncBroker(broker.url) as submitter:
        yield submitter


async def test_an_ordinary_function_does_work(broker: Running, submitter: AsyncBroker) -> None:
    tool = Tool("doubler", {"can": ["double"]}, url=broker.url)

    @tool.handler
    def double(work: Work) -> int:
        work.report(0.5, "half way", {"seen": work.payload})
        return 2 * work.payload

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({"can": "double"}, 21)
        assert await handle.result(timeout=20) == 42
    record = (await broker.client.get(f"/v1/archive?task_id={handle.id}")).json()["items"][0]
    assert [(report["progress"], report["message"], report["data"]) for report in record["reports"]] == [
        (0.5, "half way", {"seen": 21})
    ]


async def test_an_async_function_does_many_works_at_once(broker: Running, submitter: AsyncBroker) -> None:
    tool = Tool("meeting", {}, capacity=3, url=broker.url)
    all_there = asyncio.Barrier(3)

    @tool.handler
    async def meet(work: AsyncWork) -> str:
        await work.report(0.1)
        await all_there.wait()
        return work.task_id

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handles = [await submitter.submit({}) for _ in range(3)]
        results = await asyncio.gather(*(handle.result(timeout=20) for handle in handles))
    assert results == [handle.id for handle in handles]


async def test_an_exception_is_a_failed_attempt_and_the_next_may_succeed(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("moody", {}, url=broker.url)

    @tool.handler
    def work(work: Work) -> str:
        if work.attempt == 1:
            raise ValueError("not today")
        return "fine"

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({}, retry_backoff_seconds=0.01)
        assert await handle.result(timeout=20) == "fine"
    records = (await broker.client.get(f"/v1/archive?task_id={handle.id}")).json()["items"]
    assert [record["outcome"] for record in records] == ["succeeded", "failed"]
    assert "ValueError: not today" in records[1]["error"]


async def test_a_failure_that_no_attempt_can_mend_is_told_at_once(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("honest", {}, url=broker.url)

    @tool.handler
    def work(work: Work) -> None:
        raise FailedError("there is no such file", retry=False)

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({})
        with pytest.raises(TaskFailedError, match="there is no such file"):
            await handle.result(timeout=20)


async def test_a_cancelled_task_is_told(broker: Running, submitter: AsyncBroker) -> None:
    handle = await submitter.submit({"nobody": "can"})
    waiting = asyncio.create_task(handle.result(timeout=20))
    assert (await broker.client.delete(f"/v1/tasks/{handle.id}")).status_code == 204
    with pytest.raises(TaskCancelledError):
        await waiting


async def test_a_result_that_does_not_come_in_time_is_a_timeout(submitter: AsyncBroker) -> None:
    handle = await submitter.submit({"nobody": "can"})
    with pytest.raises(TimeoutError):
        await handle.result(timeout=0.1)


async def test_the_same_id_is_the_same_task(submitter: AsyncBroker) -> None:
    first = await submitter.submit({"a": 1}, id="once")
    second = await submitter.submit({"a": 2}, id="once")
    assert first.task.created_at == second.task.created_at


async def test_a_synchronous_program_submits(broker: Running) -> None:
    tool = Tool("echo", {}, url=broker.url)

    @tool.handler
    def echo(work: Work) -> Any:
        return work.payload

    def program() -> Any:
        with Broker(broker.url) as submitter:
            return submitter.submit({}, {"n": 1}).result(timeout=20)

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        assert await asyncio.to_thread(program) == {"n": 1}


async def test_a_refusal_says_which_field(submitter: AsyncBroker) -> None:
    with pytest.raises(ProblemError) as refused:
        await submitter.submit({}, priority=99_999)
    assert refused.value.code == "validation_failed"
    assert [error.field for error in refused.value.errors] == ["priority"]


async def test_tools_and_assigners_outlive_a_restart_of_the_broker(database: str) -> None:
    async with a_broker(Settings(database_url=database)) as first:
        port = int(first.url.rpartition(":")[2])
        tool = Tool("steady", {}, url=first.url)

        @tool.handler
        def work(work: Work) -> str:
            return "done"

        assigner = Assigner(url=first.url)
        async with at_work(tool.work, assigner.assign), AsyncBroker(first.url) as submitter:
            assert await (await submitter.submit({})).result(timeout=20) == "done"
            await first.stop()
            async with a_broker(Settings(database_url=database), port=port):
                assert await (await submitter.submit({})).result(timeout=20) == "done"


@pytest.mark.parametrize(
    ("skills", "needs", "met"),
    [
        ({"can": ["a", "b"]}, {"can": "a"}, True),
        ({"can": ["a", "b"]}, {"can": ["b", "a"]}, True),
        ({"can": ["a", "b"]}, {"can": "c"}, False),
        ({"can": "a"}, {}, True),
        ({}, {"can": "a"}, False),
        ({"gpu": {"memory": 8, "kind": "x"}}, {"gpu": {"kind": "x"}}, True),
        ([{"a": 1, "b": 2}, 3], {"a": 1}, True),
        ("a", "a", True),
        (1, 1.0, True),
        (None, None, True),
        ("a", ["a"], False),
    ],
)
def test_skills_contain_needs(skills: Any, needs: Any, met: bool) -> None:
    assert contains(skills, needs) is met
