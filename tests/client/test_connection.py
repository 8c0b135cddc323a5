"""Connections of the client: which requests they retry, how long they wait, and when they stop."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.client import Connection, ProblemError
from broker.client.http_client import clients
from broker.client.retrying import is_repeatable, retry_after
from broker.client.server_connection import Reply
from broker.schemas.candidates import Pair

pytestmark = pytest.mark.usefixtures("route")

Scripting = httpx.Response | Exception


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Skip all pauses of the client, and record their lengths."""
    lengths: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        lengths.append(seconds)
        await sleep(0)

    monkeypatch.setattr("broker.client.connection.asyncio.sleep", note)
    return lengths


@pytest.fixture(params=["transport", "httpx"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Send the requests over the transport of the client, or over httpx as with a proxy."""
    if request.param == "httpx":
        monkeypatch.setattr("broker.client.connection.clients", lambda url: (clients(url)[0], None))
    return request.param


class Scripted:
    """A transport that gets its responses from a function, which notes the requests."""

    def __init__(
        self, respond: Callable[[httpx.Request], httpx.Response], requests: list[httpx.Request]
    ) -> None:
        self._respond = respond
        self._requests = requests

    async def send(self, head: bytes, content: bytes, silent_seconds: float, *, is_repeatable: bool) -> Reply:
        first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        method, target, _ = first.split()
        extensions = {"timeout": {"read": silent_seconds}}
        url = f"http://{headers['Host']}{target}"
        request = httpx.Request(method, url, headers=headers, content=content, extensions=extensions)
        response = self._respond(request)
        if response.has_redirect_location:
            # httpx sends the request again, and the server responds in the same way.
            self._requests.pop()
        return Reply(
            response.status_code, response.reason_phrase.encode(), response.headers.raw, response.content
        )

    async def close(self) -> None:
        pass


@asynccontextmanager
async def replying(
    *replies: Scripting, **options: Any
) -> AsyncIterator[tuple[Connection, list[httpx.Request]]]:
    """Open a connection that gets these replies in turn, and yield it with the list of its requests.

    The last reply repeats.
    """
    requests: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        reply = replies[min(len(requests), len(replies)) - 1]
        if isinstance(reply, Exception):
            raise reply
        return reply

    async with Connection(options.pop("url", "http://broker"), **options) as connection:
        connection._http._transport = httpx.MockTransport(respond)
        if connection._transport is not None:
            connection._transport = Scripted(respond, requests)
        yield connection, requests


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    """Return a response with which the broker itself refuses a request."""
    problem = {
        "type": "about:blank",
        "title": "t",
        "status": status,
        "detail": "d",
        "instance": "/",
        "code": code,
    }
    headers = {"Content-Type": "application/problem+json", **headers}
    return httpx.Response(status, headers=headers, content=msgspec.json.encode(problem))


BROKEN = httpx.Response(500)
HTML = httpx.Response(200, text="<html>Welcome</html>")
GOOD = httpx.Response(200, json=1)
LOST = httpx.ReadError("the response was lost")
REFUSED = httpx.ConnectError("nobody listens")
AWAY = refusal(503, "unavailable", **{"Retry-After": "2"})


async def test_a_request_is_retried_until_the_broker_responds(pauses: list[float]) -> None:
    async with replying(REFUSED, LOST, httpx.Response(502), BROKEN, HTML, AWAY, GOOD) as (
        connection,
        requests,
    ):
        assert await connection.call("GET", "/v1/tasks/a", int) == 1
    assert len(requests) == 7


async def test_pauses_grow_with_jitter_and_respect_retry_after(pauses: list[float]) -> None:
    async with replying(*[REFUSED] * 30, AWAY, GOOD) as (connection, _):
        await connection.call("GET", "/", int)
    assert all(0 <= pause <= min(0.1 * 2**number, 10) for number, pause in enumerate(pauses[:30]))
    assert max(pauses[10:30]) > 1
    assert pauses[30] >= 2


async def test_a_request_that_creates_something_without_an_id_is_not_repeated_after_a_lost_response(
    pauses: list[float],
) -> None:
    for trouble in (LOST, AWAY, httpx.Response(502), httpx.Response(404, text="404 page not found")):
        async with replying(trouble, GOOD) as (connection, requests):
            with pytest.raises((httpx.TransportError, ProblemError)):
                await connection.call("POST", "/v1/tasks", int, json={"needs": 1})
        assert len(requests) == 1


async def test_a_request_that_did_not_reach_the_broker_is_always_repeated(pauses: list[float]) -> None:
    for trouble in (REFUSED, httpx.Response(429), refusal(429, "too_many_requests")):
        async with replying(trouble, GOOD) as (connection, requests):
            assert await connection.call("POST", "/v1/tasks", int, json={"needs": 1}) == 1
        assert len(requests) == 2


async def test_retries_end_with_the_patience(pauses: list[float]) -> None:
    async with replying(REFUSED, patience_seconds=0) as (connection, requests):
        with pytest.raises(httpx.ConnectError):
            await connection.call("GET", "/", int)
        assert len(requests) == 1
    async with replying(AWAY, patience_seconds=0) as (connection, _):
        with pytest.raises(ProblemError):
            await connection.call("GET", "/", int)


async def test_a_refusal_is_raised_without_a_retry(pauses: list[float]) -> None:
    async with replying(refusal(404, "task_not_found")) as (connection, requests):
        with pytest.raises(ProblemError):
            await connection.call("GET", "/", int)
    assert len(requests) == 1
    assert pauses == []


async def test_the_read_timeout_is_longer_than_the_wait_at_the_broker() -> None:
    async with replying(GOOD) as (connection, requests):
        await connection.call("GET", "/", int, wait=60)
    assert requests[0].extensions["timeout"]["read"] > 60


async def test_an_outage_and_its_end_are_logged_once(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    async with replying(REFUSED, REFUSED, REFUSED, GOOD) as (connection, _):
        await connection.call("GET", "/", int)
    assert [record.message.partition(" http")[2].split(" ", 1)[1] for record in caplog.records] == [
        "could not be reached: ConnectError('nobody listens'); retrying",
        "responded again",
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "safe"),
    [
        ("GET", "/v1/tasks", None, True),
        ("DELETE", "/v1/tasks/a", None, True),
        ("PATCH", "/v1/tools/t", {"capacity": 2}, True),
        ("POST", "/v1/tasks", {"needs": 1}, False),
        ("POST", "/v1/tasks", {"needs": 1, "id": None}, False),
        ("POST", "/v1/tasks", {"needs": 1, "id": "a"}, True),
        ("POST", "/v1/tasks/batch", {"items": [{"id": "a"}, {"id": "b"}]}, True),
        ("POST", "/v1/tasks/batch", {"items": [{"id": "a"}, {}]}, False),
        ("POST", "/v1/tools", {"skills": 1}, False),
        ("POST", "/v1/tools", {"skills": 1, "id": "t"}, True),
        ("POST", "/v1/tools", {"skills": msgspec.Raw(b"1.10"), "id": "t"}, True),
        ("POST", "/v1/tasks/batch", {"items": [msgspec.Raw(b'{"id": "a"}')]}, True),
        ("POST", "/v1/tasks", [1], False),
        ("POST", "/v1/tools/t/heartbeat", None, True),
        ("POST", "/v1/work", Pair(task_id="a", tool_id="t"), True),
        ("POST", "/v1/work/batch", {"items": []}, True),
        ("POST", "/v1/work/x/start", None, True),
        ("POST", "/v1/work/x/reports", {"progress": 1}, False),
        ("POST", "/v1/work/x/reports", {"id": "x"}, True),
        ("POST", "/v1/work/x/reports", None, False),
        ("POST", "/v1/work/x/complete", {"outcome": "failed"}, True),
    ],
)
def test_only_requests_that_create_nothing_new_are_repeatable(
    method: str, path: str, body: Any, safe: bool
) -> None:
    assert is_repeatable(method, path, None if body is None else msgspec.json.encode(body)) is safe


@given(st.text())
def test_any_retry_after_header_results_in_a_pause(text: str) -> None:
    header = text.encode("ascii", "ignore").decode().translate(dict.fromkeys(range(32)))
    assert retry_after(httpx.Headers({"Retry-After": header})) >= 0


async def test_a_wait_for_a_result_ends_in_time_while_the_broker_is_unreachable() -> None:
    async with replying(REFUSED) as (connection, _):
        began = time.monotonic()
        with pytest.raises(httpx.ConnectError):
            await connection.call("GET", "/", int, patience_seconds=0.3)
        assert time.monotonic() - began < 5


async def test_patience_limits_a_request_without_any_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.client.connection._LAST_RESPONSE_SECONDS", 0.1)
    async with asyncio.timeout(5), Connection("http://broker", patience_seconds=0.1) as connection:

        async def silence(*_: Any, **__: Any) -> httpx.Response:
            await asyncio.sleep(60)
            raise AssertionError

        connection._http._transport = httpx.MockTransport(silence)
        if connection._transport is not None:
            connection._transport.send = silence
        with pytest.raises(httpx.ReadTimeout):
            await connection.call("GET", "/v1/tasks/a", int)
