"""Respond to requests that the server cancels when it stops: the client retries them."""

import asyncio

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from broker.errors import Stopping
from broker.http import problems


class RespondWhenStopped:
    """An application that responds to cancelled requests with 503.

    When the server stops, uvicorn cancels requests that do not finish in time, for example because the
    database does not respond. It would send 500, which clients do not retry.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        has_started = False

        async def note_and_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, note_and_send)
        except asyncio.CancelledError:
            if has_started or scope["type"] != ScopeType.HTTP:
                raise
            await problems.send(Stopping(), scope, receive, send)
