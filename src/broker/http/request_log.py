"""What belongs to a request: its id, and its line in the log.

A proxy, or the client, names a request by the header `X-Request-ID`; the answer has the same, and so has
every line of the log that is written on the way. Without one, and without a line for every request, there is
nothing to be done, and nothing is.
"""

import re
import secrets
import time
from collections.abc import Awaitable
from urllib.parse import quote

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from broker.http.path_templates import PathTemplates

log = structlog.get_logger("broker.access")

HEADER = "X-Request-ID"
_NAME = HEADER.lower().encode()
# It goes into logs as it is.
_FIT = re.compile(rb"[A-Za-z0-9._~:+/=@-]{1,128}")
_GONE = 499


class RequestLog:
    """The application, with a name for every request that has one.

    Args:
        app: The application.
        templates: Its path templates.
        are_logged: Whether each has a line in the log, and so a name.
    """

    def __init__(self, app: ASGIApp, templates: PathTemplates, *, are_logged: bool) -> None:
        self.app = app
        self._templates = templates
        self._are_logged = are_logged

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a request; no coroutine of ours stands around those that need none."""
        if scope["type"] == ScopeType.HTTP:
            given = next((value for name, value in scope["headers"] if name == _NAME), None)
            if given is not None or self._are_logged:
                return self._answer(scope, receive, send, given)
        return self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, given: bytes | None) -> None:
        name = given.decode() if given is not None and _FIT.fullmatch(given) else new_name()
        structlog.contextvars.bind_contextvars(request_id=name)
        status = _GONE

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (_NAME, name.encode())]
            await send(message)

        began = time.perf_counter()
        try:
            await self.app(scope, receive, named)
        finally:
            if self._are_logged:
                path = scope["path"]
                log.info(
                    "request",
                    method=scope.get("method"),
                    path=quote(path),
                    status=status,
                    milliseconds=round((time.perf_counter() - began) * 1000, 1),
                    **self._ids(path),
                )

    def _ids(self, path: str) -> dict[str, str]:
        """Return the ids in a path, by the names of its parameters."""
        match = self._templates.match(path)
        parameters = match.parameters if match else {}
        return {name: id_ for name, id_ in parameters.items() if name.endswith("_id")}


def new_name() -> str:
    """A name for a request that has none."""
    return secrets.token_hex(8)
