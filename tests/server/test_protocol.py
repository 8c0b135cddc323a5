"""What is unusual, too much or no HTTP at all: over bare sockets, on the loop that serves."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
import uvloop

from tests.conftest import Running
from tests.support import api, wire
from tests.support.shared import SHARED_BROKER
from tests.support.waiting import wait_until
from tests.support.wire import (
    BIG,
    BIG_SIZE,
    LIVE,
    Client,
    connect_client,
    payload_body,
    post,
    server_state,
    task_body,
)

NEW_LOOP = uvloop.new_event_loop
no_logged_errors = wire.no_logged_errors

on_one_loop, database, broker, sql, http = SHARED_BROKER
pytestmark = [on_one_loop, pytest.mark.usefixtures("http")]

# What is no HTTP, or too much of it

CHUNKED = b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
MALFORMED = {
    "garbage": b"\x00\x01\x02\x03",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no such version": b"GET / HTTP/3.7\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "lower case": b"get / HTTP/1.1\r\n\r\n",
    "length, then chunks": post(b"0\r\n\r\n", headers="Transfer-Encoding: chunked\r\n"),
    "chunks, then length": CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": post(task_body(), headers="Content-Length: 11\r\n"),
    "no such encoding": CHUNKED.replace(b"chunked", b"gzip") + b"0\r\n\r\n",
    "chunked, but not at last": CHUNKED.replace(b"chunked", b"chunked, gzip") + b"0\r\n\r\n",
    "a space before the colon": CHUNKED.replace(b"Encoding:", b"Encoding :"),
    "a folded header": b"GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n",
    "a negative length": post(b"", length=-1),
    "an endless length": post(b"", length=10**30),
    "a bad chunk size": CHUNKED + b"zz\r\n",
    "a chunk that is too long": CHUNKED + b"2\r\nabcde\r\n",
    "an endless chunk": CHUNKED + b"f" * 20 + b"\r\n",
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target of another scheme": b"GET ftp://x/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target that is no address": b"GET x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an asterisk for another method": b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": LIVE[:-2] + b"Host: localhost\r\n\r\n",
    "another version": b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "compressed, then chunked": CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n",
    "a length among the trailers": CHUNKED + b"b\r\n" + task_body() + b"\r\n0\r\nContent-Length: 1\r\n\r\n",
    "bytes in the path": b"GET /v1/tasks/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes in the query": b"GET /v1/tasks?state=\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes in a header's name": b"GET / HTTP/1.1\r\n\xff: x\r\n\r\n",
}
LONG = b"x" * 10**6
MANY = b"".join(b"x-%d: y\r\n" % number for number in range(100_000))
TOO_LARGE = {
    "headers": LIVE[:-2] + MANY + b"\r\n",
    "a header": LIVE[:-2] + b"x: " + LONG + b"\r\n\r\n",
    "a header's name": LIVE[:-2] + LONG + b": x\r\n\r\n",
    "an address": b"GET /" + LONG + b" HTTP/1.1\r\n\r\n",
    "a query": b"GET /v1/tasks?" + LONG + b" HTTP/1.1\r\n\r\n",
    "trailers": CHUNKED + b"1\r\n1\r\n0\r\n" + MANY + b"\r\n",
    "a chunk's extension": CHUNKED + b"1;" + LONG + b"\r\n1\r\n0\r\n\r\n",
}
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
UNUSUAL = {
    "an empty line before": (b"\r\n" + LIVE, 200),
    "HTTP/1.0": (LIVE.replace(b"1.1", b"1.0"), 200),
    "a target with scheme and host": (LIVE.replace(b"/health", b"http://example.org/health"), 200),
    "WebSocket": (LIVE[:-2] + UPGRADE, 200),
    "bytes in headers": (LIVE[:-2] + b"x: \xff\xfe\x80\r\nCookie: \xff=\xfe;;=\r\n\r\n", 200),
    "headers of 56 KiB": (LIVE[:-2] + b"x: " + b"x" * 56 * 1024 + b"\r\n\r\n", 200),
    "TRACE": (LIVE.replace(b"GET", b"TRACE"), 405),
    "an address of 50 KiB": (LIVE.replace(b"live", b"x" * 50 * 1024), 404),
    "no host in HTTP/1.0": (b"GET /health/live HTTP/1.0\r\n\r\n", 200),
    "a target with no path": (b"GET http://localhost HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "a target with no path and a query": (b"GET http://localhost?x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a host that is not the target's": (b"GET http://x/v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
    "a target that is not the host's": (b"GET http://[::1]:80/v1/tasks HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 204),
    "a chunk's extensions": (CHUNKED + b'b;a=b;c="d"\r\n' + task_body() + b"\r\n0\r\n\r\n", 201),
    "no body of a POST": (b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "another expectation in HTTP/1.0": (LIVE[:-2].replace(b"1.1", b"1.0") + b"Expect: x\r\n\r\n", 200),
    "no UTF-8 in the path": (LIVE.replace(b"live", b"%ff%fe%00"), 404),
    "a host that is none": (LIVE.replace(b"Host: localhost", b"Host: [::\xff@:x"), 400),
    "a port that is none": (
        LIVE.replace(b"live", b"nothing").replace(b"Host: localhost", b"Host: localhost:y"),
        404,
    ),
    "a length beyond everything": (post(b"", length=2**64 - 1), 413),
}


async def refused(broker: Running, sent: bytes) -> tuple[int, str]:
    """The status and code of the problem that something is told, and that ends its connection."""
    async with connect_client(broker) as client:
        client.send(sent)
        answer = await client.read_response()
        code = json.loads(answer.body)["code"]
        answer.assert_problem(answer.status, code)
        assert await client.read_to_end() == b""
    return answer.status, code


async def test_what_is_no_http_is_told_so_and_causes_no_trouble(
    broker: Running, no_logged_errors: None
) -> None:
    told = {name: await refused(broker, sent) for name, sent in MALFORMED.items()}
    assert told == dict.fromkeys(MALFORMED, (400, "malformed_request"))
    await wait_until(lambda: not server_state(broker).tasks)
    assert (await broker.client.get("/v1/tasks")).json()["items"] == []
    assert server_state(broker).body_bytes == 0


async def test_headers_beyond_64_kib_are_told_so(broker: Running, no_logged_errors: None) -> None:
    told = {name: await refused(broker, sent) for name, sent in TOO_LARGE.items()}
    assert told == dict.fromkeys(TOO_LARGE, (431, "headers_too_large"))
    await wait_until(lambda: not server_state(broker).tasks)


async def test_what_is_unusual_is_answered_and_causes_no_trouble(
    broker: Running, no_logged_errors: None
) -> None:
    told = {}
    for name, (sent, _) in UNUSUAL.items():
        async with connect_client(broker) as client:
            client.send(sent)
            told[name] = (await client.read_response()).status
    assert told == {name: status for name, (_, status) in UNUSUAL.items()}


async def test_after_a_websocket_that_is_not_spoken_the_connection_goes_on(broker: Running) -> None:
    async with connect_client(broker) as client:
        client.send(LIVE[:-2] + UPGRADE + post(task_body()))
        client.send(post(task_body()))
        assert [(await client.read_response()).status for _ in range(3)] == [200, 201, 201]


async def test_a_client_that_asks_first_is_told_to_go_on_with_its_body(broker: Running) -> None:
    async with connect_client(broker) as client:
        client.send(post(b"", length=11, headers="Expect: 100-continue\r\n"))
        assert (await client.read_response()).status == 100
        client.send(task_body())
        assert (await client.read_response()).status == 201


async def test_a_client_of_http_1_0_that_asks_first_gets_one_response(broker: Running) -> None:
    async with connect_client(broker) as client:
        client.send(post(task_body(), headers="Expect: 100-continue\r\n").replace(b"1.1", b"1.0"))
        assert (await client.read_response()).status == 201
        assert await client.read_to_end() == b""


async def test_an_expectation_that_nobody_meets_is_refused(broker: Running) -> None:
    assert await refused(broker, post(task_body(), headers="Expect: 200-ok\r\n")) == (
        417,
        "malformed_request",
    )
    assert (await broker.client.get("/v1/tasks")).json()["items"] == []


async def test_a_stream_goes_to_a_client_of_http_1_0_without_chunks(broker: Running) -> None:
    await api.add_tool(broker.client, capacity=100)
    for number in range(20):
        pair = await api.add_running_work(broker.client, f"a{number}", "t", payload="x" * 10_000)
        await api.complete_work(broker.client, pair.work)
    expected = (await broker.client.get("/v1/archive/export")).content
    assert expected.count(b"\n") == 20
    async with connect_client(broker) as client:
        client.send(b"GET /v1/archive/export HTTP/1.0\r\n\r\n")
        answer = await client.read_response()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert "transfer-encoding" not in answer.headers
        assert await client.read_to_end() == expected


@pytest.mark.skipif(shutil.which("javac") is None, reason="the JDK is not installed")
async def test_the_first_request_of_a_java_client_keeps_its_body(broker: Running) -> None:
    source = Path(__file__).parent / "java" / "FirstRequest.java"
    java = await asyncio.create_subprocess_exec("java", source, broker.url, stdout=subprocess.PIPE)
    async with asyncio.timeout(60):
        told, _ = await java.communicate()
    assert told.split() == [b"201", b"201"]


# What Java's HTTP client sends with its first request.
H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"


@pytest.mark.parametrize("size", [0, 300_000])
async def test_a_body_beside_the_offer_of_another_protocol_is_read(broker: Running, size: int) -> None:
    body, chunk = payload_body(size), b"%x\r\n%b\r\n"
    chunked = CHUNKED[:-2] + H2C.encode() + b"\r\n"
    chunks = b"".join(chunk % (len(part), part) for part in (body[:5], body[5:])) + b"0\r\nx: y\r\n\r\n"
    sent = (post(body, headers=H2C) + chunked + chunks) * 2 + LIVE
    async with connect_client(broker) as client:
        client.send(sent)
        assert [(await client.read_response()).status for _ in range(5)] == [*[201] * 4, 200]
    async with connect_client(broker) as client:
        for place in range(0, len(sent), 1 + len(sent) // 100):
            client.send(sent[place : place + 1 + len(sent) // 100])
            await asyncio.sleep(0)
        assert [(await client.read_response()).status for _ in range(5)] == [*[201] * 4, 200]
    tasks = (await broker.client.get("/v1/tasks")).json()["items"]
    assert [len(task["payload"]) for task in tasks] == [size] * 8


async def test_trailers_are_no_headers(broker: Running) -> None:
    async with connect_client(broker) as client:
        trailers = b"Content-Encoding: gzip\r\nContent-Type: text/plain\r\n"
        head = CHUNKED[:-2] + b"Prefer: wait=0\r\n\r\n"
        client.send(head + b"b\r\n" + task_body() + b"\r\n0\r\n" + trailers + b"\r\n")
        assert (await client.read_response()).status == 201


async def test_every_response_has_a_date(broker: Running) -> None:
    for sent in (LIVE, b"x", post(b"x")):
        async with connect_client(broker) as client:
            client.send(sent)
            told = (await client.read_response()).headers["date"]
            assert abs(parsedate_to_datetime(told) - datetime.now(UTC)) < timedelta(minutes=1)


# A client that closes its sending side


@asynccontextmanager
async def a_half(broker: Running, sent: bytes) -> AsyncIterator[Client]:
    """A client that has sent this, and closed its sending side."""
    async with connect_client(broker) as client:
        client.send(sent)
        client.end_sending()
        yield client


# The second goes through all of Litestar.
@pytest.mark.parametrize("headers", ["", "Prefer: wait=0\r\n"])
async def test_a_client_that_sends_no_more_gets_its_response(broker: Running, headers: str) -> None:
    for size in (0, 3_000_000):
        async with a_half(broker, post(payload_body(size), headers=headers)) as client:
            assert (await client.read_response()).status == 201
            assert await client.read_to_end() == b""
    assert len((await broker.client.get("/v1/tasks")).json()["items"]) == 2


async def test_all_requests_of_a_client_that_sends_no_more_are_answered(broker: Running) -> None:
    async with a_half(broker, (LIVE + post(task_body())) * 50) as client:
        assert [(await client.read_response()).status for _ in range(100)] == [200, 201] * 50
        assert await client.read_to_end() == b""


async def test_a_client_that_sends_no_more_gets_a_long_response_to_its_end(broker: Running) -> None:
    await api.add_task(broker.client, "big", payload="x" * BIG_SIZE)
    async with a_half(broker, BIG % b"keep-alive") as client:
        assert len((await client.read_response()).body) > BIG_SIZE
        assert await client.read_to_end() == b""


@pytest.mark.parametrize("sent", [b"G", LIVE[:-2], post(b"x", length=2), LIVE + LIVE[:20]])
async def test_a_request_that_is_cut_off_is_refused(broker: Running, sent: bytes) -> None:
    async with a_half(broker, sent) as client:
        if sent.startswith(LIVE):
            assert (await client.read_response()).status == 200
        (await client.read_response()).assert_problem(400, "malformed_request")
        assert await client.read_to_end() == b""
    await wait_until(lambda: not server_state(broker).tasks)


async def test_a_client_that_sends_nothing_is_let_go_of_when_it_closes(broker: Running) -> None:
    async with a_half(broker, b"") as client:
        assert await client.read_to_end() == b""


async def test_a_waiting_request_of_a_client_that_sends_no_more_is_answered_at_once(broker: Running) -> None:
    await api.add_tool(broker.client)
    poll = b"GET /v1/tools/t/work?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with a_half(broker, poll * 3) as client:
        assert [(await client.read_response()).body for _ in range(3)] == [b'{"items":[]}'] * 3
        assert await client.read_to_end() == b""
    assert broker.server.service.wait_limits.count == 0


# Bodies that are compressed


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "deflate"])
@pytest.mark.parametrize("size", [0, 300_000])
async def test_an_encoding_that_is_not_known_is_refused(broker: Running, encoding: str, size: int) -> None:
    async with connect_client(broker) as client:
        client.send(post(payload_body(size), headers=f"Content-Encoding: {encoding}\r\n"))
        answer = await client.read_response()
        assert (answer.status, json.loads(answer.body)["code"]) == (415, "unsupported_media_type")
        assert answer.headers["accept-encoding"] == "identity"
        client.send(post(payload_body(size), headers="Content-Encoding: Identity\r\n"))
        assert (await client.read_response()).status == 201


async def test_a_request_before_what_is_no_http_is_answered(broker: Running) -> None:
    async with connect_client(broker) as client:
        client.send(LIVE + post(task_body()) + b"\x00")
        assert [(await client.read_response()).status for _ in range(2)] == [200, 201]
        (await client.read_response()).assert_problem(400, "malformed_request")
        assert await client.read_to_end() == b""
