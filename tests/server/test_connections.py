"""A client that is slow, silent or greedy hurts only itself: over bare sockets, on the loop that serves."""

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


async def sweeps(broker: Running, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Return when all connections that have a deadline were looked at so many times."""
    seen = 0
    sweep = server_state(broker).sweep

    def counted() -> None:
        nonlocal seen
        sweep()
        seen += 1

    monkeypatch.setattr(server_state(broker), "sweep", counted)
    await wait_until(lambda: seen >= count)
    monkeypatch.setattr(server_state(broker), "sweep", sweep)


# A request that does not come


async def test_a_client_that_says_nothing_is_let_go_of(serve: Serve) -> None:
    broker = await serve(header_timeout_seconds=0.2)
    async with connect_client(broker) as client:
        assert await client.read_to_end() == b""


@pytest.mark.parametrize("begun", [b"G", b"GET /health/live HTTP/1.1\r\nHost:", LIVE[:-1]])
async def test_headers_that_do_not_come_in_time_are_told_so(serve: Serve, begun: bytes) -> None:
    broker = await serve(header_timeout_seconds=0.2)
    async with connect_client(broker) as client:
        client.send(begun)
        (await client.read_response()).assert_problem(408, "request_timeout")
        assert await client.read_to_end() == b""


async def test_headers_that_come_a_byte_at_a_time_do_not_have_longer(serve: Serve) -> None:
    broker = await serve(header_timeout_seconds=0.5)
    async with connect_client(broker) as client:
        client.send(b"GET /health/live HTTP/1.1\r\nx: ")
        answer = asyncio.create_task(client.read_response())
        async with asyncio.timeout(WITHIN):
            while not answer.done():
                client.send(b"x")
                await asyncio.sleep(0.02)
        answer.result().assert_problem(408, "request_timeout")


async def test_on_a_kept_connection_the_time_runs_from_the_first_byte_of_a_request(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await serve(header_timeout_seconds=0.2)
    async with connect_client(broker) as client:
        for _ in range(2):
            client.send(LIVE)
            assert (await client.read_response()).status == 200
            await sweeps(broker, monkeypatch, 2)
        client.send(LIVE[:20])
        (await client.read_response()).assert_problem(408, "request_timeout")
        assert await client.read_to_end() == b""


async def test_empty_lines_between_requests_keep_nothing_waiting(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await serve(header_timeout_seconds=0.2)
    async with connect_client(broker) as client:
        client.send(LIVE)
        assert (await client.read_response()).status == 200
        client.send(b"\r\n\r\n")
        await sweeps(broker, monkeypatch, 2)
        assert not server_state(broker).timed
        client.send(LIVE)
        assert (await client.read_response()).status == 200


# The second goes through all of Litestar.
@pytest.mark.parametrize("headers", ["", "Prefer: wait=0\r\n"])
async def test_a_body_that_does_not_come_in_time_is_told_so(
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


async def test_a_body_that_comes_steadily_has_longer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await serve(body_timeout_seconds=0.2)
    body = task_body(60_000)
    async with connect_client(broker) as client:
        client.send(post(body[:50_000], length=len(body)))
        await sweeps(broker, monkeypatch, 3)
        client.send(body[50_000:])
        assert (await client.read_response()).status == 201


async def test_what_was_answered_early_is_not_answered_again_when_its_body_does_not_come(
    serve: Serve,
) -> None:
    broker = await serve(body_timeout_seconds=0.2)
    async with connect_client(broker) as client:
        client.send(post(task_body(), length=10**12))
        assert (await client.read_response()).status == 413
        assert await client.read_to_end() == b""


async def test_a_connection_is_kept_when_the_rest_of_a_body_comes_after_the_answer(serve: Serve) -> None:
    broker = await serve(max_body_bytes=1024)
    async with connect_client(broker) as client:
        client.send(post(b"x", length=2000))
        assert (await client.read_response()).status == 413
        client.send(b"x" * 1999)
        client.send(LIVE)
        assert (await client.read_response()).status == 200
    assert server_state(broker).body_bytes == 0


async def test_a_request_that_waits_has_no_deadline(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await serve(header_timeout_seconds=0.2, body_timeout_seconds=0.2, send_timeout_seconds=0.2)
    await api.add_tool(broker.client)
    async with connect_client(broker) as client:
        client.send(b"GET /v1/tools/t/work?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await sweeps(broker, monkeypatch, 3)
        assert not server_state(broker).timed
        await broker.stop()
        assert (await client.read_response()).body == b'{"items":[]}'


# An answer that is not read


@pytest.mark.parametrize("afterwards", [b"keep-alive", b"close"])
async def test_a_client_that_never_reads_is_let_go_of(
    serve: Serve, no_logged_errors: None, afterwards: bytes
) -> None:
    broker = await serve(send_timeout_seconds=0.2)
    await api.add_task(broker.client, "big", payload="x" * BIG_SIZE)
    before = len(server_state(broker).connections)
    with unread_socket(broker) as client:
        client.sendall(BIG % afterwards)
        await wait_until(lambda: len(server_state(broker).connections) > before)
        await wait_until(lambda: len(server_state(broker).connections) == before)
        await wait_until(lambda: not server_state(broker).tasks)


async def test_a_client_that_reads_slowly_gets_all_of_its_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await serve(send_timeout_seconds=2)
    await api.add_task(broker.client, "big", payload="x" * BIG_SIZE)
    with unread_socket(broker) as client:
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


async def test_a_client_that_goes_ends_all_that_it_asked_for(broker: Running, no_logged_errors: None) -> None:
    await api.add_tool(broker.client)
    polls = b"GET /v1/tools/t/work?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3
    async with connect_client(broker) as client:
        client.send(polls)
        await wait_until(lambda: server_state(broker).tasks)
    await wait_until(lambda: not server_state(broker).tasks)


# Too many


async def test_one_connection_too_many_is_told_so_and_hurts_no_other(serve: Serve) -> None:
    broker = await serve(max_connections=3, **PATIENT)
    async with connect_client(broker) as first:
        async with connect_client(broker):
            await wait_until(lambda: len(server_state(broker).connections) == 3)
            async with connect_client(broker) as fourth:
                answer = await fourth.read_response()
                answer.assert_problem(503, "unavailable")
                assert answer.headers["retry-after"] == "1"
                assert await fourth.read_to_end() == b""
            first.send(LIVE)
            assert (await first.read_response()).status == 200
            assert len(server_state(broker).connections) == 3
        await wait_until(lambda: len(server_state(broker).connections) == 2)
        async with connect_client(broker) as another:
            another.send(LIVE)
            assert (await another.read_response()).status == 200
        await wait_until(lambda: not server_state(broker).turned_away)


async def test_one_too_many_hears_so_while_it_still_sends(serve: Serve) -> None:
    broker = await serve(max_connections=1, **PATIENT)
    for _ in range(20):
        async with connect_client(broker) as client:
            client.send(post(task_body(300_000)))
            (await client.read_response()).assert_problem(503, "unavailable")
            assert await client.read_to_end() == b""
    assert len(server_state(broker).connections) == 1


async def test_of_a_thousand_too_many_every_one_is_told_so(serve: Serve) -> None:
    broker = await serve(max_connections=1, **PATIENT)

    async def knock() -> None:
        async with connect_client(broker) as client:
            (await client.read_response()).assert_problem(503, "unavailable")

    await asyncio.gather(*(knock() for _ in range(1_000)))
    assert (await broker.client.get("/health/live")).status_code == 200
    await wait_until(lambda: not server_state(broker).turned_away)


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
    body = task_body(60_000)
    async with connect_client(broker) as first:
        first.send(post(body[:-1], length=len(body)))
        await wait_until(lambda: server_state(broker).body_bytes == len(body) - 1)
        async with connect_client(broker) as second:
            second.send(post(body))
            answer = await second.read_response()
            answer.assert_problem(503, "unavailable")
            assert answer.headers["retry-after"] == "1"
            assert await second.read_to_end() == b""
        assert server_state(broker).body_bytes == len(body) - 1
        assert (await broker.client.get("/health/live")).status_code == 200
        first.send(body[-1:])
        assert (await first.read_response()).status == 201
        assert server_state(broker).body_bytes == 0
        first.send(post(body))
        assert (await first.read_response()).status == 201
    assert server_state(broker).body_bytes == 0


async def test_the_body_of_a_client_that_goes_is_counted_no_longer(
    serve: Serve, no_logged_errors: None
) -> None:
    broker = await serve(**PATIENT)
    for headers in ("", "Prefer: wait=0\r\n"):
        async with connect_client(broker) as client:
            client.send(post(task_body(60_000), length=10**6, headers=headers))
            await wait_until(lambda: server_state(broker).body_bytes == 60_000)
        await wait_until(lambda: server_state(broker).body_bytes == 0 and not server_state(broker).tasks)


async def test_of_very_many_requests_at_once_few_are_queued_and_all_are_answered(broker: Running) -> None:
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


async def test_what_comes_behind_a_request_is_bounded_too(serve: Serve) -> None:
    broker = await serve(max_body_bytes_in_all=10_000, **PATIENT)
    await api.add_tool(broker.client)
    async with connect_client(broker) as client:
        client.send(b"GET /v1/tools/t/work?wait=1 HTTP/1.1\r\nHost: localhost\r\n\r\n" + LIVE * 1000)
        assert (await client.read_response()).status == 200
        answers = (await client.read_to_end()).decode().split("HTTP/1.1 ")[1:]
        assert answers[-1].startswith("503")
        assert {answer[:3] for answer in answers[:-1]} <= {"200"}
    assert server_state(broker).body_bytes == 0


# All of them at once


async def test_a_thousand_bad_clients_do_not_hinder_a_good_one(serve: Serve, no_logged_errors: None) -> None:
    broker = await serve(header_timeout_seconds=2, body_timeout_seconds=2, send_timeout_seconds=2)
    before = len(server_state(broker).connections)
    asked = (
        b"",
        LIVE[:30],
        post(task_body()[:3], length=11),
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
            pair = await api.add_running_work(broker.client, f"a{number}", f"t{number}")
            record = await api.complete_work(broker.client, pair.work)
            assert record["outcome"] == "succeeded"
        await wait_until(lambda: len(server_state(broker).connections) == before)
        assert not server_state(broker).tasks
        assert server_state(broker).body_bytes == 0
    finally:
        for client in bad:
            client.close()


def _unblocked(client: socket.socket) -> socket.socket:
    client.setblocking(False)
    return client
