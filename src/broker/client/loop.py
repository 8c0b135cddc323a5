"""An event loop in a thread of its own, for programs that have none."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

Answer = TypeVar("Answer")
Item = TypeVar("Item")

# How long something that is interrupted may take to end.
_END_SECONDS = 5.0


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run_forever, name="broker client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        """Run something there, and wait for what comes of it; interrupted, it is cancelled.

        Raises:
            RuntimeError: Nothing can be waited for: it is stopped, it would wait for itself, or it is in the
                process that this one was forked from.
        """
        try:
            self._check()
        except RuntimeError:
            coroutine.close()
            raise
        ended = threading.Event()

        async def run() -> Answer:
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

    def begin(self, do: Callable[[], object]) -> None:
        """Have something done there, and do not wait for it.

        Raises:
            RuntimeError: It is stopped, or in the process that this one was forked from.
        """
        self._check(waits=False)
        self._loop.call_soon_threadsafe(do)

    def each(self, items: AsyncGenerator[Item, None]) -> Iterator[Item]:
        """Go through what comes there, as it comes; whoever stops early ends it."""
        try:
            while True:
                try:
                    item = self.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            # Nobody waits for that: we may be at the end of the program, or in any thread.
            if not (self._is_stopped or sys.is_finalizing()):
                self.begin(lambda: asyncio.ensure_future(items.aclose()))

    def stop(self) -> None:
        """End what is under way there, stop it, and wait until it has stopped; again: nothing."""
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
            self._loop.run_until_complete(_end_all())
        finally:
            self._loop.close()

    def _check(self, *, waits: bool = True) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("it was opened before a fork: open one in this process")
        if self._is_stopped:
            raise RuntimeError("it is closed")
        if waits and threading.current_thread() is self._thread:
            raise RuntimeError("a callback would wait here for itself: use another thread")


async def _next(items: AsyncGenerator[Item, None]) -> Item:
    return await anext(items)


async def _end_all() -> None:
    """Cancel what is under way; whoever waits for it is told."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
