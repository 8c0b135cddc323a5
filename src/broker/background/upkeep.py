"""Upkeep: handle what comes due by time, such as expired leases and retries.

For each chore a loop sleeps until the next row is due, or until a notification says that one is due earlier.
Several processes can run it at once: they take turns, and no batch waits for locked rows.
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
# If a row comes due before that, a notification ends the sleep.
_LONGEST_SLEEP_SECONDS = 30.0
# Even if many notifications arrive.
_SHORTEST_SLEEP_SECONDS = 0.1
_RETRY_SECONDS = 1.0
# A batch that fails is retried with an eighth of its rows, down to one.
_SHRINK = 8
# A row that fails alone is skipped for a while, longer each time.
_SKIP_SECONDS = 10.0
_LONGEST_SKIP_SECONDS = 300.0
# Dropping old records is not urgent, and a long query on the archive can block it.
_ARCHIVE_SECONDS = 3600.0
_ARCHIVE_RETRY_SECONDS = 60.0
_ARCHIVE_NUMBER = 4


class SkippedRows:
    """The rows that a chore skips for a while, because each of them fails even alone."""

    def __init__(self) -> None:
        # By id: when its time ends, how long it is, and whether `release` has reported its end.
        self._rows: dict[Any, tuple[float, float, bool]] = {}

    def add(self, id_: Any, now: float) -> bool:
        """Skip a row from now on, by the loop's clock; return whether it is the first time."""
        first = id_ not in self._rows
        seconds = _SKIP_SECONDS if first else min(2 * self._rows[id_][1], _LONGEST_SKIP_SECONDS)
        self._rows[id_] = now + seconds, seconds, False
        return first

    def ids(self, now: float) -> list[Any]:
        """Return the ids of the rows to skip now; forget rows that have not failed again for long."""
        self._rows = {id_: row for id_, row in self._rows.items() if now < row[0] + row[1]}
        return [id_ for id_, (until, _, _) in self._rows.items() if now < until]

    def release(self, now: float) -> bool:
        """Return whether the time of any row has ended since the last call."""
        ended = {
            id_: (until, seconds, True)
            for id_, (until, seconds, is_reported) in self._rows.items()
            if now >= until and not is_reported
        }
        self._rows |= ended
        return bool(ended)


class Upkeep(BackgroundTask):
    """Handles what comes due by time.

    Args:
        store: The database.
        waiters: Wakes a chore when a row comes due soon.
        retention_days: How many days to keep archive records; None: forever.
        reachability_changed_at: Returns when the listener last lost the database, or reached it again, by
            the loop's clock.
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
        # The chores start one after the other: otherwise the pool would open a connection for each.
        self._first_round = asyncio.Lock()
        self._trouble: dict[str, TroubleLog] = {}
        #: When the process last started, or lost the database: no tool could renew its lease then.
        self.away_at = -math.inf
        # How many rows each chore tries at once, and which rows it skips.
        self._sizes: defaultdict[str, int] = defaultdict(lambda: _BATCH)
        self._skipped: defaultdict[str, SkippedRows] = defaultdict(SkippedRows)
        # Until when each chore has handled what was due, by the database's clock.
        self._handled_until: dict[str, datetime] = {}
        self._retention = Retention(retention_days)
        #: How many rows each chore has handled.
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
        """Handle what is due; return the seconds until the next round."""
        loop = asyncio.get_running_loop()
        forgiven: tuple[datetime, float] | None = None
        while True:
            skipped = self._skipped[chore.name].ids(loop.time())
            seconds = await self._store.read(due.seconds_to_next, chore, skipped)
            if seconds is None or seconds > 0:
                # The time of a skipped row may end before that.
                longest = _SKIP_SECONDS if skipped else _LONGEST_SLEEP_SECONDS
                return min(seconds or longest, longest)
            if chore.forgive is not None and forgiven is None:
                # Once a round: a row that waits for its batch is not late.
                handled_until = self._handled_until.get(chore.name)
                now = await self._store.run(chore.forgive, self._present_seconds(), handled_until)
                forgiven = now, loop.time()
                continue
            try:
                has_more = await self._batch(chore, skipped)
            except ConnectionLost:
                forgiven = None
                raise
            finally:
                if forgiven is not None:
                    at, since = forgiven
                    self._handled_until[chore.name] = at + timedelta(seconds=loop.time() - since)
            if not has_more:
                # Rows are still due: another transaction has locked them, and may roll back.
                return _RETRY_SECONDS

    async def _batch(self, chore: due.Chore, skipped: list[Any]) -> bool:
        """Handle a batch, or make the next one smaller; return whether more rows may be due."""
        name, loop, rows = chore.name, asyncio.get_running_loop(), self._skipped[chore.name]
        # The row that failed alone is usually the first, and would fail the others with it.
        size = self._sizes[name] = 1 if rows.release(loop.time()) else self._sizes[name]
        tries = due.Tries(skipped)
        run = self._store.run if size > 1 else self._store.run_longer
        try:
            count = await run(due.in_turn, chore.number, chore.do, size, tries)
        except Exception as error:
            concerns_all = isinstance(error, Unavailable) and not isinstance(error, RowTrouble)
            if concerns_all or not tries.ids:
                raise
            if size > 1:
                self._sizes[name] = max(min(size, len(tries.ids)) // _SHRINK, 1)
            elif rows.add(tries.ids[0], loop.time()):
                log.warning("upkeep skipped a row", chore=name, id=str(tries.ids[0]), error=repr(error))
            return True
        self._sizes[name] = min(2 * size, _BATCH)
        self.done[name] += count
        return bool(count or tries.ids)

    def _present_seconds(self) -> float:
        """Return for how long the process has reached the database without a break."""
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
        """Run a round of a chore; return the seconds until its next round, also if it fails."""
        trouble = self._trouble.setdefault(name, TroubleLog(log, "upkeep failed; retrying", chore=name))
        try:
            seconds = await run_round()
        except Exception as error:  # noqa: BLE001 - an error must not end the loop
            trouble.note(error)
            if isinstance(error, ConnectionLost):
                self.away_at = asyncio.get_running_loop().time()
            return retry_seconds
        if trouble.clear():
            log.warning("upkeep works again", chore=name)
        return seconds
