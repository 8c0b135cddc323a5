"""Upkeep: handle rows that come due by time, such as expired leases and delayed tasks.

Each chore has a loop. It sleeps until the next row is due, or until a notification about an earlier row.
Several processes can run upkeep at the same time: they take turns, and no batch waits for locked rows.
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
from broker.wake.background_task import BackgroundTask, TroubleLog
from broker.wake.listener import UPKEEP
from broker.wake.waiters import Waiters

log = structlog.get_logger(__name__)

_BATCH = 1_000
# If a row comes due earlier, a notification ends the sleep.
_LONGEST_SLEEP_SECONDS = 30.0
# The minimum sleep, even if many notifications arrive.
_SHORTEST_SLEEP_SECONDS = 0.1
_RETRY_SECONDS = 1.0
# A batch that fails is retried with an eighth of its rows, down to one.
_SHRINK = 8
# A chore skips a row that fails alone for a while, longer each time.
_SKIP_SECONDS = 10.0
_LONGEST_SKIP_SECONDS = 300.0
# Dropping old records is not urgent, and a long query on the archive can block it.
_ARCHIVE_SECONDS = 3600.0
_ARCHIVE_RETRY_SECONDS = 60.0
_ARCHIVE_NUMBER = 4


class SkippedRows:
    """The rows that a chore skips for a while, because each of them fails even alone."""

    def __init__(self) -> None:
        # By id: the end and the length of the time, and whether `release` has reported its end.
        self._rows: dict[Any, tuple[float, float, bool]] = {}

    def add(self, id_: Any, now: float) -> bool:
        """Skip a row from now on, by the loop's clock. Return whether it is the first time."""
        first = id_ not in self._rows
        seconds = _SKIP_SECONDS if first else min(2 * self._rows[id_][1], _LONGEST_SKIP_SECONDS)
        self._rows[id_] = now + seconds, seconds, False
        return first

    def ids(self, now: float) -> list[Any]:
        """Return the ids of the rows to skip now. Forget rows that have not failed for a long time."""
        self._rows = {id_: row for id_, row in self._rows.items() if now < row[0] + row[1]}
        return [id_ for id_, (until, _, _) in self._rows.items() if now < until]

    def release(self, now: float) -> bool:
        """Return whether the time of a row has ended since the last call."""
        ended = {
            id_: (until, seconds, True)
            for id_, (until, seconds, is_reported) in self._rows.items()
            if now >= until and not is_reported
        }
        self._rows |= ended
        return bool(ended)


