"""The state that all connections of a server share: the limits, their counters, and the sweep."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, TypeAlias

import structlog
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from broker.errors import Crowded
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.server.connections.timed_connection import TimedConnection

# Open files other than client connections: of the database, of libraries, and of refused clients.
_OTHER_FILES = 200
_MOST_TURNED_AWAY = 64

Holder: TypeAlias = "RequestResponseCycle | TimedConnection"

log = structlog.get_logger(__name__)


class Connections(ServerState):
    """The state that all connections of a server share. `connections`, from uvicorn, has the open ones."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.most = settings.max_connections
        # The connections that may have a deadline.
        self.timed: set[TimedConnection] = set()
        # The connections above the limit, which get a refusal.
        self.turned_away: set[TimedConnection] = set()
        # The bytes of request bodies in memory.
        self.body_bytes = 0
        self._held: dict[Holder, int] = {}

    def raise_file_limit(self) -> None:
        """Raise the limit of open files to the required number, or accept fewer connections."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = self.settings.max_connections + _OTHER_FILES
        possible = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if soft != resource.RLIM_INFINITY and soft < possible:
            resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
        self.most = max(possible - _OTHER_FILES, 1)
        if possible < needed:
            log.warning(
                "BROKER_MAX_CONNECTIONS reduced, because the limit of open files is too low",
                wanted=self.settings.max_connections,
                possible=self.most,
                hard_limit_of_open_files=hard,
            )

    def sweep(self) -> None:
        """Close the connections whose deadline has passed. The server calls this once a second."""
        for connection in list(self.timed):
            connection.check_deadlines()

    def turn_away(self, connection: TimedConnection) -> bool:
        """Stop counting a refused connection, and return whether to keep it while the client reads."""
        self.connections.discard(connection)
        if len(self.turned_away) >= _MOST_TURNED_AWAY:
            return False
        self.turned_away.add(connection)
        return True

    def hold(self, holder: Holder, count: int) -> None:
        """Count further bytes of request bodies that are held in memory.

        Args:
            holder: The request, or the connection for data that follows the request in progress.
            count: The number of bytes.

        Raises:
            Crowded: The limit would be exceeded. These bytes are not counted.
        """
        total = self.body_bytes + count
        if total > self.settings.max_body_bytes_in_all:
            raise Crowded(
                "The service has reached its memory limit for request bodies. Repeat the request later."
            )
        self.body_bytes = total
        self._held[holder] = self._held.get(holder, 0) + count

    def release(self, holder: Holder) -> None:
        """Stop counting the bytes of a request or connection."""
        self.body_bytes -= self._held.pop(holder, 0)

    def keep(self, holder: Holder, count: int) -> None:
        """Replace the count of a request or connection.

        Raises:
            Crowded: The limit would be exceeded.
        """
        self.release(holder)
        if count:
            self.hold(holder, count)

    def forget(self, connection: TimedConnection) -> None:
        """Remove a closed connection from all sets."""
        self.timed.discard(connection)
        self.turned_away.discard(connection)

    def abort(self) -> None:
        """Abort all remaining connections."""
        for connection in [*self.connections, *self.turned_away]:
            connection.transport.abort()
