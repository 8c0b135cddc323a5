"""The load: an HTTP connection that costs little beside the service it measures.

Load, service and database share the same cores, so what the client burns is missing elsewhere. Parsing is
httptools', as in uvicorn; all that is left out is what a benchmark does not need.
"""

import asyncio
import ssl
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import httptools
import msgspec

Form = TypeVar("Form")


class BenchError(Exception):
    """The service did not do what was measured; the figures would mean nothing."""


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes


class Connection(asyncio.Protocol):
    """One kept-alive connection, with one request on it at a time.

    Args:
        url: The service, such as `http://127.0.0.1:8000`.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if self._secure else 80)
        self._head = f" HTTP/1.1\r\nHost: {parts.netloc}\r\n".encode()
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    async def __aenter__(self) -> Self:
        secured = ssl.create_default_context() if self._secure else None
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, self._host, self._port, ssl=secured)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._transport is not None:
            self._transport.close()

    async def send(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """Send a request, and the answer to it.

        Raises:
            BenchError: The connection was lost.
        """
        if self._transport is None or self._transport.is_closing():
            raise BenchError(f"{method} {path}: there is no connection to the service")
        self._answer = asyncio.get_running_loop().create_future()
        head = f"{method} {path}".encode() + self._head
        if body is None:
            self._transport.write(head + b"\r\n")
        else:
            length = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            self._transport.write(head + length + body)
        return await self._answer

    async def call(self, method: str, path: str, given: Any = None, form: type[Form] | Any = Any) -> Any:
        """Send a request that is to succeed.

        Args:
            method: The method.
            path: The path, with the query.
            given: What to send as JSON; bytes are sent as they are.
            form: What to read of the answer.

        Raises:
            BenchError: It did not succeed.
        """
        body = given if given is None or isinstance(given, bytes) else msgspec.json.encode(given)
        answer = await self.send(method, path, body)
        # A redirect is no success either: the figures would be a proxy's.
        if answer.status >= 300:
            raise BenchError(f"{method} {path} was answered {answer.status}: {answer.body.decode()[:500]}")
        return msgspec.json.decode(answer.body, type=form) if form is not None and answer.body else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request under way."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BenchError(f"the service closed the connection ({exc})"))

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """Hand over the answer."""
        answer = Answer(self._parser.get_status_code(), b"".join(self._parts))
        self._parts.clear()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)
