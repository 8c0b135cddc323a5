"""Submit tasks and wait for their results, in synchronous and in asynchronous programs."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Self, TypedDict, Unpack
from uuid import uuid4

import msgspec
from msgspec import UNSET, Raw

from broker.batches import batches
from broker.client import tracing
from broker.client.batching import MOST_BYTES, MOST_ITEMS
from broker.client.connection import Connection
from broker.client.encoding import encoded
from broker.client.errors import ProblemError
from broker.client.handle import AsyncHandle, Handle
from broker.client.long_poll_limit import LongPollLimit
from broker.client.loop_thread import LoopThread
from broker.schemas.problems import FieldError
from broker.schemas.tasks import SubmittedTasks, Task

_PATIENCE_SECONDS = 60.0


class TaskOptions(TypedDict, total=False):
    """The options of a task, besides its needs and its payload.

    Attributes:
        priority: Tasks with a higher priority are offered first. Default: 0.
        not_before: The broker does not offer the task before this time, which needs an offset.
        timeout_seconds: How long an attempt may run. Default: without a limit.
        max_attempts: After this number of attempts the task has failed permanently. Default: 3.
        retry_backoff_seconds: The delay before the second attempt. Later delays are longer. Default: 1.
    """

    priority: int
    not_before: datetime
    timeout_seconds: float
    max_attempts: int
    retry_backoff_seconds: float


def known(options: TaskOptions) -> TaskOptions:
    """Return the options; raise TypeError if a task has no option of such a name."""
    if unknown := options.keys() - TaskOptions.__annotations__.keys():
        names = ", ".join(TaskOptions.__annotations__)
        raise TypeError(f"there is no option {min(unknown)!r}; a task has {names}")
    return options


class AsyncBroker:
    """A broker to which an asynchronous program submits tasks.

    Args:
        url: The URL of the broker. Default: `BROKER_URL`, or else the local broker.
        key: The key. Default: `BROKER_KEY`, or else none.
        patience_seconds: How long to retry a submission while the broker does not respond; None: forever.
            For results, use `timeout`.

    Raises:
        SettingError: The URL or the key is not valid.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        patience_seconds: float | None = _PATIENCE_SECONDS,
    ) -> None:
        self.connection = Connection(url, key=key, patience_seconds=patience_seconds)
        self._limit = LongPollLimit()

    async def submit(
        self,
        needs: Any,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002 - what the API calls it
        **options: Unpack[TaskOptions],
    ) -> AsyncHandle:
        """Submit a task.

        Args:
            needs: What the task needs of a tool; any JSON value.
            payload: The input of the task; any JSON value.
            id: The id of the task. Default: a new one. If a task has this id already, the broker returns it
                and changes nothing.
            options: See `TaskOptions`.

        Raises:
            ProblemError: The broker refused the task; `errors` names the fields.
            httpx.TransportError: The broker did not respond before the patience ended.
        """
        id_ = str(uuid4()) if id is None else id
        body = {"id": id_, "needs": needs, "payload": payload, **known(options)}
        trace = tracing.submitting()
        task = await self.connection.call("POST", "/v1/tasks", Task, json=body, trace=trace)
        return self.handle(task.id, task=task)

    async def submit_many(self, tasks: Iterable[Mapping[str, Any]]) -> list[AsyncHandle]:
        """Submit many tasks, up to a thousand in a request.

        The broker writes all tasks of a request or none. If it refuses one, the tasks of earlier requests
        stay submitted.

        Args:
            tasks: The tasks, each with `needs`, and optionally `id`, `payload` and the `TaskOptions`.

        Raises:
            ProblemError: The broker refused a task; `errors` names it, counted from the first of all.
        """
        handles: list[AsyncHandle] = []
        call, trace = self.connection.call, tracing.submitting()
        items = (Raw(_encoded_with_id(task)) for task in tasks)
        for batch in batches(items, MOST_ITEMS, size=lambda item: len(bytes(item)), most_bytes=MOST_BYTES):
            try:
                body = {"items": batch}
                submitted = await call("POST", "/v1/tasks/batch", SubmittedTasks, json=body, trace=trace)
            except ProblemError as error:
                raise _counted_from(len(handles), error) from None
            handles += [self.handle(item.id, existed=item.status == "exists") for item in submitted.items]
        return handles

    def handle(
        self,
        id: str,  # noqa: A002 - what the API calls it
        *,
        task: Task | None = None,
        existed: bool | None = None,
    ) -> AsyncHandle:
        """Return a handle of a task that was submitted before."""
        return AsyncHandle(self.connection, self._limit, id, task=task, existed=existed)

    async def map(
        self,
        needs: Any,
        payloads: Iterable[Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - like concurrent.futures
        **options: Unpack[TaskOptions],
    ) -> AsyncGenerator[Any, None]:
        """Submit a task for each payload, and iterate over their results in the same order.

        The tasks are submitted when the iteration begins.

        Args:
            needs: The needs of each task.
            payloads: The payloads.
            timeout: How long to wait for all results, in seconds; None: without a limit.
            options: See `TaskOptions`.

        Raises:
            TimeoutError: The results were not complete in time.
            TaskFailedError: A task failed permanently. The others continue.
            TaskCancelledError: A task was cancelled.
        """
        end = _end(timeout)
        for handle in await self.submit_many(_tasks_of(needs, payloads, options)):
            yield await handle.result(_left(end))

    async def as_completed(
        self,
        handles: Iterable[AsyncHandle],
        timeout: float | None = None,  # noqa: ASYNC109 - like concurrent.futures
    ) -> AsyncGenerator[AsyncHandle, None]:
        """Iterate over tasks as they end, whatever their outcome; `handle.task` has it.

        Args:
            handles: The handles of the tasks.
            timeout: How long to wait for all tasks, in seconds; None: without a limit.

        Raises:
            TimeoutError: Not all tasks ended in time.
        """

        async def ended(handle: AsyncHandle) -> AsyncHandle:
            await handle.wait(timeout)
            return handle

        waiting = [asyncio.create_task(ended(handle)) for handle in handles]
        try:
            for each in asyncio.as_completed(waiting):
                yield await each
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def close(self) -> None:
        """Close the connection."""
        await self.connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Broker:
    """A broker to which a synchronous program submits tasks. The arguments are those of `AsyncBroker`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        patience_seconds: float | None = _PATIENCE_SECONDS,
    ) -> None:
        self._broker = AsyncBroker(url, key=key, patience_seconds=patience_seconds)
        self._loop = LoopThread()

    def submit(
        self,
        needs: Any,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002 - what the API calls it
        **options: Unpack[TaskOptions],
    ) -> Handle:
        """Submit a task; see `AsyncBroker.submit`."""
        return Handle(self._loop.run(self._broker.submit(needs, payload, id=id, **options)), self._loop)

    def submit_many(self, tasks: Iterable[Mapping[str, Any]]) -> list[Handle]:
        """Submit many tasks; see `AsyncBroker.submit_many`."""
        # Iterate in this thread: the program's own iterator may call the broker, too.
        submitted = self._loop.run(self._broker.submit_many(list(tasks)))
        return [Handle(handle, self._loop) for handle in submitted]

    def handle(self, id: str) -> Handle:  # noqa: A002 - what the API calls it
        """Return a handle of a task that was submitted before."""
        return Handle(self._broker.handle(id), self._loop)

    def map(
        self,
        needs: Any,
        payloads: Iterable[Any],
        *,
        timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Iterator[Any]:
        """Submit a task for each payload, and iterate over their results in the same order.

        As with `concurrent.futures`, the tasks are submitted at once; see `AsyncBroker.map`.
        """
        end = _end(timeout)
        handles = self.submit_many(_tasks_of(needs, payloads, options))
        return (handle.result(_left(end)) for handle in handles)

    def as_completed(self, handles: Iterable[Handle], timeout: float | None = None) -> Iterator[Handle]:
        """Iterate over tasks as they end; see `AsyncBroker.as_completed`."""
        by_async_handle = {handle.asynchronous: handle for handle in handles}
        for async_handle in self._loop.each(self._broker.as_completed(by_async_handle, timeout)):
            yield by_async_handle[async_handle]

    def close(self) -> None:
        """Close the connection. Calls that still wait for it raise `CancelledError`."""
        with contextlib.suppress(RuntimeError):  # it is closed already
            self._loop.run(self._broker.close())
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tasks_of(needs: Any, payloads: Iterable[Any], options: TaskOptions) -> Iterator[Mapping[str, Any]]:
    """Return a task for each payload."""
    known(options)
    return ({"needs": needs, "payload": payload, **options} for payload in payloads)


def _encoded_with_id(task: Mapping[str, Any]) -> bytes:
    """Return a task as JSON, with an id, so that its request can be repeated."""
    id_ = task.get("id")
    return encoded({**task, "id": str(uuid4()) if id_ is None else id_})


def _counted_from(first: int, error: ProblemError) -> ProblemError:
    """Return the error of one request of several, with its items counted from the first of all."""

    def counted(text: str) -> str:
        return re.sub(r"(?<=items\[)\d+", lambda number: str(first + int(number[0])), text)

    fields = [FieldError(field=counted(field.field), message=field.message) for field in error.errors]
    problem = msgspec.structs.replace(
        error.problem, detail=counted(error.problem.detail), errors=fields or UNSET
    )
    return ProblemError(problem)


def _end(timeout: float | None) -> float | None:
    """Return when a wait that begins now ends, by the monotonic clock; None: without a limit."""
    return None if timeout is None else time.monotonic() + timeout


def _left(end: float | None) -> float | None:
    """Return how many seconds are left until then; None: without a limit."""
    return None if end is None else max(0.0, end - time.monotonic())
