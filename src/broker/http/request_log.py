"""Give requests their id and their line in the log.

A proxy, or the client, names a request by the header `X-Request-ID`. The response has the same header, and
each log line of the request has the same id. A request without that header has no id, unless every request is
logged.
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
_HEADER_NAME = HEADER.lower().encode()
# The log shows it unescaped.
_VALID_ID = re.compile(rb"[A-Za-z0-9._~:+/=@-]{1,128}")
# The status in the log if the client disconnected before the response (as in nginx).
_DISCONNECTED = 499


class RequestLog:
    """An application whose requests have ids and, if they are logged, lines in the log."""

    def __init__(self, app: ASGIApp, templates: PathTemplates, *, are_logged: bool) -> None:
        self.app = app
        self._templates = templates
        self._are_logged = are_logged

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle a request; without a coroutine of its own if it has no id."""
        if scope["type"] == ScopeType.HTTP:
            sent_id = next((value for name, value in scope["headers"] if name == _HEADER_NAME), None)
            if sent_id is not None or self._are_logged:
                return self._handle(scope, receive, send, sent_id)
        return self.app(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, sent_id: bytes | None) -> None:
        is_valid = sent_id is not None and _VALID_ID.fullmatch(sent_id)
        request_id = sent_id.decode() if sent_id is not None and is_valid else new_request_id()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status = _DISCONNECTED

        async def add_header_and_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (_HEADER_NAME, request_id.encode())]
            await send(message)

        began = time.perf_counter()
        try:
            await self.app(scope, receive, add_header_and_send)
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
        _, parameters = self._templates.match(path) or ("", {})
        return {name: id_ for name, id_ in parameters.items() if name.endswith("_id")}


def new_request_id() -> str:
    """Return an id for a request that has none."""
    return secrets.token_hex(8)
