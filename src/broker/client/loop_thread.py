"""Event loops in threads, for synchronous programs."""

import asyncio
import concurrent.futures
import os
import sys
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")
Item = TypeVar("Item")

# The maximum time to wait until an interrupted coroutine has ended.
_END_SECONDS = 5.0


class LoopThread:
    """An event loop that runs in its own thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run_forever, name="broker client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the loop and return its result. If the caller is interrupted, cancel it.

        Raises:
            RuntimeError: The loop is stopped, the caller runs in the loop's own thread, or the loop belongs
                to the parent of this forked process.
        """
        self._check(coroutine, waits=True)
        ended = threading.Event()

        async def run() -> Result:
            try:
                return await coroutine
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(_END_SECONDS)
            raise

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Start a coroutine in the loop and return the future of its result.

        Raises:
            RuntimeError: The loop is stopped, or it belongs to the parent of this forked process.
        """
        self._check(coroutine)
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def each(self, items: AsyncGenerator[Item, None]) -> Iterator[Item]:
        """Iterate over an asynchronous generator, and close it if the caller stops early."""
        try:
            while True:
                try:
                    item = self.run(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            # Waiting is not safe here: this may run in any thread, and while the interpreter shuts down.
            if not (self._is_stopped or sys.is_finalizing()):
                self.start(items.aclose())

    def stop(self) -> None:
        """Cancel all tasks in the loop and wait until it has stopped. It is safe to repeat."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run_forever(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_all())
        finally:
            self._loop.close()

    def _check(self, coroutine: Coroutine[Any, Any, object], *, waits: bool = False) -> None:
        """Close the coroutine and raise an error if it cannot run or if the caller cannot wait for it."""
        if os.getpid() != self._pid:
            trouble = "this broker or executor was opened before a fork; open a new one in this process"
        elif self._is_stopped:
            trouble = "this broker or executor is closed"
        elif waits and threading.current_thread() is self._thread:
            trouble = "a callback of the client cannot wait for the client itself; use another thread"
        else:
            return
        coroutine.close()
        raise RuntimeError(trouble)


async def _cancel_all() -> None:
    """Cancel all tasks. Callers that wait for one of them get `CancelledError`."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
