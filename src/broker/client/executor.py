"""Call functions on tools, with the interface of `concurrent.futures`."""

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, Unpack
from uuid import uuid4

from msgspec import Raw

from broker.client import tracing
from broker.client.async_broker import AsyncBroker
from broker.client.async_handle import ended_well
from broker.client.batching import Batcher
from broker.client.encoding import encoded
from broker.client.functions import NEEDED, name_of, returned
from broker.client.loop_thread import LoopThread
from broker.client.task_options import TaskOptions, checked_options
from broker.schemas.tasks import SubmittedTasks

Params = ParamSpec("Params")
Result = TypeVar("Result")


class Executor(concurrent.futures.Executor):
    """Calls Python functions on tools, as `concurrent.futures.ProcessPoolExecutor` calls them in processes.

    On the machines that do the work, run a tool that offers the functions:

        from broker.client import Tool
        from laboratory import measure

        Tool.calling("worker-1", measure).run()

    The executor sends the name of the function and its arguments as JSON. The tool converts each argument to
    the type that the function's annotation names, for example to a path. It returns the result as JSON, too.

    There are two differences from a process pool. First, the function must belong to a module that both the
    program and the tool can import. Second, the broker retries a function that raises an exception, until it
    has made `max_attempts` attempts. Then the future raises `TaskFailedError`.

    Cancelling a future cancels its task, also while the task runs.

    Example:
        with Executor() as executor:  # before: ProcessPoolExecutor()
            for result in executor.map(measure, files):
                print(result)

    Args:
        max_workers: The maximum number of submitted tasks that have not ended. The tools decide how many of
            them run at the same time. Default: no limit.
        needs: A dict of further needs of each task. The executor adds the name of the function as
            `function`.
        url: The URL of the broker. Default: `BROKER_URL`, or else `http://127.0.0.1:8000`.
        key: A key with the role `submitter`. Default: `BROKER_KEY`, or else no key.
        options: Further options of each task; see `TaskOptions`.

    Raises:
        SettingError: The URL or the key is not valid.
        TypeError: A task has no option of this name.
        ValueError: `max_workers` is below 1.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        needs: Mapping[str, Any] | None = None,
        url: str | None = None,
        key: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError(f"max_workers must be 1 or more, but is {max_workers}")
        self._room = asyncio.Semaphore(max_workers) if max_workers else contextlib.nullcontext()
        self._needs = dict(needs or {})
        self._options = checked_options(options)
        self._broker = AsyncBroker(url, key=key)
        self._batcher = Batcher(self._submit)
        self._following: set[asyncio.Task[Any]] = set()
        self._futures: weakref.WeakSet[concurrent.futures.Future[Any]] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._is_shut = False
        self._loop = LoopThread()
        # Like a process pool, the program waits for all submitted calls before it exits.
        atexit.register(self._end)

    def submit(
        self, function: Callable[Params, Result], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> concurrent.futures.Future[Result]:
        """Call a function on a tool.

        Args:
            function: A function of a module that the tool can import. A lambda, a nested function or a
                function of the main program does not work.
            args: The arguments of the function. Each needs a JSON form, like numbers, strings, lists, dicts,
                dataclasses, paths and numpy arrays.
            kwargs: The keyword arguments of the function.

        Returns:
            A future of the result. It raises `TaskFailedError` if the last attempt fails, and
            `TaskCancelledError` if somebody else cancels the task. It raises `ProblemError` or
            `httpx.TransportError` if the broker does not accept the task.

        Raises:
            ValueError: A tool cannot import the function by its name.
            TypeError: An argument has no JSON form.
            RuntimeError: The executor is shut down.
        """
        id_, name = str(uuid4()), name_of(function)
        needs = {**self._needs, NEEDED: name}
        call = {"function": name, "args": args, "kwargs": kwargs}
        task = Raw(encoded({"id": id_, "needs": needs, "payload": call, **self._options}))
        with self._lock:
            if self._is_shut:
                raise RuntimeError("the executor is shut down")
            future = self._loop.start(self._follow(function, id_, task))
            self._futures.add(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop accepting calls. Submitted calls continue, and the program waits for them before it exits.

        Args:
            wait: If True, the method returns after all calls have ended.
            cancel_futures: If True, the executor cancels the tasks of all calls that have not ended.
        """
        with self._lock:
            self._is_shut = True
            futures = list(self._futures)
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            self._end()
        else:
            # The program waits for this thread before it exits.
            threading.Thread(target=self._end, name="broker executor").start()

    def _end(self) -> None:
        """Wait until all calls have ended, then close the connection and the loop. It is safe to repeat."""
        # The loop raises these if it is already stopped, in its own thread, and in a forked process.
        with contextlib.suppress(RuntimeError, concurrent.futures.CancelledError):
            self._loop.run(self._all_ended())
            self._loop.stop()
            atexit.unregister(self._end)

    async def _all_ended(self) -> None:
        while self._following:
            await asyncio.wait(self._following)
        await self._broker.close()

    async def _submit(self, tasks: list[Raw], trace: Mapping[str, str]) -> list[str]:
        """Submit tasks and return their ids."""
        body, trace = {"items": tasks}, trace or tracing.inherited()
        call = self._broker.connection.call
        submitted = await call("POST", "/v1/tasks/batch", SubmittedTasks, json=body, trace=trace)
        return [item.id for item in submitted.items]

    async def _follow(self, function: Callable[..., Result], id_: str, task: Raw) -> Result:
        """Return the result of a task. The executor waits for this coroutine when it ends."""
        following = asyncio.create_task(self._result(function, id_, task))
        self._following.add(following)
        following.add_done_callback(self._following.discard)
        return await following

    async def _result(self, function: Callable[..., Result], id_: str, task: Raw) -> Result:
        """Submit a task when `max_workers` allows it, and wait for its result; cancel it if cancelled."""
        handle = self._broker.handle(id_)
        async with self._room:
            submitting = asyncio.create_task(self._batcher.put(task))
            try:
                await asyncio.shield(submitting)
                result: Result = returned(function, ended_well(await handle.wait()).result)
            except asyncio.CancelledError:
                with contextlib.suppress(Exception):  # the task does not exist or has ended
                    await submitting
                    await handle.cancel()
                raise
        return result
