"""OpenTelemetry traces of programs that use the client.

The client does not depend on OpenTelemetry. It traces only if the program has already imported it.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from broker.schemas.work import Work
from broker.trace_context import TraceContext

_NO_HEADERS: Mapping[str, str] = {}


def current() -> Mapping[str, str]:
    """Return the headers of the program's current span, or no headers if the program does not trace."""
    if not _trace_api():
        return _NO_HEADERS
    from opentelemetry import propagate  # noqa: PLC0415 - the program uses OpenTelemetry

    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def submitting() -> Mapping[str, str]:
    """Return the trace headers for submitted tasks, from the current span or else from the environment."""
    return current() or inherited()


def inherited() -> Mapping[str, str]:
    """Return the trace headers from the environment, in which `broker tool` sets them for its programs."""
    names = ("traceparent", "tracestate")
    given = [(name.encode(), os.fsencode(os.environ.get(name.upper(), ""))) for name in names]
    context = TraceContext.of(given)
    return context.headers() if context else _NO_HEADERS


@contextlib.contextmanager
def working(work: Work, trace_context: Mapping[str, str]) -> Iterator[None]:
    """Open a span for the run of a job, as a child of the span in which its task was submitted."""
    trace = _trace_api()
    if not trace:
        yield
        return
    from opentelemetry import propagate  # noqa: PLC0415
    from opentelemetry.context import Context  # noqa: PLC0415

    with trace.get_tracer("broker.client").start_as_current_span(
        f"work {work.tool_id}",
        # The empty context hides the span in which the tool was started.
        context=propagate.extract(trace_context, context=Context()),
        kind=trace.SpanKind.CONSUMER,
        attributes={
            "messaging.system": "broker",
            "messaging.operation.type": "process",
            "messaging.operation.name": "work",
            "messaging.destination.name": work.tool_id,
            "messaging.message.id": work.task_id,
            "broker.task_id": work.task_id,
            "broker.tool_id": work.tool_id,
            "broker.work_id": str(work.id),
            "broker.attempt": work.attempt,
        },
    ):
        yield


def raised(error: BaseException) -> None:
    """Record the handler's exception in the current span."""
    if trace := _trace_api():
        trace.get_current_span().record_exception(error)


def ended(completion: Mapping[str, Any]) -> None:
    """Record the outcome of the job in the current span."""
    if trace := _trace_api():
        span = trace.get_current_span()
        span.set_attribute("broker.outcome", completion["outcome"])
        if completion["outcome"] == "failed":
            span.set_status(trace.StatusCode.ERROR, completion["error"].strip().rpartition("\n")[2])


def _trace_api() -> ModuleType | None:
    """Return the module `opentelemetry.trace` if the program has imported it."""
    return sys.modules.get("opentelemetry.trace")
