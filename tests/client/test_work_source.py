"""The requests of a tool: how it waits for work and completes it with few of them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.client import Assigner, AsyncBroker, AsyncJob, Connection, Tool, ToolLostError
from tests.client.test_foreign import Proxy, running_proxy
from tests.client.test_programs import at_work
from tests.conftest import Running
from tests.support import api

WITHIN = 20


@pytest.fixture
async def proxy(broker: Running) -> AsyncIterator[Proxy]:
    """Return a proxy in front of the broker, which notes the requests of the tool."""
    async with running_proxy(broker.url) as proxy:
        yield proxy


@pytest.fixture
async def submitter(broker: Running) -> AsyncIterator[AsyncBroker]:
    async with AsyncBroker(broker.url) as submitter:
        yield submitter


def an_echo(url: str, **options: Any) -> Tool:
    """Return a tool whose result is the payload."""
    tool = Tool("t", {}, url=url, **options)

    @tool.handler
    async def echo(job: AsyncJob) -> Any:
        return job.payload

    return tool


def sent(proxy: Proxy) -> list[str]:
    """Return the last segments of the paths of the requests, without the registration."""
    return [path.partition("?")[0].rpartition("/")[2] for _, path in proxy.requests[1:]]


async def test_a_job_needs_only_two_requests_while_there_is_work(
    broker: Running, submitter: AsyncBroker, proxy: Proxy
) -> None:
    handles = await submitter.submit_many({"needs": {}, "payload": number} for number in range(5))
    async with at_work(an_echo(proxy.url).work, Assigner(url=broker.url).assign):
        assert [await handle.result(timeout=WITHIN) for handle in handles] == list(range(5))
        assert sent(proxy) == ["work", *["start", "complete"] * 5]
    assert "/v1/work/complete" not in [path for _, path in proxy.requests[:12]]


async def test_a_tool_stops_at_once_while_it_waits_for_the_next_work(
    broker: Running, submitter: AsyncBroker, caplog: pytest.LogCaptureFixture
) -> None:
    working = asyncio.create_task(an_echo(broker.url).work())
    async with at_work(Assigner(url=broker.url).assign):
        handle = await submitter.submit({}, 1)
        assert await handle.result(timeout=WITHIN) == 1
    working.cancel()
    await asyncio.wait([working], timeout=WITHIN)
    assert working.cancelled()
    # No job runs any more.
    assert "stopping" not in caplog.text
    assert (await api.get(broker.client, "/v1/tools/t"))["state"] == "draining"
    assert [each["outcome"] for each in await api.get_records(broker.client, handle.id)] == ["succeeded"]


async def test_a_tool_that_waits_for_the_next_work_sends_no_heartbeats(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool, needed = an_echo(broker.url), []
    heartbeats = tool._heartbeats

    def note(*args: Any) -> Any:
        made = heartbeats(*args)
        needed.append(made._is_needed)
        return made

    tool._heartbeats = note  # type: ignore[method-assign]
    async with at_work(tool.work, Assigner(url=broker.url).assign):
        assert await (await submitter.submit({}, 1)).result(timeout=WITHIN) == 1
        [is_needed] = needed
        assert not is_needed()


async def test_a_tool_that_is_lost_while_it_waits_for_the_next_work_ends(
    broker: Running, submitter: AsyncBroker
) -> None:
    working = asyncio.create_task(an_echo(broker.url).work())
    async with at_work(Assigner(url=broker.url).assign):
        assert await (await submitter.submit({}, 1)).result(timeout=WITHIN) == 1
    assert (await broker.client.delete("/v1/tools/t?force=true")).status_code == 204
    with pytest.raises(ToolLostError, match="no longer belongs to this program"):
        await asyncio.wait_for(working, WITHIN)


async def test_the_response_to_a_completion_never_contains_a_large_record(
    broker: Running, submitter: AsyncBroker, proxy: Proxy
) -> None:
    """The record contains payload, result and reports."""
    tool = Tool("t", {}, url=proxy.url)

    @tool.handler
    async def work(job: AsyncJob) -> Any:
        if job.payload == "report":
            await job.report(data="x" * 100_000)
        return "x" * 100_000 if job.payload == "result" else None

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        for payload in ("x" * 100_000, "report", "result"):
            await (await submitter.submit({}, payload)).result(timeout=WITHIN)
    completions = [size for _, path, size in proxy.passed if path.endswith("/complete")]
    assert len(completions) == 3
    assert max(completions) < 1_000


async def test_a_tool_with_a_higher_capacity_completes_jobs_in_batches(
    broker: Running, submitter: AsyncBroker, proxy: Proxy
) -> None:
    handles = await submitter.submit_many({"needs": {}, "payload": number} for number in range(5))
    async with at_work(an_echo(proxy.url, capacity=2).work, Assigner(url=broker.url).assign):
        assert [await handle.result(timeout=WITHIN) for handle in handles] == list(range(5))
    assert {path for _, path in proxy.requests if path.endswith("complete")} == {"/v1/work/complete"}


async def test_short_jobs_that_start_together_share_a_completion(
    broker: Running, submitter: AsyncBroker, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.client.completions._MOST_HELD_SECONDS", WITHIN)
    handles = await submitter.submit_many({"needs": {}, "payload": number} for number in range(8))
    async with at_work(an_echo(proxy.url, capacity=8).work, Assigner(url=broker.url).assign):
        assert [await handle.result(timeout=WITHIN) for handle in handles] == list(range(8))
    assert sent(proxy).count("complete") == 1


async def test_a_start_without_a_response_does_not_delay_other_completions(
    broker: Running, submitter: AsyncBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, is_hanging = Connection.call, True

    async def hang(self: Connection, method: str, path: str, *args: Any, **options: Any) -> Any:
        nonlocal is_hanging
        if path.endswith("/start") and is_hanging:
            is_hanging = False
            await asyncio.Event().wait()
        return await call(self, method, path, *args, **options)

    monkeypatch.setattr(Connection, "call", hang)
    handles = await submitter.submit_many({"needs": {}, "payload": number} for number in range(2))
    working = asyncio.create_task(an_echo(broker.url, capacity=2, on_stop="release", grace_seconds=0).work())
    async with at_work(Assigner(url=broker.url).assign):
        async for handle in submitter.as_completed(handles, timeout=WITHIN):
            assert handle.task is not None
            assert handle.task.state == "succeeded"
            break
    working.cancel()
    await asyncio.wait([working], timeout=WITHIN)


async def test_a_refused_completion_is_sent_again_without_waiting(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("t", {}, url=broker.url)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @tool.handler
    async def work(job: AsyncJob) -> str:
        begun.set()
        await go_on.wait()
        return "late"

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({})
        await asyncio.wait_for(begun.wait(), WITHIN)
        await handle.cancel(force=True)
        go_on.set()
        begun.clear()
        assert await (await submitter.submit({})).result(timeout=WITHIN) == "late"
    [record] = await api.get_records(broker.client, handle.id)
    assert (record["outcome"], record["late"]["outcome"]) == ("cancelled", "succeeded")
