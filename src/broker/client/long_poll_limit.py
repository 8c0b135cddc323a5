"""Limit the number of requests that wait at the broker, for a program that waits for many results."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

# Each waiting request needs a connection. Over httpx, each connection makes all requests more expensive.
_MOST_WAITING = 64
_LONG_SECONDS = 30.0
_SHORT_SECONDS = 0.5


class LongPollLimit:
    """Slots for waiting requests.

    If more requests need a slot than there are slots, each request waits only briefly.
    """

    def __init__(self, most: int = _MOST_WAITING) -> None:
        self._most = most
        self._wanted = 0
        self._slots = asyncio.Semaphore(most)

    @contextlib.asynccontextmanager
    async def slot(self, deadline: float | None = None) -> AsyncIterator[float]:
        """Wait for a slot and hold it.

        Args:
            deadline: The end of the wait for the slot, on the loop's clock. None means no limit.

        Yields:
            The number of seconds that the request may wait at the broker.

        Raises:
            TimeoutError: No slot became free before the deadline.
        """
        self._wanted += 1
        try:
            # Give other requests that start now time to increase the count.
            await asyncio.sleep(0)
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
            try:
                yield _LONG_SECONDS if self._wanted <= self._most else _SHORT_SECONDS
            finally:
                self._slots.release()
        finally:
            self._wanted -= 1
