"""Taking turns: however many results a program waits for, only so many of its requests wait at the broker."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

# With every connection more, each request of the HTTP client costs more.
_SIZE = 64
_LONG_SECONDS = 30.0
_SHORT_SECONDS = 0.5


class Turns:
    """Lets so many wait at once; as long as more than that want to, each of them waits only for a moment.

    Args:
        size: How many.
    """

    def __init__(self, size: int = _SIZE) -> None:
        self._size = size
        self._wanting = 0
        # First come, first served.
        self._free = asyncio.Semaphore(size)

    @contextlib.asynccontextmanager
    async def turn(self, until: float | None = None) -> AsyncIterator[float]:
        """Wait for one's turn; yields for how many seconds it may be used to wait.

        Args:
            until: Not beyond this time of the loop's clock.

        Raises:
            TimeoutError: The turn did not come by then.
        """
        self._wanting += 1
        try:
            # Those who begin together are counted together.
            await asyncio.sleep(0)
            async with asyncio.timeout_at(until):
                await self._free.acquire()
            try:
                yield _LONG_SECONDS if self._wanting <= self._size else _SHORT_SECONDS
            finally:
                self._free.release()
        finally:
            self._wanting -= 1
