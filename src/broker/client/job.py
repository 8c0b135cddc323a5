"""Jobs of handlers: a job is one work item, as the handler sees it."""

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

#: Error codes of work that no longer belongs to this program. The last one means that another program has
#: registered with the tool's id.
NOT_OURS = ("work_ended", "work_not_found", "unauthenticated")


class FailedError(Exception):
    """A handler raises this error to say that its job has failed, and why.

    Any other exception fails the job, too. It stores a traceback as the error and allows a retry.

    Example:
        raise FailedError("the scan is empty", retry=False)

    Args:
        message: The reason, for people. The broker stores it as the `error` of the attempt.
        retry: If False, the broker makes no further attempt, even if `max_attempts` allows one. Use it if
            another attempt would fail in the same way. Default: True.

    Attributes:
        retry: The value of the argument.
    """

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


class StoppedError(Exception):
    """A handler raises this error to leave a job that should stop.

    `Job.stop_if_cancelled` raises it for you. If a handler raises it in a job that should not stop, the job
    has failed.
    """


class AsyncJob:
    """One job of an `async def` handler: a task to do, in one attempt.

    The tool passes it to the handler.

    Example:
        @tool.handler
        async def count(job: AsyncJob):
            await job.report(0.5, "counting")
            return len(job.payload["text"].split())

    Attributes:
        id: The id of the work item, which is new for each attempt.
        task_id: The id of the task.
        tool_id: The id of the tool.
        attempt: The number of this attempt at the task, 1 for the first.
        cancelled: True if the job should stop. Somebody has cancelled the task, the broker has ended the work
            (for example because it timed out), or the tool is stopping.
        reports_refused: The number of reports that the broker has refused.
        reported_at: The time of the last accepted report, on the clock of the event loop. For internal use.
        trace_context: The trace of the submitter: `traceparent` and `tracestate` as in W3C Trace Context.
            Empty if the submitter sent none.
    """

    def __init__(self, connection: Connection, work: Work) -> None:
        self.id = work.id
        self.task_id = work.task_id
        self.tool_id = work.tool_id
        self.attempt = work.attempt
        self._connection = connection
        self._work = work
        self._running: asyncio.Task[Any] | None = None
        self._accepts_reports = True
        # The smallest size of data that the broker or a proxy refused.
        self._too_large_bytes = math.inf
        self._has_warned = False
        self.reports_refused = 0
        self.reported_at = -math.inf
        self.cancelled = work.cancel_requested
        self.trace_context: Mapping[str, str] = {}

    @property
    def needs(self) -> Any:
        """The needs of the task, as a Python value."""
        return plain(self._work.needs)

    @property
    def needs_json(self) -> bytes:
        """The needs of the task, as JSON with every digit of the submitted numbers."""
        return bytes(self._work.needs)

    @property
    def payload(self) -> Any:
        """The input of the task, as a Python value: a dict, list, string, number, bool or None."""
        return plain(self._work.payload)

    @property
    def payload_json(self) -> bytes:
        """The input of the task, as JSON with every digit of the submitted numbers."""
        return bytes(self._work.payload)

    def payload_as(self, type_: type[Value]) -> Value:
        """Return the input of the task, converted to a type.

        Args:
            type_: The type: a dataclass, `list[float]`, a `msgspec.Struct`, or any other type that msgspec
                can decode.

        Raises:
            FailedError: The payload does not have this type. If the handler does not catch the error, the
                task fails without a retry.
        """
        try:
            return msgspec.json.decode(self._work.payload, type=type_)
        except msgspec.ValidationError as error:
            raise FailedError(f"the payload is not valid for this tool: {error}", retry=False) from error

    async def report(self, progress: float | None = None, message: object = None, data: Any = None) -> None:
        """Send a report about the job.

        A report never fails the job. If the broker refuses a report, the client logs that and the job
        continues. If the data is too large for the broker or a proxy, the client sends the report without it.

        The response says whether the job should stop. The client then sets `cancelled`.

        Args:
            progress: The completed part of the job, from 0 to 1. The client omits any other value.
            message: A string or an exception. The client shortens it to 10,000 characters and replaces
                characters that the broker cannot store.
            data: A value with a JSON form, like a result. The client omits a value that it cannot convert.
        """
        await self._send(self._report(progress, message, data))

    def _report(self, progress: object, message: object, data: Any) -> dict[str, Any]:
        """Return the body of a report, without values that the broker would refuse."""
        body: dict[str, Any] = {"id": uuid4(), "message": None, "data": None}
        body["progress"] = sanitizing.progress(progress)
        if progress is not None and body["progress"] is None:
            self._warn(f"a report was sent without its progress, {progress!r:.100}: it must be from 0 to 1")
        try:
            body["message"] = sanitizing.message(message)
            body["data"] = None if data is None else sanitizing.data(data)
        except Exception as error:  # noqa: BLE001 - the methods of a value can raise anything
            self._warn(f"a report was sent without a value that cannot be converted: {error}")
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
                self._warn(f"a report was sent without its data of {size:,} bytes: {explained(error)}")
                self._too_large_bytes = size
                await self._send(report)
            else:
                self._handle_refusal(error)
            return
        self.reported_at = asyncio.get_running_loop().time()
        if reported.cancel_requested:
            self.cancelled = True

    def _handle_refusal(self, error: ProblemError) -> None:
        """Count a refused report, and decide whether the job should stop and whether to send more reports."""
        self.reports_refused += 1
        self._warn(f"a report was refused: {explained(error)}")
        if error.code in NOT_OURS:
            self.cancelled = True
        # A report without data is small, so the work has reached the broker's limit for reports.
        if error.code in (*NOT_OURS, "payload_too_large"):
            self._accepts_reports = False

    def _warn(self, trouble: str) -> None:
        """Log a problem with a report, once for each job."""
        if not self._has_warned:
            log.warning("task %s: %s", self.task_id, trouble)
            self._has_warned = True

    def set_trace_context(self, headers: Mapping[str, str]) -> None:
        """Set `trace_context` from the headers of the broker's response. The tool calls this."""
        self.trace_context = {name: headers[name] for name in TraceContext._fields if name in headers}

    def stop_if_cancelled(self) -> None:
        """Raise `StoppedError` if the job should stop, to leave the handler.

        Call it regularly in a long computation, for example once in each iteration of a loop.

        Raises:
            StoppedError: The job should stop. Let it leave the handler.
        """
        if self.cancelled:
            raise StoppedError

    def cancel(self) -> None:
        """Set `cancelled`, and cancel the handler if it is asynchronous. The tool calls this."""
        self.cancelled = True
        # Cancel it only once, because it may need time to clean up.
        if self._running is not None and not self._running.cancelling():
            self._running.cancel()

    async def run(self, awaitable: Awaitable[Any]) -> Any:
        """Await a handler in a task that `cancel` can cancel, and return its result. The tool calls this."""
        self._running = asyncio.create_task(_await_handler(awaitable))
        return await self._running


