"""The work that a handler is given."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar
from uuid import UUID, uuid4

import msgspec

from broker.client import cleaning
from broker.client.connection import Connection
from broker.client.errors import ProblemError, explained
from broker.schemas import work as schemas
from broker.schemas.values import plain
from broker.schemas.work import Reported
from broker.trace_context import TraceContext

log = logging.getLogger(__name__)

Form = TypeVar("Form")

#: That work is ours no longer; the last: another program is the tool now.
NOT_OURS = ("work_ended", "work_not_found", "unauthenticated")


class FailedError(Exception):
    """Raised by a handler: the work has failed.

    Args:
        message: Why, for people.
        retry: Whether another attempt may do better.
    """

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


class StoppedError(Exception):
    """Raised to leave a handler whose work should stop; see `Work.stop_if_cancelled`."""


class AsyncWork:
    """The work that an asynchronous handler does.

    Args:
        connection: The way to the broker.
        work: The work as it was answered.
    """

    def __init__(self, connection: Connection, work: schemas.Work) -> None:
        self._connection = connection
        self._work = work
        self._running: asyncio.Task[Any] | None = None
        self._takes_reports = True
        # Data of this size or more was refused.
        self._too_large_bytes = math.inf
        self._has_warned = False
        #: How many reports the broker has refused.
        self.reports_refused = 0
        #: When it was last reported on, by the loop's clock.
        self.reported_at = -math.inf
        #: Whether the work should stop: somebody asks for it, or it has ended without us, or we shall exit.
        self.cancelled = work.cancel_requested
        #: The trace that the task was submitted in, for any tracer: `traceparent` and `tracestate`
        #: (W3C Trace Context), where the submitter gave them.
        self.trace_context: Mapping[str, str] = {}

    @property
    def id(self) -> UUID:
        """The work's id."""
        return self._work.id

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self._work.task_id

    @property
    def tool_id(self) -> str:
        """The tool's id."""
        return self._work.tool_id

    @property
    def attempt(self) -> int:
        """Which attempt at the task this is, 1 at first."""
        return self._work.attempt

    @property
    def needs(self) -> Any:
        """What the task needs, as a Python value."""
        return plain(self._work.needs)

    @property
    def needs_json(self) -> bytes:
        """What the task needs, as the JSON that was submitted, to the last digit."""
        return bytes(self._work.needs)

    @property
    def payload(self) -> Any:
        """What to work on, as a Python value."""
        return plain(self._work.payload)

    @property
    def payload_json(self) -> bytes:
        """What to work on, as the JSON that was submitted, to the last digit."""
        return bytes(self._work.payload)

    def payload_as(self, form: type[Form]) -> Form:
        """What to work on, as a value of this type.

        Args:
            form: A dataclass, a `msgspec.Struct`, `list[float]`: anything that msgspec can decode.

        Raises:
            FailedError: It is none; no other attempt is worth it.
        """
        try:
            return msgspec.json.decode(self._work.payload, type=form)
        except msgspec.ValidationError as error:
            raise FailedError(f"the payload is not what this tool works on: {error}", retry=False) from error

    async def report(self, progress: float | None = None, message: object = None, data: Any = None) -> None:
        """Report on the work. A report never ends its handler: one that is refused is logged.

        If the data is too large for the broker or a proxy, the report is sent without it.

        Args:
            progress: How much of it is done, 0 to 1; anything else is left out.
            message: In words, or an exception; longer texts are cut, and characters that cannot be stored are
                replaced.
            data: Any JSON value, and what a result may be; what cannot be encoded is left out.
        """
        await self._send(self._report(progress, message, data))

    def _report(self, progress: object, message: object, data: Any) -> dict[str, Any]:
        """Clean a report, so that the broker accepts it."""
        body: dict[str, Any] = {"id": uuid4(), "progress": None, "message": None, "data": None}
        body["progress"] = cleaning.progress(progress)
        if progress is not None and body["progress"] is None:
            self._warn(f"progress is a number from 0 to 1, and not {progress!r:.100}")
        try:
            body["message"] = cleaning.message(message)
            body["data"] = None if data is None else cleaning.data(data)
        except Exception as error:  # noqa: BLE001 - whatever a value's own methods raise, the work goes on
            self._warn(f"a part of a report is left out: {error}")
        return body

    async def _send(self, report: dict[str, Any]) -> None:
        """Send a report, unless none will be taken any more."""
        if not self._takes_reports:
            self.reports_refused += 1
            return
        path, size = f"/v1/work/{self.id}/reports", len(bytes(report["data"] or b""))
        if size >= self._too_large_bytes:
            report["data"] = None
        try:
            answer = await self._connection.call("POST", path, Reported, json=report)
        except ProblemError as error:
            if error.code == "payload_too_large" and report["data"] is not None:
                self._warn(f"the data of a report, {size:,} bytes, is left out: {explained(error)}")
                self._too_large_bytes = size
                await self._send(report)
            else:
                self._is_refused(error)
            return
        self.reported_at = asyncio.get_running_loop().time()
        if answer.cancel_requested:
            self.cancelled = True

    def _is_refused(self, error: ProblemError) -> None:
        """See what a refusal means for the work, and for the reports to come."""
        self.reports_refused += 1
        self._warn(f"a report was refused: {explained(error)}")
        if error.code in NOT_OURS:
            self.cancelled = True
        # A report without data is small: it is one more than the broker accepts.
        if error.code in (*NOT_OURS, "payload_too_large"):
            self._takes_reports = False

    def _warn(self, trouble: str) -> None:
        """Log what is wrong with a report, once for each work."""
        if not self._has_warned:
            log.warning("%s: %s", self.task_id, trouble)
            self._has_warned = True

    def in_trace(self, headers: Mapping[str, str]) -> None:
        """Take the trace that the broker's answer tells of."""
        self.trace_context = {name: headers[name] for name in TraceContext._fields if name in headers}

    def stop_if_cancelled(self) -> None:
        """Leave the handler if the work should stop.

        Raises:
            StoppedError: It should.
        """
        if self.cancelled:
            raise StoppedError

    def cancel(self) -> None:
        """Have the handler stop: an asynchronous one is cancelled, an ordinary one sees `cancelled`."""
        self.cancelled = True
        # Once: it may take its time to leave.
        if self._running is not None and not self._running.cancelling():
            self._running.cancel()

    async def run(self, doing: Awaitable[Any]) -> Any:
        """Do it, so that it can be cancelled."""
        self._running = asyncio.create_task(_contained(doing))
        return await self._running


