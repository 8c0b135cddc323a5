"""A client that is slow, silent or greedy hurts only itself: over bare sockets, on the loop that serves."""

import asyncio
import json
import logging
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import structlog.testing
import uvloop

from tests import helpers
from tests.conftest import Running, Serve
from tests.helpers import Json

NEW_LOOP = uvloop.new_event_loop

WITHIN = 20
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
# A script of 1.7 MB. The kernel takes 4 MiB of what nobody reads.
LARGE = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
BIG = b"GET /v1/tasks/big HTTP/1.1\r\nHost: localhost\r\nConnection: %s\r\n\r\n"
BIG_SIZE = 12 * 2**20
PATIENT: Json = {"header_timeout_seconds": 600, "body_timeout_seconds": 3600, "send_timeout_seconds": 3600}


def post(body: bytes, *, length: int | None = None, path: str = "/v1/tasks", headers: str = "") -> bytes:
    """A request as it goes over the wire; it may promise more than it has."""
    size = len(body) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {size}\r\n\r\n".encode() + body
    )


def task(size: int = 11) -> bytes:
    """The body of a task, of so many bytes."""
    return b'{"needs": "' + b"x" * (size - 13) + b'"}' if size > 13 else b'{"needs":1}'


def payload(size: int) -> bytes:
    """The body of a task with a payload of so many bytes."""
    return b'{"needs":1,"payload":"' + b"x" * size + b'"}'


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def is_problem(self, status: int, code: str) -> Json:
        """Checks the shape of an error that ends a connection, and hands it back."""
        assert self.headers["connection"] == "close"
        # No call that is described: its connection may have been refused before there was one.
        told = {"headers": self.headers, "content": self.body, "request": httpx.Request("GET", "http://x/")}
        return helpers.is_problem(httpx.Response(self.status, **told), status, code)


class Client:
    """A client that sends what it is told to, and nothing else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> Answer:
        async with asyncio.timeout(WITHIN):
            first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
            headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(first.split()[1]), headers, body)

    async def ended(self) -> bytes:
        """What else comes until the connection is closed; a reset does not count as that."""
        async with asyncio.timeout(WITHIN):
            return await self._reader.read()

    def send_no_more(self) -> None:
        self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def a_client(broker: Running) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", port_of(broker)))
    try:
        yield client
    finally:
        client.close()


@contextmanager
def a_socket(broker: Running) -> Iterator[socket.socket]:
    """A connection that nobody reads from, and that can take little."""
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port_of(broker)))
        yield connection


def port_of(broker: Running) -> int:
    port = httpx.URL(broker.url).port
    assert port is not None
    return port


def shared(broker: Running) -> Any:
    return broker.server.server_state


async def until(condition: Any) -> None:
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.005)


async def sweeps(broker: Running, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Return when all connections that have a deadline were looked at so many times."""
    seen = 0
    sweep = shared(broker).sweep

    def counted() -> None:
        nonlocal seen
        sweep()
        seen += 1

    monkeypatch.setattr(shared(broker), "sweep", counted)
    await until(lambda: seen >= count)
    monkeypatch.setattr(shared(broker), "sweep", sweep)