#: The name of the function that calls asynchronous handlers. It identifies them in stack traces.
CALLER = "_await_handler"


async def _await_handler(awaitable: Awaitable[Any]) -> Any:
    """Await a handler. If it exits, for example with `sys.exit`, only its job ends."""
    try:
        return await awaitable
    except (asyncio.CancelledError, Exception):
        raise
    except BaseException as error:
        raise FailedError(f"the handler exited with {error!r}") from error


class Job(AsyncJob):
    """One job of an ordinary handler: a task to do, in one attempt.

    The tool passes it to the handler, which runs in its own thread.

    Example:
        @tool.handler
        def fit(job: Job):
            for done, point in enumerate(job.payload["points"]):
                job.stop_if_cancelled()
                job.report(done / len(job.payload["points"]), "fitting")
            return {"peaks": 3}

    Attributes:
        id: The id of the work item, which is new for each attempt.
        task_id: The id of the task.
        tool_id: The id of the tool.
        attempt: The number of this attempt at the task, 1 for the first.
        cancelled: True if the job should stop. Somebody has cancelled the task, the broker has ended the work
            (for example because it timed out), or the tool is stopping.
        reports_refused: The number of reports that the broker has refused.
        trace_context: The trace of the submitter: `traceparent` and `tracestate` as in W3C Trace Context.
            Empty if the submitter sent none.
    """

    def __init__(self, connection: Connection, work: Work) -> None:
        super().__init__(connection, work)
        self._loop = asyncio.get_running_loop()

    def report(  # type: ignore[override]
        self, progress: float | None = None, message: object = None, data: Any = None
    ) -> None:
        """Send a report about the job, and wait until the broker has accepted it.

        A report never fails the job. If the broker refuses a report, the client logs that and the job
        continues. If the data is too large for the broker or a proxy, the client sends the report without it.

        The response says whether the job should stop. The client then sets `cancelled`.

        In a coroutine that an ordinary handler returns, this method does not wait. You may await its result.

        Args:
            progress: The completed part of the job, from 0 to 1. The client omits any other value.
            message: A string or an exception. The client shortens it to 10,000 characters and replaces
                characters that the broker cannot store.
            data: A value with a JSON form, like a result. The client omits a value that it cannot convert.
        """
        sending = self._send(self._report(progress, message, data))
        if _is_running(self._loop):
            return self._loop.create_task(sending)  # type: ignore[return-value]
        try:
            asyncio.run_coroutine_threadsafe(sending, self._loop).result()
        except RuntimeError:
            # The event loop is closed: the tool has ended without waiting for this handler.
            sending.close()
            self.cancelled = True
        return None


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether the caller runs in the event loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
