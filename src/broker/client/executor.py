"""Functions run by tools, in the manner of `concurrent.futures`."""

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ParamSpec, TypeVar, Unpack
from uuid import uuid4

from msgspec import Raw

from broker.client import tracing
from broker.client.broker import AsyncBroker, TaskOptions, known
from broker.client.encoding import encoded
from broker.client.functions import NEEDED, as_call, returned
from broker.client.handle import ended_well
from broker.client.loop import Loop
from broker.client.together import Together
from broker.schemas.tasks import SubmittedTasks

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Executor(concurrent.futures.Executor):
    """Has functions run by tools: what used a pool of processes uses this one, by one line.

        with Executor() as executor:  # was: ProcessPoolExecutor()
            for result in executor.map(measure, files):
                print(result)

    Where the work is done, `Tool.calling("worker-1", measure).run()` runs it. Arguments and results travel as
    JSON: a function is called by its name, and gets what its annotations say, paths too. Cancelling a future
    takes its task away, also while that runs.

    What differs: a function that raises is tried again, as often as `max_attempts` says, and then its future
    raises `TaskFailedError`, whatever it raised; it has to be of a module that tool and program import.

    Args:
        max_workers: So many tasks are submitted at once, and the next when one has ended; None: all of them.
            How many run at once is for the tools to say.
        needs: What the tasks need besides the function.
        url: Where the broker is; else `BROKER_URL`, else the local one.
        key: The key; else `BROKER_KEY`, else none.
        options: Of every task; see `TaskOptions`.

    Raises:
        SettingError: The URL or the key cannot be one.
        TypeError: There is no such option.
        ValueError: No task could be submitted at all.
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
        self._together = Together(self._submit)
        self._following: set[asyncio.Task[None]] = set()
        self._futures: weakref.WeakSet[concurrent.futures.Future[Any]] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._is_shut = False
        self._loop = Loop()
        # As with a pool, the end of the program waits for what was taken.
        atexit.register(self._end)

    def submit(
        self, function: Callable[Given, Result], /, *args: Given.args, **kwargs: Given.kwargs
    ) -> concurrent.futures.Future[Result]:
        """Have a function called by a tool.

        Returns:
            Its future, which raises `TaskFailedError` if the task fails for good, and `ProblemError` or
            `httpx.TransportError` if the broker does not take it.

        Raises:
            ValueError: The function has no name by which it could be called elsewhere.
            TypeError: An argument is no JSON.
            RuntimeError: It is shut down.
        """
        id_ = str(uuid4())
        call = as_call(function, args, kwargs)
        task = {
            "id": id_,
            "needs": {**self._needs, NEEDED: call["function"]},
            "payload": call,
            **self._options,
        }
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()
        body = Raw(encoded(task))
        with self._lock:
            if self._is_shut:
                raise RuntimeError("the executor is shut down")
            self._futures.add(future)
            self._loop.begin(lambda: self._begin(self._follow(function, id_, body, future)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; those that were taken go on, and the end of the program waits for them.

        Args:
            wait: Return when all of them have ended.
            cancel_futures: Take their tasks away.
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
            # The end of the program waits for it.
            threading.Thread(target=self._end, name="broker executor").start()

    def _end(self) -> None:
        """Return when all that was taken has ended, and nothing is left open; again: at once."""
        # It has ended before, or ends just now; or we are its own thread, or another process.
        with contextlib.suppress(RuntimeError, concurrent.futures.CancelledError):
            self._loop.run(self._all_ended())
            self._loop.stop()
            atexit.unregister(self._end)

    def _begin(self, following: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(following)
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _all_ended(self) -> None:
        while self._following:
            await asyncio.wait(self._following)
        await self._broker.close()

    async def _submit(self, tasks: list[Raw], trace: Mapping[str, str]) -> list[str]:
        """Submit tasks; their ids."""
        body = {"items": tasks}
        call, trace = self._broker.connection.call, trace or tracing.inherited()
        answer = await call("POST", "/v1/tasks/batch", SubmittedTasks, json=body, trace=trace)
        return [item.id for item in answer.items]

    async def _follow(
        self,
        function: Callable[..., Result],
        id_: str,
        task: Raw,
        future: concurrent.futures.Future[Result],
    ) -> None:
        """Submit a task, and have the future say what comes of it."""
        loop, me = asyncio.get_running_loop(), asyncio.current_task()

        def cancel(_: object) -> None:
            if me is not None and future.cancelled():
                loop.call_soon_threadsafe(me.cancel)

        try:
            future.add_done_callback(cancel)
            async with self._room:
                result = await self._result(function, id_, task)
        except asyncio.CancelledError:
            future.set_running_or_notify_cancel()
        except Exception as error:  # noqa: BLE001 - whoever has the future is told
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(result)

    async def _result(self, function: Callable[..., Result], id_: str, task: Raw) -> Result:
        """Submit a task and wait for its result; cancelled, it is taken away."""
        handle = self._broker.handle(id_)
        submitting = asyncio.create_task(self._together.put(task))
        try:
            await asyncio.shield(submitting)
            result: Result = returned(function, ended_well(await handle.wait()).result)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):  # it is not there, or has ended
                await submitting
                await handle.cancel()
            raise
        return result
