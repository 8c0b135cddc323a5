"""Measure a service over HTTP connections that use little CPU themselves.

Load, service and database share the same cores. httptools parses the responses, as in uvicorn.
"""

import asyncio
import ssl
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import httptools
import msgspec


class BenchError(Exception):
    """A measurement failed, so its figures would be wrong."""


class HttpResponse(NamedTuple):
    """A response."""

    status: int
    body: bytes


class HttpConnection(asyncio.Protocol):
    """One kept-alive connection to a service, with one request on it at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if self._secure else 80)
        self._head = f" HTTP/1.1\r\nHost: {parts.netloc}\r\n".encode()
        self._transport: asyncio.Transport | None = None
        self._response: asyncio.Future[HttpResponse] | None = None
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    async def __aenter__(self) -> Self:
        secured = ssl.create_default_context() if self._secure else None
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, self._host, self._port, ssl=secured)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transport is not None:
            self._transport.close()

    async def send(self, method: str, path: str, body: bytes | None = None) -> HttpResponse:
        """Send a request, and return the response.

        Raises:
            BenchError: The connection was lost.
        """
        if self._transport is None or self._transport.is_closing():
            raise BenchError(f"{method} {path}: there is no connection to the service")
        self._response = asyncio.get_running_loop().create_future()
        head = f"{method} {path}".encode() + self._head
        if body is None:
            self._transport.write(head + b"\r\n")
        else:
            length = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            self._transport.write(head + length + body)
        return await self._response

    async def call(self, method: str, path: str, content: Any = None, into: Any = Any) -> Any:
        """Send a request that must succeed, and return the decoded response.

        Args:
            method: The method.
            path: The path, with the query.
            content: The content to send as JSON; bytes are sent unchanged.
            into: The type to decode the response into; None to ignore the response.

        Raises:
            BenchError: The service did not respond with success.
        """
        body = content if content is None or isinstance(content, bytes) else msgspec.json.encode(content)
        response = await self.send(method, path, body)
        # With a redirect, the figures would be those of a proxy.
        if response.status >= 300:
            raise BenchError(
                f"{method} {path} failed with status {response.status}: {response.body.decode()[:500]}"
            )
        return msgspec.json.decode(response.body, type=into) if into is not None and response.body else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the current request."""
        if self._response is not None and not self._response.done():
            self._response.set_exception(BenchError(f"the service closed the connection ({exc})"))

    def data_received(self, data: bytes) -> None:
        """Parse received data."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Store a part of the body."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """Return the complete response."""
        response = HttpResponse(self._parser.get_status_code(), b"".join(self._parts))
        self._parts.clear()
        if self._response is not None and not self._response.done():
            self._response.set_result(response)