#: The function that has awaited handlers on its stack.
CALLER = "_contained"


async def _contained(doing: Awaitable[Any]) -> Any:
    """Do it; a handler that exits ends its work, not the tool."""
    try:
        return await doing
    except (asyncio.CancelledError, Exception):
        raise
    except BaseException as error:
        raise FailedError(f"the handler ended with {error!r}") from error


class Work(AsyncWork):
    """The work that an ordinary function does, in a thread of its own; see `AsyncWork`."""

    def __init__(self, connection: Connection, work: schemas.Work) -> None:
        super().__init__(connection, work)
        self._loop = asyncio.get_running_loop()

    def report(  # type: ignore[override]
        self, progress: float | None = None, message: object = None, data: Any = None
    ) -> None:
        """Report on the work; see `AsyncWork.report`.

        In a coroutine that the function has returned, it can be awaited, and is sent in any case.
        """
        sending = self._send(self._report(progress, message, data))
        if _runs_here(self._loop):
            return self._loop.create_task(sending)  # type: ignore[return-value]
        try:
            asyncio.run_coroutine_threadsafe(sending, self._loop).result()
        except RuntimeError:
            # The tool has ended, and has not waited for this handler.
            sending.close()
            self.cancelled = True
        return None


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether this is the loop's own thread."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
