"""A request and its response, where the client has sent all that it ever will."""

from collections.abc import Awaitable
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Cycle(RequestResponseCycle):
    """uvicorn's, which knows only clients that are there in both directions or in none.

    A client that has closed its sending side may still read. Whether it does shows only when something is
    sent to it. So a request that waits is answered at once, with what there is, and any other as usual.
    """

    #: The client has closed its sending side.
    half_closed = False

    def receive(self) -> Awaitable[Any]:  # type: ignore[override]
        """Return the next part of the request; after it, of a client that sends no more, that it is gone."""
        if self.half_closed and self._waits() and not self.message_event.is_set():
            return _gone()
        return super().receive()

    def half_close(self) -> None:
        """Wake the handlers that wait for the client to disconnect."""
        self.half_closed = True
        if self._waits():
            self.message_event.set()

    def _waits(self) -> bool:
        """Return whether the response has not begun, or would never end (an event stream)."""
        return not self.response_started or "endless" in self.scope["state"]


async def _gone() -> dict[str, str]:
    return {"type": "http.disconnect"}
