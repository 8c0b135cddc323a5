"""The job that a handler does: one work item, as the handler sees it."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar
from uuid import uuid4

import msgspec

from broker.client import sanitizing
from broker.client.connection import Connection
from broker.client.errors import ProblemError, explained
from broker.schemas.values import plain
from broker.schemas.work import Reported, Work
from broker.trace_context import TraceContext

log = logging.getLogger(__name__)

Value = TypeVar("Value")

#: Error codes of work that no longer belongs to this program. With the last one, another program has
#: registered the tool.
NOT_OURS = ("work_ended", "work_not_found", "unauthenticated")


class FailedError(Exception):
    """A handler raises this error when its work has failed.

    Args:
        message: Why it failed, for people.
        retry: Whether another attempt may succeed.
    """

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


class StoppedError(Exception):
    """A handler raises this error to leave a job that should stop; see `Job.stop_if_cancelled`."""


class AsyncJob:
    """A job of an asynchronous handler."""

    def __init__(self, connection: Connection, work: Work) -> None:
        #: The id of the work item.
        self.id = work.id
        #: The id of the task.
        self.task_id = work.task_id
        #: The id of the tool.
        self.tool_id = work.tool_id
        #: The number of this attempt at the task; the first is 1.
        self.attempt = work.attempt
        self._connection = connection
        self._work = work
        self._running: asyncio.Task[Any] | None = None
        self._accepts_reports = True
        # The broker or a proxy refused data of this size.
        self._too_large_bytes = math.inf
        self._has_warned = False
        #: How many reports the broker has refused.
        self.reports_refused = 0
        #: When the broker accepted the last report, by the loop's clock.
        self.reported_at = -math.inf
        #: Whether the job should stop: its cancellation is requested, its work has ended elsewhere, or the
        #: tool is stopping.
        self.cancelled = work.cancel_requested
        #: The trace in which the task was submitted: `traceparent` and `tracestate` (W3C Trace Context), if
        #: the submitter sent them.
        self.trace_context: Mapping[str, str] = {}

    @property
    def needs(self) -> Any:
        """The task's needs, as a Python value."""
        return plain(self._work.needs)

    @property
    def needs_json(self) -> bytes:
        """The task's needs, as the JSON that was submitted, to the last digit."""
        return bytes(self._work.needs)

    @property
    def payload(self) -> Any:
        """The task's payload, as a Python value."""
        return plain(self._work.payload)

    @property
    def payload_json(self) -> bytes:
        """The task's payload, as the JSON that was submitted, to the last digit."""
        return bytes(self._work.payload)

    def payload_as(self, type_: type[Value]) -> Value:
        """Return the task's payload as a value of a type.

        Args:
            type_: A dataclass, a `msgspec.Struct`, `list[float]`: any type that msgspec can decode.

        Raises:
            FailedError: The payload is not such a value. The task is not retried.
        """
        try:
            return msgspec.json.decode(self._work.payload, type=type_)
        except msgspec.ValidationError as error:
            raise FailedError(f"the payload is not what this tool works on: {error}", retry=False) from error

    async def report(self, progress: float | None = None, message: object = None, data: Any = None) -> None:
        """Send a report. It never ends the handler: the client logs a report that the broker refuses.

        If the data is too large for the broker or a proxy, the client sends the report without it.

        Args:
            progress: How much is done, 0 to 1. The client leaves out anything else.
            message: A text or an exception. The client shortens a long text and replaces characters that the
                broker cannot store.
            data: Any value that a result may be. The client leaves out a value that it cannot encode.
        """
        await self._send(self._report(progress, message, data))

    def _report(self, progress: object, message: object, data: Any) -> dict[str, Any]:
        """Return a report that the broker accepts."""
        body: dict[str, Any] = {"id": uuid4(), "message": None, "data": None}
        body["progress"] = sanitizing.progress(progress)
        if progress is not None and body["progress"] is None:
            self._warn(f"progress is a number from 0 to 1, and not {progress!r:.100}")
        try:
            body["message"] = sanitizing.message(message)
            body["data"] = None if data is None else sanitizing.data(data)
        except Exception as error:  # noqa: BLE001 - whatever a value's own methods raise, the job goes on
            self._warn(f"a part of a report is left out: {error}")
        return body

    async def _send(self, report: dict[str, Any]) -> None:
        """Send a report, unless the broker accepts no more of them."""
        if not self._accepts_reports:
            self.reports_refused += 1
            return
        path, size = f"/v1/work/{self.id}/reports", len(bytes(report["data"] or b""))
        if size >= self._too_large_bytes:
            report["data"] = None
        try:
            reported = await self._connection.call("POST", path, Reported, json=report)
        except ProblemError as error:
            if error.code == "payload_too_large" and report["data"] is not None:
                self._warn(f"the data of a report, {size:,} bytes, is left out: {explained(error)}")
                self._too_large_bytes = size
                await self._send(report)
            else:
                self._handle_refusal(error)
            return
        self.reported_at = asyncio.get_running_loop().time()
        if reported.cancel_requested:
            self.cancelled = True

    def _handle_refusal(self, error: ProblemError) -> None:
        """Draw the conclusions for the job and for later reports."""
        self.reports_refused += 1
        self._warn(f"a report was refused: {explained(error)}")
        if error.code in NOT_OURS:
            self.cancelled = True
        # A report without data is small: the work has more reports than the broker accepts.
        if error.code in (*NOT_OURS, "payload_too_large"):
            self._accepts_reports = False

    def _warn(self, trouble: str) -> None:
        """Log what is wrong with a report, once for each job."""
        if not self._has_warned:
            log.warning("%s: %s", self.task_id, trouble)
            self._has_warned = True

    def set_trace_context(self, headers: Mapping[str, str]) -> None:
        """Keep the trace context of the broker's response headers."""
        self.trace_context = {name: headers[name] for name in TraceContext._fields if name in headers}

    def stop_if_cancelled(self) -> None:
        """Leave the handler if the job should stop.

        Raises:
            StoppedError: The job should stop.
        """
        if self.cancelled:
            raise StoppedError

    def cancel(self) -> None:
        """Ask the handler to stop: an asynchronous one is cancelled, an ordinary one sees `cancelled`."""
        self.cancelled = True
        # Cancel it once only: it may need time to clean up.
        if self._running is not None and not self._running.cancelling():
            self._running.cancel()

    async def run(self, awaitable: Awaitable[Any]) -> Any:
        """Await a handler in a task that `cancel` can cancel, and return its result."""
        self._running = asyncio.create_task(_await_handler(awaitable))
        return await self._running


