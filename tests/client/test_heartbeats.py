"""Heartbeats of tools: they survive blocking handlers and outages, and end when the tool is lost."""

import asyncio
import ctypes
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from broker.client import Assigner, AsyncBroker, AsyncJob, Connection, Job, Tool, ToolLostError
from broker.client.heartbeats import Heartbeats
from broker.client.http_client import http_client
from tests.client.test_connection import AWAY, BROKEN, HTML, refusal
from tests.client.test_programs import at_work
from tests.conftest import Serve
from tests.support import api
from tests.support.processes import serving, wait_until_ready

LEASE = {"lease_expires_at": "2026-01-01T00:00:00Z", "cancel": []}
KEY = "the-key-of-the-administrator"


@pytest.fixture
def frequent_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send heartbeats every half second, with the shortest lease of five seconds."""
    monkeypatch.setattr("broker.client.heartbeats._PER_LEASE", 10)
    monkeypatch.setattr("broker.client.heartbeats._BLOCKED_SECONDS", 0.05)


@pytest.fixture
def url(database: str) -> Iterator[str]:
    """Run a broker in another process, because the tests block the event loop of this one."""
    with serving(BROKER_DATABASE_URL=database) as (_, url):
        asyncio.run(wait_until_ready(url))
        yield url


def lease_is_renewed(url: str, times: int) -> bool:
    """Block this thread until a tool's lease was renewed this many times; return False after 20 s."""
    seen, end = set(), time.monotonic() + 20
    while len(seen) <= times and time.monotonic() < end:
        seen.add(httpx.get(f"{url}/v1/tools/t").json()["lease_expires_at"])
    return len(seen) > times


