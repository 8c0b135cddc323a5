"""A request with its response, also for a client that has closed its sending side."""

from collections.abc import Awaitable
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from broker.wake.departure import Departure


class Cycle(RequestResponseCycle):
    """uvicorn's cycle, extended to support clients that have closed only their sending side.

    Such a client may still read. The server can find out only by sending data. So a waiting request gets its
    response at once, and any other request gets its response as usual.
    """

    #: The client has closed its sending side.
    half_closed = False

    def receive(self) -> Awaitable[Any]:  # type: ignore[override]
        """Return the next part of the request. After the last part, return a disconnect if half-closed."""
        if self.half_closed and self._waits() and not self.message_event.is_set():
            return _disconnect()
        return super().receive()

    def half_close(self) -> None:
        """Wake the handlers that wait for the client to disconnect."""
        self.half_closed = True
        if self._waits():
            self.message_event.set()
            self.departure.leave()

    def disconnect(self) -> None:
        """Wake the handlers that wait for the client to disconnect, because the connection has ended."""
        self.disconnected = True
        self.waiting_for_100_continue = False
        self.message_event.set()
        self.departure.leave()

    @property
    def departure(self) -> Departure:
        """The departure of the client."""
        departure: Departure = self.scope["state"]["departure"]
        return departure

    def _waits(self) -> bool:
        """Return whether the response has not started or is an endless event stream."""
        return not self.response_started or "endless" in self.scope["state"]


async def _disconnect() -> dict[str, str]:
    return {"type": "http.disconnect"}
