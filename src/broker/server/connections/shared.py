"""What all connections of a server share: the limits, what is counted against them, and the sweep."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, TypeAlias

import structlog
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from broker.errors import Crowded
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.server.connections.watched import Watched

# Files that are no connections of clients: the database's, libraries, and those of clients turned away.
_OTHER_FILES = 200
_MOST_TURNED_AWAY = 64

Holder: TypeAlias = "RequestResponseCycle | Watched"

log = structlog.get_logger(__name__)


class Connections(ServerState):
    """What all connections of a server share; `connections`, uvicorn's, are those that are open.

    Args:
        settings: The limits.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.most = settings.max_connections
        # Those that may have a deadline, and those that are one too many and have been told so.
        self.watched: set[Watched] = set()
        self.turned_away: set[Watched] = set()
        self.body_bytes = 0
        self._held: dict[Holder, int] = {}

    def make_room(self) -> None:
        """Let the process have as many files open as the connections need, or take fewer connections."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = self.settings.max_connections + _OTHER_FILES
        possible = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if soft != resource.RLIM_INFINITY and soft < possible:
            resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
        self.most = max(possible - _OTHER_FILES, 1)
        if possible < needed:
            log.warning(
                "there can be fewer connections than BROKER_MAX_CONNECTIONS says",
                wanted=self.settings.max_connections,
                possible=self.most,
                hard_limit_of_open_files=hard,
            )

    def sweep(self) -> None:
        """Let go of clients whose time is up; to be called about once a second."""
        for connection in list(self.watched):
            connection.look()

    def turn_away(self, connection: Watched) -> bool:
        """Count a connection no longer; whether it may stay until its client has read why."""
        self.connections.discard(connection)
        if len(self.turned_away) >= _MOST_TURNED_AWAY:
            return False
        self.turned_away.add(connection)
        return True

    def take(self, whose: Holder, count: int) -> None:
        """Count bytes of a request's body.

        Args:
            whose: The request; or the connection, of what came behind the request that it answers.
            count: How many more.

        Raises:
            Crowded: There are too many; these are not counted.
        """
        in_all = self.body_bytes + count
        if in_all > self.settings.max_body_bytes_in_all:
            raise Crowded("The service holds as much of requests as it can; send this one again.")
        self.body_bytes = in_all
        self._held[whose] = self._held.get(whose, 0) + count

    def release(self, whose: Holder) -> None:
        """Count nothing of a request or connection any longer."""
        self.body_bytes -= self._held.pop(whose, 0)

    def keep(self, whose: Holder, count: int) -> None:
        """Count so many and no others; may raise what `take` does."""
        self.release(whose)
        if count:
            self.take(whose, count)

    def forget(self, connection: Watched) -> None:
        """It is closed."""
        self.watched.discard(connection)
        self.turned_away.discard(connection)

    def abort(self) -> None:
        """Cut off all that are left."""
        for connection in [*self.connections, *self.turned_away]:
            connection.transport.abort()
