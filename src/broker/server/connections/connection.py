"""The connection of a client: how much of what it sends is read, and when."""

import asyncio
from typing import Any, cast

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from broker.errors import BrokerError, Crowded, HeadersTooLarge, MalformedRequest, RequestTimeout
from broker.http import problems
from broker.server.connections import head
from broker.server.connections.after_upgrade import has_body, parser_of_rest
from broker.server.connections.answer import Answer, UnchunkedAnswer
from broker.server.connections.cycle import Cycle
from broker.server.connections.watched import LINGER_SECONDS, Watched

# What is parsed at once; less where it holds several requests, as those that are parsed stand in a queue.
_PIECE = 4096
_SMALL_PIECE = 256
_END_OF_HEAD = b"\r\n\r\n"
# Of a request's line and headers; and, with so many times the body, of what stands around its chunks.
_HEAD_BYTES = 64 * 1024
_AROUND_CHUNKS = 8
# Each second that a body takes longer has to bring so many.
_BYTES_PER_SECOND = 1000


class Connection(Watched):
    """A connection with a bounded appetite; see `Watched` for what it takes."""

    __slots__ = ("_answering", "_behind", "_body", "_ended", "_fault", "_read", "_whole")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The request that is answered now, or was last; uvicorn's `cycle` is the one that began last.
        self._answering: RequestResponseCycle | None = None
        # The last request that is here to its end: it is `scope`, if nothing of another has come since.
        self._whole: Any = None
        # What was read of one that is not, to the nearest piece, and how much of that was body.
        self._read = self._body = 0
        # What came behind a request that is answered first.
        self._behind: bytes | memoryview = b""
        # Why nothing more is read; it is the last that the client is told.
        self._fault: BrokerError | None = None
        # Whether the client has closed its sending side.
        self._ended = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request, or turn the client away."""
        super().connection_made(transport)
        if len(self.connections) > self._shared.most:
            stays = self._shared.turn_away(self)
            self._fail(Crowded("The service has as many connections as it can; try again."))
            if not stays:
                transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever works for this client, and count nothing of it any longer."""
        super().connection_lost(exc)
        self._shared.release(self)
        self._disconnect()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer the requests that are here, although the client sends no more; then close."""
        if self._ended:
            return True
        if self._fault is None and (self._behind or self._has_to_wait()):
            self._ended = True
            for cycle in (self._answering, self.cycle, *(queued for queued, _ in self.pipeline)):
                if isinstance(cycle, Cycle) and not cycle.response_complete:
                    cycle.half_close()
            return True
        if self._fault is None and self._is_cut_off():
            self._fail(MalformedRequest("The connection ended before the request did."))
        super().eof_received()
        return None

    def data_received(self, data: bytes) -> None:
        """Read what came, as far as it is its turn."""
        if self._fault is not None:
            return
        if self._behind or len(data) > _PIECE or self._has_to_wait() or data.count(_END_OF_HEAD) > 1:
            self._behind = memoryview(b"".join((self._behind, data)) if self._behind else data)
            self._read_on()
        else:
            self._feed(data)
            self._note()

    def on_headers_complete(self) -> None:
        """Begin with a request.

        Raises:
            MalformedRequest: It is not HTTP/1.1.
            ExpectationFailed: It expects what nobody here knows.
        """
        version = self.parser.get_http_version()
        head.check(version, self.headers)
        if not self.url.startswith(b"/"):
            self.url = head.origin_form(self.parser.get_method(), self.url, self.headers)
        super().on_headers_complete()
        # What may follow the body is no header of the request.
        self.headers = []
        # uvicorn makes it itself.
        self.cycle.__class__ = Cycle
        if self._ended:
            cast("Cycle", self.cycle).half_close()
        if version == "1.1":
            self.cycle.transport = Answer(self.transport)
        else:
            self.cycle.transport = UnchunkedAnswer(self.transport)
            self.cycle.waiting_for_100_continue = False
        self._since = 0.0
        self._read = 0
        if not self.pipeline:
            self._answering = self.cycle

    def on_body(self, body: bytes) -> None:
        """Take a part of a body.

        Raises:
            Crowded: There is no room for it.
        """
        self._body += len(body)
        cycle = self.cycle
        if not cycle.response_complete:
            self._shared.take(cycle, len(body))
            # As uvicorn does; but it would look for a WebSocket, and none is spoken here.
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The request is here to its end."""
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()
        self._whole = self.scope
        self._since = 0.0
        self._read = self._body = 0

    def on_response_complete(self) -> None:
        """Go on with what has come meanwhile."""
        if self._answering is not None:
            self._shared.release(self._answering)
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
            return
        if following is not None:
            self._answering = following
        if self._fault is not None:
            self._refuse(self._fault)
        elif self._behind:
            self._read_on()
        elif self._whole is not self.scope:
            self._note()
        if self._ended and self._fault is None and not self._has_to_wait():
            self._end()

    def _end(self) -> None:
        """Close: all requests of a client that sends no more are answered."""
        if self._is_cut_off():
            self._fail(MalformedRequest("The connection ended before the request did."))
        self._close()

    def _is_cut_off(self) -> bool:
        """Return whether there is a part of a request."""
        return self._whole is not self.scope

    def _has_to_wait(self) -> bool:
        """Whether a request has to be answered before anything that comes behind it is read."""
        answering = self._answering
        if answering is None or answering.response_complete:
            return False
        # It may be its own body that comes.
        return self._whole is self.scope or answering.scope is not self.scope

    def _has_begun(self) -> bool:
        """Whether there is a request with all of its headers, and not all of its body."""
        return self._whole is not self.scope and self.cycle is not None and self.cycle.scope is self.scope

    def _feed(self, data: bytes | memoryview) -> None:
        """Have a piece parsed."""
        if self._whole is not self.scope:
            self._read += len(data)
            if self._read > _HEAD_BYTES - _PIECE + _AROUND_CHUNKS * self._body:
                self._fail(HeadersTooLarge())
                return
        while data:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                # It is answered like any other request, and what follows is its body, or the next.
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
        """Go on with the body of a request that the parser believes to be at its end."""
        self.parser = parser_of_rest(self, headers)
        self.cycle.more_body = True
        self.cycle.message_event.clear()
        self._whole = None

    def _read_on(self) -> None:
        """Read what came behind, up to a request that has to be answered first."""
        while self._behind and self._fault is None and not self._has_to_wait():
            several = bytes(self._behind[:_PIECE]).count(_END_OF_HEAD) > 1
            size = _SMALL_PIECE if several else _PIECE
            piece, self._behind = self._behind[:size], self._behind[size:]
            self._feed(piece)
        try:
            self._shared.keep(self, len(self._behind))
        except Crowded as error:
            self._fail(error)
        if self._behind:
            # Past uvicorn's own switch, which every `receive` turns on.
            self.flow.read_paused = False
            self.transport.pause_reading()
        elif not self.flow.read_paused:
            self.transport.resume_reading()
        self._note()

    def _note(self) -> None:
        """See what is expected now that data was read."""
        if self._fault is not None:
            return
        if self._has_to_wait():
            self._since = 0.0
            self._unset_keepalive_if_required()
        elif self._whole is not self.scope:
            self._unset_keepalive_if_required()
            if not self._since:
                self._expect()
        elif self._answering is not None and self.timeout_keep_alive_task is None:
            # The rest of a body that was answered before.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _seconds_allowed(self) -> float:
        if self._has_begun():
            return self._shared.settings.body_timeout_seconds + self._body / _BYTES_PER_SECOND
        return self._shared.settings.header_timeout_seconds

    def _too_late(self) -> None:
        """The rest of a request did not come in time."""
        if self._whole is not self.scope:
            self._fail(RequestTimeout())
        else:
            # Not a byte of one.
            self._close()

    def _fail(self, error: BrokerError) -> None:
        """Read nothing more: it is only thrown away, so that the client's system hears us out."""
        self._fault = error
        self._since = 0.0
        self._behind = b""
        self._shared.release(self)
        self.flow.read_paused = False
        self.transport.resume_reading()
        self._refuse(error)

    def _refuse(self, error: BrokerError) -> None:
        """Say what is wrong and close; requests that came before are answered first."""
        if self._has_to_wait():
            return
        begun = self._has_begun()
        answered = begun and self.cycle.response_started
        self._unset_keepalive_if_required()
        self._disconnect()
        if answered:
            self._close()
        elif not self.transport.is_closing():
            self.transport.write(problems.last_words(error, self.scope["path"] if begun else ""))
            self.transport.write_eof()
            self._leave(LINGER_SECONDS)

    def _disconnect(self) -> None:
        """Tell all requests that nobody is there any longer."""
        for cycle in (self._answering, self.cycle, *(queued for queued, _ in self.pipeline)):
            if cycle is None:
                continue
            self._shared.release(cycle)
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.waiting_for_100_continue = False
                cycle.message_event.set()
        self.pipeline.clear()
