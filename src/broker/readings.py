"""Readings: what takes long to read is read together for all who ask at once."""

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, TypeVarTuple, cast

from cachetools import LRUCache
from sqlalchemy import Connection

from broker.lists import Reader

Answer = TypeVar("Answer")
Given = TypeVarTuple("Given")

# To count takes the longer the more there is. For so many times as long as a reading took the next one is not
# begun: so all who watch the same, however many they are, keep one connection busy for a tenth of the time.
# Of readings that are asked for different things one goes after the other.
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

    def __init__(self, store: Reader) -> None:
        self._store = store
        self._readings: LRUCache[Hashable, _Reading] = LRUCache(_MOST_READINGS)
        self._turns: dict[Hashable, asyncio.Lock] = {}

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
            turns = self._turns.setdefault(do, asyncio.Lock())
            reading = _Reading(self._store, lambda connection: do(connection, *given), turns)
            self._readings[key] = reading
        return cast("Answer", await reading.share())


class _Reading:
    """One reading, again and again.

    Args:
        store: The database.
        do: The reading.
        turns: Whose turn it is, among those of its kind.
    """

    def __init__(self, store: Reader, do: Callable[[Connection], Any], turns: asyncio.Lock) -> None:
        self._store = store
        self._do = do
        self._turns = turns
        self._reading: asyncio.Task[tuple[Any, float]] | None = None
        # When the next one may begin, by the loop's clock.
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
                self._reading = asyncio.create_task(self._read(), name="reading")
            found, began = await asyncio.shield(self._reading)
            if began >= asked_at:
                return found

    async def _read(self) -> tuple[Any, float]:
        loop = asyncio.get_running_loop()
        async with self._turns:
            began = loop.time()
            try:
                return await self._store.read(self._do), began
            finally:
                now = loop.time()
                self._next_at = now + min(_PAUSES_PER_READING * (now - began), _LONGEST_PAUSE_SECONDS)
