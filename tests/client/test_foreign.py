"""Responses that do not come from the broker: pages and redirects of proxies and other servers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from broker import errors
from broker.client import Assigner, AsyncBroker, AsyncJob, SettingError, Tool
from broker.client.response_reader import ForeignResponseError
from broker.schemas.problems import ERROR_CODES
from broker.schemas.tasks import Task
from broker.schemas.tools import Heartbeat
from tests.client.test_connection import GOOD, pauses, refusal, replying, route
from tests.client.test_programs import at_work
from tests.conftest import Running
from tests.http.test_openapi import every_error
from tests.support import api
from tests.support.cli import run
from tests.support.processes import names_in

__all__ = ["pauses", "route"]

PROBLEM_JSON = "application/problem+json"
PAGE = "404 page not found"
GATEWAY = {"type": "https://gateway.example/problem", "title": "t", "status": 404, "traceId": "1"}
PROBLEM = {"type": "t", "title": "t", "status": 404, "detail": "d", "instance": "/", "code": "task_not_found"}


@asynccontextmanager
async def running_proxy(url: str) -> AsyncIterator["Proxy"]:
    """Run a proxy in front of a broker. It can respond to requests itself."""
    proxy = Proxy(url)
    server = await asyncio.start_server(proxy.meet, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, httpx.AsyncClient(base_url=url, timeout=90) as proxy.http:
        yield proxy
        for each in proxy.open:
            each.cancel()
        await asyncio.gather(*proxy.open, return_exceptions=True)


class Proxy:
    """A proxy that passes one request of each connection to the broker.

    If `own` is set, the proxy responds with it instead, to requests whose path contains `only`. It refuses
    bodies of more than `most_bytes`, like nginx.
    """

    def __init__(self, behind: str) -> None:
        self.behind = behind
        self.url = ""
        self.http: httpx.AsyncClient
        self.own: bytes | None = None
        self.only = ""
        self.most_bytes: int | None = None
        self.requests: list[tuple[str, str]] = []
        self.passed: list[tuple[str, str, int]] = []
        self.own_responses = 0
        self.open: set[asyncio.Task[Any]] = set()

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        try:
            # The test or the client may end at any time.
            with contextlib.suppress(asyncio.CancelledError, OSError, EOFError, httpx.TransportError):
                await self._pass_on(reader, writer)
        finally:
            self.open.discard(task)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split()
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        content = await reader.readexactly(int(headers.get("Content-Length", 0)))
        self.requests.append((method, path))
        if self.own is not None and self.only in path:
            self.own_responses += 1
            writer.write(self.own)
        elif self.most_bytes is not None and len(content) > self.most_bytes:
            self.own_responses += 1
            writer.write(TOO_LARGE)
        else:
            passed = {
                name: headers[name] for name in ("Authorization", "Content-Type", "Prefer") if name in headers
            }
            response = await self.http.request(method, path, headers=passed, content=content)
            self.passed.append((method, path.partition("?")[0], len(response.content)))
            writer.write(f"HTTP/1.1 {response.status_code} X\r\nConnection: close\r\n".encode())
            for name in ("content-type", "retry-after"):
                if name in response.headers:
                    writer.write(f"{name}: {response.headers[name]}\r\n".encode())
            writer.write(f"Content-Length: {len(response.content)}\r\n\r\n".encode() + response.content)
        await writer.drain()

    async def until_own_responses(self, count: int) -> None:
        """Wait until the proxy has responded itself at least `count` times."""
        async with asyncio.timeout(20):
            while self.own_responses < count:
                await asyncio.sleep(0.01)


def text(status: str, content: str = PAGE, *headers: str) -> bytes:
    """Return a response of a proxy."""
    lines = [f"HTTP/1.1 {status}", "Connection: close", "Content-Type: text/plain", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", content]).encode()


TOO_LARGE = text("413 Request Entity Too Large", "<html><h1>413 Request Entity Too Large</h1></html>")


def test_the_client_knows_exactly_the_error_codes_of_the_broker() -> None:
    assert {error.code for error in every_error(errors.BrokerError)} == ERROR_CODES


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize(
    "foreign",
    [
        httpx.Response(404, text=PAGE),
        httpx.Response(401, html="<h1>Log in</h1>"),
        httpx.Response(403, json={"message": "blocked"}),
        httpx.Response(404, json=PROBLEM),
        httpx.Response(404, content=msgspec.json.encode(GATEWAY), headers={"Content-Type": PROBLEM_JSON}),
        refusal(409, "quota_exceeded"),
        httpx.Response(400),
        httpx.Response(200, html="<h1>Welcome</h1>"),
        httpx.Response(200, json={"status": "ok"}),
        httpx.Response(200),
        httpx.Response(304),
    ],
    ids=["text", "login page", "json", "no problem+json", "another's problem", "unknown code", "nothing",
         "welcome page", "another's json", "empty", "not modified"],
)  # fmt: skip
async def test_a_response_of_another_server_is_retried(
    pauses: list[float], caplog: pytest.LogCaptureFixture, foreign: httpx.Response
) -> None:
    lease = {"lease_expires_at": "2026-01-01T00:00:00Z", "cancel": []}
    good = httpx.Response(200, json=lease)
    async with replying(foreign, foreign, good) as (connection, requests):
        await connection.call("POST", "/v1/tools/t/heartbeat", Heartbeat)
    assert len(requests) == 3
    assert f"another server responded: {foreign.status_code}" in caplog.text


@pytest.mark.usefixtures("route")
async def test_the_client_logs_the_response_of_another_server(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    page = httpx.Response(404, html="<html>\n  <title>Not here\x1b[2J</title>\n" + "x" * 1000)
    async with replying(page, httpx.ConnectError("no"), httpx.ReadError(""), page, GOOD) as (connection, _):
        await connection.call("GET", "/", int)
    messages = [record.message for record in caplog.records]
    assert messages[0].startswith(
        "the broker at http://broker did not respond: another server responded: 404 Not Found,"
        " text/html; charset=utf-8, '<html> <title>Not here?[2J</title> xxx"
    )
    assert len(messages[0]) < 300
    assert [line.split(" http://broker ")[1].split(":")[0] for line in messages[1:]] == [
        "could not be reached",
        "did not respond",
        "responded again",
    ]


@pytest.mark.usefixtures("route")
async def test_the_error_at_the_end_of_patience_describes_the_response_of_another_server(
    pauses: list[float],
) -> None:
    async with replying(httpx.Response(404, text=PAGE), patience_seconds=0) as (connection, _):
        with pytest.raises(ForeignResponseError, match=r"404 Not Found, text/plain.*'404 page not found'"):
            await connection.call("GET", "/v1/tasks/a", Task)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_a_redirect_that_keeps_method_and_body_is_followed(status: int, method: str) -> None:
    moved = httpx.Response(status, headers={"Location": "https://broker/v1/there?x=1"})
    async with replying(moved, GOOD, key="k") as (connection, requests):
        assert await connection.call(method, "/v1/here", int, json={"a": 1}) == 1
    assert [(each.method, each.content) for each in requests] == [(method, b'{"a":1}')] * 2
    assert str(requests[1].url) == "https://broker/v1/there?x=1"


@pytest.mark.usefixtures("route")
async def test_the_key_is_never_sent_to_another_origin() -> None:
    moved = httpx.Response(307, headers={"Location": "http://other/v1/here"})
    async with replying(moved, GOOD, key="secret") as (connection, requests):
        await connection.call("GET", "/v1/here", int)
    assert [each.headers.get("Authorization") for each in requests] == ["Bearer secret", None]
    async with replying(moved, refusal(401, "unauthenticated"), key="secret") as (connection, requests):
        with pytest.raises(SettingError, match=r"redirects to http://other\. .* set --url or BROKER_URL"):
            await connection.call("GET", "/v1/here", int)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize(
    ("status", "location", "named"),
    [
        (301, "https://new.example/v1/tasks/a", "https://new.example."),
        (302, "https://login.example/?back=1", "https://login.example."),
        (303, "/elsewhere", "/elsewhere."),
        (308, "ftp://new.example/v1/tasks/a", "ftp://new.example."),
        (307, "http://broker:99999/v1/tasks/a", "http://broker:99999."),
        (307, "/v1/tasks/a", "http://broker redirects to itself."),
        (307, "https://broker/v1/tasks/a", "https://broker."),
    ],
)
async def test_any_other_redirect_raises_an_error_of_one_line_with_the_new_url(
    status: int, location: str, named: str
) -> None:
    moved = httpx.Response(status, headers={"Location": location})
    async with replying(moved) as (connection, requests):
        with pytest.raises(SettingError) as error:
            await connection.call("GET", "/v1/tasks/a", Task)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert len(requests) <= 6


@pytest.mark.usefixtures("route")
async def test_the_error_of_a_redirect_names_the_new_base_path() -> None:
    moved = httpx.Response(301, headers={"Location": "https://broker/base/v1/tasks/a%20b?x=1"})
    async with replying(moved, url="http://broker/base") as (connection, _):
        with pytest.raises(SettingError, match=r"redirects to https://broker/base\. .* set --url"):
            await connection.call("GET", "/v1/tasks/a%20b", Task)


@pytest.mark.usefixtures("route")
async def test_a_temporary_redirect_after_a_good_response_is_retried(pauses: list[float]) -> None:
    login = httpx.Response(302, headers={"Location": "https://login.example/"})
    async with replying(GOOD, login, login, GOOD) as (connection, requests):
        assert await connection.call("GET", "/v1/tasks/a", int) == 1
        assert await connection.call("GET", "/v1/tasks/a", int) == 1
    assert len(requests) == 4


@pytest.mark.parametrize(
    "headers", [(), ("Content-Encoding: gzip",)], ids=["a page", "a page that is no gzip"]
)
async def test_no_finished_work_is_lost_while_a_proxy_responds_for_the_broker(
    broker: Running, headers: tuple[str, ...]
) -> None:
    """The tool, the assigner and the submitter all get the proxy's page at the worst moments."""
    finish = asyncio.Event()
    async with running_proxy(broker.url) as proxy, AsyncBroker(proxy.url) as submitter:
        tool = Tool("steady", {}, url=proxy.url)

        @tool.handler
        async def work(job: AsyncJob) -> str:
            await finish.wait()
            return f"done {job.payload}"

        async with at_work(tool.work, Assigner(url=proxy.url).assign):
            first = await submitter.submit({}, 1)
            waiting = asyncio.create_task(first.result(timeout=60))
            await api.wait_for_state(broker.client, f"/v1/tasks/{first.id}", "running")
            proxy.own = text("404 Not Found", PAGE, *headers)
            finish.set()
            second = asyncio.create_task(submitter.submit({}, 2))
            await proxy.until_own_responses(6)
            assert any(path.endswith("/complete") for _, path in proxy.requests)
            proxy.own = None
            assert await waiting == "done 1"
            assert await (await second).result(timeout=60) == "done 2"
    assert [record["outcome"] for record in await api.get_records(broker.client, first.id)] == ["succeeded"]