class Upkeep(BackgroundTask):
    """Handles rows that come due by time.

    Args:
        store: The database.
        waiters: Wakes a chore when a row comes due soon.
        retention_days: The number of days to keep archive records; None means forever.
        reachability_changed_at: Returns the time when the database last became reachable or unreachable for
            the listener, by the loop's clock.
    """

    def __init__(
        self,
        store: Store,
        waiters: Waiters,
        *,
        retention_days: int | None = None,
        reachability_changed_at: Callable[[], float] = lambda: -math.inf,
    ) -> None:
        super().__init__("upkeep")
        self._store = store
        self._waiters = waiters
        self._reachability_changed_at = reachability_changed_at
        # The chores start one after the other. Otherwise the pool would open a connection for each.
        self._first_round = asyncio.Lock()
        self._trouble: dict[str, TroubleLog] = {}
        #: When the process last started or lost the database. Tools could not renew their leases then.
        self.away_at = -math.inf
        # The batch size of each chore, and the rows that it skips.
        self._sizes: defaultdict[str, int] = defaultdict(lambda: _BATCH)
        self._skipped: defaultdict[str, SkippedRows] = defaultdict(SkippedRows)
        # The time until which each chore has handled due rows, by the database's clock.
        self._handled_until: dict[str, datetime] = {}
        self._retention = Retention(retention_days)
        #: The number of rows that each chore has handled.
        self.done: Counter[str] = Counter({chore.name: 0 for chore in due.CHORES} | {"archive": 0})

    def start(self) -> None:
        """Start the loops of all chores."""
        self.away_at = asyncio.get_running_loop().time()
        super().start()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for chore in due.CHORES:
                group.create_task(self._run_chore(chore), name=f"upkeep of {chore.name}")
            group.create_task(self._run_retention(), name="upkeep of archive")

    async def _run_chore(self, chore: due.Chore) -> None:
        with self._waiters.register(UPKEEP, chore.name) as waiter:
            async with self._first_round:
                seconds = await self._try(chore.name, lambda: self._round(chore), _RETRY_SECONDS)
            while True:
                await asyncio.sleep(_SHORTEST_SLEEP_SECONDS)
                await waiter.wait(seconds - _SHORTEST_SLEEP_SECONDS)
                seconds = await self._try(chore.name, lambda: self._round(chore), _RETRY_SECONDS)

    async def _round(self, chore: due.Chore) -> float:
        """Handle the due rows, and return the seconds until the next round."""
        loop = asyncio.get_running_loop()
        extended: tuple[datetime, float] | None = None
        while True:
            skipped = self._skipped[chore.name].ids(loop.time())
            seconds = await self._store.read(due.seconds_to_next, chore, skipped)
            if seconds is None or seconds > 0:
                # The skip time of a row may end earlier.
                longest = _SKIP_SECONDS if skipped else _LONGEST_SLEEP_SECONDS
                return min(seconds or longest, longest)
            if chore.extend is not None and extended is None:
                # Extend only once in each round. A row that still waits for its batch is not late.
                handled_until = self._handled_until.get(chore.name)
                now = await self._store.run(chore.extend, self._present_seconds(), handled_until)
                extended = now, loop.time()
                continue
            try:
                has_more = await self._batch(chore, skipped)
            except ConnectionLost:
                extended = None
                raise
            finally:
                if extended is not None:
                    at, since = extended
                    self._handled_until[chore.name] = at + timedelta(seconds=loop.time() - since)
            if not has_more:
                # Rows are still due, but another transaction has locked them and may roll back.
                return _RETRY_SECONDS

    async def _batch(self, chore: due.Chore, skipped: list[Any]) -> bool:
        """Handle a batch. If it fails, make the next one smaller. Return whether more rows may be due."""
        name, loop, rows = chore.name, asyncio.get_running_loop(), self._skipped[chore.name]
        # A row whose skip time has ended is usually the first, and could fail the others of its batch.
        size = self._sizes[name] = 1 if rows.release(loop.time()) else self._sizes[name]
        ids = due.BatchIds(skipped)
        run = self._store.run if size > 1 else self._store.run_longer
        try:
            count = await run(due.in_turn, chore.number, chore.do, size, ids)
        except Exception as error:
            concerns_all = isinstance(error, Unavailable) and not isinstance(error, RowTrouble)
            if concerns_all or not ids.changed:
                raise
            if size > 1:
                self._sizes[name] = max(min(size, len(ids.changed)) // _SHRINK, 1)
            elif rows.add(ids.changed[0], loop.time()):
                log.warning("upkeep skipped a row", chore=name, id=str(ids.changed[0]), error=repr(error))
            return True
        self._sizes[name] = min(2 * size, _BATCH)
        self.done[name] += count
        return bool(count or ids.changed)

    def _present_seconds(self) -> float:
        """Return how long the process has reached the database without interruption, in seconds."""
        return asyncio.get_running_loop().time() - max(self.away_at, self._reachability_changed_at())

    async def _run_retention(self) -> None:
        async with self._first_round:
            seconds = await self._try("archive", self._archive_round, _ARCHIVE_RETRY_SECONDS)
        while True:
            await asyncio.sleep(seconds)
            seconds = await self._try("archive", self._archive_round, _ARCHIVE_RETRY_SECONDS)

    async def _archive_round(self) -> float:
        while count := await self._store.run(due.in_turn, _ARCHIVE_NUMBER, self._retention.keep, _BATCH):
            self.done["archive"] += count
        return _ARCHIVE_SECONDS

    async def _try(
        self, name: str, run_round: Callable[[], Coroutine[None, None, float]], retry_seconds: float
    ) -> float:
        """Run a round of a chore, and return the seconds until its next round, also after an error."""
        trouble = self._trouble.setdefault(name, TroubleLog(log, "upkeep failed; retrying", chore=name))
        try:
            seconds = await run_round()
        except Exception as error:  # noqa: BLE001 - an error must not end the loop
            trouble.note(error)
            if isinstance(error, ConnectionLost):
                self.away_at = asyncio.get_running_loop().time()
            return retry_seconds
        if trouble.clear():
            log.warning("upkeep recovered", chore=name)
        return seconds
