"""The short way to the few handlers that are called all the time.

Litestar resolves, validates and wraps every request anew; for a call whose work in the database is shared
with others, that is most of what it costs. A handler marked `lean=True` is an ordinary one (it has its
route, its guards and its place in OpenAPI), and a plain request for it is decoded, handed over and answered
here. Whatever is not plain, an unusual header or an odd parameter, goes the long way through Litestar, to
the same handler: so no rule and no error is told twice.
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
from broker.http.body import BodyOrNothing, decoded
from broker.http.guards import Allow
from broker.http.shutdown import AnswersWhenStopped
from broker.schemas.limits import LONGEST_WAIT_SECONDS, MOST_ON_PAGE
from broker.schemas.values import Request
from broker.service import Service
from broker.trace_context import TraceContext

_JSON = b"application/json"
_LENGTH = re.compile(rb"[0-9]{1,15}")
_PARAMETER = re.compile(r"\{(\w+)\}")


class _PlainParameter(NamedTuple):
    """A query parameter that the fast path can read: its plain notation, its type and its maximum."""

    notation: "re.Pattern[str]"
    kind: type[float] | type[int] | type[str]
    most: float = math.inf


_QUERY = {
    "wait": _PlainParameter(re.compile(r"[0-9]+(\.[0-9]+)?"), float, LONGEST_WAIT_SECONDS),
    "limit": _PlainParameter(re.compile(r"[1-9][0-9]*"), int, MOST_ON_PAGE),
    "cursor": _PlainParameter(re.compile(r"[A-Za-z0-9_-]+"), str),
}

_encode = msgspec.json.Encoder().encode


class LeanRoute(Struct, frozen=True, kw_only=True):
    """A marked handler, and what it is to be given.

    Args:
        path: Matches its paths; the groups are its path parameters.
        handler: The handler.
        guard: Says who may call it.
        form: The request body that it takes; none: it takes no body.
        takes: The names of its arguments.
        status: The status of its answers, where they do not say.
    """

    path: "re.Pattern[str]"
    handler: HTTPRouteHandler
    guard: Allow
    form: type[Request] | None
    takes: frozenset[str]
    status: int


class FastPath:
    """The application, with the short way in front.

    Args:
        app: The application.
        service: What its handlers work with.
    """

    def __init__(self, app: Litestar, service: Service) -> None:
        self.app = app
        self._long_way = AnswersWhenStopped(app)
        self._service = service
        self._routes = _lean_routes(app)
        # What has a path of its own is not to be taken for a parameter of another.
        self._fixed = {route.path_format for route in app.routes if not _PARAMETER.search(route.path_format)}
        self._by_path = {
            (method, route.path.pattern): route
            for method, routes in self._routes.items()
            for route in routes
            if not route.path.groups
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, by the short way if it can be."""
        if scope["type"] == ScopeType.HTTP and (found := self._find(scope.get("method"), scope["path"])):
            route, given = found
            if self._is_plain(scope) and _read_query(route, scope["query_string"], given):
                await self._answer(route, given, scope, receive, send)
                return
        await self._long_way(scope, receive, send)

    def _find(self, method: Any, path: str) -> tuple[LeanRoute, dict[str, Any]] | None:
        """The marked handler of a path, and what the path gives it."""
        if route := self._by_path.get((method, path)):
            return route, {}
        if path in self._fixed:
            return None
        for route in self._routes.get(method, ()):
            if found := route.path.fullmatch(path):
                return route, found.groupdict()
        return None

    def _is_plain(self, scope: Scope) -> bool:
        """Whether no header asks for anything special."""
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

    async def _answer(
        self, route: LeanRoute, given: dict[str, Any], scope: Scope, receive: Receive, send: Send
    ) -> None:
        answering = False
        try:
            access = await route.guard.admit(self._service, scope, given)
            if route.form is not None:
                began = time.monotonic()
                if (sent := await _body(receive)) is None:
                    return
                data = await decoded(sent or b"{}", route.form, self._service.settings)
                if time.monotonic() - began > FRESH_SECONDS:
                    access = await route.guard.admit(self._service, scope, given)
                given["data"] = data
            given["service"] = self._service
            if "access" in route.takes:
                given["access"] = access
            if "trace_context" in route.takes:
                given["trace_context"] = TraceContext.of(scope["headers"])
            if "request" in route.takes:
                given["request"] = BodyOrNothing(scope, receive, send)
            call: Callable[..., Awaitable[Any]] = route.handler.fn
            start, body = _messages(await call(**given), route.status)
            answering = True
            await send(start)
            await send(body)
        except asyncio.CancelledError:
            # Here, as the other way takes memory for every request that waits.
            if answering:
                raise
            await problems.send(Stopping(), scope, receive, send, self._service.metrics)
        except Exception as error:  # noqa: BLE001 - Litestar would have it handled just so
            await problems.send(error, scope, receive, send, self._service.metrics)


def _lean_routes(app: Litestar) -> dict[str, list[LeanRoute]]:
    """The marked handlers by their method."""
    found: dict[str, list[LeanRoute]] = {}
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        pattern = re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", route.path_format))
        for handler in route.route_handlers:
            if not handler.opt.get("lean"):
                continue
            takes = handler.parsed_fn_signature.parameters
            [guard] = handler.guards or []
            lean = LeanRoute(
                path=pattern,
                handler=handler,
                guard=cast("Allow", guard),
                form=takes["data"].annotation if "data" in takes else None,
                takes=frozenset(takes),
                status=handler.status_code or HTTP_200_OK,
            )
            for method in handler.http_methods:
                found.setdefault(method, []).append(lean)
    return found


def _read_query(route: LeanRoute, query: bytes, given: dict[str, Any]) -> bool:
    """Add the arguments that the query gives; whether all of it is plain."""
    if not query:
        return True
    for part in query.decode("latin-1").split("&"):
        name, _, text = part.partition("=")
        plain = _QUERY.get(name)
        if plain is None or name not in route.takes or name in given or not plain.notation.fullmatch(text):
            return False
        # As a float first: `int` refuses a text of thousands of digits.
        if plain.kind is not str and float(text) > plain.most:
            return False
        given[name] = plain.kind(text)
    return True


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where the client went before it had sent it."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)


def _messages(answer: Any, status: int) -> tuple[Message, Message]:
    """What a handler answers, as it is sent; the status is that of answers that do not say."""
    headers = [(b"content-type", _JSON)]
    if isinstance(answer, Response):
        status = answer.status_code or status
        if answer.headers:
            headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        answer = answer.content
    body = _encode(answer)
    headers.append((b"content-length", str(len(body)).encode()))
    return (
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": body, "more_body": False},
    )