@pytest.fixture
def no_trouble(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged as an error, and no traceback at all."""
    with structlog.testing.capture_logs() as ours:
        yield
    assert [entry for entry in ours if entry["log_level"] == "error" or "exc_info" in entry] == []
    assert [entry for entry in caplog.records if entry.levelno >= logging.ERROR or entry.exc_info] == []


# A request that does not come


async def test_a_client_that_says_nothing_is_let_go_of(serve: Serve) -> None:
    broker = await serve(header_timeout_seconds=0.2)
    async with a_client(broker) as client:
        assert await client.ended() == b""


@pytest.mark.parametrize("begun", [b"G", b"GET /health/live HTTP/1.1\r\nHost:", LIVE[:-1]])
async def test_headers_that_do_not_come_in_time_are_told_so(serve: Serve, begun: bytes) -> None:
    broker = await serve(header_timeout_seconds=0.2)
    async with a_client(broker) as client:
        client.send(begun)
        (await client.answer()).is_problem(408, "request_timeout")
        assert await client.ended() == b""


async def test_headers_that_come_a_byte_at_a_time_do_not_have_longer(serve: Serve) -> None:
    broker = await serve(header_timeout_seconds=0.5)
    async with a_client(broker) as client:
        client.send(b"GET /health/live HTTP/1.1\r\nx: ")
        answer = asyncio.create_task(client.answer())
        async with asyncio.timeout(WITHIN):
            while not answer.done():
                client.send(b"x")
                await asyncio.sleep(0.02)
        answer.result().is_problem(408, "request_timeout")


async def test_on_a_kept_connection_the_time_runs_from_the_first_byte_of_a_request(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await serve(header_timeout_seconds=0.2)
    async with a_client(broker) as client:
        for _ in range(2):
            client.send(LIVE)
            assert (await client.answer()).status == 200
            await sweeps(broker, monkeypatch, 2)
        client.send(LIVE[:20])
        (await client.answer()).is_problem(408, "request_timeout")
        assert await client.ended() == b""


async def test_empty_lines_between_requests_keep_nothing_waiting(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await serve(header_timeout_seconds=0.2)
    async with a_client(broker) as client:
        client.send(LIVE)
        assert (await client.answer()).status == 200
        client.send(b"\r\n\r\n")
        await sweeps(broker, monkeypatch, 2)
        assert not shared(broker).watched
        client.send(LIVE)
        assert (await client.answer()).status == 200


# The second goes through all of Litestar.
@pytest.mark.parametrize("headers", ["", "Prefer: wait=0\r\n"])
async def test_a_body_that_does_not_come_in_time_is_told_so(
    serve: Serve, no_trouble: None, headers: str
) -> None:
    broker = await serve(body_timeout_seconds=0.2)
    async with a_client(broker) as client:
        client.send(post(task()[:4], length=11, headers=headers))
        problem = (await client.answer()).is_problem(408, "request_timeout")
        assert problem["instance"] == "/v1/tasks"
        assert await client.ended() == b""
    await until(lambda: not shared(broker).tasks)
    assert shared(broker).body_bytes == 0


async def test_a_body_that_comes_steadily_has_longer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await serve(body_timeout_seconds=0.2)
    body = task(60_000)
    async with a_client(broker) as client:
        client.send(post(body[:50_000], length=len(body)))
        await sweeps(broker, monkeypatch, 3)
        client.send(body[50_000:])
        assert (await client.answer()).status == 201


async def test_what_was_answered_early_is_not_answered_again_when_its_body_does_not_come(
    serve: Serve,
) -> None:
    broker = await serve(body_timeout_seconds=0.2)
    async with a_client(broker) as client:
        client.send(post(task(), length=10**12))
        assert (await client.answer()).status == 413
        assert await client.ended() == b""


async def test_a_connection_is_kept_when_the_rest_of_a_body_comes_after_the_answer(serve: Serve) -> None:
    broker = await serve(max_body_bytes=1024)
    async with a_client(broker) as client:
        client.send(post(b"x", length=2000))
        assert (await client.answer()).status == 413
        client.send(b"x" * 1999)
        client.send(LIVE)
        assert (await client.answer()).status == 200
    assert shared(broker).body_bytes == 0


async def test_a_request_that_waits_has_no_deadline(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await serve(header_timeout_seconds=0.2, body_timeout_seconds=0.2, send_timeout_seconds=0.2)
    await helpers.add_tool(broker.client)
    async with a_client(broker) as client:
        client.send(b"GET /v1/tools/t/work?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await sweeps(broker, monkeypatch, 3)
        assert not shared(broker).watched
        await broker.stop()
        assert (await client.answer()).body == b'{"items":[]}'


# An answer that is not read


@pytest.mark.parametrize("afterwards", [b"keep-alive", b"close"])
async def test_a_client_that_never_reads_is_let_go_of(
    serve: Serve, no_trouble: None, afterwards: bytes
) -> None:
    broker = await serve(send_timeout_seconds=0.2)
    await helpers.add_task(broker.client, "big", payload="x" * BIG_SIZE)
    before = len(shared(broker).connections)
    with a_socket(broker) as client:
        client.sendall(BIG % afterwards)
        await until(lambda: len(shared(broker).connections) > before)
        await until(lambda: len(shared(broker).connections) == before)
        await until(lambda: not shared(broker).tasks)


async def test_a_client_that_reads_slowly_gets_all_of_its_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await serve(send_timeout_seconds=2)
    await helpers.add_task(broker.client, "big", payload="x" * BIG_SIZE)
    with a_socket(broker) as client:
        client.sendall(BIG % b"close")
        got = 0
        for _ in range(4):
            got += await _read(client, 2**20)
            await sweeps(broker, monkeypatch, 1)
        got += await _read(client, 2 * BIG_SIZE)
    assert got > BIG_SIZE


async def _read(client: socket.socket, count: int) -> int:
    """Read about so much, or to the end; how much that was."""
    client.setblocking(False)
    got = 0
    async with asyncio.timeout(WITHIN):
        while got < count and (part := await asyncio.get_running_loop().sock_recv(client, 2**18)):
            got += len(part)
    return got


async def test_a_client_that_goes_ends_all_that_it_asked_for(broker: Running, no_trouble: None) -> None:
    await helpers.add_tool(broker.client)
    polls = b"GET /v1/tools/t/work?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3
    async with a_client(broker) as client:
        client.send(polls)
        await until(lambda: shared(broker).tasks)
    await until(lambda: not shared(broker).tasks)


# Too many


async def test_one_connection_too_many_is_told_so_and_hurts_no_other(serve: Serve) -> None:
    broker = await serve(max_connections=3, **PATIENT)
    async with a_client(broker) as first:
        async with a_client(broker):
            await until(lambda: len(shared(broker).connections) == 3)
            async with a_client(broker) as fourth:
                answer = await fourth.answer()
                answer.is_problem(503, "unavailable")
                assert answer.headers["retry-after"] == "1"
                assert await fourth.ended() == b""
            first.send(LIVE)
            assert (await first.answer()).status == 200
            assert len(shared(broker).connections) == 3
        await until(lambda: len(shared(broker).connections) == 2)
        async with a_client(broker) as another:
            another.send(LIVE)
            assert (await another.answer()).status == 200
        await until(lambda: not shared(broker).turned_away)


async def test_one_too_many_hears_so_while_it_still_sends(serve: Serve) -> None:
    broker = await serve(max_connections=1, **PATIENT)
    for _ in range(20):
        async with a_client(broker) as client:
            client.send(post(task(300_000)))
            (await client.answer()).is_problem(503, "unavailable")
            assert await client.ended() == b""
    assert len(shared(broker).connections) == 1


async def test_of_a_thousand_too_many_every_one_is_told_so(serve: Serve) -> None:
    broker = await serve(max_connections=1, **PATIENT)

    async def knock() -> None:
        async with a_client(broker) as client:
            (await client.answer()).is_problem(503, "unavailable")

    await asyncio.gather(*(knock() for _ in range(1_000)))
    assert (await broker.client.get("/health/live")).status_code == 200
    await until(lambda: not shared(broker).turned_away)


def room(limits: tuple[int, int], wanted: int) -> tuple[list[int], str]:
    """The connections and the limit that a process with such limits comes to, and what it logs."""
    code = (
        "import resource; from broker.telemetry import logs;"
        "from broker.server.connections import Connections;"
        f"from broker.settings import Settings; resource.setrlimit(resource.RLIMIT_NOFILE, {limits});"
        f"logs.configure(); shared = Connections(Settings(max_connections={wanted})); shared.make_room();"
        "print(shared.most, *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()], done.stderr


def test_there_may_be_as_many_files_as_connections_need_and_no_more_connections_than_files() -> None:
    assert room((300, 1000), 500) == ([500, 700, 1000], "")
    assert room((900, 1000), 500) == ([500, 900, 1000], "")
    counts, said = room((300, 1000), 5000)
    assert counts == [800, 1000, 1000]
    assert said.count("BROKER_MAX_CONNECTIONS") == 1
    assert json.loads(said)["level"] == "warning"


async def test_bodies_that_are_too_much_together_are_told_so_until_there_is_room(serve: Serve) -> None:
    broker = await serve(max_body_bytes_in_all=100_000, **PATIENT)
    body = task(60_000)
    async with a_client(broker) as first:
        first.send(post(body[:-1], length=len(body)))
        await until(lambda: shared(broker).body_bytes == len(body) - 1)
        async with a_client(broker) as second:
            second.send(post(body))
            answer = await second.answer()
            answer.is_problem(503, "unavailable")
            assert answer.headers["retry-after"] == "1"
            assert await second.ended() == b""
        assert shared(broker).body_bytes == len(body) - 1
        assert (await broker.client.get("/health/live")).status_code == 200
        first.send(body[-1:])
        assert (await first.answer()).status == 201
        assert shared(broker).body_bytes == 0
        first.send(post(body))
        assert (await first.answer()).status == 201
    assert shared(broker).body_bytes == 0


async def test_the_body_of_a_client_that_goes_is_counted_no_longer(serve: Serve, no_trouble: None) -> None:
    broker = await serve(**PATIENT)
    for headers in ("", "Prefer: wait=0\r\n"):
        async with a_client(broker) as client:
            client.send(post(task(60_000), length=10**6, headers=headers))
            await until(lambda: shared(broker).body_bytes == 60_000)
        await until(lambda: shared(broker).body_bytes == 0 and not shared(broker).tasks)


async def test_of_very_many_requests_at_once_few_are_queued_and_all_are_answered(broker: Running) -> None:
    await helpers.add_tool(broker.client)
    poll = b"GET /v1/tools/t/work?wait=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = post(task())
    async with a_client(broker) as client:
        client.send(poll + LIVE * 3000 + body * 50 + LIVE)
        await until(lambda: shared(broker).body_bytes)
        queues = [len(connection.pipeline) for connection in shared(broker).connections]
        assert max(queues) < 20
        statuses = [(await client.answer()).status for _ in range(3052)]
    assert statuses == [200] * 3001 + [201] * 50 + [200]
    await until(lambda: shared(broker).body_bytes == 0)


async def test_what_comes_behind_a_request_is_bounded_too(serve: Serve) -> None:
    broker = await serve(max_body_bytes_in_all=10_000, **PATIENT)
    await helpers.add_tool(broker.client)
    async with a_client(broker) as client:
        client.send(b"GET /v1/tools/t/work?wait=1 HTTP/1.1\r\nHost: localhost\r\n\r\n" + LIVE * 1000)
        assert (await client.answer()).status == 200
        answers = (await client.ended()).decode().split("HTTP/1.1 ")[1:]
        assert answers[-1].startswith("503")
        assert {answer[:3] for answer in answers[:-1]} <= {"200"}
    assert shared(broker).body_bytes == 0


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
    "two lengths": post(task(), headers="Content-Length: 11\r\n"),
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
    "a length among the trailers": CHUNKED + b"b\r\n" + task() + b"\r\n0\r\nContent-Length: 1\r\n\r\n",
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
    "a chunk's extensions": (CHUNKED + b'b;a=b;c="d"\r\n' + task() + b"\r\n0\r\n\r\n", 201),
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
    async with a_client(broker) as client:
        client.send(sent)
        answer = await client.answer()
        code = json.loads(answer.body)["code"]
        answer.is_problem(answer.status, code)
        assert await client.ended() == b""
    return answer.status, code


async def test_what_is_no_http_is_told_so_and_causes_no_trouble(broker: Running, no_trouble: None) -> None:
    told = {name: await refused(broker, sent) for name, sent in MALFORMED.items()}
    assert told == dict.fromkeys(MALFORMED, (400, "malformed_request"))
    await until(lambda: not shared(broker).tasks)
    assert (await broker.client.get("/v1/tasks")).json()["items"] == []
    assert shared(broker).body_bytes == 0


async def test_headers_beyond_64_kib_are_told_so(broker: Running, no_trouble: None) -> None:
    told = {name: await refused(broker, sent) for name, sent in TOO_LARGE.items()}
    assert told == dict.fromkeys(TOO_LARGE, (431, "headers_too_large"))
    await until(lambda: not shared(broker).tasks)


async def test_what_is_unusual_is_answered_and_causes_no_trouble(broker: Running, no_trouble: None) -> None:
    told = {}
    for name, (sent, _) in UNUSUAL.items():
        async with a_client(broker) as client:
            client.send(sent)
            told[name] = (await client.answer()).status
    assert told == {name: status for name, (_, status) in UNUSUAL.items()}


async def test_after_a_websocket_that_is_not_spoken_the_connection_goes_on(broker: Running) -> None:
    async with a_client(broker) as client:
        client.send(LIVE[:-2] + UPGRADE + post(task()))
        client.send(post(task()))
        assert [(await client.answer()).status for _ in range(3)] == [200, 201, 201]


async def test_a_client_that_asks_first_is_told_to_go_on_with_its_body(broker: Running) -> None:
    async with a_client(broker) as client:
        client.send(post(b"", length=11, headers="Expect: 100-continue\r\n"))
        assert (await client.answer()).status == 100
        client.send(task())
        assert (await client.answer()).status == 201


async def test_a_client_of_http_1_0_that_asks_first_gets_one_response(broker: Running) -> None:
    async with a_client(broker) as client:
        client.send(post(task(), headers="Expect: 100-continue\r\n").replace(b"1.1", b"1.0"))
        assert (await client.answer()).status == 201
        assert await client.ended() == b""


async def test_an_expectation_that_nobody_meets_is_refused(broker: Running) -> None:
    assert await refused(broker, post(task(), headers="Expect: 200-ok\r\n")) == (417, "malformed_request")
    assert (await broker.client.get("/v1/tasks")).json()["items"] == []


async def test_a_stream_goes_to_a_client_of_http_1_0_without_chunks(broker: Running) -> None:
    await helpers.add_tool(broker.client, capacity=100)
    for number in range(20):
        pair = await helpers.started(broker.client, f"a{number}", "t", payload="x" * 10_000)
        await helpers.completed(broker.client, pair.work)
    expected = (await broker.client.get("/v1/archive/export")).content
    assert expected.count(b"\n") == 20
    async with a_client(broker) as client:
        client.send(b"GET /v1/archive/export HTTP/1.0\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert "transfer-encoding" not in answer.headers
        assert await client.ended() == expected


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
    body, chunk = payload(size), b"%x\r\n%b\r\n"
    chunked = CHUNKED[:-2] + H2C.encode() + b"\r\n"
    chunks = b"".join(chunk % (len(part), part) for part in (body[:5], body[5:])) + b"0\r\nx: y\r\n\r\n"
    sent = (post(body, headers=H2C) + chunked + chunks) * 2 + LIVE
    async with a_client(broker) as client:
        client.send(sent)
        assert [(await client.answer()).status for _ in range(5)] == [*[201] * 4, 200]
    async with a_client(broker) as client:
        for place in range(0, len(sent), 1 + len(sent) // 100):
            client.send(sent[place : place + 1 + len(sent) // 100])
            await asyncio.sleep(0)
        assert [(await client.answer()).status for _ in range(5)] == [*[201] * 4, 200]
    tasks = (await broker.client.get("/v1/tasks")).json()["items"]
    assert [len(task["payload"]) for task in tasks] == [size] * 8


async def test_trailers_are_no_headers(broker: Running) -> None:
    async with a_client(broker) as client:
        trailers = b"Content-Encoding: gzip\r\nContent-Type: text/plain\r\n"
        head = CHUNKED[:-2] + b"Prefer: wait=0\r\n\r\n"
        client.send(head + b"b\r\n" + task() + b"\r\n0\r\n" + trailers + b"\r\n")
        assert (await client.answer()).status == 201


async def test_every_response_has_a_date(broker: Running) -> None:
    for sent in (LIVE, b"x", post(b"x")):
        async with a_client(broker) as client:
            client.send(sent)
            told = (await client.answer()).headers["date"]
            assert abs(parsedate_to_datetime(told) - datetime.now(UTC)) < timedelta(minutes=1)


# A client that closes its sending side


@asynccontextmanager
async def a_half(broker: Running, sent: bytes) -> AsyncIterator[Client]:
    """A client that has sent this, and closed its sending side."""
    async with a_client(broker) as client:
        client.send(sent)
        client.send_no_more()
        yield client


# The second goes through all of Litestar.
@pytest.mark.parametrize("headers", ["", "Prefer: wait=0\r\n"])
async def test_a_client_that_sends_no_more_gets_its_response(broker: Running, headers: str) -> None:
    for size in (0, 3_000_000):
        async with a_half(broker, post(payload(size), headers=headers)) as client:
            assert (await client.answer()).status == 201
            assert await client.ended() == b""
    assert len((await broker.client.get("/v1/tasks")).json()["items"]) == 2


async def test_all_requests_of_a_client_that_sends_no_more_are_answered(broker: Running) -> None:
    async with a_half(broker, (LIVE + post(task())) * 50) as client:
        assert [(await client.answer()).status for _ in range(100)] == [200, 201] * 50
        assert await client.ended() == b""


async def test_a_client_that_sends_no_more_gets_a_long_response_to_its_end(broker: Running) -> None:
    await helpers.add_task(broker.client, "big", payload="x" * BIG_SIZE)
    async with a_half(broker, BIG % b"keep-alive") as client:
        assert len((await client.answer()).body) > BIG_SIZE
        assert await client.ended() == b""


@pytest.mark.parametrize("sent", [b"G", LIVE[:-2], post(b"x", length=2), LIVE + LIVE[:20]])
async def test_a_request_that_is_cut_off_is_refused(broker: Running, sent: bytes) -> None:
    async with a_half(broker, sent) as client:
        if sent.startswith(LIVE):
            assert (await client.answer()).status == 200
        (await client.answer()).is_problem(400, "malformed_request")
        assert await client.ended() == b""
    await until(lambda: not shared(broker).tasks)


async def test_a_client_that_sends_nothing_is_let_go_of_when_it_closes(broker: Running) -> None:
    async with a_half(broker, b"") as client:
        assert await client.ended() == b""


async def test_a_waiting_request_of_a_client_that_sends_no_more_is_answered_at_once(broker: Running) -> None:
    await helpers.add_tool(broker.client)
    poll = b"GET /v1/tools/t/work?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with a_half(broker, poll * 3) as client:
        assert [(await client.answer()).body for _ in range(3)] == [b'{"items":[]}'] * 3
        assert await client.ended() == b""
    assert broker.server.service.wait_limits.count == 0


# Bodies that are compressed


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "deflate"])
@pytest.mark.parametrize("size", [0, 300_000])
async def test_an_encoding_that_is_not_known_is_refused(broker: Running, encoding: str, size: int) -> None:
    async with a_client(broker) as client:
        client.send(post(payload(size), headers=f"Content-Encoding: {encoding}\r\n"))
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["code"]) == (415, "unsupported_media_type")
        assert answer.headers["accept-encoding"] == "identity"
        client.send(post(payload(size), headers="Content-Encoding: Identity\r\n"))
        assert (await client.answer()).status == 201


async def test_a_request_before_what_is_no_http_is_answered(broker: Running) -> None:
    async with a_client(broker) as client:
        client.send(LIVE + post(task()) + b"\x00")
        assert [(await client.answer()).status for _ in range(2)] == [200, 201]
        (await client.answer()).is_problem(400, "malformed_request")
        assert await client.ended() == b""


# All of them at once


async def test_a_thousand_bad_clients_do_not_hinder_a_good_one(serve: Serve, no_trouble: None) -> None:
    broker = await serve(header_timeout_seconds=2, body_timeout_seconds=2, send_timeout_seconds=2)
    before = len(shared(broker).connections)
    asked = (
        b"",
        LIVE[:30],
        post(task()[:3], length=11),
        LARGE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        LARGE * 3,
        b"\x00",
    )
    bad = []
    for number in range(1_000):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        bad.append(client)
        await asyncio.get_running_loop().sock_connect(_unblocked(client), ("127.0.0.1", port_of(broker)))
        client.send(asked[number % len(asked)])
        if number % 7 == 0:
            client.shutdown(socket.SHUT_WR)
    try:
        for number in range(50):
            pair = await helpers.started(broker.client, f"a{number}", f"t{number}")
            record = await helpers.completed(broker.client, pair.work)
            assert record["outcome"] == "succeeded"
        await until(lambda: len(shared(broker).connections) == before)
        assert not shared(broker).tasks
        assert shared(broker).body_bytes == 0
    finally:
        for client in bad:
            client.close()


def _unblocked(client: socket.socket) -> socket.socket:
    client.setblocking(False)
    return client
