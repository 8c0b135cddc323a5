"""The client's connection: what it repeats, how long it waits, when it gives up."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.client import Connection, ProblemError
from broker.client.retrying import is_repeatable, retry_after
from broker.schemas.candidates import Pair

Answer = httpx.Response | Exception


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; they take no time."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr("broker.client.connection.asyncio.sleep", note)
    return pauses


@asynccontextmanager
async def answering(*answers: Answer, **given: Any) -> AsyncIterator[tuple[Connection, list[httpx.Request]]]:
    """A connection whose calls are answered so, one after the other; the last answer stays."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        found = answers[min(len(asked), len(answers)) - 1]
        if isinstance(found, Exception):
            raise found
        return found

    async with Connection(given.pop("url", "http://broker"), **given) as connection:
        connection._http._transport = httpx.MockTransport(answer)
        yield connection, asked


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    """What the broker itself refuses with."""
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
LOST = httpx.ReadError("the answer was lost")
REFUSED = httpx.ConnectError("nobody listens")
AWAY = refusal(503, "unavailable", **{"Retry-After": "2"})


async def test_a_call_goes_on_until_it_is_answered(slept: list[float]) -> None:
    async with answering(REFUSED, LOST, httpx.Response(502), BROKEN, HTML, AWAY, GOOD) as (connection, asked):
        assert await connection.call("GET", "/v1/tasks/a", int) == 1
    assert len(asked) == 7


async def test_pauses_grow_by_chance_and_are_as_long_as_the_broker_asks(slept: list[float]) -> None:
    async with answering(*[REFUSED] * 30, AWAY, GOOD) as (connection, _):
        await connection.call("GET", "/", int)
    assert all(0 <= pause <= min(0.1 * 2**number, 10) for number, pause in enumerate(slept[:30]))
    assert max(slept[10:30]) > 1
    assert slept[30] >= 2


async def test_what_would_be_made_anew_is_not_sent_again_after_its_answer_was_lost(
    slept: list[float],
) -> None:
    for trouble in (LOST, AWAY, httpx.Response(502), httpx.Response(404, text="404 page not found")):
        async with answering(trouble, GOOD) as (connection, asked):
            with pytest.raises((httpx.TransportError, ProblemError)):
                await connection.call("POST", "/v1/tasks", int, json={"needs": 1})
        assert len(asked) == 1


async def test_it_is_sent_again_where_nothing_of_it_was_heard(slept: list[float]) -> None:
    for trouble in (REFUSED, httpx.Response(429), refusal(429, "too_many_requests")):
        async with answering(trouble, GOOD) as (connection, asked):
            assert await connection.call("POST", "/v1/tasks", int, json={"needs": 1}) == 1
        assert len(asked) == 2


async def test_patience_ends(slept: list[float]) -> None:
    async with answering(REFUSED, patience_seconds=0) as (connection, asked):
        with pytest.raises(httpx.ConnectError):
            await connection.call("GET", "/", int)
        assert len(asked) == 1
    async with answering(AWAY, patience_seconds=0) as (connection, _):
        with pytest.raises(ProblemError):
            await connection.call("GET", "/", int)


async def test_a_refusal_is_told_at_once(slept: list[float]) -> None:
    async with answering(refusal(404, "task_not_found")) as (connection, asked):
        with pytest.raises(ProblemError):
            await connection.call("GET", "/", int)
    assert len(asked) == 1
    assert slept == []


async def test_an_answer_is_waited_for_as_long_as_the_broker_may_wait_and_longer() -> None:
    async with answering(GOOD) as (connection, asked):
        await connection.call("GET", "/", int, wait=60)
    assert asked[0].extensions["timeout"]["read"] > 60


async def test_that_the_broker_is_away_and_back_is_told_once(
    slept: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    async with answering(REFUSED, REFUSED, REFUSED, GOOD) as (connection, _):
        await connection.call("GET", "/", int)
    assert [record.message.partition(" http")[2].split(" ", 1)[1] for record in caplog.records] == [
        "cannot be reached: ConnectError('nobody listens'); going on trying",
        "is back",
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
def test_only_what_makes_nothing_new_may_be_repeated(method: str, path: str, body: Any, safe: bool) -> None:
    assert is_repeatable(method, path, None if body is None else msgspec.json.encode(body)) is safe


@given(st.text())
def test_any_retry_after_is_a_pause(text: str) -> None:
    header = text.encode("ascii", "ignore").decode().translate(dict.fromkeys(range(32)))
    assert retry_after(httpx.Response(503, headers={"Retry-After": header})) >= 0


async def test_a_wait_for_a_result_ends_in_time_though_the_broker_is_gone() -> None:
    async with answering(REFUSED) as (connection, _):
        began = time.monotonic()
        with pytest.raises(httpx.ConnectError):
            await connection.call("GET", "/", int, patience_seconds=0.3)
        assert time.monotonic() - began < 5


async def test_patience_bounds_a_call_that_gets_no_answer_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.client.connection._LAST_RESPONSE_SECONDS", 0.1)
    async with asyncio.timeout(5), Connection("http://broker", patience_seconds=0.1) as connection:

        async def silence(_: httpx.Request) -> httpx.Response:
            await asyncio.sleep(60)
            raise AssertionError

        connection._http._transport = httpx.MockTransport(silence)
        with pytest.raises(httpx.ReadTimeout):
            await connection.call("GET", "/v1/tasks/a", int)
