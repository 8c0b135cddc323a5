"""One HTTP/1.1 connection to a server: send a request on it, and parse the response."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, cast

import httptools
import httpx

# The longest head of a response. The parser itself accepts any length.
_MOST_HEAD_BYTES = 2**17
# A larger body is not copied into one piece with the head of the request.
_MOST_JOINED_BYTES = 2**16


class Reply(NamedTuple):
    """A response as it arrived. Any server may have sent it."""

    status: int
    reason: bytes
    headers: Sequence[tuple[bytes, bytes]]
    content: bytes

    def for_httpx(self, request: httpx.Request) -> httpx.Response:
        """Return the response in the form of httpx, with decoded content.

        Raises:
            httpx.DecodingError: The content does not match its `Content-Encoding`.
        """
        extensions = {"reason_phrase": self.reason}
        return httpx.Response(
            self.status, headers=self.headers, content=self.content, request=request, extensions=extensions
        )


class ServerConnection(asyncio.Protocol):
    """A connection that stays open between requests, with one request on it at a time.

    Attributes:
        closed: Done when the connection is closed.
        has_received: True if the server has sent anything since the latest request.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._reply: asyncio.Future[Reply] | None = None
        self._timer: asyncio.TimerHandle
        self._silent_seconds = self._active_at = 0.0
        self._unsent_bytes = 0
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.has_received = False
        self._idle_since = 0.0
        self._start_message()

    async def send(self, head: bytes, content: bytes, silent_seconds: float) -> Reply:
        """Send a request and return the response. Close the connection if it cannot be used again.

        Args:
            head: The first line and the headers of the request, with the empty line at their end.
            content: The body of the request.
            silent_seconds: How long, in seconds, the server may neither accept nor send anything.

        Raises:
            httpx.ReadTimeout: The server was silent for too long.
            httpx.ReadError: The connection was lost.
            httpx.RemoteProtocolError: The server closed the connection before the end of the response, or
                what it sent is not HTTP/1.1.
        """
        self._start_message()
        self._head_bytes = 0
        self.has_received = self._is_complete = False
        self._reply = self._loop.create_future()
        if len(content) > _MOST_JOINED_BYTES:
            self._transport.write(head)
            self._transport.write(content)
        else:
            self._transport.write(head + content)
        self._silent_seconds, self._active_at = silent_seconds, self._loop.time()
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(silent_seconds, self._check_progress)
        try:
            reply = await self._reply
        except BaseException:
            self.close()
            raise
        finally:
            self._timer.cancel()
            self._reply = None
        # If the server responds early, it may not read the rest of the request.
        if not self._keeps_alive or self._transport.get_write_buffer_size():
            self.close()
        return reply

    @property
    def idle_seconds(self) -> float:
        """The number of seconds since the end of the latest request."""
        return self._loop.time() - self._idle_since

    @property
    def is_closing(self) -> bool:
        """True if the connection is closed or will be, so it accepts no request."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close the connection at once. A request on it fails."""
        self._transport.abort()

    def _start_message(self) -> None:
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._is_in_head = True
        self._keeps_alive = False

    def _check_progress(self) -> None:
        """Fail the request if the server was silent for too long."""
        unsent, now = self._transport.get_write_buffer_size(), self._loop.time()
        if unsent < self._unsent_bytes:
            self._unsent_bytes, self._active_at = unsent, now
        if (left := self._active_at + self._silent_seconds - now) > 0:
            self._timer = self._loop.call_later(left, self._check_progress)
        else:
            self._fail(httpx.ReadTimeout(f"the server was silent for {self._silent_seconds:g} s"))

    def _fail(self, error: httpx.TransportError) -> None:
        """Fail the request, and close the connection."""
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)
        self.close()

    # Methods that the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse a part of the response."""
        if self._reply is None or self._reply.done():
            # No request waits for this.
            self.close()
            return
        self.has_received, self._active_at = True, self._loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(httpx.RemoteProtocolError(f"the response is not HTTP/1.1: {error}"))
            return
        if self._is_in_head and not self._is_complete:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES:
                self._fail(httpx.RemoteProtocolError("the headers of the response are too long"))

    def eof_received(self) -> None:
        """Complete a response that ends with the connection, because no header says where it ends."""
        names = {name.lower() for name, _ in self._headers}
        if not (self._is_in_head or names & {b"content-length", b"transfer-encoding"}):
            self._complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request on this connection."""
        if exc is not None:
            self._fail(httpx.ReadError(str(exc) or repr(exc)))
        else:
            part = "the end of the response" if self.has_received else "a response"
            self._fail(httpx.RemoteProtocolError(f"the server closed the connection before {part}"))
        # The parser refers to this object. Without the cycle, both are freed at once.
        del self._parser
        self.closed.set_result(None)

    # Methods that the parser calls

    def on_message_begin(self) -> None:
        """Close the connection if a second response follows the one that was requested."""
        if self._is_complete:
            self.close()

    def on_status(self, reason: bytes) -> None:
        """Store a part of the words after the status."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header; ignore those after the body."""
        if self._is_in_head:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Note that the body follows."""
        self._is_in_head = False

    def on_body(self, body: bytes) -> None:
        """Store a part of the body."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """Complete the response, unless another one follows it, as after `100 Continue`."""
        if self._parser.get_status_code() < 200:
            self._start_message()
        else:
            self._keeps_alive = self._parser.should_keep_alive()
            self._complete()

    def _complete(self) -> None:
        self._is_complete = True
        self._idle_since = self._loop.time()
        if self._reply is not None and not self._reply.done():
            status = self._parser.get_status_code()
            self._reply.set_result(Reply(status, self._reason, self._headers, b"".join(self._parts)))
