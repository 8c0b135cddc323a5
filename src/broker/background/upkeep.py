"""Upkeep: what time does, and nobody asks for.

For each chore a loop sleeps until the next thing is due, or until a notification says that something is due
earlier. It is safe in several processes at once: they take turns, and no batch waits for anybody.
"""

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any

import structlog

from broker.errors import ConnectionLost, RowTrouble, Unavailable
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
# A batch that fails is retried with an eighth of its rows, down to one.
_SHRINK = 8
# A row that fails alone is left alone for a while, longer each time.
_ASIDE_SECONDS = 10.0
_LONGEST_ASIDE_SECONDS = 300.0
# Nobody waits for old records to go. A long reading of the archive can hold that up for as long as it takes.
_ARCHIVE_SECONDS = 3600.0
_ARCHIVE_RETRY_SECONDS = 60.0
_ARCHIVE_NUMBER = 4


class Aside:
    """The rows that a chore skips for a while, because each of them fails even alone."""

    def __init__(self) -> None:
        # Until when, for how long that is, and whether that is known to be over.
        self._rows: dict[Any, tuple[float, float, bool]] = {}

    def add(self, id_: Any, now: float) -> bool:
        """Leave a row alone from now on; return whether it is the first time.

        Args:
            id_: The id of the row.
            now: The loop's time.
        """
        first = id_ not in self._rows
        seconds = _ASIDE_SECONDS if first else min(2 * self._rows[id_][1], _LONGEST_ASIDE_SECONDS)
        self._rows[id_] = now + seconds, seconds, False
        return first

    def ids(self, now: float) -> list[Any]:
        """Return the rows to leave alone now; forget those that have not failed again for long."""
        self._rows = {id_: row for id_, row in self._rows.items() if now < row[0] + row[1]}
        return [id_ for id_, (until, _, _) in self._rows.items() if now < until]

    def release(self, now: float) -> bool:
        """Return whether the time of any row is over since this was called last."""
        over = {
            id_: (until, seconds, True)
            for id_, (until, seconds, known) in self._rows.items()
            if now >= until and not known
        }
        self._rows |= over
        return bool(over)


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
        #: When we last were not there, or lost the database: tools could not be heard then.
        self.away_at = -math.inf
        # How many rows each chore tries at once, and which it leaves alone.
        self._sizes: defaultdict[str, int] = defaultdict(lambda: _BATCH)
        self._aside: defaultdict[str, Aside] = defaultdict(Aside)
        # Until when each chore has seen to what is due, by the database's clock.
        self._watched_until: dict[str, datetime] = {}
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
        loop = asyncio.get_running_loop()
        forgiven: tuple[datetime, float] | None = None
        while True:
            aside = self._aside[chore.name].ids(loop.time())
            seconds = await self._store.read(due.seconds_to_next, chore, aside)
            if seconds is None or seconds > 0:
                # A row that is left alone has its time before that.
                longest = _ASIDE_SECONDS if aside else _LONGEST_SLEEP_SECONDS
                return min(seconds or longest, longest)
            if chore.forgive is not None and forgiven is None:
                # Once: what waits only for its batch is not late.
                watched_until = self._watched_until.get(chore.name)
                now = await self._store.run(chore.forgive, self._here_seconds(), watched_until)
                forgiven = now, loop.time()
                continue
            try:
                goes_on = await self._batch(chore, aside)
            except ConnectionLost:
                forgiven = None
                raise
            finally:
                if forgiven is not None:
                    at, since = forgiven
                    self._watched_until[chore.name] = at + timedelta(seconds=loop.time() - since)
            if not goes_on:
                # Due, and still there: somebody else is at it, or has locked it, and may roll back.
                return _RETRY_SECONDS

    async def _batch(self, chore: due.Chore, aside: list[Any]) -> bool:
        """Do a batch, or make the next one smaller; return whether there may be more to do."""
        name, loop, rows = chore.name, asyncio.get_running_loop(), self._aside[chore.name]
        # The row that failed alone is mostly the first, and would fail the others with it.
        size = self._sizes[name] = 1 if rows.release(loop.time()) else self._sizes[name]
        tries = due.Tries(aside)
        run = self._store.run if size > 1 else self._store.run_longer
        try:
            count = await run(due.in_turn, chore.number, chore.do, size, tries)
        except Exception as error:
            of_all = isinstance(error, Unavailable) and not isinstance(error, RowTrouble)
            if of_all or not tries.ids:
                raise
            if size > 1:
                self._sizes[name] = max(min(size, len(tries.ids)) // _SHRINK, 1)
            elif rows.add(tries.ids[0], loop.time()):
                log.warning("upkeep left a row alone", chore=name, id=str(tries.ids[0]), error=repr(error))
            return True
        self._sizes[name] = min(2 * size, _BATCH)
        self.done[name] += count
        return bool(count or tries.ids)

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
            if isinstance(error, ConnectionLost):
                self.away_at = asyncio.get_running_loop().time()
            return retry_seconds
        if name in self._waiting:
            log.warning("upkeep goes on", chore=name)
            self._waiting.discard(name)
        return seconds
