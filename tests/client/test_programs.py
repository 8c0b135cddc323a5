"""The Python client against a real broker: the promises to programs of scientists."""

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest

from broker.client import (
    Assigner,
    AsyncBroker,
    AsyncJob,
    Broker,
    FailedError,
    Job,
    ProblemError,
    TaskCancelledError,
    TaskFailedError,
    Tool,
)
from broker.settings import Settings
from tests.conftest import Running, running_broker
from tests.support import api


@asynccontextmanager
async def at_work(*workers: Callable[[], Any]) -> AsyncIterator[None]:
    """Run tools and assigners while the block runs, and raise their errors in the test."""
    tasks = [asyncio.create_task(worker()) for worker in workers]
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


async def test_an_ordinary_function_can_be_a_handler(broker: Running, submitter: AsyncBroker) -> None:
    tool = Tool("doubler", {"can": ["double"]}, url=broker.url)

    @tool.handler
    def double(job: Job) -> int:
        job.report(0.5, "half way", {"seen": job.payload})
        return 2 * job.payload

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({"can": "double"}, 21)
        assert await handle.result(timeout=20) == 42
    record = (await broker.client.get(f"/v1/archive?task_id={handle.id}")).json()["items"][0]
    assert [(report["progress"], report["message"], report["data"]) for report in record["reports"]] == [
        (0.5, "half way", {"seen": 21})
    ]


async def test_an_async_handler_does_several_jobs_at_once(broker: Running, submitter: AsyncBroker) -> None:
    tool = Tool("meeting", {}, capacity=3, url=broker.url)
    all_there = asyncio.Barrier(3)

    @tool.handler
    async def meet(job: AsyncJob) -> str:
        await job.report(0.1)
        await all_there.wait()
        return job.task_id

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handles = [await submitter.submit({}) for _ in range(3)]
        results = await asyncio.gather(*(handle.result(timeout=20) for handle in handles))
    assert results == [handle.id for handle in handles]


