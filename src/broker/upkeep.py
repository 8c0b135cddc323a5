"""Upkeep: what time does, and nobody asks for.

For each chore a loop sleeps until the next thing is due, or until a notification says that something is due
earlier. It is safe in several processes at once: they take turns, and no batch waits for anybody.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Coroutine

import structlog

from broker.errors import Unavailable
from broker.store import Store, due
from broker.store.retention import Retention
from broker.wake.listener import UPKEEP
from broker.wake.waiters import Waiters

log = structlog.get_logger(__name__)

_BATCH = 1_000
# What comes due before that is notified.
_LONGEST_SLEEP_SECONDS = 30.0
# However many notifications come.
_SHORTEST_SLEEP_SECONDS = 0.1
_RETRY_SECONDS = 1.0
# Nobody waits for old records to go. A long reading of the archive can hold that up for as long as it takes.
_ARCHIVE_SECONDS = 3600.0
_ARCHIVE_RETRY_SECONDS = 60.0
_ARCHIVE_NUMBER = 4


class Upkeep:
    """Does what comes due by time.

    Args:
        store: The database.
        waiters: Where to hear that something comes due soon.
        retention_days: How long the archive is kept; None: for ever.
        turned_at: Tells when the listener last lost the database, or found it, by the loop's clock.
    """

    def __init__(
        self,
        store: Store,
        waiters: Waiters,
        *,
        retention_days: int | None = None,
        turned_at: Callable[[], float] = lambda: -math.inf,
    ) -> None:
        self._store = store
        self._waiters = waiters
        self._turned_at = turned_at
        # All begin at the same moment: one after the other they need one connection, not four for ever.
        self._beginning = asyncio.Lock()
        # The chores that have found no database when they last looked.
        self._waiting: set[str] = set()
        #: When we last were not there, or found no database: tools could not be heard then.
        self.away_at = -math.inf
        self._retention = Retention(retention_days)
        self._tasks: list[asyncio.Task[None]] = []
        #: How many rows each chore has dealt with.
        self.done: Counter[str] = Counter({chore.name: 0 for chore in due.CHORES} | {"archive": 0})

    def start(self) -> None:
        """Begin, in the background."""
        loops: dict[str, Coroutine[None, None, None]] = {
            chore.name: self._keep(chore) for chore in due.CHORES
        }
        loops["archive"] = self._keep_archive()
        self.away_at = asyncio.get_running_loop().time()
        self._tasks = [asyncio.create_task(loop, name=f"upkeep of {name}") for name, loop in loops.items()]

    async def stop(self) -> None:
        """Stop; a batch under way is rolled back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, chore: due.Chore) -> None:
        with self._waiters.parked(UPKEEP, chore.name) as waiter:
            async with self._beginning:
                seconds = await self._patiently(chore.name, lambda: self._round(chore), _RETRY_SECONDS)
            while True:
                await asyncio.sleep(_SHORTEST_SLEEP_SECONDS)
                await waiter.wait(seconds - _SHORTEST_SLEEP_SECONDS)
                seconds = await self._patiently(chore.name, lambda: self._round(chore), _RETRY_SECONDS)

    async def _round(self, chore: due.Chore) -> float:
        """Do what is due; how long there is nothing to do now."""
        forgive = chore.forgive
        while True:
            seconds = await self._store.read(due.seconds_to_next, chore)
            if seconds is None or seconds > 0:
                return min(seconds or _LONGEST_SLEEP_SECONDS, _LONGEST_SLEEP_SECONDS)
            if forgive is not None:
                # Once: what waits only for its batch is not late.
                await self._store.run(forgive, self._here_seconds())
                forgive = None
                continue
            count = await self._store.run(due.in_turn, chore.number, chore.do, _BATCH)
            if not count:
                # Due, and still there: somebody else is at it, or has locked it, and may roll back.
                return _RETRY_SECONDS
            self.done[chore.name] += count

    def _here_seconds(self) -> float:
        return asyncio.get_running_loop().time() - max(self.away_at, self._turned_at())

    async def _keep_archive(self) -> None:
        async with self._beginning:
            seconds = await self._patiently("archive", self._archive_round, _ARCHIVE_RETRY_SECONDS)
        while True:
            await asyncio.sleep(seconds)
            seconds = await self._patiently("archive", self._archive_round, _ARCHIVE_RETRY_SECONDS)

    async def _archive_round(self) -> float:
        while count := await self._store.run(due.in_turn, _ARCHIVE_NUMBER, self._retention.keep, _BATCH):
            self.done["archive"] += count
        return _ARCHIVE_SECONDS

    async def _patiently(
        self, name: str, do: Callable[[], Coroutine[None, None, float]], retry_seconds: float
    ) -> float:
        """Do something; how long to wait then. Whatever goes wrong, time goes on."""
        try:
            seconds = await do()
        except Exception as error:  # noqa: BLE001 - see above
            if name not in self._waiting:
                log.warning("upkeep has to wait", chore=name, error=repr(error))
                self._waiting.add(name)
            if isinstance(error, Unavailable):
                self.away_at = asyncio.get_running_loop().time()
            return retry_seconds
        if name in self._waiting:
            log.warning("upkeep goes on", chore=name)
            self._waiting.discard(name)
        return seconds
