"""Proxies that refuse large bodies: the client stops its retries, and the error names the setting."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.client import Assigner, AsyncBroker, AsyncJob, Executor, Job, ProblemError, TaskFailedError, Tool
from broker.client.errors import ProxyLimitError
from broker.schemas.tools import Heartbeat
from tests.client.test_connection import GOOD, pauses, replying, route
from tests.client.test_foreign import TOO_LARGE, running_proxy
from tests.client.test_programs import at_work
from tests.conftest import Running, Serve
from tests.containers import nginx
from tests.support import api
from tests.support.cli import run
from tests.support.engines import requires_program

__all__ = ["pauses", "route"]

MIB = 2**20
LARGE = "x" * 2 * MIB


@pytest.fixture(params=["a proxy", pytest.param("nginx", marks=requires_program("nginx"))])
async def url(request: pytest.FixtureRequest, broker: Running, tmp_path: Path) -> AsyncIterator[str]:
    """Return the URL of the broker behind a proxy with the default limit of nginx, 1 MiB."""
    if request.param == "nginx":
        address = broker.url.removeprefix("http://")
        front = nginx.Nginx(tmp_path, [address, address])
        front.leave_out("client_max_body_size")
        async with front.running():
            yield front.url
    else:
        async with running_proxy(broker.url) as proxy:
            proxy.most_bytes = MIB
            yield proxy.url


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.client.job_run._FIRST_PAUSE_SECONDS", 0.01)


def names_the_limit(text: str | None, url: str) -> bool:
    """Return whether a text names the proxy, the size of the body and the setting."""
    pattern = rf"A proxy at {url} refused the request because its body has ([\d,]+) bytes\."
    match = re.search(pattern, text or "")
    return (
        match is not None
        and 2 * MIB < int(match[1].replace(",", "")) < 2 * MIB + 500
        and "in nginx the setting is `client_max_body_size`." in (text or "")
    )


async def test_a_result_that_a_proxy_refuses_for_its_size_fails_the_task_once(
    url: str, broker: Running, caplog: pytest.LogCaptureFixture
) -> None:
    tool = Tool("t", {}, url=url)
    runs: list[Any] = []

    @tool.handler
    def work(job: Job) -> str:
        runs.append(job.payload)
        return LARGE if job.payload == "large" else "small"

    async with at_work(tool.work, Assigner(url=url).assign), AsyncBroker(url) as submitter:
        large = await submitter.submit({}, "large", max_attempts=3)
        with pytest.raises(TaskFailedError) as failed:
            await large.result(timeout=30)
        assert await (await submitter.submit({}, "small")).result(timeout=30) == "small"
    assert runs == ["large", "small"]
    assert f"The result has {2 * MIB + 2:,} bytes." in str(failed.value)
    [record] = await api.get_records(broker.client, large.id)
    assert record["outcome"] == "failed"
    assert names_the_limit(record["error"], url)
    assert caplog.text.count("its completion was refused") == 1


async def test_a_result_is_accepted_if_the_limit_is_increased_in_time(broker: Running) -> None:
    async with running_proxy(broker.url) as proxy, AsyncBroker(proxy.url) as submitter:
        proxy.own, proxy.only = TOO_LARGE, "/work/complete"
        tool = Tool("t", {}, url=proxy.url)
        tool.handler(lambda work: LARGE)
        async with at_work(tool.work, Assigner(url=broker.url).assign):
            handle = await submitter.submit({})
            await proxy.until_own_responses(2)
            proxy.own = None
            assert await handle.result(timeout=30) == LARGE


async def test_a_report_that_a_proxy_refuses_for_its_size_is_sent_without_its_data(
    url: str, broker: Running, caplog: pytest.LogCaptureFixture
) -> None:
    tool = Tool("t", {}, url=url)

    @tool.handler
    async def work(job: AsyncJob) -> int:
        await job.report(0.1, "large", LARGE)
        await job.report(0.2, "large", LARGE)
        await job.report(0.3, "small", "x")
        return job.reports_refused

    async with at_work(tool.work, Assigner(url=url).assign), AsyncBroker(url) as submitter:
        handle = await submitter.submit({})
        assert await handle.result(timeout=30) == 0
    [record] = await api.get_records(broker.client, handle.id)
    reports = [(each["progress"], each["message"], each["data"]) for each in record["reports"]]
    assert reports == [(0.1, "large", None), (0.2, "large", None), (0.3, "small", "x")]
    [line] = [record.message for record in caplog.records if record.name == "broker.client.job"]
    expected = f"task {handle.id}: a report was sent without its data of {2 * MIB + 2:,} bytes: A proxy"
    assert line.startswith(expected)
    assert names_the_limit(line, url)


async def test_a_submission_that_a_proxy_refuses_for_its_size_raises_an_error(url: str) -> None:
    async with AsyncBroker(url) as submitter:
        with pytest.raises(ProblemError) as one:
            await submitter.submit({}, LARGE)
        with pytest.raises(ProblemError) as many:
            await submitter.submit_many([{"needs": {}, "payload": LARGE}])
    for error in (one.value, many.value):
        assert error.code == "payload_too_large"
        assert names_the_limit(str(error), url)
    with Executor(url=url) as executor, pytest.raises(ProblemError) as called:
        await asyncio.wait_for(asyncio.wrap_future(executor.submit(len_of, LARGE)), 30)
    assert names_the_limit(str(called.value), url)


def len_of(text: str) -> int:
    return len(text)


async def test_submit_names_the_limit_of_a_proxy(url: str, tmp_path: Path) -> None:
    payload = tmp_path / "payload.json"
    payload.write_text(f'"{LARGE}"')
    status, out, err = await run(url, "submit", "--needs", "1", "--payload", f"@{payload}")
    assert (status, out) == (1, "")
    assert names_the_limit(err, url)


async def test_many_tasks_are_submitted_through_a_proxy_with_the_default_limit(url: str) -> None:
    tasks = ({"needs": {}, "payload": "x" * 3_000} for _ in range(1_000))
    async with AsyncBroker(url) as submitter:
        assert len(await submitter.submit_many(tasks)) == 1_000


async def test_the_brokers_own_size_limit_is_handled_like_that_of_a_proxy(serve: Serve) -> None:
    broker = await serve(max_body_bytes=10_000)
    tool = Tool("t", {}, url=broker.url)

    @tool.handler
    async def work(job: AsyncJob) -> str:
        await job.report(0.1, "large", "x" * 20_000)
        await job.report(0.2, "small", "x")
        return "x" * 20_000

    async with at_work(tool.work, Assigner(url=broker.url).assign), AsyncBroker(broker.url) as submitter:
        handle = await submitter.submit({})
        with pytest.raises(TaskFailedError, match=r"The result has 20,002 bytes\."):
            await handle.result(timeout=30)
    [record] = await api.get_records(broker.client, handle.id)
    reports = [(each["message"], each["data"]) for each in record["reports"]]
    assert reports == [("large", None), ("small", "x")]


@pytest.mark.usefixtures("route")
async def test_the_limit_of_a_proxy_is_named_without_the_password_in_the_url() -> None:
    async with replying(httpx.Response(413), url="http://user:secret@broker") as (connection, requests):
        with pytest.raises(ProxyLimitError, match="A proxy at http://broker refused") as error:
            await connection.call("POST", "/v1/tasks", int, json={"id": "a"})
    assert len(requests) == 1
    assert "secret" not in str(error.value)


@pytest.mark.usefixtures("route")
async def test_a_413_for_a_request_without_a_body_is_retried(pauses: list[float]) -> None:
    good = httpx.Response(200, json={"lease_expires_at": "2026-01-01T00:00:00Z", "cancel": []})
    async with replying(httpx.Response(413), GOOD, good) as (connection, requests):
        await connection.call("POST", "/v1/tools/t/heartbeat", Heartbeat)
    assert len(requests) == 3
