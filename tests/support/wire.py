"""Clients over bare sockets, which send exactly the bytes that a test gives them."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any, NamedTuple

import httpx
import pytest
import structlog.testing

from tests.conftest import Running
from tests.support import api
from tests.support.api import Json

WITHIN = 20
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
# A script of 1.7 MB. The kernel takes 4 MiB of what nobody reads.
LARGE = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
BIG = b"GET /v1/tasks/big HTTP/1.1\r\nHost: localhost\r\nConnection: %s\r\n\r\n"
BIG_SIZE = 12 * 2**20


def post(body: bytes, *, length: int | None = None, path: str = "/v1/tasks", headers: str = "") -> bytes:
    """A request as it goes over the wire; it may promise more than it has."""
    size = len(body) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {size}\r\n\r\n".encode() + body
    )


def task_body(size: int = 11) -> bytes:
    """The body of a task, of so many bytes."""
    return b'{"needs": "' + b"x" * (size - 13) + b'"}' if size > 13 else b'{"needs":1}'


def payload_body(size: int) -> bytes:
    """The body of a task with a payload of so many bytes."""
    return b'{"needs":1,"payload":"' + b"x" * size + b'"}'


class WireResponse(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def assert_problem(self, status: int, code: str) -> Json:
        """Checks the shape of an error that ends a connection, and hands it back."""
        assert self.headers["connection"] == "close"
        # No call that is described: its connection may have been refused before there was one.
        told = {"headers": self.headers, "content": self.body, "request": httpx.Request("GET", "http://x/")}
        return api.assert_problem(httpx.Response(self.status, **told), status, code)


class Client:
    """A client that sends what it is told to, and nothing else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def read_response(self) -> WireResponse:
        async with asyncio.timeout(WITHIN):
            first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
            headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return WireResponse(int(first.split()[1]), headers, body)

    async def read_to_end(self) -> bytes:
        """What else comes until the connection is closed; a reset does not count as that."""
        async with asyncio.timeout(WITHIN):
            return await self._reader.read()

    def end_sending(self) -> None:
        self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connect_client(broker: Running) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", port_of(broker)))
    try:
        yield client
    finally:
        client.close()


@contextmanager
def unread_socket(broker: Running) -> Iterator[socket.socket]:
    """A connection that nobody reads from, and that can take little."""
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port_of(broker)))
        yield connection


def port_of(broker: Running) -> int:
    port = httpx.URL(broker.url).port
    assert port is not None
    return port


def server_state(broker: Running) -> Any:
    return broker.server.server_state


@pytest.fixture
def no_logged_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged as an error, and no traceback at all."""
    with structlog.testing.capture_logs() as ours:
        yield
    assert [entry for entry in ours if entry["log_level"] == "error" or "exc_info" in entry] == []
    assert [entry for entry in caplog.records if entry.levelno >= logging.ERROR or entry.exc_info] == []
