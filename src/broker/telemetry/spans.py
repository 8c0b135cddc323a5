"""A span around every request.

Not by opentelemetry-instrumentation-asgi: it reads a query as UTF-8 before the application can, so that one
odd byte ends in a 500, which no request may; it hands on the queries, which hold what tasks need; and it is
a beta that brings five packages more. Statements have no spans: with group commit one of them belongs to many
requests at once, so that as a part of any one of them it would say what is not so.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qsl

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, StatusCode, format_trace_id, use_span
from structlog.contextvars import bind_contextvars

from broker.schemas.limits import LONGEST_WAIT_SECONDS

# What is asked for all the time, and by nobody who traces.
_UNTRACED = {"/health/live", "/health/ready", "/metrics"}
_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
_SERVER_ERROR = 500
# How long the end of the process may be kept up by spans that are still to be sent.
_FLUSH_SECONDS = 0.5

Attributes = dict[str, str | float]
#: Returns the template of a path, like `/v1/tasks/{task_id}`, and its path parameters.
MatchPath = Callable[[str], tuple[str, Mapping[str, str]] | None]


class Traced:
    """The application, with a span around each request.

    Args:
        app: The application.
        match_path: Finds the template of a path.
        provider: Makes the spans, and is shut down with the application.
    """

    def __init__(self, app: ASGIApp, match_path: MatchPath, provider: TracerProvider) -> None:
        self._app = app
        self._provider = provider
        self._tracer = provider.get_tracer("broker", version("broker"))
        self._match_path = match_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and tell of it."""
        # Litestar's types know of no lifespan here.
        kind: str = scope["type"]
        if kind == "lifespan":
            await self._app(scope, receive, self._flushing(send))
        elif scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
        else:
            span = self._begin(scope)
            # So that whoever reads the log finds the trace.
            bind_contextvars(trace_id=format_trace_id(span.get_span_context().trace_id))
            with use_span(span, end_on_exit=True):
                await self._app(scope, receive, _noting(span, send))

    def _begin(self, scope: Any) -> Span:
        """The span of a request, below the one that its headers tell of."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        attributes: Attributes = {
            "http.request.method": method,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
        }
        if scope["client"]:
            attributes["client.address"] = scope["client"][0]
        wait = _wait_seconds(scope["query_string"])
        if wait is not None:
            attributes["broker.wait_seconds"] = wait
        name = "HTTP" if method == "_OTHER" else method
        if match := self._match_path(scope["path"]):
            template, parameters = match
            name = f"{name} {template}"
            attributes["http.route"] = template
            attributes.update({f"broker.{name}": value for name, value in parameters.items()})
        return self._tracer.start_span(
            name,
            context=propagate.extract(headers, context=Context()),
            kind=SpanKind.SERVER,
            attributes=attributes,
        )

    def _flushing(self, send: Send) -> Send:
        """Send the last spans before it is said that all has come to its end."""

        async def flush_and_send(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await _within(_FLUSH_SECONDS, self._provider)
            await send(message)

        return flush_and_send


def _wait_seconds(query: bytes) -> float | None:
    """Return how long a request may wait, if its query has a valid `wait`."""
    wait = dict(parse_qsl(query.decode("latin-1"))).get("wait", "")
    try:
        seconds = float(wait)
    except ValueError:
        return None
    return seconds if 0 <= seconds <= LONGEST_WAIT_SECONDS else None


def _noting(span: Span, send: Send) -> Send:
    """Tell the span how the request was answered."""

    async def note_and_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            span.set_attribute("http.response.status_code", status)
            if status >= _SERVER_ERROR:
                span.set_attribute("error.type", str(status))
                span.set_status(StatusCode.ERROR)
        await send(message)

    return note_and_send


async def _within(seconds: float, provider: TracerProvider) -> None:
    """Shut a provider down, which sends what it has; whoever takes it may be away."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def shut_down() -> None:
        try:
            provider.shutdown()
        finally:
            with contextlib.suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(done.set)

    # Not the loop's own threads: the end of the process would wait for those.
    threading.Thread(target=shut_down, name="last spans", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await done.wait()
