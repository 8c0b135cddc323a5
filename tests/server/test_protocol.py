"""Malformed, oversized and unusual requests. The tests use plain sockets."""

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

# Malformed and oversized requests

CHUNKED = b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
MALFORMED = {
    "garbage": b"\x00\x01\x02\x03",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an unknown version": b"GET / HTTP/3.7\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "a method in lower case": b"get / HTTP/1.1\r\n\r\n",
    "a length and chunks": post(b"0\r\n\r\n", headers="Transfer-Encoding: chunked\r\n"),
    "chunks and a length": CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": post(task_body(), headers="Content-Length: 11\r\n"),
    "an unknown transfer coding": CHUNKED.replace(b"chunked", b"gzip") + b"0\r\n\r\n",
    "chunked before another coding": CHUNKED.replace(b"chunked", b"chunked, gzip") + b"0\r\n\r\n",
    "a space before the colon": CHUNKED.replace(b"Encoding:", b"Encoding :"),
    "a folded header": b"GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n",
    "a negative length": post(b"", length=-1),
    "a length that is too large": post(b"", length=10**30),
    "a bad chunk size": CHUNKED + b"zz\r\n",
    "a chunk that is too long": CHUNKED + b"2\r\nabcde\r\n",
    "a chunk size that is too large": CHUNKED + b"f" * 20 + b"\r\n",
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target of another scheme": b"GET ftp://x/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an invalid target": b"GET x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an asterisk for another method": b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a missing host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": LIVE[:-2] + b"Host: localhost\r\n\r\n",
    "version 2.0": b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "gzip before chunked": CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n",
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
    "an empty line before the request": (b"\r\n" + LIVE, 200),
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
    "a foreign host in the target": (b"GET http://x/v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
    "a foreign host in the header": (b"GET http://[::1]:80/v1/tasks HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 204),
    "a chunk's extensions": (CHUNKED + b'b;a=b;c="d"\r\n' + task_body() + b"\r\n0\r\n\r\n", 201),
    "a POST without a body": (b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "another expectation in HTTP/1.0": (LIVE[:-2].replace(b"1.1", b"1.0") + b"Expect: x\r\n\r\n", 200),
    "a path that is not UTF-8": (LIVE.replace(b"live", b"%ff%fe%00"), 404),
    "an invalid host": (LIVE.replace(b"Host: localhost", b"Host: [::\xff@:x"), 400),
    "an invalid port": (
        LIVE.replace(b"live", b"nothing").replace(b"Host: localhost", b"Host: localhost:y"),
        404,
    ),
    "an enormous length": (post(b"", length=2**64 - 1), 413),
}


async def read_refusal(broker: Running, sent: bytes) -> tuple[int, str]:
    """Send bytes that the broker refuses. Return the status and code of the last response."""
    async with connect_client(broker) as client:
        client.send(sent)
        response = await client.read_response()
        code = json.loads(response.body)["code"]
        response.assert_problem(response.status, code)
        assert await client.read_to_end() == b""
    return response.status, code


async def test_malformed_request_gets_400_and_has_no_effect(broker: Running, no_logged_errors: None) -> None:
    refusals = {name: await read_refusal(broker, sent) for name, sent in MALFORMED.items()}
    assert refusals == dict.fromkeys(MALFORMED, (400, "malformed_request"))
    await wait_until(lambda: not server_state(broker).tasks)
    assert (await broker.client.get("/v1/tasks")).json()["items"] == []
    assert server_state(broker).body_bytes == 0


async def test_headers_above_64_kib_get_431(broker: Running, no_logged_errors: None) -> None:
    refusals = {name: await read_refusal(broker, sent) for name, sent in TOO_LARGE.items()}
    assert refusals == dict.fromkeys(TOO_LARGE, (431, "headers_too_large"))
    await wait_until(lambda: not server_state(broker).tasks)


async def test_unusual_but_valid_request_gets_its_response(broker: Running, no_logged_errors: None) -> None:
    statuses = {}
    for name, (sent, _) in UNUSUAL.items():
        async with connect_client(broker) as client:
            client.send(sent)
            statuses[name] = (await client.read_response()).status
    assert statuses == {name: status for name, (_, status) in UNUSUAL.items()}


async def test_connection_continues_after_a_websocket_request(broker: Running) -> None:
    async with connect_client(broker) as client:
        client.send(LIVE[:-2] + UPGRADE + post(task_body()))
        client.send(post(task_body()))
        assert [(await client.read_response()).status for _ in range(3)] == [200, 201, 201]


async def test_client_that_expects_100_continue_gets_it(broker: Running) -> None:
    async with connect_client(broker) as client:
        client.send(post(b"", length=11, headers="Expect: 100-continue\r\n"))
        assert (await client.read_response()).status == 100
        client.send(task_body())
        assert (await client.read_response()).status == 201


async def test_http_1_0_client_with_an_expectation_gets_one_response(broker: Running) -> None:
    async with connect_client(broker) as client:
        client.send(post(task_body(), headers="Expect: 100-continue\r\n").replace(b"1.1", b"1.0"))
        assert (await client.read_response()).status == 201
        assert await client.read_to_end() == b""


async def test_unknown_expectation_gets_417(broker: Running) -> None:
    assert await read_refusal(broker, post(task_body(), headers="Expect: 200-ok\r\n")) == (
        417,
        "malformed_request",
    )
    assert (await broker.client.get("/v1/tasks")).json()["items"] == []


async def test_http_1_0_client_gets_a_stream_without_chunks(broker: Running) -> None:
    await api.add_tool(broker.client, capacity=100)
    for number in range(20):
        pair = await api.add_running_work(broker.client, f"a{number}", "t", payload="x" * 10_000)
        await api.complete_work(broker.client, pair.work)
    expected = (await broker.client.get("/v1/archive/export")).content
    assert expected.count(b"\n") == 20
    async with connect_client(broker) as client:
        client.send(b"GET /v1/archive/export HTTP/1.0\r\n\r\n")
        response = await client.read_response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert "transfer-encoding" not in response.headers
        assert await client.read_to_end() == expected


@pytest.mark.skipif(shutil.which("javac") is None, reason="the JDK is not installed")
async def test_first_request_of_a_java_client_keeps_its_body(broker: Running) -> None:
    source = Path(__file__).parent / "java" / "FirstRequest.java"
    java = await asyncio.create_subprocess_exec("java", source, broker.url, stdout=subprocess.PIPE)
    async with asyncio.timeout(60):
        output, _ = await java.communicate()
    assert output.split() == [b"201", b"201"]


# The headers of the first request of Java's HTTP client.
H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"


@pytest.mark.parametrize("size", [0, 300_000])
async def test_body_of_a_request_that_offers_another_protocol_is_read(broker: Running, size: int) -> None:
    body, chunk = payload_body(size), b"%x\r\n%b\r\n"
    chunked = CHUNKED[:-2] + H2C.encode() + b"\r\n"
    chunks = b"".join(chunk % (len(part), part) for part in (body[:5], body[5:])) + b"0\r\nx: y\r\n\r\n"
    sent = (post(body, headers=H2C) + chunked + chunks) * 2 + LIVE
    async with connect_client(broker) as client:
        client.send(sent)
        assert [(await client.read_response()).status for _ in range(5)] == [*[201] * 4, 200]
    async with connect_client(broker) as client:
        for start in range(0, len(sent), 1 + len(sent) // 100):
            client.send(sent[start : start + 1 + len(sent) // 100])
            await asyncio.sleep(0)
        assert [(await client.read_response()).status for _ in range(5)] == [*[201] * 4, 200]
    tasks = (await broker.client.get("/v1/tasks")).json()["items"]
    assert [len(task["payload"]) for task in tasks] == [size] * 8


async def test_trailers_do_not_count_as_headers(broker: Running) -> None:
    async with connect_client(broker) as client:
        trailers = b"Content-Encoding: gzip\r\nContent-Type: text/plain\r\n"
        head = CHUNKED[:-2] + b"Prefer: wait=0\r\n\r\n"
        client.send(head + b"b\r\n" + task_body() + b"\r\n0\r\n" + trailers + b"\r\n")
        assert (await client.read_response()).status == 201


async def test_every_response_has_a_date(broker: Running) -> None:
    for sent in (LIVE, b"x", post(b"x")):
        async with connect_client(broker) as client:
            client.send(sent)
            date = (await client.read_response()).headers["date"]
            assert abs(parsedate_to_datetime(date) - datetime.now(UTC)) < timedelta(minutes=1)


# Half-closed connections


@asynccontextmanager
async def half_closed_client(broker: Running, sent: bytes) -> AsyncIterator[Client]:
    """Yield a client that has sent some bytes and closed its sending side."""
    async with connect_client(broker) as client:
        client.send(sent)
        client.end_sending()
        yield client


# Litestar handles the second request, the fast path the first.
@pytest.mark.parametrize("headers", ["", "Prefer: wait=0\r\n"])
async def test_half_closed_client_gets_its_response(broker: Running, headers: str) -> None:
    for size in (0, 3_000_000):
        async with half_closed_client(broker, post(payload_body(size), headers=headers)) as client:
            assert (await client.read_response()).status == 201
            assert await client.read_to_end() == b""
    assert len((await broker.client.get("/v1/tasks")).json()["items"]) == 2


async def test_half_closed_client_gets_all_pipelined_responses(broker: Running) -> None:
    async with half_closed_client(broker, (LIVE + post(task_body())) * 50) as client:
        assert [(await client.read_response()).status for _ in range(100)] == [200, 201] * 50
        assert await client.read_to_end() == b""


async def test_half_closed_client_gets_a_long_response_completely(broker: Running) -> None:
    await api.add_task(broker.client, "big", payload="x" * BIG_SIZE)
    async with half_closed_client(broker, BIG % b"keep-alive") as client:
        assert len((await client.read_response()).body) > BIG_SIZE
        assert await client.read_to_end() == b""


@pytest.mark.parametrize("sent", [b"G", LIVE[:-2], post(b"x", length=2), LIVE + LIVE[:20]])
async def test_truncated_request_gets_400(broker: Running, sent: bytes) -> None:
    async with half_closed_client(broker, sent) as client:
        if sent.startswith(LIVE):
            assert (await client.read_response()).status == 200
        (await client.read_response()).assert_problem(400, "malformed_request")
        assert await client.read_to_end() == b""
    await wait_until(lambda: not server_state(broker).tasks)


async def test_client_that_closes_without_a_request_is_disconnected(broker: Running) -> None:
    async with half_closed_client(broker, b"") as client:
        assert await client.read_to_end() == b""


async def test_long_poll_of_a_half_closed_client_ends_at_once(broker: Running) -> None:
    await api.add_tool(broker.client)
    poll = b"GET /v1/tools/t/work?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with half_closed_client(broker, poll * 3) as client:
        assert [(await client.read_response()).body for _ in range(3)] == [b'{"items":[]}'] * 3
        assert await client.read_to_end() == b""
    assert broker.server.service.wait_limits.count == 0


# Compressed bodies


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "deflate"])
@pytest.mark.parametrize("size", [0, 300_000])
async def test_unknown_content_encoding_gets_415(broker: Running, encoding: str, size: int) -> None:
    async with connect_client(broker) as client:
        client.send(post(payload_body(size), headers=f"Content-Encoding: {encoding}\r\n"))
        response = await client.read_response()
        assert (response.status, json.loads(response.body)["code"]) == (415, "unsupported_media_type")
        assert response.headers["accept-encoding"] == "identity"
        client.send(post(payload_body(size), headers="Content-Encoding: Identity\r\n"))
        assert (await client.read_response()).status == 201


async def test_requests_before_a_malformed_one_get_their_responses(broker: Running) -> None:
    async with connect_client(broker) as client:
        client.send(LIVE + post(task_body()) + b"\x00")
        assert [(await client.read_response()).status for _ in range(2)] == [200, 201]
        (await client.read_response()).assert_problem(400, "malformed_request")
        assert await client.read_to_end() == b""
