"""Handles of submitted tasks, for asynchronous programs: wait for a task, read its result, cancel it."""

import asyncio
from types import NoneType
from typing import Any, Self, TypeVar

import msgspec

from broker.client.addresses import in_path
from broker.client.connection import Connection
from broker.client.long_poll_limit import LongPollLimit
from broker.schemas.archive import ArchivePage, ArchiveRecord
from broker.schemas.limits import MOST_ON_PAGE
from broker.schemas.states import TASK_STATES
from broker.schemas.tasks import Explanation, Task
from broker.schemas.values import plain

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
    """The last attempt at the task failed, and the broker will not retry it.

    `Handle.retry` starts new attempts.

    Attributes:
        task: The task as it ended. `task.error` says why it failed.
    """

    _message = "task {task.id} failed after {task.attempt} attempts: {task.error}"


class TaskCancelledError(_UnsuccessfulTaskError):
    """The task was cancelled, so it has no result.

    Attributes:
        task: The task as it ended.
    """

    _message = "task {task.id} was cancelled"


def ended_well(task: Task) -> Task:
    """Return the task if it has succeeded.

    Raises:
        TaskFailedError: The task has failed.
        TaskCancelledError: The task was cancelled.
    """
    if task.state == "failed":
        raise TaskFailedError(task)
    if task.state == "cancelled":
        raise TaskCancelledError(task)
    return task


class AsyncHandle:
    """A submitted task, in an asynchronous program.

    `AsyncBroker.submit`, `submit_many` and `handle` return it.

    Args:
        connection: The connection to the broker.
        limit: The limit for waiting requests, which all handles of a connection share.
        id: The id of the task.
        task: The task as the broker last returned it, or None.
        existed: True if the task existed before it was submitted; None if that is unknown.

    Attributes:
        id: The id of the task.
        task: The task as the broker last returned it, with its `state`, `result`, `error` and all other
            fields. None until the broker has returned it.
        existed: True if the task existed before it was submitted, False if it is new, None if that is
            unknown.
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
        """Wait until the task has ended, with any outcome.

        Args:
            timeout: The maximum time to wait, in seconds. Default: no limit.

        Returns:
            The task. Its `state` is `succeeded`, `failed` or `cancelled`.

        Raises:
            TimeoutError: The task did not end in time. It continues.
            ProblemError: The task does not exist (`task_not_found`), or the key does not allow the request.
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
        """Wait for the result of the task.

        Args:
            timeout: The maximum time to wait, in seconds. Default: no limit.

        Returns:
            The result as a Python value, which is a dict, list, string, number, bool or None.

        Raises:
            TimeoutError: The task did not end in time. It continues.
            TaskFailedError: The last attempt at the task failed.
            TaskCancelledError: The task was cancelled.
            ProblemError: The task does not exist (`task_not_found`), or the key does not allow the request.
            httpx.TransportError: The broker did not respond in time.
        """
        return plain(ended_well(await self.wait(timeout)).result)

    async def result_as(
        self,
        type_: type[Value],
        timeout: float | None = None,  # noqa: ASYNC109 - like concurrent.futures
    ) -> Value:
        """Wait for the result of the task and convert it to a type.

        Args:
            type_: The type: a dataclass, `list[float]`, a `msgspec.Struct`, or any other type that msgspec
                can decode.
            timeout: The maximum time to wait, in seconds. Default: no limit.

        Returns:
            The result as a value of this type.

        Raises:
            msgspec.ValidationError: The result does not have this type.
            TimeoutError: The task did not end in time. It continues.
            TaskFailedError: The last attempt at the task failed.
            TaskCancelledError: The task was cancelled.
            ProblemError: The task does not exist (`task_not_found`), or the key does not allow the request.
            httpx.TransportError: The broker did not respond in time.
        """
        return msgspec.json.decode(ended_well(await self.wait(timeout)).result, type=type_)

    async def cancel(self, *, force: bool = False) -> None:
        """Cancel the task.

        A task that waits is cancelled at once. If the task is running, the broker asks its tool to stop, and
        the task is cancelled when the tool has stopped. If the task has ended, nothing changes.

        Args:
            force: If True, a running task is cancelled at once, before its tool has stopped.

        Raises:
            ProblemError: The task does not exist (`task_not_found`), or the key does not allow the request.
        """
        query = {"force": "true"} if force else None
        await self._connection.call("DELETE", self._path, NoneType, query=query)

    async def retry(self) -> Task:
        """Retry a failed task. The broker counts its attempts from zero again.

        If the task has not failed and has not ended, nothing changes.

        Returns:
            The task.

        Raises:
            ProblemError: The task has succeeded or was cancelled (`task_ended`), or it does not exist.
        """
        self.task = await self._connection.call("POST", f"{self._path}/retry", Task)
        return self.task

    async def explain(self) -> Explanation:
        """Explain why the task has not run yet.

        Returns:
            An explanation. `verdict` is a fixed word that programs can compare, such as `no_tool_available`,
            and `detail` is a sentence for people. `remark` is the remark of the assigner, or None.

        Raises:
            ProblemError: The task does not exist (`task_not_found`), or the key does not allow the request.
        """
        return await self._connection.call("GET", f"{self._path}/explain", Explanation)

    async def records(self) -> list[ArchiveRecord]:
        """Return the archive records of the task, newest first, up to 1,000.

        Returns:
            One record for each ended attempt, with its `outcome`, `result`, `error` and `reports`.

        Raises:
            ProblemError: The key does not allow the request.
        """
        query = {"task_id": self.id, "limit": MOST_ON_PAGE}
        return (await self._connection.call("GET", "/v1/archive", ArchivePage, query=query)).items
