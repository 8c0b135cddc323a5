"""Readings: what takes long to read is read together for all who ask at once."""

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, TypeVarTuple, cast

from cachetools import LRUCache
from sqlalchemy import Connection

from broker.store import Store

Answer = TypeVar("Answer")
Given = TypeVarTuple("Given")

# To count takes the longer the more there is. For so many times as long as a reading took the next one is not
# begun: so all who watch, however many they are, keep one connection busy for a tenth of the time.
_PAUSES_PER_READING = 9
# But who asks is not to wait for longer.
_LONGEST_PAUSE_SECONDS = 2.0
# So many readings, each with what it is asked for, are told apart.
_MOST_READINGS = 100


class Readings:
    """Reads for whoever asks.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._readings: LRUCache[Hashable, _Reading] = LRUCache(_MOST_READINGS)

    async def read(self, do: Callable[[Connection, *Given], Answer], *given: *Given) -> Answer:
        """What a reading finds now: what was written before the call is in it.

        Args:
            do: The reading.
            given: What it takes; who gives the same shares it.

        Raises:
            Unavailable: The database did not answer.
        """
        key = (do, *given)
        if (reading := self._readings.get(key)) is None:
            reading = self._readings[key] = _Reading(self._store, lambda connection: do(connection, *given))
        return cast("Answer", await reading.share())


class _Reading:
    """One reading, again and again.

    Args:
        store: The database.
        do: The reading.
    """

    def __init__(self, store: Store, do: Callable[[Connection], Any]) -> None:
        self._store = store
        self._do = do
        self._reading: asyncio.Task[Any] | None = None
        # When the last one began, and when the next one may, by the loop's clock.
        self._began = -math.inf
        self._next_at = -math.inf

    async def share(self) -> Any:
        """What it finds: by one that begins now, or that of whoever asks at the same time."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        while True:
            if self._reading is None or self._reading.done():
                if (pause := self._next_at - loop.time()) > 0:
                    await asyncio.sleep(pause)
                    continue
                self._began = loop.time()
                self._reading = asyncio.create_task(self._read(), name="reading")
            is_fresh = self._began >= asked_at
            found = await asyncio.shield(self._reading)
            if is_fresh:
                return found

    async def _read(self) -> Any:
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = await self._store.read(self._do)
        now = loop.time()
        self._next_at = now + min(_PAUSES_PER_READING * (now - began), _LONGEST_PAUSE_SECONDS)
        return found
