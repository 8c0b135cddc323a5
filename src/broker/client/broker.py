"""Submitting tasks and waiting for their results, from synchronous and from asynchronous programs."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack
from uuid import uuid4

import msgspec
from msgspec import UNSET, Raw

from broker.client import tracing
from broker.client.connection import Connection
from broker.client.encoding import encoded
from broker.client.errors import ProblemError
from broker.client.handle import AsyncHandle, Handle
from broker.client.loop import Loop
from broker.client.together import MOST_BYTES
from broker.client.turns import Turns
from broker.schemas.problems import FieldError
from broker.schemas.tasks import SubmittedTasks, Task

_PATIENCE_SECONDS = 60.0
# The most tasks in one request, and their most bytes.
_BATCH = 1_000
_BATCH_BYTES = MOST_BYTES


class TaskOptions(TypedDict, total=False):
    """What may be said of a task besides its needs and its payload; what is left out is the broker's default.

    Attributes:
        priority: Higher is offered first; 0.
        not_before: It is not offered before this time, which has an offset.
        timeout_seconds: The longest an attempt may run; without, there is no limit.
        max_attempts: So many attempts, then it has failed for good; 3.
        retry_backoff_seconds: The wait before the second attempt, from which those before later ones grow; 1.
    """

    priority: int
    not_before: datetime
    timeout_seconds: float
    max_attempts: int
    retry_backoff_seconds: float


def known(options: TaskOptions) -> TaskOptions:
    """The options, if there are such.

    Raises:
        TypeError: There is one that no task has.
    """
    if unknown := options.keys() - TaskOptions.__annotations__.keys():
        names = ", ".join(TaskOptions.__annotations__)
        raise TypeError(f"there is no option {min(unknown)!r}; a task has {names}")
    return options


class AsyncBroker:
    """A broker to submit tasks to.

    Args:
        url: Where it is; else `BROKER_URL`, else the local one.
        key: The key; else `BROKER_KEY`, else none.
        patience_seconds: How long to go on trying when the broker does not answer to a submission; None: for
            ever. Whoever waits for a result says so with `timeout`.

    Raises:
        SettingError: The URL or the key cannot be one.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        patience_seconds: float | None = _PATIENCE_SECONDS,
    ) -> None:
        self.connection = Connection(url, key=key, patience_seconds=patience_seconds)
        self._turns = Turns()

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
            needs: What it needs of a tool; any JSON value.
            payload: What the tool is to work on; any JSON value.
            id: The task's id; one of its own where none is given. The same id is the same task, however
                often it is submitted.
            options: See `TaskOptions`.

        Raises:
            ProblemError: The broker refused it; `errors` says which field.
            httpx.TransportError: The broker did not answer for as long as patience lasts.
        """
        id_ = str(uuid4()) if id is None else id
        body = {"id": id_, "needs": needs, "payload": payload, **known(options)}
        trace = tracing.submitting()
        task = await self.connection.call("POST", "/v1/tasks", Task, json=body, trace=trace)
        return self.handle(task.id, task=task)

    async def submit_many(self, tasks: Iterable[Mapping[str, Any]]) -> list[AsyncHandle]:
        """Submit many tasks, a thousand in a call.

        Each call is written as a whole or not at all: when one is refused, those of the calls before stand.

        Args:
            tasks: Each with `needs`, and `id`, `payload` and what `TaskOptions` has where it is wanted.

        Raises:
            ProblemError: The broker refused one; `errors` says which, counted from the first of all.
        """
        handles: list[AsyncHandle] = []
        call, trace = self.connection.call, tracing.submitting()
        for batch in _batches(tasks):
            try:
                body = {"items": batch}
                answer = await call("POST", "/v1/tasks/batch", SubmittedTasks, json=body, trace=trace)
            except ProblemError as error:
                raise _counted_from(len(handles), error) from None
            handles += [self.handle(item.id, existed=item.status == "exists") for item in answer.items]
        return handles

    def handle(
        self,
        id: str,  # noqa: A002 - what the API calls it
        *,
        task: Task | None = None,
        existed: bool | None = None,
    ) -> AsyncHandle:
        """Take hold of a task that was submitted before, by its id."""
        return AsyncHandle(self.connection, self._turns, id, task=task, existed=existed)

    async def map(
        self,
        needs: Any,
        payloads: Iterable[Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - like concurrent.futures
        **options: Unpack[TaskOptions],
    ) -> AsyncGenerator[Any, None]:
        """Submit a task for each payload, and go through their results in the same order.

        They are submitted when the first result is asked for.

        Args:
            needs: What each of them needs.
            payloads: What they are to work on.
            timeout: All of them have to be there after so many seconds; None: as long as it takes.
            options: See `TaskOptions`.

        Raises:
            TimeoutError: They were not all there in that time.
            TaskFailedError: One failed for good; the others go on.
            TaskCancelledError: One was cancelled.
        """
        end = None if timeout is None else asyncio.get_running_loop().time() + timeout
        for handle in await self.submit_many(_alike(needs, payloads, options)):
            yield await handle.result(_left(end))

    async def as_completed(
        self,
        handles: Iterable[AsyncHandle],
        timeout: float | None = None,  # noqa: ASYNC109 - like concurrent.futures
    ) -> AsyncGenerator[AsyncHandle, None]:
        """Go through tasks as they end, however they do; `handle.task` is how.

        Args:
            handles: Of the tasks.
            timeout: All of them have to have ended after so many seconds; None: as long as it takes.

        Raises:
            TimeoutError: They had not all ended in that time.
        """
        end = None if timeout is None else asyncio.get_running_loop().time() + timeout
        waiting = {asyncio.create_task(handle.wait(_left(end))): handle for handle in handles}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    handle = waiting.pop(each)
                    each.result()
                    yield handle
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def close(self) -> None:
        """Close the connection."""
        await self.connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


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
        self._broker = AsyncBroker(url, key=key, patience_seconds=patience_seconds)
        self._loop = Loop()

    def submit(
        self,
        needs: Any,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002 - what the API calls it
        **options: Unpack[TaskOptions],
    ) -> Handle:
        """Submit a task; see `AsyncBroker.submit`."""
        return self._held(self._loop.run(self._broker.submit(needs, payload, id=id, **options)))

    def submit_many(self, tasks: Iterable[Mapping[str, Any]]) -> list[Handle]:
        """Submit many tasks; see `AsyncBroker.submit_many`."""
        # Here: an iterator of the program's own may call the broker, too.
        given = list(tasks)
        return [self._held(handle) for handle in self._loop.run(self._broker.submit_many(given))]

    def handle(self, id: str) -> Handle:  # noqa: A002 - what the API calls it
        """Take hold of a task that was submitted before, by its id."""
        return self._held(self._broker.handle(id))

    def map(
        self,
        needs: Any,
        payloads: Iterable[Any],
        *,
        timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Iterator[Any]:
        """Submit a task for each payload, and go through their results in the same order.

        As with `concurrent.futures` they are submitted at once; see `AsyncBroker.map`.
        """
        end = None if timeout is None else time.monotonic() + timeout
        handles = self.submit_many(_alike(needs, payloads, options))
        return (
            handle.result(None if end is None else max(0.0, end - time.monotonic())) for handle in handles
        )

    def as_completed(self, handles: Iterable[Handle], timeout: float | None = None) -> Iterator[Handle]:
        """Go through tasks as they end; see `AsyncBroker.as_completed`."""
        known = {handle.asynchronous: handle for handle in handles}
        for handle in self._loop.each(self._broker.as_completed(known, timeout)):
            yield known[handle]

    def close(self) -> None:
        """Close the connection; whoever waits for something on it is told (`CancelledError`)."""
        with contextlib.suppress(RuntimeError):  # it is closed already
            self._loop.run(self._broker.close())
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _held(self, handle: AsyncHandle) -> Handle:
        return Handle(handle, self._loop)


def _alike(needs: Any, payloads: Iterable[Any], options: TaskOptions) -> Iterator[Mapping[str, Any]]:
    """Tasks that differ in what they are to work on."""
    given = known(options)
    return ({"needs": needs, "payload": payload, **given} for payload in payloads)


def _batches(tasks: Iterable[Mapping[str, Any]]) -> Iterator[list[Raw]]:
    """Tasks as a call takes them, each with an id, so that the call can be made again."""
    batch: list[Raw] = []
    size = 0
    for task in tasks:
        id_ = task.get("id")
        item = Raw(encoded({**task, "id": str(uuid4()) if id_ is None else id_}))
        if batch and (len(batch) == _BATCH or size + len(bytes(item)) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(bytes(item))
    if batch:
        yield batch


def _counted_from(first: int, error: ProblemError) -> ProblemError:
    """The error of one call of many, its items counted from the first of all."""

    def counted(text: str) -> str:
        return re.sub(r"(?<=items\[)\d+", lambda found: str(first + int(found[0])), text)

    fields = [FieldError(field=counted(field.field), message=field.message) for field in error.errors]
    problem = msgspec.structs.replace(
        error.problem, detail=counted(error.problem.detail), errors=fields or UNSET
    )
    return ProblemError(problem)


def _left(end: float | None) -> float | None:
    """How much time is left until then; None: for ever."""
    return None if end is None else max(0.0, end - asyncio.get_running_loop().time())
