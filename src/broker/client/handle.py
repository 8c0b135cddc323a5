"""A handle of a submitted task: wait for it, read its result, cancel it."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from types import NoneType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import msgspec

from broker.client.addresses import in_path
from broker.client.connection import Connection
from broker.client.long_poll_limit import LongPollLimit
from broker.client.loop_thread import LoopThread
from broker.schemas.archive import ArchivePage, ArchiveRecord
from broker.schemas.limits import MOST_ON_PAGE
from broker.schemas.states import TASK_STATES
from broker.schemas.tasks import Explanation, Task
from broker.schemas.values import plain

Params = ParamSpec("Params")
Value = TypeVar("Value")


class _UnsuccessfulTaskError(Exception):
    _message: str

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(self._message.format(task=task))

    def __reduce__(self) -> tuple[type[Self], tuple[Task]]:
        """Make the error picklable, so that it can be passed between processes."""
        return type(self), (self.task,)


class TaskFailedError(_UnsuccessfulTaskError):
    """The task has failed permanently; `task.error` says why."""

    _message = "task {task.id} failed after {task.attempt} attempts: {task.error}"


class TaskCancelledError(_UnsuccessfulTaskError):
    """The task was cancelled; `task` is the task as it ended."""

    _message = "task {task.id} was cancelled"


def ended_well(task: Task) -> Task:
    """Return the task if it has succeeded; raise TaskFailedError or TaskCancelledError if not."""
    if task.state == "failed":
        raise TaskFailedError(task)
    if task.state == "cancelled":
        raise TaskCancelledError(task)
    return task


class AsyncHandle:
    """A submitted task.

    Args:
        connection: The connection to the broker.
        limit: The limit for waiting requests, which all handles of a connection share.
        id: The id of the task.
        task: The task as the broker last returned it; None: it has not.
        existed: Whether the task existed before it was submitted; None: unknown.
    """

    def __init__(
        self,
        connection: Connection,
        limit: LongPollLimit,
        id: str,  # noqa: A002 - what the API calls it
        *,
        task: Task | None = None,
        existed: bool | None = None,
    ) -> None:
        self._connection = connection
        self._limit = limit
        self._path = f"/v1/tasks/{in_path(id)}"
        self.id = id
        self.task = task
        self.existed = existed

    async def wait(self, timeout: float | None = None) -> Task:  # noqa: ASYNC109 - like concurrent.futures
        """Wait until the task has ended, or has failed permanently.

        Args:
            timeout: How long to wait, in seconds; None: without a limit.

        Raises:
            TimeoutError: The task has not ended in time.
            ProblemError: The broker does not know the task any more, or refuses to return it.
            httpx.TransportError: The broker did not respond in time.
        """
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while True:
            async with self._limit.slot(end) as seconds:
                left = None if end is None else max(0.0, end - loop.time())
                wait = seconds if left is None else min(seconds, left)
                self.task = await self._connection.call(
                    "GET", self._path, Task, query={"wait": wait}, wait=wait, patience_seconds=left
                )
            if TASK_STATES[self.task.state].final:
                return self.task
            if end is not None and loop.time() >= end:
                raise TimeoutError(f"task {self.id} is {self.task.state} after {timeout} s")

    async def result(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - like concurrent.futures
        """Wait for the result, and return it as a Python value.

        Args:
            timeout: How long to wait, in seconds; None: without a limit.

        Raises:
            TimeoutError: The task has not ended in time. It continues.
            TaskFailedError: The task failed permanently.
            TaskCancelledError: The task was cancelled.
        """
        return plain(ended_well(await self.wait(timeout)).result)

    async def result_as(
        self,
        type_: type[Value],
        timeout: float | None = None,  # noqa: ASYNC109 - like concurrent.futures
    ) -> Value:
        """Wait for the result, and return it as a value of a type.

        Args:
            type_: A dataclass, a `msgspec.Struct`, `list[float]`: any type that msgspec can decode.
            timeout: See `result`.

        Raises:
            msgspec.ValidationError: The result is not such a value.
        """
        return msgspec.json.decode(ended_well(await self.wait(timeout)).result, type=type_)

    async def cancel(self, *, force: bool = False) -> None:
        """Cancel the task. If it runs, the broker asks its tool to stop. If it has ended, nothing changes.

        Args:
            force: Cancel it at once, without waiting for its tool.
        """
        query = {"force": "true"} if force else None
        await self._connection.call("DELETE", self._path, NoneType, query=query)

    async def retry(self) -> Task:
        """Retry a task that has failed permanently. Its attempts count from zero again.

        Raises:
            ProblemError: The task has ended (`task_ended`).
        """
        self.task = await self._connection.call("POST", f"{self._path}/retry", Task)
        return self.task

    async def explain(self) -> Explanation:
        """Return why the task has not run yet: a verdict for programs, a sentence for people."""
        return await self._connection.call("GET", f"{self._path}/explain", Explanation)

    async def records(self) -> list[ArchiveRecord]:
        """Return the archive records of its attempts, with all reports, the newest first; 1,000 at most."""
        query = {"task_id": self.id, "limit": MOST_ON_PAGE}
        return (await self._connection.call("GET", "/v1/archive", ArchivePage, query=query)).items


def _blocking(
    method: Callable[Concatenate[AsyncHandle, Params], Coroutine[Any, Any, Value]],
) -> "Callable[Concatenate[Handle, Params], Value]":
    """Return a method of `Handle` that runs a method of `AsyncHandle` and waits for it."""

    @functools.wraps(method)
    def run(self: "Handle", /, *args: Params.args, **kwargs: Params.kwargs) -> Value:
        return self._loop.run(method(self.asynchronous, *args, **kwargs))

    return run


class Handle:
    """A submitted task, for synchronous programs, with the methods of `AsyncHandle`.

    Args:
        asynchronous: The asynchronous handle.
        loop: The event loop of its connection.
    """

    def __init__(self, asynchronous: AsyncHandle, loop: LoopThread) -> None:
        self.asynchronous = asynchronous
        self._loop = loop
        #: The id of the task.
        self.id = asynchronous.id
        #: Whether the task existed before it was submitted; None: unknown.
        self.existed = asynchronous.existed

    @property
    def task(self) -> Task | None:
        """The task as the broker last returned it; None: it has not."""
        return self.asynchronous.task

    wait = _blocking(AsyncHandle.wait)
    result = _blocking(AsyncHandle.result)
    result_as = _blocking(AsyncHandle.result_as)
    cancel = _blocking(AsyncHandle.cancel)
    retry = _blocking(AsyncHandle.retry)
    explain = _blocking(AsyncHandle.explain)
    records = _blocking(AsyncHandle.records)
