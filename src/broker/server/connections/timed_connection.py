"""A connection with deadlines, by which the client must send or read data."""

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker.server.connections.shared import Connections

# How long a refused client may read the refusal. If the server closed the connection while the client still
# sends, the client's operating system would discard the response.
LINGER_SECONDS = 2.0


class TimedConnection(HttpToolsProtocol):
    """A uvicorn connection that is closed when the client misses a deadline."""

    # uvicorn's attributes use up the number of keys that the dicts of instances can share.
    __slots__ = ("_is_ending", "_seconds_to_read", "_shared", "_since", "_stuck_since", "_unsent")

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._shared = server_state
        # The time at which the connection began to wait for the rest of a request. 0 if it does not wait.
        self._since = 0.0
        # The time of the last read, or 0 without a deadline. The next read must follow in these seconds.
        self._stuck_since = self._seconds_to_read = 0.0
        self._unsent = -1
        self._is_ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline for the first request."""
        super().connection_made(transport)
        self._start_send_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting and timing the connection."""
        super().connection_lost(exc)
        # uvicorn does not do so if the connection ended with an error.
        self._unset_keepalive_if_required()
        self._shared.forget(self)

    def eof_received(self) -> None:
        """Close the connection after the client has read the unsent data."""
        self._start_last_deadline(self._shared.settings.send_timeout_seconds)

    def pause_writing(self) -> None:
        """Start the deadline for reading, because the client reads more slowly than the server writes."""
        super().pause_writing()
        self._start_read_deadline(self._shared.settings.send_timeout_seconds)

    def resume_writing(self) -> None:
        """End the deadline for reading, because the client has read."""
        super().resume_writing()
        if not self._is_ending:
            self._stuck_since = 0.0

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was idle for too long."""
        self._close()

    def check_deadlines(self) -> None:
        """Close the connection if a deadline has passed."""
        now = self.loop.time()
        if self._since:
            if self.flow.read_paused:
                # The server is slow, not the client.
                self._since = now
            elif now - self._since > self._seconds_allowed():
                self._since = 0.0
                self._time_out()
        if self._stuck_since:
            unsent = self.transport.get_write_buffer_size()
            if unsent != self._unsent:
                self._unsent, self._stuck_since = unsent, now
            elif now - self._stuck_since > self._seconds_to_read:
                self._stuck_since = 0.0
                self.transport.abort()
        if not self._since and not self._stuck_since:
            self._shared.timed.discard(self)

    def _start_send_deadline(self) -> None:
        """Start the deadline for sending."""
        self._since = self.loop.time()
        self._shared.timed.add(self)

    def _start_read_deadline(self, seconds: float) -> None:
        """Start the deadline for reading. The client may read nothing for this many seconds."""
        self._stuck_since, self._seconds_to_read, self._unsent = self.loop.time(), seconds, -1
        self._shared.timed.add(self)

    def _start_last_deadline(self, seconds: float) -> None:
        """Start the last deadline for reading, before the connection ends."""
        self._is_ending = True
        self._start_read_deadline(seconds)

    def _close(self) -> None:
        """Close the connection after the client has read the unsent data."""
        self.transport.close()
        self._start_last_deadline(self._shared.settings.send_timeout_seconds)

    def _seconds_allowed(self) -> float:
        """Return the seconds that the client has to send the rest of a request."""
        raise NotImplementedError

    def _time_out(self) -> None:
        """Handle a client that missed the deadline for sending."""
        raise NotImplementedError
