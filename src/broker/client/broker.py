"""Submit tasks and wait for their results, in synchronous programs."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, Unpack

from broker.client.async_broker import PATIENCE_SECONDS, AsyncBroker, end_of_wait, seconds_left, tasks_of
from broker.client.handle import Handle
from broker.client.loop_thread import LoopThread
from broker.client.task_options import TaskOptions


class Broker:
    """A connection through which a program submits tasks and waits for their results.

    Its methods wait for the broker, so call them from ordinary functions. In `async def` functions, use
    `AsyncBroker`. Several threads may share one `Broker`. A forked process needs its own.

    Example:
        with Broker() as broker:
            for result in broker.map({"can": "count words"}, [{"text": "one"}, {"text": "one two"}]):
                print(result)

    Args:
        url: The URL of the broker. Default: `BROKER_URL`, or else `http://127.0.0.1:8000`.
        key: A key with the role `submitter`. Default: `BROKER_KEY`, or else no key.
        patience_seconds: How long, in seconds, the client retries a request while the broker does not
            respond. None means forever. Default: 60. To limit the wait for a result, use `timeout` there.

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
        return Handle(self._loop.run(self._broker.submit(needs, payload, id=id, **options)), self._loop)

    def submit_many(self, tasks: Iterable[Mapping[str, Any]]) -> list[Handle]:
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
        # Iterate in this thread: the caller's iterator may use this broker, too.
        submitted = self._loop.run(self._broker.submit_many(list(tasks)))
        return [Handle(handle, self._loop) for handle in submitted]

    def handle(self, id: str) -> Handle:  # noqa: A002 - what the API calls it
        """Return a handle of a task that this or another program submitted earlier.

        This sends no request. If no task has the id, the methods of the handle raise `ProblemError` with the
        code `task_not_found`.
        """
        return Handle(self._broker.handle(id), self._loop)

    def map(
        self,
        needs: Any,
        payloads: Iterable[Any],
        *,
        timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Iterator[Any]:
        """Submit a task for each payload, and return an iterator over their results in the same order.

        As with `concurrent.futures`, this method submits all tasks before it returns.

        Args:
            needs: The needs, the same for all tasks.
            payloads: The payloads, one for each task.
            timeout: The maximum time, in seconds, until all results are complete. Default: no limit.
            options: Further options of the tasks; see `TaskOptions`.

        Returns:
            An iterator over the results, as Python values. It may raise the errors below, too.

        Raises:
            TimeoutError: The results were not complete in time. The tasks continue.
            TaskFailedError: A task failed after its last attempt. The other tasks continue.
            TaskCancelledError: A task was cancelled. The other tasks continue.
            ProblemError: The broker refused a task.
        """
        end = end_of_wait(timeout)
        handles = self.submit_many(tasks_of(needs, payloads, options))
        return (handle.result(seconds_left(end)) for handle in handles)

    def as_completed(self, handles: Iterable[Handle], timeout: float | None = None) -> Iterator[Handle]:
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
        by_async_handle = {handle.asynchronous: handle for handle in handles}
        for async_handle in self._loop.each(self._broker.as_completed(by_async_handle, timeout)):
            yield by_async_handle[async_handle]

    def close(self) -> None:
        """Close the connection. The submitted tasks continue.

        Methods that wait in other threads raise `concurrent.futures.CancelledError`.
        """
        with contextlib.suppress(RuntimeError):  # it is already closed
            self._loop.run(self._broker.close())
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
