"""Handles of submitted tasks, for synchronous programs: wait for a task, read its result, cancel it."""

from typing import Any, TypeVar

from broker.client.async_handle import AsyncHandle
from broker.client.loop_thread import LoopThread
from broker.schemas.archive import ArchiveRecord
from broker.schemas.tasks import Explanation, Task

Value = TypeVar("Value")


class Handle:
    """A submitted task.

    `Broker.submit`, `submit_many` and `handle` return it.

    Example:
        handle = broker.submit({"can": "count words"}, {"text": "three small words"})
        try:
            print(handle.result(timeout=600))
        except TaskFailedError as error:
            print(error.task.error)

    Args:
        asynchronous: The asynchronous handle.
        loop: The event loop of its connection.

    Attributes:
        id: The id of the task.
        existed: True if the task existed before it was submitted, False if it is new, None if that is
            unknown.
        asynchronous: The `AsyncHandle` of the task, which runs in the thread of the client.
    """

    def __init__(self, asynchronous: AsyncHandle, loop: LoopThread) -> None:
        self.asynchronous = asynchronous
        self._loop = loop
        self.id = asynchronous.id
        self.existed = asynchronous.existed

    @property
    def task(self) -> Task | None:
        """The task as the broker last returned it, with its `state`, `result`, `error` and other fields.

        None until the broker has returned it. After `wait` or `result` it is the ended task.
        """
        return self.asynchronous.task

    def wait(self, timeout: float | None = None) -> Task:
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
        return self._loop.run(self.asynchronous.wait(timeout))

    def result(self, timeout: float | None = None) -> Any:
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
        return self._loop.run(self.asynchronous.result(timeout))

    def result_as(self, type_: type[Value], timeout: float | None = None) -> Value:
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
        return self._loop.run(self.asynchronous.result_as(type_, timeout))

    def cancel(self, *, force: bool = False) -> None:
        """Cancel the task.

        A task that waits is cancelled at once. If the task is running, the broker asks its tool to stop, and
        the task is cancelled when the tool has stopped. If the task has ended, nothing changes.

        Args:
            force: If True, a running task is cancelled at once, before its tool has stopped.

        Raises:
            ProblemError: The task does not exist (`task_not_found`), or the key does not allow the request.
        """
        self._loop.run(self.asynchronous.cancel(force=force))

    def retry(self) -> Task:
        """Retry a failed task. The broker counts its attempts from zero again.

        If the task has not failed and has not ended, nothing changes.

        Returns:
            The task.

        Raises:
            ProblemError: The task has succeeded or was cancelled (`task_ended`), or it does not exist.
        """
        return self._loop.run(self.asynchronous.retry())

    def explain(self) -> Explanation:
        """Explain why the task has not run yet.

        Returns:
            An explanation. `verdict` is a fixed word that programs can compare, such as `no_tool_available`,
            and `detail` is a sentence for people. `remark` is the remark of the assigner, or None.

        Raises:
            ProblemError: The task does not exist (`task_not_found`), or the key does not allow the request.
        """
        return self._loop.run(self.asynchronous.explain())

    def records(self) -> list[ArchiveRecord]:
        """Return the archive records of the task, newest first, up to 1,000.

        Returns:
            One record for each ended attempt, with its `outcome`, `result`, `error` and `reports`.

        Raises:
            ProblemError: The key does not allow the request.
        """
        return self._loop.run(self.asynchronous.records())
