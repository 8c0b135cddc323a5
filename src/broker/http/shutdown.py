"""What becomes of requests that the server waits for no longer: they are told to come again."""

import asyncio

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from broker.errors import Stopping
from broker.http import problems


class AnswersWhenStopped:
    """An application whose requests are answered even when they are cancelled.

    uvicorn cancels what is still under way some time after it was told to stop (a database that says
    nothing holds it up, for example), and would answer 500: no client sends that again.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        begun = False

        async def tell(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except asyncio.CancelledError:
            if begun or scope["type"] != ScopeType.HTTP:
                raise
            await problems.send(Stopping(), scope, receive, send)
