"""/v1/events: send changes to subscribers as they happen."""

from typing import Any

from litestar import Controller, Request, get
from litestar.di import NamedDependency
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from broker.errors import Unauthenticated, Unavailable
from broker.http.guards import ALL, Access, allow, check_again
from broker.http.waiting import departure_of
from broker.schemas.overview import ArchiveEvent, Resync, TaskEvent, ToolEvent, WorkEvent
from broker.service import Service
from broker.wake.departure import Departure
from broker.wake.listener import EVENTS

EVENT_STREAM = "text/event-stream"

# Keeps the connection open: proxies close connections that are silent for a minute.
_KEEP_ALIVE = b":\n\n"
_KEEP_ALIVE_SECONDS = 15.0
# If the database cannot be reached, the client's access is checked again after this time.
_RECHECK_SECONDS = 1.0


class EventStreamResponse(ASGIResponse):
    """A response that ends when the client disconnects, the client loses its access, or the server stops."""

    _should_set_content_length = False

    def __init__(self, service: Service, access: Access, after: str | None) -> None:
        # Without the second header nginx would buffer events.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(media_type=EVENT_STREAM, headers=headers)
        self._service = service
        self._access = access
        self._after = after
        self._departure = Departure()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, which counts as a waiting request.

        Raises:
            TooManyRequests: This client has too many waiting requests.
            Overloaded: All clients together have too many waiting requests.
        """
        self._service.wait_limits.acquire(self._access.client)
        # `broker.server.connections` ends the response when the client closes its sending side.
        scope["state"]["endless"] = True
        self._departure = departure_of(scope)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.wait_limits.release(self._access.client)

    async def send_body(self, send: Send, receive: Receive) -> None:
        """Send the events."""
        await self._send_events(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: Send) -> None:
        waiters, stream = self._service.waiters, self._service.event_stream
        with waiters.register(EVENTS) as waiter, stream.subscribe(waiter, self._after) as subscriber:
            self._departure.watch(waiter.wake)
            while not (self._departure.has_left or waiters.released):
                if subscriber.is_ready:
                    at_once, subscriber.must_check_access = subscriber.must_check_access, False
                    try:
                        await check_again(self._service, self._access, at_once=at_once)
                    except Unauthenticated:
                        return
                    except Unavailable:
                        subscriber.must_check_access = at_once
                        await waiter.wait(_RECHECK_SECONDS)
                        continue
                body = subscriber.pop_all() or _KEEP_ALIVE
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await waiter.wait(_KEEP_ALIVE_SECONDS)


class EventsController(Controller):
    """The event stream."""

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
        """Send changes as they happen (Server-Sent Events).

        The response does not end. An event has the state of a task, tool, work item or record at the time of
        sending, and may combine several changes. To know the complete state, start the stream first, then
        read the lists. A client that reconnects with `Last-Event-ID` gets the events that it missed. If this
        is not possible, it gets `resync`: it must read the lists again. A client also gets `resync` if it
        reads too slowly or if too much changes at once. Some messages have an id and no event.
        """
        return EventStreamResponse(service, access, request.headers.get("last-event-id"))