#: The function that calls asynchronous handlers, as it is called in stack traces.
CALLER = "_await_handler"


async def _await_handler(awaitable: Awaitable[Any]) -> Any:
    """Await a handler. One that exits the process ends its job only."""
    try:
        return await awaitable
    except (asyncio.CancelledError, Exception):
        raise
    except BaseException as error:
        raise FailedError(f"the handler ended with {error!r}") from error


class Job(AsyncJob):
    """A job of an ordinary function, which runs in a thread of its own; see `AsyncJob`."""

    def __init__(self, connection: Connection, work: Work) -> None:
        super().__init__(connection, work)
        self._loop = asyncio.get_running_loop()

    def report(  # type: ignore[override]
        self, progress: float | None = None, message: object = None, data: Any = None
    ) -> None:
        """Send a report; see `AsyncJob.report`.

        A coroutine that the function has returned may await it. The client sends the report in any case.
        """
        sending = self._send(self._report(progress, message, data))
        if _is_running(self._loop):
            return self._loop.create_task(sending)  # type: ignore[return-value]
        try:
            asyncio.run_coroutine_threadsafe(sending, self._loop).result()
        except RuntimeError:
            # The tool has ended without waiting for this handler.
            sending.close()
            self.cancelled = True
        return None


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether this is called in the event loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