async def test_every_command_describes_the_response_of_another_server(tmp_path: Any) -> None:
    commands = [
        ["explain", "job"], ["cancel", "job"], ["retry", "job"], ["top", "--once"], ["archive", "export"],
        ["archive", "export", "-o", str(tmp_path / "archive.ndjson")],
    ]  # fmt: skip
    for response in (text("404 Not Found"), text("200 OK", "<h1>Welcome</h1>")):
        async with running_proxy("http://127.0.0.1:9") as proxy:
            proxy.own = response
            ended = await asyncio.gather(*(run(proxy.url, *command) for command in commands))
        for command, (status, out, err) in zip(commands, ended, strict=True):
            assert status == 1, command
            assert out == "", command
            assert "another server responded: " in err, command
            assert "Traceback" not in err, command
    assert names_in(tmp_path) == []


async def test_every_command_reports_a_redirect_in_one_line(tmp_path: Any) -> None:
    commands = [
        ["explain", "job"], ["cancel", "job"], ["retry", "job"], ["top", "--once"], ["archive", "export"],
        ["submit", "--needs", "1"], ["assign"], ["tool", "--id", "t", "--skills", "1", "--", "true"],
    ]  # fmt: skip
    async with running_proxy("http://127.0.0.1:9") as proxy:
        proxy.own = text("301 Moved Permanently", "", "Location: https://new.example/")
        ended = await asyncio.gather(*(run(proxy.url, *command) for command in commands))
    for command, (status, out, err) in zip(commands, ended, strict=True):
        assert (status, out) == (1, ""), command
        last = err.strip().splitlines()[-1]
        assert "redirects to https://new.example. " in last, command
        assert "set --url or BROKER_URL to that URL." in last, command
        assert "Traceback" not in err, command