@pytest.mark.usefixtures("frequent_heartbeats")
def test_a_handler_that_blocks_the_event_loop_keeps_its_lease_and_is_logged(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def program() -> None:
        tool = Tool("t", {}, lease_seconds=5, url=url)

        @tool.handler
        async def measure_slowly(job: AsyncJob) -> bool:
            return lease_is_renewed(url, times=5)

        async with at_work(tool.work, Assigner(url=url).assign), AsyncBroker(url) as submitter:
            assert await (await submitter.submit({})).result(timeout=60)

    asyncio.run(program())
    warnings = [record.message for record in caplog.records if "blocks the event loop" in record.message]
    assert len(warnings) == 1
    assert warnings[0].startswith("the handler measure_slowly (")
    assert "ordinary function" in warnings[0]


@pytest.mark.usefixtures("frequent_heartbeats")
async def test_a_handler_that_holds_the_interpreter_is_logged(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await serve()
    tool = Tool("t", {}, lease_seconds=5, url=broker.url)

    @tool.handler
    def measure_in_c(job: Job) -> None:
        # Unlike a CDLL, a PyDLL does not release the GIL.
        ctypes.PyDLL(None).usleep(999_999)
        ctypes.PyDLL(None).usleep(999_999)
        end = time.monotonic() + 20
        while "did not run" not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)

    async with at_work(tool.work, Assigner(url=broker.url).assign), AsyncBroker(broker.url) as submitter:
        await (await submitter.submit({}, id="scan")).wait(timeout=60)
    warnings = [record.message for record in caplog.records if "did not run" in record.message]
    assert "measure_in_c (task scan)" in warnings[0]


@pytest.mark.usefixtures("frequent_heartbeats")
async def test_a_busy_tool_sends_heartbeats_and_a_waiting_tool_sends_none(serve: Serve) -> None:
    broker = await serve()
    tool, go_on = Tool("t", {}, lease_seconds=5, url=broker.url), asyncio.Event()
    beats: list[float] = []
    beat, needed = Heartbeats._beat, threading.Semaphore(0)

    def count(self: Heartbeats, http: httpx.Client) -> float:
        beats.append(time.monotonic())
        return beat(self, http)

    class Counted(Heartbeats):
        def __init__(self, *args: Any, is_needed: Callable[[], bool], **options: Any) -> None:
            def counted() -> bool:
                needed.release()
                return is_needed()

            super().__init__(*args, is_needed=counted, **options)

        _beat = count

    async def until_needed(times: int) -> None:
        for _ in range(times):
            assert await asyncio.to_thread(needed.acquire, timeout=20)

    @tool.handler
    async def work(job: AsyncJob) -> None:
        await go_on.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.client.tool.Heartbeats", Counted)
        async with at_work(tool.work), AsyncBroker(broker.url) as submitter:
            async with asyncio.timeout(20):
                while not api.waiting_count(broker):
                    await asyncio.sleep(0.01)
            await until_needed(1)
            beats.clear()
            await until_needed(5)
            assert not beats
            async with at_work(Assigner(url=broker.url).assign):
                handle = await submitter.submit({})
                await api.wait_for_state(broker.client, f"/v1/tasks/{handle.id}", "running")
                await until_needed(5)
                assert beats
                go_on.set()
                await handle.wait(timeout=20)


def a_client(*replies: httpx.Response | Exception) -> httpx.Client:
    """Return an HTTP client that gets these replies in turn. The last one repeats."""
    left = list(replies)

    def respond(_: httpx.Request) -> httpx.Response:
        reply = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(reply, Exception):
            raise reply
        # This client makes the stream of a response synchronous, so other tests need their own copy.
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

    transport = httpx.MockTransport(respond)
    return httpx.Client(base_url="http://broker", transport=transport)


def heartbeats(lease_seconds: float, url: str = "http://broker", **options: Any) -> Heartbeats:
    options = {"at_work": list, "is_needed": lambda: True, "cancel": list, **options}
    return Heartbeats(Connection(url), "t", "/v1/tools/t", lease_seconds, **options)


@pytest.mark.parametrize("lease_seconds", [5, 60, 86_400])
async def test_heartbeats_continue_every_third_of_the_lease_while_the_broker_is_unreachable(
    lease_seconds: float,
) -> None:
    """An attempt and the pause after it take at most a third of the lease, in spite of `Retry-After`."""
    later = {"Retry-After": "600"}
    for trouble in (
        httpx.ConnectError("no"), BROKEN, HTML, AWAY, httpx.Response(503, headers=later),
        refusal(503, "unavailable", **later), refusal(429, "too_many_requests", **later),
        refusal(403, "forbidden"), httpx.Response(302, headers={"Location": "/"}),
    ):  # fmt: skip
        beating = heartbeats(lease_seconds)
        with a_client(trouble) as client:
            pauses = [beating._beat(client) for _ in range(50)]
        assert max(pauses) <= lease_seconds / 3, trouble
        assert max(pauses[20:]) <= 11, trouble
        assert not beating.lost.done()


async def test_a_heartbeat_response_cancels_work() -> None:
    stopped: list[Any] = []
    id_ = "019f0000-0000-7000-8000-000000000000"
    beating = heartbeats(60, cancel=stopped.extend)
    with a_client(httpx.Response(200, json={**LEASE, "cancel": [id_]})) as client:
        assert await asyncio.to_thread(beating._beat, client) == 20
    async with asyncio.timeout(5):
        while not stopped:
            await asyncio.sleep(0)
    assert [str(each) for each in stopped] == [id_]


async def test_failing_heartbeats_and_their_recovery_are_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr("broker.client.heartbeats.time.monotonic", lambda: now)
    beating = heartbeats(60)
    trouble = httpx.Response(404, text="404 page not found")
    with a_client(trouble, trouble, trouble, httpx.Response(200, json=LEASE)) as client:
        for seconds in (20, 20, 20, 20):
            now += seconds
            beating._beat(client)
    failing, recovered = (record.message for record in caplog.records)
    assert failing.startswith(
        "no heartbeat reached the broker at http://broker for 40 s of a lease of 60 s: another server"
        " responded: 404 Not Found, text/plain"
    )
    assert recovered == "heartbeats reached the broker at http://broker again"


@asynccontextmanager
async def a_redirect(status: int) -> AsyncIterator[tuple[str, list[str]]]:
    """Run a server that redirects heartbeats to a new path; yield its URL and the list of its requests."""
    received: list[str] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request = head.partition(" HTTP/")[0]
        received.append(request)
        content = ""
        if request == "POST /new/v1/tools/t/heartbeat" and "authorization: bearer t\r\n" in head.lower():
            first, content = "200 OK", json.dumps(LEASE)
        elif request == "POST /v1/tools/t/heartbeat":
            first = f"{status} Moved\r\nLocation: {url}/new/v1/tools/t/heartbeat"
        else:
            first = "405 Method Not Allowed"
        head = f"HTTP/1.1 {first}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield url, received


@pytest.mark.parametrize("status", [307, 308])
async def test_a_heartbeat_follows_a_redirect_that_keeps_the_method(status: int) -> None:
    async with a_redirect(status) as (url, received):
        beating = heartbeats(60, url=url)
        with http_client(url, httpx.Client) as client:
            assert await asyncio.to_thread(beating._beat, client) == 20
    assert received == ["POST /v1/tools/t/heartbeat", "POST /new/v1/tools/t/heartbeat"]


@pytest.mark.parametrize("was_there", [False, True], ids=["never there", "there before"])
@pytest.mark.parametrize("status", [301, 302, 303])
async def test_a_heartbeat_logs_the_new_url_of_any_other_redirect(
    status: int, was_there: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_redirect(status) as (url, received):
        beating = heartbeats(60, url=url)
        beating._response_reader._has_responded = was_there
        beating._renewed_at -= 31
        with http_client(url, httpx.Client) as client:
            for _ in range(3):
                await asyncio.to_thread(beating._beat, client)
    assert received == ["POST /v1/tools/t/heartbeat"] * 3
    [line] = [record.message for record in caplog.records]
    assert f"{url}/new" in line
    assert "\n" not in line
    assert not beating.lost.done()


@pytest.mark.usefixtures("frequent_heartbeats")
@pytest.mark.parametrize("why", ["another registered", "it was deleted"])
async def test_a_lost_tool_ends_even_if_its_handler_continues(serve: Serve, why: str) -> None:
    broker = await serve(admin_key=KEY)
    broker.client.headers.update(api.bearer(KEY))
    tool = Tool("t", {}, lease_seconds=5, grace_seconds=0.1, url=broker.url, key=KEY)
    begun, cancelled, end = threading.Event(), threading.Event(), threading.Event()

    @tool.handler
    def stubborn(job: Job) -> None:
        begun.set()
        while not end.wait(0.01):
            if job.cancelled:
                cancelled.set()

    working = asyncio.create_task(tool.work())
    try:
        async with (
            at_work(Assigner(url=broker.url, key=KEY).assign),
            AsyncBroker(broker.url, key=KEY) as submitter,
        ):
            await submitter.submit({})
            assert await asyncio.to_thread(begun.wait, 20)
        if why == "it was deleted":
            assert (await broker.client.delete("/v1/tools/t?force=true")).status_code == 204
        else:
            await api.add_tool(broker.client, "t")
        await asyncio.wait([working], timeout=60)
        expected = r"Tool t no longer belongs to this program: (another program has|it was deleted)"
        with pytest.raises(ToolLostError, match=expected):
            working.result()
        assert cancelled.is_set()
        if why != "it was deleted":
            assert (await api.get(broker.client, "/v1/tools/t"))["state"] != "draining"
    finally:
        end.set()
        working.cancel()
