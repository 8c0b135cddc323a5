"""Clients over plain sockets, which send exactly the bytes that a test gives them."""

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
# A script of 1.7 MB. The kernel buffers up to 4 MiB for a client that does not read.
LARGE = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
BIG = b"GET /v1/tasks/big HTTP/1.1\r\nHost: localhost\r\nConnection: %s\r\n\r\n"
BIG_SIZE = 12 * 2**20


def post(body: bytes, *, length: int | None = None, path: str = "/v1/tasks", headers: str = "") -> bytes:
    """Return the bytes of a POST request. Its Content-Length may be larger than its body."""
    size = len(body) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {size}\r\n\r\n".encode() + body
    )


def task_body(size: int = 11) -> bytes:
    """Return the body of a new task, of `size` bytes."""
    return b'{"needs": "' + b"x" * (size - 13) + b'"}' if size > 13 else b'{"needs":1}'


def payload_body(size: int) -> bytes:
    """Return the body of a new task with a payload of `size` bytes."""
    return b'{"needs":1,"payload":"' + b"x" * size + b'"}'


class WireResponse(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def assert_problem(self, status: int, code: str) -> Json:
        """Check the shape of an error that closes the connection, and return the problem."""
        assert self.headers["connection"] == "close"
        # A path that is not described, as the broker may have refused the connection before any request.
        fields = {"headers": self.headers, "content": self.body, "request": httpx.Request("GET", "http://x/")}
        return api.assert_problem(httpx.Response(self.status, **fields), status, code)


class Client:
    """A client that sends only the given bytes."""

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
        """Return the remaining bytes until the broker closes the connection. A reset raises an error."""
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
    """Open a connection with a small receive buffer, from which nobody reads."""
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
    """Check that the test logs no error and no traceback."""
    with structlog.testing.capture_logs() as entries:
        yield
    assert [entry for entry in entries if entry["log_level"] == "error" or "exc_info" in entry] == []
    assert [entry for entry in caplog.records if entry.levelno >= logging.ERROR or entry.exc_info] == []
