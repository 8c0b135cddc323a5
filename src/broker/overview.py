"""The overview: how many of everything there are, read together for all who ask at once."""

import asyncio
import math

from broker.schemas import Stats
from broker.store import Store, stats

# To count takes the longer the more there is. For so many times as long as a reading took the next one is not
# begun: so all who watch, however many they are, keep one connection busy for a tenth of the time.
_PAUSES_PER_READING = 9
# But who asks is not to wait for longer.
_LONGEST_PAUSE_SECONDS = 2.0


class Overview:
    """Counts for whoever asks.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reading: asyncio.Task[Stats] | None = None
        # When the last reading began, and when the next one may, by the loop's clock.
        self._began = -math.inf
        self._next_at = -math.inf

    async def read(self) -> Stats:
        """How many of everything there are now: what was written before the call is counted.

        Raises:
            Unavailable: The database did not answer.
        """
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        while True:
            if self._reading is None or self._reading.done():
                if (pause := self._next_at - loop.time()) > 0:
                    await asyncio.sleep(pause)
                    continue
                self._began = loop.time()
                self._reading = asyncio.create_task(self._read(), name="overview")
            is_fresh = self._began >= asked_at
            found = await asyncio.shield(self._reading)
            if is_fresh:
                return found

    async def _read(self) -> Stats:
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = await self._store.read(stats.read)
        now = loop.time()
        self._next_at = now + min(_PAUSES_PER_READING * (now - began), _LONGEST_PAUSE_SECONDS)
        return found
