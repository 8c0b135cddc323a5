"""Traces of the programs that use the client, where they have set up OpenTelemetry.

The client needs none of it, and imports none of it by itself: a program that traces has imported it before.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from broker.trace_context import TraceContext

if TYPE_CHECKING:
    from broker.client.job import AsyncJob

_NOTHING: Mapping[str, str] = {}


def current() -> Mapping[str, str]:
    """The headers that say in which span the program is just now; none, where it does not trace."""
    if not _is_used():
        return _NOTHING
    from opentelemetry import propagate  # noqa: PLC0415 - it is there

    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def submitting() -> Mapping[str, str]:
    """The headers for tasks that are submitted: of the current span, else of the process."""
    return current() or inherited()


def inherited() -> Mapping[str, str]:
    """The headers that the environment has for this process, as `broker tool` gives them to its programs."""
    names = ("traceparent", "tracestate")
    given = [(name.encode(), os.fsencode(os.environ.get(name.upper(), ""))) for name in names]
    context = TraceContext.of(given)
    return context.headers() if context else _NOTHING


@contextlib.contextmanager
def working(work: "AsyncJob") -> Iterator[None]:
    """A span around the doing of work, below the one in which its task was submitted."""
    if not _is_used():
        yield
        return
    from opentelemetry import propagate, trace  # noqa: PLC0415
    from opentelemetry.context import Context  # noqa: PLC0415

    with trace.get_tracer("broker.client").start_as_current_span(
        f"work {work.tool_id}",
        # Whatever span the tool was started in has nothing to do with this task.
        context=propagate.extract(work.trace_context, context=Context()),
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
    """Tell the span of the work what its handler raised."""
    if _is_used():
        from opentelemetry import trace  # noqa: PLC0415

        trace.get_current_span().record_exception(error)


def ended(completion: Mapping[str, Any]) -> None:
    """Tell the span of the work how it ended."""
    if not _is_used():
        return
    from opentelemetry import trace  # noqa: PLC0415

    span = trace.get_current_span()
    span.set_attribute("broker.outcome", completion["outcome"])
    if completion["outcome"] == "failed":
        span.set_status(trace.StatusCode.ERROR, completion["error"].strip().rpartition("\n")[2])


def _is_used() -> bool:
    return "opentelemetry.trace" in sys.modules