async def test_an_exception_fails_the_attempt_and_a_retry_can_succeed(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("moody", {}, url=broker.url)

    @tool.handler
    def work(job: Job) -> str:
        if job.attempt == 1:
            raise ValueError("not today")
        return "fine"

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({}, retry_backoff_seconds=0.01)
        assert await handle.result(timeout=20) == "fine"
    records = (await broker.client.get(f"/v1/archive?task_id={handle.id}")).json()["items"]
    assert [record["outcome"] for record in records] == ["succeeded", "failed"]
    assert "ValueError: not today" in records[1]["error"]


async def test_a_failure_without_retry_fails_the_task_at_once(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("honest", {}, url=broker.url)

    @tool.handler
    def work(job: Job) -> None:
        raise FailedError("there is no such file", retry=False)

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({})
        with pytest.raises(TaskFailedError, match="there is no such file"):
            await handle.result(timeout=20)


async def test_waiting_for_a_cancelled_task_raises_an_error(broker: Running, submitter: AsyncBroker) -> None:
    handle = await submitter.submit({"nobody": "can"})
    waiting = asyncio.create_task(handle.result(timeout=20))
    assert (await broker.client.delete(f"/v1/tasks/{handle.id}")).status_code == 204
    with pytest.raises(TaskCancelledError):
        await waiting


async def test_waiting_too_long_for_a_result_raises_a_timeout_error(submitter: AsyncBroker) -> None:
    handle = await submitter.submit({"nobody": "can"})
    with pytest.raises(TimeoutError):
        await handle.result(timeout=0.1)


async def test_submitting_the_same_id_again_returns_the_same_task(submitter: AsyncBroker) -> None:
    first = await submitter.submit({"a": 1}, id="once")
    second = await submitter.submit({"a": 2}, id="once")
    assert first.task.created_at == second.task.created_at


async def test_a_synchronous_program_submits_and_gets_its_result(broker: Running) -> None:
    tool = Tool("echo", {}, url=broker.url)

    @tool.handler
    def echo(job: Job) -> Any:
        return job.payload

    def program() -> Any:
        with Broker(broker.url) as submitter:
            return submitter.submit({}, {"n": 1}).result(timeout=20)

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        assert await asyncio.to_thread(program) == {"n": 1}


async def test_a_refused_task_names_the_invalid_field(submitter: AsyncBroker) -> None:
    with pytest.raises(ProblemError) as refused:
        await submitter.submit({}, priority=99_999)
    assert refused.value.code == "validation_failed"
    assert [error.field for error in refused.value.errors] == ["priority"]


async def test_tools_and_assigners_survive_a_restart_of_the_broker(database: str) -> None:
    async with running_broker(Settings(database_url=database)) as first:
        port = int(first.url.rpartition(":")[2])
        tool = Tool("steady", {}, url=first.url)

        @tool.handler
        def work(job: Job) -> str:
            return "done"

        assigner = Assigner(url=first.url)
        async with at_work(tool.work, assigner.assign), AsyncBroker(first.url) as submitter:
            assert await (await submitter.submit({})).result(timeout=20) == "done"
            await first.stop()
            async with running_broker(Settings(database_url=database), port=port):
                assert await (await submitter.submit({})).result(timeout=20) == "done"


async def running(broker: Running, task: str) -> str:
    """Wait until a task runs, and return the id of its work."""
    async with asyncio.timeout(20):
        while True:
            page = await api.get(broker.client, "/v1/work", task_id=task, state="running")
            if page["items"]:
                return str(page["items"][0]["id"])
            await asyncio.sleep(0.01)


@pytest.fixture
def fast_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client watch its work at once instead of after some seconds."""
    monkeypatch.setattr("broker.client.job_run._WATCH_AFTER_SECONDS", 0.05)


@pytest.mark.usefixtures("fast_watching")
async def test_an_async_handler_is_cancelled_when_its_task_is_deleted(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("patient", {}, url=broker.url)

    @tool.handler
    async def work(job: AsyncJob) -> None:
        await asyncio.Event().wait()

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({})
        work_id = await running(broker, handle.id)
        assert (await broker.client.delete(f"/v1/tasks/{handle.id}")).status_code == 202
        with pytest.raises(TaskCancelledError):
            await handle.result(timeout=20)
    assert (await api.get(broker.client, f"/v1/archive/{work_id}"))["outcome"] == "cancelled"


@pytest.mark.usefixtures("fast_watching")
async def test_an_ordinary_handler_stops_when_its_work_is_cancelled(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("patient", {}, url=broker.url)
    stopped = threading.Event()

    @tool.handler
    def work(job: Job) -> None:
        try:
            while True:
                job.stop_if_cancelled()
                time.sleep(0.005)
        finally:
            stopped.set()

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({})
        work_id = await running(broker, handle.id)
        await broker.client.post(f"/v1/work/{work_id}/cancel", json={"requeue": False})
        with pytest.raises(TaskCancelledError):
            await handle.result(timeout=20)
    assert stopped.is_set()


async def test_the_response_to_a_report_cancels_the_job(broker: Running, submitter: AsyncBroker) -> None:
    tool = Tool("talkative", {}, url=broker.url)

    @tool.handler
    def work(job: Job) -> None:
        while not job.cancelled:
            job.report(message="on it")
        job.stop_if_cancelled()

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({})
        await running(broker, handle.id)
        await broker.client.delete(f"/v1/tasks/{handle.id}")
        with pytest.raises(TaskCancelledError):
            await handle.result(timeout=20)


@pytest.mark.usefixtures("fast_watching")
async def test_a_running_job_is_watched_without_reading_its_payload_again(
    broker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.client.test_foreign import running_proxy

    monkeypatch.setattr("broker.client.job_run._QUIET_SECONDS", 0.0)
    async with running_proxy(broker.url) as proxy, AsyncBroker(broker.url) as submitter:
        tool = Tool("chatty", {}, url=proxy.url)

        def watches() -> list[int]:
            return [size for method, path, size in proxy.passed if method == "GET" and "/v1/work/" in path]

        @tool.handler
        async def work(job: AsyncJob) -> None:
            while len(watches()) < 5:
                await job.report(data="x" * 10_000)

        async with at_work(tool.work, Assigner(url=broker.url).assign):
            handle = await submitter.submit({}, "x" * 2**20)
            await handle.result(timeout=20)
        assert max(watches()) < 200


@pytest.mark.usefixtures("fast_watching")
async def test_a_handler_is_cancelled_when_its_work_times_out(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("slow", {}, url=broker.url)
    stopped = asyncio.Event()

    @tool.handler
    async def work(job: AsyncJob) -> str:
        if job.attempt == 2:
            return "in time"
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return "never"

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({}, timeout_seconds=0.3, retry_backoff_seconds=0)
        assert await handle.result(timeout=20) == "in time"
        await asyncio.wait_for(stopped.wait(), 10)


async def test_a_stopped_tool_finishes_its_running_jobs_and_releases_the_rest(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("orderly", {}, url=broker.url)
    go_on = asyncio.Event()

    @tool.handler
    async def work(job: AsyncJob) -> str:
        await go_on.wait()
        return "finished"

    working = asyncio.create_task(tool.work())
    async with at_work(Assigner(url=broker.url).assign):
        handle = await submitter.submit({})
        await running(broker, handle.id)
    # The tool does not accept this work any more, so it is assigned but never started.
    await broker.client.patch("/v1/tools/orderly", json={"capacity": 2})
    working.cancel()
    other = await submitter.submit({})
    async with asyncio.timeout(20):
        while (await api.get(broker.client, "/v1/tools/orderly"))["state"] != "draining":
            await asyncio.sleep(0.01)
    assert not working.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert await handle.result(timeout=0) == "finished"
    assert (await api.get(broker.client, f"/v1/tasks/{other.id}"))["state"] == "available"


@pytest.mark.parametrize("kind", ["async", "ordinary", "stubborn"])
async def test_a_stopped_tool_with_on_stop_release_releases_its_running_jobs(
    broker: Running, submitter: AsyncBroker, kind: str
) -> None:
    tool = Tool("hasty", {}, url=broker.url, on_stop="release", grace_seconds=0.2)
    end = threading.Event()

    async def patiently(job: AsyncJob) -> None:
        await asyncio.Event().wait()

    def attentively(job: Job) -> None:
        while True:
            job.stop_if_cancelled()
            time.sleep(0.005)

    def stubbornly(job: Job) -> None:
        end.wait(60)

    tool.handler({"async": patiently, "ordinary": attentively, "stubborn": stubbornly}[kind])
    working = asyncio.create_task(tool.work())
    async with at_work(Assigner(url=broker.url).assign):
        handle = await submitter.submit({})
        work_id = await running(broker, handle.id)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(working, 20)
    end.set()
    assert (await api.get(broker.client, f"/v1/archive/{work_id}"))["outcome"] == "released"
    task = await api.get(broker.client, f"/v1/tasks/{handle.id}")
    assert (task["state"], task["attempt"]) == ("available", 0)


def circular_list() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (lambda work: object(), "could not be encoded as JSON"),
        (lambda work: "a\x00b", "the broker did not accept the result"),
        (lambda work: sys.exit(3), "SystemExit(3)"),
        (lambda work: next(iter(())), "StopIteration"),
        (lambda work: circular_list(), "could not be encoded as JSON"),
    ],
    ids=["no JSON", "refused", "exits", "stops", "circular list"],
)
async def test_any_misbehaviour_of_a_handler_ends_its_work_but_not_the_tool(
    broker: Running, submitter: AsyncBroker, handler: Callable[[Job], Any], message: str
) -> None:
    tool = Tool("odd", {}, url=broker.url)
    tool.handler(lambda job: handler(job) if job.payload else "alive")
    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({}, True, max_attempts=1)
        with pytest.raises(TaskFailedError) as failed:
            await handle.result(timeout=20)
        assert message in str(failed.value)
        assert await (await submitter.submit({})).result(timeout=20) == "alive"


async def test_an_async_handler_that_exits_ends_its_work_but_not_the_tool(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("odd", {}, url=broker.url)

    @tool.handler
    async def leave(job: AsyncJob) -> str:
        if job.payload:
            sys.exit(3)
        return "alive"

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({}, True, max_attempts=1)
        with pytest.raises(TaskFailedError, match=r"SystemExit\(3\)"):
            await handle.result(timeout=20)
        assert await (await submitter.submit({})).result(timeout=20) == "alive"


async def test_an_error_with_characters_that_cannot_be_stored_is_reported(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("odd", {}, url=broker.url)

    @tool.handler
    def fail(job: Job) -> None:
        raise FailedError("nul \0 and half a letter \ud800", retry=False)

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({}, max_attempts=3)
        with pytest.raises(TaskFailedError, match="nul \N{REPLACEMENT CHARACTER} and half a letter"):
            await handle.result(timeout=20)
    assert handle.task.attempt == 1


async def test_a_handler_is_cancelled_when_its_work_no_longer_exists(
    broker: Running, submitter: AsyncBroker, sql: asyncpg.Connection
) -> None:
    """For example, the broker returned with another database."""
    tool = Tool("t", {}, url=broker.url)
    begun, stopped = asyncio.Event(), asyncio.Event()

    @tool.handler
    async def hang(job: AsyncJob) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        await submitter.submit({})
        await asyncio.wait_for(begun.wait(), 20)
        for table in ("work", "tasks"):
            await sql.execute(f"delete from {table}")
        await sql.execute("update tools set load = 0")
        await asyncio.wait_for(stopped.wait(), 20)


async def test_a_handler_that_does_not_stop_keeps_its_place_in_the_capacity(
    broker: Running, submitter: AsyncBroker
) -> None:
    """The tool starts no second job, although the broker considers the only instrument free."""
    tool = Tool("stage", {}, url=broker.url)
    begun, stop = threading.Event(), threading.Event()

    @tool.handler
    def measure(job: Job) -> object:
        begun.set()
        return stop.wait(20)

    http = broker.client
    async with at_work(tool.work, Assigner(url=broker.url).assign):
        await submitter.submit({}, id="first")
        await asyncio.to_thread(begun.wait, 20)
        assert (await http.delete("/v1/tasks/first?force=true")).status_code == 204
        second = await submitter.submit({}, id="second")
        task = await api.wait_for_state(http, "/v1/tasks/second", "assigned")
        work = await api.get(http, f"/v1/work/{task['work_id']}", wait=0.5)
        assert work["state"] == "assigned"
        stop.set()
        assert await second.result(timeout=20) is True


class Scan(msgspec.Struct):
    file: str
    angles: list[float]


async def test_a_payload_that_does_not_match_the_type_fails_the_task_at_once(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("xrd-1", {}, url=broker.url)

    @tool.handler
    def fit(job: Job) -> float:
        return sum(job.payload_as(Scan).angles)

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        good = await submitter.submit({}, Scan("a.raw", [10, 20.5]))
        assert await good.result(timeout=20) == 30.5
        bad = await submitter.submit({}, {"file": "a.raw"})
        with pytest.raises(TaskFailedError, match="missing required field `angles`"):
            await bad.result(timeout=20)
    assert bad.task is not None
    assert bad.task.attempt == 1


async def test_one_invalid_result_does_not_affect_jobs_that_end_at_the_same_time(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("many", {}, capacity=8, url=broker.url)
    all_there = asyncio.Barrier(8)

    @tool.handler
    async def work(job: AsyncJob) -> str:
        await all_there.wait()
        return "\0" if job.payload == 5 else "fine"

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handles = await submitter.submit_many(
            {"needs": {}, "payload": n, "max_attempts": 1} for n in range(8)
        )
        ended = [handle async for handle in submitter.as_completed(handles, timeout=20)]
    states = {handle.id: handle.task and handle.task.state for handle in ended}
    assert [states[handle.id] for handle in handles] == ["succeeded"] * 5 + ["failed"] + ["succeeded"] * 2
