"""Submit tasks and wait for their results, in asynchronous programs."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from typing import Any, Self, Unpack
from uuid import uuid4

import msgspec
from msgspec import UNSET, Raw

from broker.batches import batches
from broker.client import tracing
from broker.client.async_handle import AsyncHandle
from broker.client.batching import MOST_BYTES, MOST_ITEMS
from broker.client.connection import Connection
from broker.client.encoding import encoded
from broker.client.errors import ProblemError
from broker.client.long_poll_limit import LongPollLimit
from broker.client.task_options import TaskOptions, checked_options
from broker.schemas.problems import FieldError
from broker.schemas.tasks import SubmittedTasks, Task

#: How long to retry a request while the broker does not respond.
PATIENCE_SECONDS = 60.0


class AsyncBroker:
    """A connection through which an asynchronous program submits tasks and waits for their results.

    Use it with `async with`, or call `close` at the end. Its methods must all run in one event loop.

    Example:
        async with AsyncBroker() as broker:
            handle = await broker.submit({"can": "count words"}, {"text": "three small words"})
            print(await handle.result(timeout=600))

    Args:
        url: The URL of the broker. Default: `BROKER_URL`, or else `http://127.0.0.1:8000`.
        key: A key with the role `submitter`. Default: `BROKER_KEY`, or else no key.
        patience_seconds: How long, in seconds, the client retries a request while the broker does not
            respond. None means forever. Default: 60. To limit the wait for a result, use `timeout` there.

    Attributes:
        connection: The `Connection`, for requests that have no method here.

    Raises:
        SettingError: The URL or the key is not valid.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        patience_seconds: float | None = PATIENCE_SECONDS,
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

        The client repeats the request if the response is lost. The broker creates the task only once.

        Args:
            needs: A JSON value that describes what a tool must have to do the task. The assigner compares it
                with the skills of the tools.
            payload: The input of the task: a JSON value, or a Python value that the client can convert, such
                as a dataclass, a path or a numpy array. Default: None.
            id: The id of the task. If a task with this id already exists, the broker returns that task and
                changes nothing. Default: a new, unique id.
            options: Further options of the task; see `TaskOptions`.

        Returns:
            A handle of the task.

        Raises:
            ProblemError: The broker refused the task. `errors` lists the invalid fields.
            TypeError: An option does not exist, or a value has no JSON form.
            ValueError: A value contains itself or is nested too deeply.
            httpx.TransportError: The broker did not respond within `patience_seconds`.
        """
        id_ = str(uuid4()) if id is None else id
        body = {"id": id_, "needs": needs, "payload": payload, **checked_options(options)}
        trace = tracing.submitting()
        task = await self.connection.call("POST", "/v1/tasks", Task, json=body, trace=trace)
        return self.handle(task.id, task=task)

    async def submit_many(self, tasks: Iterable[Mapping[str, Any]]) -> list[AsyncHandle]:
        """Submit many tasks, up to 1,000 in each request.

        The broker creates either all tasks of a request or none of them. If it refuses one, the tasks of
        earlier requests still exist.

        Args:
            tasks: The tasks. Each is a dict with `needs` and, optionally, `id`, `payload` and the fields of
                `TaskOptions`.

        Returns:
            The handles of the tasks, in the same order. `handle.existed` is True if the task existed before.

        Raises:
            ProblemError: The broker refused a task. `errors` names it by its position in `tasks`, which
                starts at 0, like `items[1004].needs`.
            TypeError: A value has no JSON form.
            httpx.TransportError: The broker did not respond within `patience_seconds`.
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
        """Return a handle of a task that this or another program submitted earlier.

        This sends no request. If no task has the id, the methods of the handle raise `ProblemError` with the
        code `task_not_found`.

        Args:
            id: The id of the task.
            task: The task as the broker returned it, if you have it.
            existed: True if the task existed before you submitted it. Default: unknown.
        """
        return AsyncHandle(self.connection, self._limit, id, task=task, existed=existed)

    async def map(
        self,
        needs: Any,
        payloads: Iterable[Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - like concurrent.futures
        **options: Unpack[TaskOptions],
    ) -> AsyncGenerator[Any, None]:
        """Submit a task for each payload, and yield their results in the same order.

        The tasks are submitted when the iteration starts.

        Args:
            needs: The needs, the same for all tasks.
            payloads: The payloads, one for each task.
            timeout: The maximum time, in seconds, until all results are complete. Default: no limit.
            options: Further options of the tasks; see `TaskOptions`.

        Yields:
            The result of each task, as a Python value.

        Raises:
            TimeoutError: The results were not complete in time. The tasks continue.
            TaskFailedError: A task failed after its last attempt. The other tasks continue.
            TaskCancelledError: A task was cancelled. The other tasks continue.
            ProblemError: The broker refused a task.
        """
        end = end_of_wait(timeout)
        for handle in await self.submit_many(tasks_of(needs, payloads, options)):
            yield await handle.result(seconds_left(end))

    async def as_completed(
        self,
        handles: Iterable[AsyncHandle],
        timeout: float | None = None,  # noqa: ASYNC109 - like concurrent.futures
    ) -> AsyncGenerator[AsyncHandle, None]:
        """Yield the handle of each task as soon as that task has ended, with any outcome.

        `handle.task` is then the ended task, with its `state`, `result` and `error`.

        Args:
            handles: The handles of the tasks.
            timeout: The maximum time, in seconds, until all tasks have ended. Default: no limit.

        Yields:
            The handles, in the order in which their tasks end.

        Raises:
            TimeoutError: Some tasks did not end in time. They continue.
            ProblemError: The broker refused a request, for example because a task does not exist.
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
        """Close the connection. The submitted tasks continue."""
        await self.connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def tasks_of(needs: Any, payloads: Iterable[Any], options: TaskOptions) -> Iterator[Mapping[str, Any]]:
    """Return the tasks to submit, one for each payload."""
    checked_options(options)
    return ({"needs": needs, "payload": payload, **options} for payload in payloads)


def _encoded_with_id(task: Mapping[str, Any]) -> bytes:
    """Return a task as JSON, with an id, which makes its request safe to repeat."""
    id_ = task.get("id")
    return encoded({**task, "id": str(uuid4()) if id_ is None else id_})


def _counted_from(first: int, error: ProblemError) -> ProblemError:
    """Return the error of one of several requests, with positions counted over all of their items."""

    def counted(text: str) -> str:
        return re.sub(r"(?<=items\[)\d+", lambda number: str(first + int(number[0])), text)

    fields = [FieldError(field=counted(field.field), message=field.message) for field in error.errors]
    problem = msgspec.structs.replace(
        error.problem, detail=counted(error.problem.detail), errors=fields or UNSET
    )
    return ProblemError(problem)


def end_of_wait(timeout: float | None) -> float | None:
    """Return the end of a wait that starts now, on the monotonic clock, or None if there is no limit."""
    return None if timeout is None else time.monotonic() + timeout


def seconds_left(end: float | None) -> float | None:
    """Return the number of seconds until the end of a wait, or None if there is no limit."""
    return None if end is None else max(0.0, end - time.monotonic())
