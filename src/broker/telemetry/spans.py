"""Trace every request with a span.

The broker does not use opentelemetry-instrumentation-asgi. That package decodes queries as UTF-8 before the
application can, so one invalid byte would cause a 500. It also exports the queries, which contain the needs
of tasks, and it is a beta with five further packages. Statements have no spans, because with group commit a
statement belongs to many requests.
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

# Frequent requests that are not useful in traces.
_UNTRACED = {"/health/live", "/health/ready", "/metrics"}
_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
_SERVER_ERROR = 500
# The maximum time to wait for the export of the last spans when the process ends.
_FLUSH_SECONDS = 0.5

Attributes = dict[str, str | float]
#: Returns the template of a path, such as `/v1/tasks/{task_id}`, and its path parameters.
MatchPath = Callable[[str], tuple[str, Mapping[str, str]] | None]


class Traced:
    """An application with traced requests. It shuts down the provider of the spans when it ends."""

    def __init__(self, app: ASGIApp, match_path: MatchPath, provider: TracerProvider) -> None:
        self._app = app
        self._provider = provider
        self._tracer = provider.get_tracer("broker", version("broker"))
        self._match_path = match_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request in its own span."""
        # Litestar's types do not include the lifespan.
        kind: str = scope["type"]
        if kind == "lifespan":
            await self._app(scope, receive, self._flush_at_shutdown(send))
        elif scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
        else:
            span = self._start_span(scope)
            # Log lines then name their trace.
            bind_contextvars(trace_id=format_trace_id(span.get_span_context().trace_id))
            with use_span(span, end_on_exit=True):
                await self._app(scope, receive, _note_status(span, send))

    def _start_span(self, scope: Any) -> Span:
        """Start the span of a request, as a child of the span in its headers."""
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

    def _flush_at_shutdown(self, send: Send) -> Send:
        """Export the last spans before the application reports its shutdown."""

        async def flush_and_send(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await _shut_down(self._provider, _FLUSH_SECONDS)
            await send(message)

        return flush_and_send


def _wait_seconds(query: bytes) -> float | None:
    """Return the seconds for which a request may wait, if its query has a valid `wait`."""
    wait = dict(parse_qsl(query.decode("latin-1"))).get("wait", "")
    try:
        seconds = float(wait)
    except ValueError:
        return None
    return seconds if 0 <= seconds <= LONGEST_WAIT_SECONDS else None


def _note_status(span: Span, send: Send) -> Send:
    """Add the status of the response to the span."""

    async def note_and_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            span.set_attribute("http.response.status_code", status)
            if status >= _SERVER_ERROR:
                span.set_attribute("error.type", str(status))
                span.set_status(StatusCode.ERROR)
        await send(message)

    return note_and_send


async def _shut_down(provider: TracerProvider, seconds: float) -> None:
    """Shut a provider down, which exports its spans. Wait at most for some seconds."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def shut_down() -> None:
        try:
            provider.shutdown()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done.set)

    # At its end, the process would wait for a thread of the loop's executor. It does not wait for this one.
    threading.Thread(target=shut_down, name="last spans", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await done.wait()
