"""A submitted task, as its submitter holds it: wait for it, read its result, cancel it."""

import asyncio
from types import NoneType
from typing import Any, Self, TypeVar

import msgspec

from broker.client.addresses import in_path
from broker.client.connection import Connection
from broker.client.loop import Loop
from broker.client.turns import Turns
from broker.schemas.archive import ArchivePage, ArchiveRecord
from broker.schemas.states import TASK_STATES
from broker.schemas.tasks import Explanation, Task
from broker.schemas.values import plain

Form = TypeVar("Form")


class TaskFailedError(Exception):
    """The task has failed for good; `task.error` says why.

    Args:
        task: The task as it is.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(f"task {task.id} failed after {task.attempt} attempts: {task.error}")

    def __reduce__(self) -> tuple[type[Self], tuple[Task]]:
        """Pickled, for it goes from process to process."""
        return type(self), (self.task,)


class TaskCancelledError(Exception):
    """The task was cancelled.

    Args:
        task: The task as it ended.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(f"task {task.id} was cancelled")

    def __reduce__(self) -> tuple[type[Self], tuple[Task]]:
        """Pickled, for it goes from process to process."""
        return type(self), (self.task,)


def ended_well(task: Task) -> Task:
    """The task, if it has succeeded.

    Raises:
        TaskFailedError: It failed for good.
        TaskCancelledError: It was cancelled.
    """
    if task.state == "failed":
        raise TaskFailedError(task)
    if task.state == "cancelled":
        raise TaskCancelledError(task)
    return task


class AsyncHandle:
    """A submitted task.

    Args:
        connection: The way to the broker.
        turns: Shared by all who wait on this way.
        id: The task's id.
        task: The task as it was answered, if it was.
        existed: Whether there was a task with that id already; None: that was not told.
    """

    def __init__(
        self,
        connection: Connection,
        turns: Turns,
        id: str,  # noqa: A002 - what the API calls it
        *,
        task: Task | None = None,
        existed: bool | None = None,
    ) -> None:
        self._connection = connection
        self._turns = turns
        self._path = f"/v1/tasks/{in_path(id)}"
        #: The task's id.
        self.id = id
        #: The task as it was last heard of; None: it was not asked for yet.
        self.task = task
        #: Whether there was a task with that id already; None: that was not told.
        self.existed = existed

    async def wait(self, timeout: float | None = None) -> Task:  # noqa: ASYNC109 - like concurrent.futures
        """Wait until the task has ended, or has failed for good.

        Args:
            timeout: For so many seconds at most; None: as long as it takes.

        Raises:
            TimeoutError: It has not ended in that time.
            ProblemError: The broker does not know it any more, or refuses to tell.
            httpx.TransportError: The broker did not answer by then.
        """
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while True:
            async with self._turns.turn(end) as seconds:
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
        """Wait for the result, as a Python value.

        Args:
            timeout: For so many seconds at most; None: as long as it takes.

        Raises:
            TimeoutError: The task has not ended in that time; it goes on.
            TaskFailedError: It failed for good.
            TaskCancelledError: It was cancelled.
        """
        return plain(ended_well(await self.wait(timeout)).result)

    async def result_as(
        self,
        form: type[Form],
        timeout: float | None = None,  # noqa: ASYNC109 - like concurrent.futures
    ) -> Form:
        """Wait for the result, as a value of this type.

        Args:
            form: A dataclass, a `msgspec.Struct`, `list[float]`: anything that msgspec can decode.
            timeout: See `result`.

        Raises:
            msgspec.ValidationError: The result is none.
        """
        return msgspec.json.decode(ended_well(await self.wait(timeout)).result, type=form)

    async def cancel(self, *, force: bool = False) -> None:
        """Take the task away; of one that runs, the tool is asked to stop. One that has ended stays as it is.

        Args:
            force: Take it away at once, whatever its tool does.
        """
        query = {"force": "true"} if force else None
        await self._connection.call("DELETE", self._path, NoneType, query=query)

    async def retry(self) -> Task:
        """Have a task that has failed for good tried again, its attempts counted afresh.

        Raises:
            ProblemError: It has ended (`task_ended`).
        """
        self.task = await self._connection.call("POST", f"{self._path}/retry", Task)
        return self.task

    async def explain(self) -> Explanation:
        """Why it has not run yet: a verdict for programs, a sentence for people."""
        return await self._connection.call("GET", f"{self._path}/explain", Explanation)

    async def records(self) -> list[ArchiveRecord]:
        """What the archive says of its attempts, with all reports, the newest first; 1,000 at most."""
        query = {"task_id": self.id, "limit": 1_000}
        return (await self._connection.call("GET", "/v1/archive", ArchivePage, query=query)).items


class Handle:
    """A submitted task, for synchronous programs; see `AsyncHandle`.

    Args:
        handle: What it stands for.
        loop: Where that one lives.
    """

    def __init__(self, handle: AsyncHandle, loop: Loop) -> None:
        self._handle = handle
        self._loop = loop

    @property
    def asynchronous(self) -> AsyncHandle:
        """What it stands for."""
        return self._handle

    @property
    def id(self) -> str:
        """The task's id."""
        return self._handle.id

    @property
    def task(self) -> Task | None:
        """The task as it was last heard of; None: it was not asked for yet."""
        return self._handle.task

    @property
    def existed(self) -> bool | None:
        """Whether there was a task with that id already; None: that was not told."""
        return self._handle.existed

    def wait(self, timeout: float | None = None) -> Task:
        """Wait until the task has ended; see `AsyncHandle.wait`."""
        return self._loop.run(self._handle.wait(timeout))

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result; see `AsyncHandle.result`."""
        return self._loop.run(self._handle.result(timeout))

    def result_as(self, form: type[Form], timeout: float | None = None) -> Form:
        """Wait for the result, as a value of this type; see `AsyncHandle.result_as`."""
        return self._loop.run(self._handle.result_as(form, timeout))

    def cancel(self, *, force: bool = False) -> None:
        """Take the task away; see `AsyncHandle.cancel`."""
        self._loop.run(self._handle.cancel(force=force))

    def retry(self) -> Task:
        """Have a failed task tried again; see `AsyncHandle.retry`."""
        return self._loop.run(self._handle.retry())

    def explain(self) -> Explanation:
        """Why it has not run yet; see `AsyncHandle.explain`."""
        return self._loop.run(self._handle.explain())

    def records(self) -> list[ArchiveRecord]:
        """What the archive says of its attempts; see `AsyncHandle.records`."""
        return self._loop.run(self._handle.records())
