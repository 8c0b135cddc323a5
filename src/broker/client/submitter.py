"""Submitting tasks and waiting for their results, from synchronous and from asynchronous programs."""

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

from broker.client.connection import Connection, in_path
from broker.schemas import Task, plain

Answer = TypeVar("Answer")

_WAIT_SECONDS = 30.0
_PATIENCE_SECONDS = 60.0


class TaskFailedError(Exception):
    """The task has failed for good; `task.error` says why.

    Args:
        task: The task as it is.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(f"task {task.id} failed after {task.attempt} attempts: {task.error}")


class TaskCancelledError(Exception):
    """The task was cancelled.

    Args:
        task: The task as it ended.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(f"task {task.id} was cancelled")


class AsyncHandle:
    """A submitted task.

    Args:
        connection: The way to the broker.
        task: The task as it was answered.
    """

    def __init__(self, connection: Connection, task: Task) -> None:
        self._connection = connection
        self.task = task

    @property
    def id(self) -> str:
        """The task's id."""
        return self.task.id

    async def wait(self, timeout: float | None = None) -> Task:  # noqa: ASYNC109 - like concurrent.futures
        """Wait until the task has ended.

        Args:
            timeout: For so many seconds at most; None: as long as it takes.

        Raises:
            TimeoutError: It has not ended in that time.
            httpx.TransportError: The broker did not answer by then.
        """
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while True:
            wait = _WAIT_SECONDS if end is None else min(_WAIT_SECONDS, max(0.0, end - loop.time()))
            path = f"/v1/tasks/{in_path(self.id)}"
            self.task = await self._connection.call(
                "GET", path, Task, query={"wait": wait}, wait=wait, patience_seconds=_left(end)
            )
            if self.task.state in ("succeeded", "cancelled", "failed"):
                return self.task
            if end is not None and loop.time() >= end:
                raise TimeoutError(f"task {self.id} is {self.task.state} after {timeout} s")

    async def result(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - like concurrent.futures
        """Wait for the result, as a Python value.

        Args:
            timeout: For so many seconds at most; None: as long as it takes.

        Raises:
            TimeoutError: The task has not ended in that time.
            TaskFailedError: It failed for good.
            TaskCancelledError: It was cancelled.
        """
        task = await self.wait(timeout)
        if task.state == "failed":
            raise TaskFailedError(task)
        if task.state == "cancelled":
            raise TaskCancelledError(task)
        return plain(task.result)


class AsyncBroker:
    """A broker to submit tasks to.

    Args:
        url: Where it is; else `BROKER_URL`, else the local one.
        key: The key; else `BROKER_KEY`, else none.
        patience_seconds: How long to go on trying when the broker does not answer to a submission; None: for
            ever. Whoever waits for a result says so with `timeout`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        patience_seconds: float | None = _PATIENCE_SECONDS,
    ) -> None:
        self.connection = Connection(url, key=key, patience_seconds=patience_seconds)

    async def submit(
        self,
        needs: Any,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002 - what the API calls it
        **options: Any,
    ) -> AsyncHandle:
        """Submit a task.

        Args:
            needs: What it needs of a tool; any JSON value.
            payload: What the tool is to work on; any JSON value.
            id: The task's id; one of its own where none is given. The same id is the same task, however
                often it is submitted.
            options: `priority`, `not_before`, `timeout_seconds`, `max_attempts`, `retry_backoff_seconds`.

        Raises:
            ProblemError: The broker refused it.
        """
        body = {"id": id or str(uuid4()), "needs": needs, "payload": payload} | options
        return AsyncHandle(self.connection, await self.connection.call("POST", "/v1/tasks", Task, json=body))

    async def close(self) -> None:
        """Close the connection."""
        await self.connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Handle:
    """A submitted task, for synchronous programs; see `AsyncHandle`."""

    def __init__(self, handle: AsyncHandle, loop: "_Loop") -> None:
        self._handle = handle
        self._loop = loop

    @property
    def id(self) -> str:
        """The task's id."""
        return self._handle.id

    def wait(self, timeout: float | None = None) -> Task:
        """Wait until the task has ended; see `AsyncHandle.wait`."""
        return self._loop.run(self._handle.wait(timeout))

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result; see `AsyncHandle.result`."""
        return self._loop.run(self._handle.result(timeout))


class Broker:
    """A broker to submit tasks to, for synchronous programs; see `AsyncBroker`.

    Args:
        url: Where it is; else `BROKER_URL`, else the local one.
        key: The key; else `BROKER_KEY`, else none.
        patience_seconds: See `AsyncBroker`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        patience_seconds: float | None = _PATIENCE_SECONDS,
    ) -> None:
        self._loop = _Loop()
        self._broker = AsyncBroker(url, key=key, patience_seconds=patience_seconds)

    def submit(  # see the other one
        self,
        needs: Any,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002 - what the API calls it
        **options: Any,
    ) -> Handle:
        """Submit a task; see `AsyncBroker.submit`."""
        handle = self._loop.run(self._broker.submit(needs, payload, id=id, **options))
        return Handle(handle, self._loop)

    def close(self) -> None:
        """Close the connection."""
        self._loop.run(self._broker.close())
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _left(end: float | None) -> float | None:
    """How much time is left until then; None: for ever."""
    return None if end is None else max(0.0, end - asyncio.get_running_loop().time())


class _Loop:
    """An event loop in a thread of its own, for programs that have none."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="broker client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
