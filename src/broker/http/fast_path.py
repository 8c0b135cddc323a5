"""The fast path: handle plain requests for the most frequent operations without Litestar's overhead.

Litestar resolves, validates and wraps every request. If a request shares its database work with others, this
overhead is most of its cost. A handler marked `fast_path=True` is an ordinary handler with a route, guards
and an OpenAPI description. This module decodes a plain request for it, runs it and sends the response. If a
request has an unusual header or parameter, Litestar runs the same handler. So every rule and error has one
source.
"""

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

import msgspec
from litestar import Litestar, Response
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from litestar.status_codes import HTTP_200_OK
from litestar.types import Message, Receive, Scope, Send
from msgspec import Struct

from broker.access.ownership import FRESH_SECONDS
from broker.errors import Stopping
from broker.http import problems
from broker.http.body import JsonRequest, decode_async
from broker.http.guards import Allow
from broker.http.path_templates import PathTemplates
from broker.schemas.limits import LONGEST_WAIT_SECONDS, MOST_ON_PAGE
from broker.schemas.values import Request
from broker.service import Service
from broker.trace_context import TraceContext

_JSON = b"application/json"
_LENGTH = re.compile(rb"[0-9]{1,15}")


class _PlainParameter(NamedTuple):
    """A query parameter that the fast path can read, with its plain notation, its type and its maximum."""

    notation: "re.Pattern[str]"
    kind: type[float] | type[int] | type[str]
    most: float = math.inf


_QUERY = {
    "wait": _PlainParameter(re.compile(r"[0-9]+(\.[0-9]+)?"), float, LONGEST_WAIT_SECONDS),
    "limit": _PlainParameter(re.compile(r"[1-9][0-9]*"), int, MOST_ON_PAGE),
    "cursor": _PlainParameter(re.compile(r"[A-Za-z0-9_-]+"), str),
}

_encode = msgspec.json.Encoder().encode


class FastRoute(Struct, frozen=True, kw_only=True):
    """A handler with `fast_path=True`, with the data that the fast path needs to run it.

    Args:
        handler: The handler in Litestar.
        guard: The guard of the handler.
        body: The type of the request body, or None if the request has no body.
        arguments: The names of the handler's arguments.
        status: The status of responses that do not set one.
    """

    handler: HTTPRouteHandler
    guard: Allow
    body: type[Request] | None
    arguments: frozenset[str]
    status: int


class FastPath:
    """An ASGI application that tries the fast path first, then Litestar."""

    def __init__(self, app: Litestar, service: Service, templates: PathTemplates) -> None:
        self.app = app
        self._service = service
        self._templates = templates
        self._routes = _fast_routes(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, on the fast path if it is plain."""
        if scope["type"] == ScopeType.HTTP and (match := self._templates.match(scope["path"])):
            arguments: dict[str, Any]
            template, arguments = match
            route = self._routes.get((cast("str", scope["method"]), template))
            if (
                route is not None
                and self._has_plain_headers(scope)
                and _read_query(route, scope["query_string"], arguments)
            ):
                await self._respond(route, arguments, scope, receive, send)
                return
        await self._let_litestar_respond(scope, receive, send)

    def _has_plain_headers(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"content-type":
                if value != _JSON:
                    return False
            elif name == b"content-length":
                if not _LENGTH.fullmatch(value) or int(value) > self._service.settings.max_body_bytes:
                    return False
            elif name in (b"transfer-encoding", b"content-encoding", b"prefer"):
                return False
        return True

    async def _respond(
        self, route: FastRoute, arguments: dict[str, Any], scope: Scope, receive: Receive, send: Send
    ) -> None:
        has_started = False
        try:
            access = await route.guard.admit(self._service, scope, arguments)
            if route.body is not None:
                began = time.monotonic()
                if (body := await _read_body(receive)) is None:
                    return
                data = await decode_async(body or b"{}", route.body, self._service.settings)
                if time.monotonic() - began > FRESH_SECONDS:
                    access = await route.guard.admit(self._service, scope, arguments)
                arguments["data"] = data
            arguments["service"] = self._service
            if "access" in route.arguments:
                arguments["access"] = access
            if "trace_context" in route.arguments:
                arguments["trace_context"] = TraceContext.of(scope["headers"])
            if "request" in route.arguments:
                arguments["request"] = JsonRequest(scope, receive, send)
            handle: Callable[..., Awaitable[Any]] = route.handler.fn
            start, content = _messages(await handle(**arguments), route.status)
            has_started = True
            await send(start)
            await send(content)
        except asyncio.CancelledError:
            if has_started:
                raise
            await problems.send(Stopping(), scope, receive, send, self._service.metrics)
        except Exception as error:  # noqa: BLE001 - Litestar's exception handlers do the same
            await problems.send(error, scope, receive, send, self._service.metrics)

    async def _let_litestar_respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let Litestar respond. If the server cancels the request, respond with 503.

        When the server stops, uvicorn cancels requests that do not finish in time, for example because the
        database does not respond. uvicorn would send 500, which clients do not retry.
        """
        has_started = False

        async def note_and_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, note_and_send)
        except asyncio.CancelledError:
            if has_started or scope["type"] != ScopeType.HTTP:
                raise
            await problems.send(Stopping(), scope, receive, send)


def _fast_routes(app: Litestar) -> dict[tuple[str, str], FastRoute]:
    """Return the handlers with `fast_path=True`, by method and path template."""
    routes: dict[tuple[str, str], FastRoute] = {}
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        for handler in route.route_handlers:
            if not handler.opt.get("fast_path"):
                continue
            arguments = handler.parsed_fn_signature.parameters
            [guard] = handler.guards or []
            fast_route = FastRoute(
                handler=handler,
                guard=cast("Allow", guard),
                body=arguments["data"].annotation if "data" in arguments else None,
                arguments=frozenset(arguments),
                status=handler.status_code or HTTP_200_OK,
            )
            for method in handler.http_methods:
                routes[method, route.path_format] = fast_route
    return routes


def _read_query(route: FastRoute, query: bytes, arguments: dict[str, Any]) -> bool:
    """Add the parameters of a query to the arguments. Return False if the query is not plain."""
    if not query:
        return True
    for part in query.decode("latin-1").split("&"):
        name, _, text = part.partition("=")
        plain = _QUERY.get(name)
        if (
            plain is None
            or name not in route.arguments
            or name in arguments
            or not plain.notation.fullmatch(text)
        ):
            return False
        # Compare as a float first, because `int` refuses thousands of digits.
        if plain.kind is not str and float(text) > plain.most:
            return False
        arguments[name] = plain.kind(text)
    return True


async def _read_body(receive: Receive) -> bytes | None:
    """Return the whole body, or None if the client disconnected before it sent all of it."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)


def _messages(returned: Any, status: int) -> tuple[Message, Message]:
    """Return the ASGI messages for the result of a handler, which is a `Response` or its content."""
    headers = [(b"content-type", _JSON)]
    if isinstance(returned, Response):
        status = returned.status_code or status
        if returned.headers:
            headers += [(name.encode(), value.encode()) for name, value in returned.headers.items()]
        returned = returned.content
    body = _encode(returned)
    headers.append((b"content-length", str(len(body)).encode()))
    return (
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": body, "more_body": False},
    )
