"""A client that is slow, silent or greedy affects only itself. The tests use plain sockets."""

import asyncio
import json
import socket
import subprocess
import sys

import pytest
import uvloop

from tests.conftest import Running, Serve
from tests.support import api, wire
from tests.support.api import Json
from tests.support.waiting import wait_until
from tests.support.wire import (
    BIG,
    BIG_SIZE,
    LARGE,
    LIVE,
    WITHIN,
    connect_client,
    port_of,
    post,
    server_state,
    task_body,
    unread_socket,
)

NEW_LOOP = uvloop.new_event_loop
no_logged_errors = wire.no_logged_errors

PATIENT: Json = {"header_timeout_seconds": 600, "body_timeout_seconds": 3600, "send_timeout_seconds": 3600}


async def wait_for_sweeps(broker: Running, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Wait until the server has checked the deadlines of all connections this many times."""
    seen = 0
    sweep = server_state(broker).sweep

    def counting_sweep() -> None:
        nonlocal seen
        sweep()
        seen += 1

    monkeypatch.setattr(server_state(broker), "sweep", counting_sweep)
    await wait_until(lambda: seen >= count)
    monkeypatch.setattr(server_state(broker), "sweep", sweep)


# Incomplete requests


async def test_idle_client_is_disconnected(serve: Serve) -> None:
    broker = await serve(header_timeout_seconds=0.2)
    async with connect_client(broker) as client:
        assert await client.read_to_end() == b""


@pytest.mark.parametrize("partial", [b"G", b"GET /health/live HTTP/1.1\r\nHost:", LIVE[:-1]])
async def test_incomplete_headers_get_408_after_the_timeout(serve: Serve, partial: bytes) -> None:
    broker = await serve(header_timeout_seconds=0.2)
    async with connect_client(broker) as client:
        client.send(partial)
        (await client.read_response()).assert_problem(408, "request_timeout")
        assert await client.read_to_end() == b""


async def test_slow_headers_do_not_extend_the_timeout(serve: Serve) -> None:
    broker = await serve(header_timeout_seconds=0.5)
    async with connect_client(broker) as client:
        client.send(b"GET /health/live HTTP/1.1\r\nx: ")
        response = asyncio.create_task(client.read_response())
        async with asyncio.timeout(WITHIN):
            while not response.done():
                client.send(b"x")
                await asyncio.sleep(0.02)
        response.result().assert_problem(408, "request_timeout")


async def test_header_timeout_on_a_reused_connection_starts_with_the_first_byte(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await serve(header_timeout_seconds=0.2)
    async with connect_client(broker) as client:
        for _ in range(2):
            client.send(LIVE)
            assert (await client.read_response()).status == 200
            await wait_for_sweeps(broker, monkeypatch, 2)
        client.send(LIVE[:20])
        (await client.read_response()).assert_problem(408, "request_timeout")
        assert await client.read_to_end() == b""


async def test_empty_lines_between_requests_start_no_timeout(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await serve(header_timeout_seconds=0.2)
    async with connect_client(broker) as client:
        client.send(LIVE)
        assert (await client.read_response()).status == 200
        client.send(b"\r\n\r\n")
        await wait_for_sweeps(broker, monkeypatch, 2)
        assert not server_state(broker).timed
        client.send(LIVE)
        assert (await client.read_response()).status == 200


# Litestar handles the second request, the fast path the first.
@pytest.mark.parametrize("headers", ["", "Prefer: wait=0\r\n"])
async def test_incomplete_body_gets_408_after_the_timeout(
    serve: Serve, no_logged_errors: None, headers: str
) -> None:
    broker = await serve(body_timeout_seconds=0.2)
    async with connect_client(broker) as client:
        client.send(post(task_body()[:4], length=11, headers=headers))
        problem = (await client.read_response()).assert_problem(408, "request_timeout")
        assert problem["instance"] == "/v1/tasks"
        assert await client.read_to_end() == b""
    await wait_until(lambda: not server_state(broker).tasks)
    assert server_state(broker).body_bytes == 0


async def test_steady_body_extends_the_timeout(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await serve(body_timeout_seconds=0.2)
    body = task_body(60_000)
    async with connect_client(broker) as client:
        client.send(post(body[:50_000], length=len(body)))
        await wait_for_sweeps(broker, monkeypatch, 3)
        client.send(body[50_000:])
        assert (await client.read_response()).status == 201


async def test_request_with_an_early_response_gets_no_second_one_when_its_body_is_late(
    serve: Serve,
) -> None:
    broker = await serve(body_timeout_seconds=0.2)
    async with connect_client(broker) as client:
        client.send(post(task_body(), length=10**12))
        assert (await client.read_response()).status == 413
        assert await client.read_to_end() == b""


async def test_connection_stays_open_if_the_rest_of_a_body_follows_the_response(serve: Serve) -> None:
    broker = await serve(max_body_bytes=1024)
    async with connect_client(broker) as client:
        client.send(post(b"x", length=2000))
        assert (await client.read_response()).status == 413
        client.send(b"x" * 1999)
        client.send(LIVE)
        assert (await client.read_response()).status == 200
    assert server_state(broker).body_bytes == 0


async def test_long_poll_has_no_deadline(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await serve(header_timeout_seconds=0.2, body_timeout_seconds=0.2, send_timeout_seconds=0.2)
    await api.add_tool(broker.client)
    async with connect_client(broker) as client:
        client.send(b"GET /v1/tools/t/work?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await wait_for_sweeps(broker, monkeypatch, 3)
        assert not server_state(broker).timed
        await broker.stop()
        assert (await client.read_response()).body == b'{"items":[]}'


# Unread responses


@pytest.mark.parametrize("connection_header", [b"keep-alive", b"close"])
async def test_client_that_never_reads_is_disconnected(
    serve: Serve, no_logged_errors: None, connection_header: bytes
) -> None:
    broker = await serve(send_timeout_seconds=0.2)
    await api.add_task(broker.client, "big", payload="x" * BIG_SIZE)
    before = len(server_state(broker).connections)
    with unread_socket(broker) as client:
        client.sendall(BIG % connection_header)
        await wait_until(lambda: len(server_state(broker).connections) > before)
        await wait_until(lambda: len(server_state(broker).connections) == before)
        await wait_until(lambda: not server_state(broker).tasks)


async def test_client_that_reads_slowly_gets_the_complete_response(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await serve(send_timeout_seconds=2)
    await api.add_task(broker.client, "big", payload="x" * BIG_SIZE)
    with unread_socket(broker) as client:
        client.sendall(BIG % b"close")
        received = 0
        for _ in range(4):
            received += await _read(client, 2**20)
            await wait_for_sweeps(broker, monkeypatch, 1)
        received += await _read(client, 2 * BIG_SIZE)
    assert received > BIG_SIZE


async def _read(client: socket.socket, count: int) -> int:
    """Read about `count` bytes, or to the end. Return the number of bytes read."""
    client.setblocking(False)
    received = 0
    async with asyncio.timeout(WITHIN):
        while received < count and (part := await asyncio.get_running_loop().sock_recv(client, 2**18)):
            received += len(part)
    return received


async def test_disconnect_ends_all_requests_of_the_client(broker: Running, no_logged_errors: None) -> None:
    await api.add_tool(broker.client)
    polls = b"GET /v1/tools/t/work?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3
    async with connect_client(broker) as client:
        client.send(polls)
        await wait_until(lambda: server_state(broker).tasks)
    await wait_until(lambda: not server_state(broker).tasks)


# Limits


async def test_connection_above_the_limit_gets_503_and_affects_no_other(serve: Serve) -> None:
    broker = await serve(max_connections=3, **PATIENT)
    async with connect_client(broker) as first:
        async with connect_client(broker):
            await wait_until(lambda: len(server_state(broker).connections) == 3)
            async with connect_client(broker) as fourth:
                response = await fourth.read_response()
                response.assert_problem(503, "unavailable")
                assert response.headers["retry-after"] == "1"
                assert await fourth.read_to_end() == b""
            first.send(LIVE)
            assert (await first.read_response()).status == 200
            assert len(server_state(broker).connections) == 3
        await wait_until(lambda: len(server_state(broker).connections) == 2)
        async with connect_client(broker) as another:
            another.send(LIVE)
            assert (await another.read_response()).status == 200
        await wait_until(lambda: not server_state(broker).turned_away)


async def test_connection_above_the_limit_gets_503_while_it_still_sends(serve: Serve) -> None:
    broker = await serve(max_connections=1, **PATIENT)
    for _ in range(20):
        async with connect_client(broker) as client:
            client.send(post(task_body(300_000)))
            (await client.read_response()).assert_problem(503, "unavailable")
            assert await client.read_to_end() == b""
    assert len(server_state(broker).connections) == 1


async def test_each_of_a_thousand_connections_above_the_limit_gets_503(serve: Serve) -> None:
    broker = await serve(max_connections=1, **PATIENT)

    async def connect_and_get_503() -> None:
        async with connect_client(broker) as client:
            (await client.read_response()).assert_problem(503, "unavailable")

    await asyncio.gather(*(connect_and_get_503() for _ in range(1_000)))
    assert (await broker.client.get("/health/live")).status_code == 200
    await wait_until(lambda: not server_state(broker).turned_away)


def limits_of_process(limits: tuple[int, int], wanted: int) -> tuple[list[int], str]:
    """Return the limits of connections and files that a process sets with these limits, and its log."""
    code = (
        "import resource; from broker.telemetry import logs;"
        "from broker.server.connections import Connections;"
        f"from broker.settings import Settings; resource.setrlimit(resource.RLIMIT_NOFILE, {limits});"
        f"logs.configure(); shared = Connections(Settings(max_connections={wanted}));"
        "shared.raise_file_limit();"
        "print(shared.most, *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()], done.stderr


def test_limits_of_open_files_and_connections_fit_each_other() -> None:
    assert limits_of_process((300, 1000), 500) == ([500, 700, 1000], "")
    assert limits_of_process((900, 1000), 500) == ([500, 900, 1000], "")
    counts, log = limits_of_process((300, 1000), 5000)
    assert counts == [800, 1000, 1000]
    assert log.count("BROKER_MAX_CONNECTIONS") == 1
    assert json.loads(log)["level"] == "warning"


async def test_bodies_above_the_total_limit_get_503_until_memory_is_free(serve: Serve) -> None:
    broker = await serve(max_body_bytes_in_all=100_000, **PATIENT)
    body = task_body(60_000)
    async with connect_client(broker) as first:
        first.send(post(body[:-1], length=len(body)))
        await wait_until(lambda: server_state(broker).body_bytes == len(body) - 1)
        async with connect_client(broker) as second:
            second.send(post(body))
            response = await second.read_response()
            response.assert_problem(503, "unavailable")
            assert response.headers["retry-after"] == "1"
            assert await second.read_to_end() == b""
        assert server_state(broker).body_bytes == len(body) - 1
        assert (await broker.client.get("/health/live")).status_code == 200
        first.send(body[-1:])
        assert (await first.read_response()).status == 201
        assert server_state(broker).body_bytes == 0
        first.send(post(body))
        assert (await first.read_response()).status == 201
    assert server_state(broker).body_bytes == 0


async def test_body_of_a_disconnected_client_is_no_longer_counted(
    serve: Serve, no_logged_errors: None
) -> None:
    broker = await serve(**PATIENT)
    for headers in ("", "Prefer: wait=0\r\n"):
        async with connect_client(broker) as client:
            client.send(post(task_body(60_000), length=10**6, headers=headers))
            await wait_until(lambda: server_state(broker).body_bytes == 60_000)
        await wait_until(lambda: server_state(broker).body_bytes == 0 and not server_state(broker).tasks)


async def test_thousands_of_pipelined_requests_get_responses_with_a_short_queue(broker: Running) -> None:
    await api.add_tool(broker.client)
    poll = b"GET /v1/tools/t/work?wait=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = post(task_body())
    async with connect_client(broker) as client:
        client.send(poll + LIVE * 3000 + body * 50 + LIVE)
        await wait_until(lambda: server_state(broker).body_bytes)
        queues = [len(connection.pipeline) for connection in server_state(broker).connections]
        assert max(queues) < 20
        statuses = [(await client.read_response()).status for _ in range(3052)]
    assert statuses == [200] * 3001 + [201] * 50 + [200]
    await wait_until(lambda: server_state(broker).body_bytes == 0)


async def test_pipelined_data_counts_towards_the_total_limit(serve: Serve) -> None:
    broker = await serve(max_body_bytes_in_all=10_000, **PATIENT)
    await api.add_tool(broker.client)
    async with connect_client(broker) as client:
        client.send(b"GET /v1/tools/t/work?wait=1 HTTP/1.1\r\nHost: localhost\r\n\r\n" + LIVE * 1000)
        assert (await client.read_response()).status == 200
        responses = (await client.read_to_end()).decode().split("HTTP/1.1 ")[1:]
        assert responses[-1].startswith("503")
        assert {response[:3] for response in responses[:-1]} <= {"200"}
    assert server_state(broker).body_bytes == 0


# Everything at the same time


async def test_a_thousand_bad_clients_do_not_affect_a_good_one(serve: Serve, no_logged_errors: None) -> None:
    broker = await serve(header_timeout_seconds=2, body_timeout_seconds=2, send_timeout_seconds=2)
    before = len(server_state(broker).connections)
    requests = (
        b"",
        LIVE[:30],
        post(task_body()[:3], length=11),
        LARGE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        LARGE * 3,
        b"\x00",
    )
    bad_clients = []
    for number in range(1_000):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        bad_clients.append(client)
        await asyncio.get_running_loop().sock_connect(
            _set_nonblocking(client), ("127.0.0.1", port_of(broker))
        )
        client.send(requests[number % len(requests)])
        if number % 7 == 0:
            client.shutdown(socket.SHUT_WR)
    try:
        for number in range(50):
            pair = await api.add_running_work(broker.client, f"a{number}", f"t{number}")
            record = await api.complete_work(broker.client, pair.work)
            assert record["outcome"] == "succeeded"
        await wait_until(lambda: len(server_state(broker).connections) == before)
        assert not server_state(broker).tasks
        assert server_state(broker).body_bytes == 0
    finally:
        for client in bad_clients:
            client.close()


def _set_nonblocking(client: socket.socket) -> socket.socket:
    client.setblocking(False)
    return client
