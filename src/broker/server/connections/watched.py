"""A connection that may have a deadline: the client has to send something by then, or to read something."""

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker.server.connections.shared import Connections

# How long a client that is refused has to take notice of it. If it were closed while it still sends, its
# system would throw the answer away.
LINGER_SECONDS = 2.0


class Watched(HttpToolsProtocol):
    """A connection of uvicorn's that is closed where the client keeps it waiting.

    Args:
        config: uvicorn's configuration.
        server_state: What all connections share.
        app_state: What the application's lifespan has made.
        _loop: The event loop.
    """

    # uvicorn's attributes fill a dict just as far as Python shares its keys among all instances.
    __slots__ = ("_leaving", "_patience", "_shared", "_since", "_stuck_since", "_unsent")

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._shared = server_state
        # Since when the rest of a request is waited for; 0: it is not.
        self._since = 0.0
        # Since when the client has taken nothing of what is there for it (0: nobody looks), how much that is,
        # and how long this may last.
        self._stuck_since = self._patience = 0.0
        self._unsent = -1
        self._leaving = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Watch it no longer."""
        super().connection_lost(exc)
        # Which uvicorn forgets where an error was the end.
        self._unset_keepalive_if_required()
        self._shared.forget(self)

    def eof_received(self) -> None:
        """Close, when the client has read what there is for it."""
        self._leave(self._shared.settings.send_timeout_seconds)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        self._give_to_read(self._shared.settings.send_timeout_seconds)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if not self._leaving:
            self._stuck_since = 0.0

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has long been idle."""
        self._close()

    def look(self) -> None:
        """Let go of a client whose time is up; without a deadline it is watched no longer."""
        now = self.loop.time()
        if self._since:
            if self.flow.read_paused:
                # It is not the client that is slow.
                self._since = now
            elif now - self._since > self._seconds_allowed():
                self._since = 0.0
                self._too_late()
        if self._stuck_since:
            unsent = self.transport.get_write_buffer_size()
            if unsent != self._unsent:
                self._unsent, self._stuck_since = unsent, now
            elif now - self._stuck_since > self._patience:
                self._stuck_since = 0.0
                self.transport.abort()
        if not self._since and not self._stuck_since:
            self._shared.watched.discard(self)

    def _expect(self) -> None:
        """From now on the client has to send."""
        self._since = self.loop.time()
        self._shared.watched.add(self)

    def _give_to_read(self, seconds: float) -> None:
        """Let the client read nothing for so long, and no longer."""
        self._stuck_since, self._patience, self._unsent = self.loop.time(), seconds, -1
        self._shared.watched.add(self)

    def _leave(self, seconds: float) -> None:
        """Whether the client reads the rest or not, that is its last chance."""
        self._leaving = True
        self._give_to_read(seconds)

    def _close(self) -> None:
        """Close, when the client has read what there is for it."""
        self.transport.close()
        self._leave(self._shared.settings.send_timeout_seconds)

    def _seconds_allowed(self) -> float:
        """How long the client may take to send what is expected."""
        raise NotImplementedError

    def _too_late(self) -> None:
        """It did not come in time."""
        raise NotImplementedError
