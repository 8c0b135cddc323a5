"""/v1/events: what happens, as it happens."""

import asyncio
from typing import Any

from litestar import Controller, Request, get
from litestar.di import NamedDependency
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from broker.errors import Unauthenticated, Unavailable
from broker.http.guards import ALL, Access, allow, check_again
from broker.schemas.overview import ArchiveEvent, Resync, TaskEvent, ToolEvent, WorkEvent
from broker.service import Service
from broker.wake.listener import EVENTS

EVENT_STREAM = "text/event-stream"

# Of nothing but that the connection is there; proxies let go of those over which nothing comes for a minute.
_KEEP_ALIVE = b":\n\n"
_KEEP_ALIVE_SECONDS = 15.0
# Until it is looked again whether the client is welcome, where that could not be found out.
_AGAIN_SECONDS = 1.0


class EventStreamResponse(ASGIResponse):
    """An answer that goes on until the client leaves, is welcome no longer, or the server stops.

    Args:
        service: What is watched.
        access: Who watches.
        after: Where they were when they lost their connection.
    """

    _should_set_content_length = False

    def __init__(self, service: Service, access: Access, after: str | None) -> None:
        # nginx would keep what comes until there is more of it.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(media_type=EVENT_STREAM, headers=headers)
        self._service = service
        self._access = access
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, in a place among those who wait.

        Raises:
            TooManyRequests: The client waits for as much as it may.
            Overloaded: There is no place left.
        """
        self._service.wait_limits.acquire(self._access.client)
        # `broker.server.connections` ends it when the client sends no more.
        scope["state"]["endless"] = True
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.wait_limits.release(self._access.client)

    async def send_body(self, send: Send, receive: Receive) -> None:
        """Send what happens."""
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await self._send_events(send, gone)
        finally:
            gone.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: Send, gone: "asyncio.Future[None]") -> None:
        waiters, feed = self._service.waiters, self._service.event_stream
        with waiters.parked(EVENTS) as waiter, feed.watched(waiter, self._after) as watcher:
            gone.add_done_callback(waiter.wake)
            while not (gone.done() or waiters.released):
                if watcher.has_news:
                    at_once, watcher.in_doubt = watcher.in_doubt, False
                    try:
                        await check_again(self._service, self._access, at_once=at_once)
                    except Unauthenticated:
                        return
                    except Unavailable:
                        watcher.in_doubt = at_once
                        await waiter.wait(_AGAIN_SECONDS)
                        continue
                body = watcher.take() or _KEEP_ALIVE
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await waiter.wait(_KEEP_ALIVE_SECONDS)


async def _gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventsController(Controller):
    """What happens, as it happens."""

    path = "/v1/events"
    tags = ("Events",)

    @get(
        media_type=EVENT_STREAM,
        guards=[allow(operator=ALL)],
        events={
            "task": TaskEvent,
            "tool": ToolEvent,
            "work": WorkEvent,
            "archive": ArchiveEvent,
            "resync": Resync,
        },
    )
    async def watch(
        self,
        request: Request[Any, Any, Any],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
    ) -> EventStreamResponse:
        """Watch what happens: Server-Sent Events, without end.

        What came, changed or ended is told as it is by then; several changes of a thing may be told as one.
        Whoever wants to know everything reads it once the answer has begun, and then follows. A client that
        comes back with `Last-Event-ID` is told what it has missed, or, by `resync`, to read anew: so is one
        that reads too slowly, and everybody where very much happens at once. An id may come without an event.
        """
        return EventStreamResponse(service, access, request.headers.get("last-event-id"))
