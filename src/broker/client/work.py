"""The work that a handler is given."""

import asyncio
import math
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar
from uuid import UUID, uuid4

import msgspec

from broker import schemas
from broker.client.connection import Connection, ProblemError
from broker.schemas import Reported, plain
from broker.trace_context import TraceContext

Form = TypeVar("Form")


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

    async def report(
        self, progress: float | None = None, message: str | None = None, data: Any = None
    ) -> None:
        """Report on the work.

        Args:
            progress: How much of it is done, 0 to 1.
            message: In words.
            data: Any JSON value.

        Raises:
            ProblemError: The work has ended meanwhile, or a value is refused.
        """
        body = {"id": uuid4(), "progress": progress, "message": message, "data": data}
        try:
            answer = await self._connection.call("POST", f"/v1/work/{self.id}/reports", Reported, json=body)
        except ProblemError as error:
            if error.code == "work_ended":
                self.cancelled = True
            raise
        self.reported_at = asyncio.get_running_loop().time()
        if answer.cancel_requested:
            self.cancelled = True

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

    async def run(self, doing: Coroutine[Any, Any, Any]) -> Any:
        """Do it, so that it can be cancelled."""
        self._running = asyncio.create_task(_contained(doing))
        return await self._running


async def _contained(doing: Coroutine[Any, Any, Any]) -> Any:
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
        self, progress: float | None = None, message: str | None = None, data: Any = None
    ) -> None:
        """Report on the work; see `AsyncWork.report`."""
        told = super().report(progress, message, data)
        asyncio.run_coroutine_threadsafe(told, self._loop).result()
