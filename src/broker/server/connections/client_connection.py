"""The connection of a client. It limits how much data the server reads, and when."""

import asyncio
from typing import Any, cast

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from broker.errors import BrokerError, Crowded, HeadersTooLarge, MalformedRequest, RequestTimeout
from broker.http import problems
from broker.server.connections import head
from broker.server.connections.after_upgrade import has_body, parser_of_rest
from broker.server.connections.cycle import Cycle
from broker.server.connections.response_writer import ResponseWriter, UnchunkedResponseWriter
from broker.server.connections.timed_connection import LINGER_SECONDS, TimedConnection
from broker.wake.departure import Departure

# The size of a piece that is parsed at once. It is smaller if it has several requests, because parsed
# requests wait in a queue.
_PIECE = 4096
_SMALL_PIECE = 256
_END_OF_HEAD = b"\r\n\r\n"
# Maximum size of the request line and headers.
_HEAD_BYTES = 64 * 1024
# The chunk framing may be this many times as large as the body.
_FRAMING_PER_BODY = 8
# The slowest accepted body: each further second must bring this many bytes.
_BYTES_PER_SECOND = 1000


class ClientConnection(TimedConnection):
    """A connection that reads a bounded amount of data."""

    __slots__ = ("_body", "_complete", "_current", "_error", "_is_half_closed", "_read", "_unparsed")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The request in progress, or else the last one. uvicorn's `cycle` is the request that started last.
        self._current: RequestResponseCycle | None = None
        # The scope of the last complete request. Equal to `scope` until data of another request arrives.
        self._complete: Any = None
        # The bytes read of an incomplete request, to the nearest piece, and the bytes of its body.
        self._read = self._body = 0
        # Data that arrived after the request in progress.
        self._unparsed: bytes | memoryview = b""
        # The error that ends the connection and is its last response. Nothing more is read.
        self._error: BrokerError | None = None
        # Whether the client has closed its sending side.
        self._is_half_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, or refuse the client."""
        super().connection_made(transport)
        if len(self.connections) > self._shared.most:
            stays = self._shared.turn_away(self)
            self._fail(Crowded("The service has reached its limit of connections. Repeat the request later."))
            if not stays:
                transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the requests of the client, and stop counting its bytes."""
        super().connection_lost(exc)
        self._shared.release(self)
        self._disconnect()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Finish the requests of a client that has closed its sending side, then close the connection."""
        if self._is_half_closed:
            return True
        if self._error is None and (self._unparsed or self._has_to_wait()):
            self._is_half_closed = True
            for cycle in self._cycles():
                if not cycle.response_complete:
                    cycle.half_close()
            return True
        if self._error is None:
            self._refuse_incomplete()
        super().eof_received()
        return None

    def data_received(self, data: bytes) -> None:
        """Parse data, unless a request before it is still in progress."""
        if self._error is not None:
            return
        if self._unparsed or len(data) > _PIECE or self._has_to_wait() or data.count(_END_OF_HEAD) > 1:
            self._unparsed = memoryview(b"".join((self._unparsed, data)) if self._unparsed else data)
            self._parse_more()
        else:
            self._parse(data)
            self._set_deadline()

    def on_headers_complete(self) -> None:
        """Start a request.

        Raises:
            MalformedRequest: The head is not valid HTTP/1.1.
            ExpectationFailed: The request expects something other than `100-continue`.
        """
        version = self.parser.get_http_version()
        head.check(version, self.headers)
        if not self.url.startswith(b"/"):
            self.url = head.origin_form(self.parser.get_method(), self.url, self.headers)
        super().on_headers_complete()
        # Trailers after the body do not count as headers of the request.
        self.headers = []
        # uvicorn creates the cycle itself, and has no option for its class.
        self.cycle.__class__ = Cycle
        self.scope["state"]["departure"] = Departure()
        if self._is_half_closed:
            cast("Cycle", self.cycle).half_close()
        if version == "1.1":
            self.cycle.transport = ResponseWriter(self.transport)
        else:
            self.cycle.transport = UnchunkedResponseWriter(self.transport)
            self.cycle.waiting_for_100_continue = False
        self._since = 0.0
        self._read = 0
        if not self.pipeline:
            self._current = self.cycle

    def on_body(self, body: bytes) -> None:
        """Add a part of a body.

        Raises:
            Crowded: The bodies of all requests would exceed their limit.
        """
        self._body += len(body)
        cycle = self.cycle
        if not cycle.response_complete:
            self._shared.hold(cycle, len(body))
            # The rest is the same as in uvicorn, without its WebSocket check.
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Mark the request as complete."""
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()
        self._complete = self.scope
        self._since = 0.0
        self._read = self._body = 0
        # uvicorn pauses reading for a large or pipelined request. But a disconnect must end a wait.
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Continue with the data that arrived meanwhile."""
        if self._current is not None:
            self._shared.release(self._current)
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
            return
        if following is not None:
            self._current = following
        if self._error is not None:
            self._refuse(self._error)
        elif self._unparsed:
            self._parse_more()
        elif self._complete is not self.scope:
            self._set_deadline()
        if self._is_half_closed and self._error is None and not self._has_to_wait():
            self._refuse_incomplete()
            self._close()

    def _refuse_incomplete(self) -> None:
        """Refuse the last request if the client closed its sending side before the end of the request."""
        if self._complete is not self.scope:
            self._fail(MalformedRequest("The connection ended before the end of the request."))

    def _has_to_wait(self) -> bool:
        """Return whether a request must finish before the data after it is parsed."""
        current = self._current
        if current is None or current.response_complete:
            return False
        # If the current request is incomplete, the data may be its own body.
        return self._complete is self.scope or current.scope is not self.scope

    def _has_begun(self) -> bool:
        """Return whether a request has all of its headers but not all of its body."""
        return self._complete is not self.scope and self.cycle is not None and self.cycle.scope is self.scope

    def _parse(self, data: bytes | memoryview) -> None:
        """Parse a piece of data."""
        if self._complete is not self.scope:
            self._read += len(data)
            if self._read > _HEAD_BYTES - _PIECE + _FRAMING_PER_BODY * self._body:
                self._fail(HeadersTooLarge())
                return
        while data:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                # Handle it like any other request. Its body or the next request follows.
                data = data[upgrade.args[0] :]
                headers = list(self.scope["headers"])
                if has_body(headers):
                    self._expect_body(headers)
                continue
            except HttpParserError as error:
                reason = error.__context__
                self._fail(reason if isinstance(reason, BrokerError) else MalformedRequest())
            return

    def _expect_body(self, headers: head.Headers) -> None:
        """Parse the body of a request that the parser considers complete."""
        self.parser = parser_of_rest(self, headers)
        self.cycle.more_body = True
        self.cycle.message_event.clear()
        self._complete = None

    def _parse_more(self) -> None:
        """Parse the data after a request, up to a request that must finish first."""
        while self._unparsed and self._error is None and not self._has_to_wait():
            several = bytes(self._unparsed[:_PIECE]).count(_END_OF_HEAD) > 1
            size = _SMALL_PIECE if several else _PIECE
            piece, self._unparsed = self._unparsed[:size], self._unparsed[size:]
            self._parse(piece)
        try:
            self._shared.keep(self, len(self._unparsed))
        except Crowded as error:
            self._fail(error)
        if self._unparsed:
            # Pause the transport directly. With uvicorn's flow control, every `receive` would resume reading.
            self.flow.read_paused = False
            self.transport.pause_reading()
        elif not self.flow.read_paused:
            self.transport.resume_reading()
        self._set_deadline()

    def _set_deadline(self) -> None:
        """Set or end the deadline for sending, after data was parsed."""
        if self._error is not None:
            return
        if self._has_to_wait():
            self._since = 0.0
            self._unset_keepalive_if_required()
        elif self._complete is not self.scope:
            self._unset_keepalive_if_required()
            if not self._since:
                self._start_send_deadline()
        elif self._current is not None and self.timeout_keep_alive_task is None:
            # The response was already sent, but the rest of the body is missing.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _seconds_allowed(self) -> float:
        if self._has_begun():
            return self._shared.settings.body_timeout_seconds + self._body / _BYTES_PER_SECOND
        return self._shared.settings.header_timeout_seconds

    def _time_out(self) -> None:
        """Refuse a request that did not arrive completely in time."""
        if self._complete is not self.scope:
            self._fail(RequestTimeout())
        else:
            # No request has started.
            self._close()

    def _fail(self, error: BrokerError) -> None:
        """Refuse the connection, and discard further data while the client reads the refusal."""
        self._error = error
        self._since = 0.0
        self._unparsed = b""
        self._shared.release(self)
        self.flow.read_paused = False
        self.transport.resume_reading()
        self._refuse(error)

    def _refuse(self, error: BrokerError) -> None:
        """Send an error after the responses of earlier requests, and close the connection."""
        if self._has_to_wait():
            return
        has_begun = self._has_begun()
        has_response = has_begun and self.cycle.response_started
        self._unset_keepalive_if_required()
        self._disconnect()
        if has_response:
            self._close()
        elif not self.transport.is_closing():
            self.transport.write(problems.last_response(error, self.scope["path"] if has_begun else ""))
            self.transport.write_eof()
            self._start_last_deadline(LINGER_SECONDS)

    def _cycles(self) -> list[Cycle]:
        """Return all requests of the connection. A request may appear twice."""
        cycles = (self._current, self.cycle, *(queued for queued, _ in self.pipeline))
        return [cast("Cycle", cycle) for cycle in cycles if cycle is not None]

    def _disconnect(self) -> None:
        """Signal a disconnect to all requests."""
        for cycle in self._cycles():
            self._shared.release(cycle)
            if not cycle.response_complete:
                cycle.disconnect()
        self.pipeline.clear()
