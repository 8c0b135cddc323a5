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
from broker.client.batching import Batcher
from broker.client.broker import AsyncBroker, TaskOptions, known
from broker.client.encoding import encoded
from broker.client.functions import NEEDED, name_of, returned
from broker.client.handle import ended_well
from broker.client.loop_thread import LoopThread
from broker.schemas.tasks import SubmittedTasks

Params = ParamSpec("Params")
Result = TypeVar("Result")


class Executor(concurrent.futures.Executor):
    """Calls functions on tools. It replaces a pool of processes by changing one line.

        with Executor() as executor:  # was: ProcessPoolExecutor()
            for result in executor.map(measure, files):
                print(result)

    On the machine that does the work, run `Tool.calling("worker-1", measure).run()`. The executor sends the
    name of the function and its arguments as JSON; the tool converts them to what its annotations say, such
    as paths. Cancelling a future cancels its task, also while the task runs.

    Two things differ from a pool of processes. The broker retries a function that raises an exception
    (`max_attempts`); then its future raises `TaskFailedError`. And the function must belong to a module that
    both the tool and the program import.

    Args:
        max_workers: The maximum number of tasks that are submitted and have not ended; None: no limit. The
            tools decide how many run at once.
        needs: What the tasks need besides the function.
        url: The URL of the broker. Default: `BROKER_URL`, or else the local broker.
        key: The key. Default: `BROKER_KEY`, or else none.
        options: The options of each task; see `TaskOptions`.

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
            raise ValueError(f"max_workers has to be 1 or more, and is {max_workers}")
        self._room = asyncio.Semaphore(max_workers) if max_workers else contextlib.nullcontext()
        self._needs = dict(needs or {})
        self._options = known(options)
        self._broker = AsyncBroker(url, key=key)
        self._batcher = Batcher(self._submit)
        self._following: set[asyncio.Task[Any]] = set()
        self._futures: weakref.WeakSet[concurrent.futures.Future[Any]] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._is_shut = False
        self._loop = LoopThread()
        # As with a pool, the program waits at its end for all submitted calls.
        atexit.register(self._end)

    def submit(
        self, function: Callable[Params, Result], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> concurrent.futures.Future[Result]:
        """Call a function on a tool.

        Returns:
            A future of its result. It raises `TaskFailedError` if the task fails permanently, and
            `ProblemError` or `httpx.TransportError` if the broker does not accept the task.

        Raises:
            ValueError: The function has no name by which a tool could call it.
            TypeError: An argument cannot be JSON.
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
        """Accept no more calls. Submitted calls continue, and the program waits for them at its end.

        Args:
            wait: Whether to wait until all calls have ended.
            cancel_futures: Whether to cancel their tasks.
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
            # The program waits for this thread at its end.
            threading.Thread(target=self._end, name="broker executor").start()

    def _end(self) -> None:
        """Wait until all calls have ended, and close everything. It may be called again."""
        # It has ended before, or another thread ends it; or this is its own thread, or a forked process.
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
        """Return the result of a task. The executor waits at its end until all of these have ended."""
        following = asyncio.create_task(self._result(function, id_, task))
        self._following.add(following)
        following.add_done_callback(self._following.discard)
        return await following

    async def _result(self, function: Callable[..., Result], id_: str, task: Raw) -> Result:
        """Submit a task when there is room, and wait for its result. If cancelled, cancel the task, too."""
        handle = self._broker.handle(id_)
        async with self._room:
            submitting = asyncio.create_task(self._batcher.put(task))
            try:
                await asyncio.shield(submitting)
                result: Result = returned(function, ended_well(await handle.wait()).result)
            except asyncio.CancelledError:
                with contextlib.suppress(Exception):  # the task does not exist, or has ended
                    await submitting
                    await handle.cancel()
                raise
        return result
