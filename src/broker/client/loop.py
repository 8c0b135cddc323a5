"""An event loop in a thread of its own, for programs that have none."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

Answer = TypeVar("Answer")
Item = TypeVar("Item")


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="broker client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        """Run something there, and wait for what comes of it; interrupted, it is cancelled."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def begin(self, do: Callable[[], object]) -> None:
        """Have something done there, and do not wait for it."""
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
            self.run(items.aclose())

    def stop(self) -> None:
        """Stop it, and wait until it has."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(items: AsyncGenerator[Item, None]) -> Item:
    return await anext(items)
