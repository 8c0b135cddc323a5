"""Assign ids to requests, and log requests.

A proxy or the client sends the id in the header `X-Request-ID`. The response has the same header, and each
log line of the request has the id. If a request comes without this header, it gets an id only if the broker
logs every request.
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
# Restricted, because the log shows the id unescaped.
_VALID_ID = re.compile(rb"[A-Za-z0-9._~:+/=@-]{1,128}")
# The logged status if the client disconnected before the response, as in nginx.
_DISCONNECTED = 499


class RequestLog:
    """An ASGI application that adds ids to the requests of another one and, if asked to, logs them."""

    def __init__(self, app: ASGIApp, templates: PathTemplates, *, are_logged: bool) -> None:
        self.app = app
        self._templates = templates
        self._are_logged = are_logged

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle a request. If it has no id, this creates no further coroutine."""
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
                    "request handled",
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
    """Return a random id for a request that has none."""
    return secrets.token_hex(8)
