"""Limit how many requests of a program wait at the broker, however many results it waits for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

# With each further connection, every request of the HTTP client costs more.
_MOST_WAITING = 64
_LONG_SECONDS = 30.0
_SHORT_SECONDS = 0.5


class LongPollLimit:
    """Slots for waiting requests. While more requests want a slot than there are, each waits only briefly."""

    def __init__(self, most: int = _MOST_WAITING) -> None:
        self._most = most
        self._wanted = 0
        self._slots = asyncio.Semaphore(most)

    @contextlib.asynccontextmanager
    async def slot(self, deadline: float | None = None) -> AsyncIterator[float]:
        """Wait for a slot and hold it; yield for how many seconds the request may wait.

        Args:
            deadline: How long to wait for the slot, as a time of the loop's clock; None: without a limit.

        Raises:
            TimeoutError: There was no slot before the deadline.
        """
        self._wanted += 1
        try:
            # Requests that begin together count together.
            await asyncio.sleep(0)
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
            try:
                yield _LONG_SECONDS if self._wanted <= self._most else _SHORT_SECONDS
            finally:
                self._slots.release()
        finally:
            self._wanted -= 1
