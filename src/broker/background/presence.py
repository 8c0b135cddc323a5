"""Presence: who waits is there. A tool's lease must not run out, and an assigner has been seen.

The calls that a tool makes about its work renew its lease on the way. Asking for work writes nothing by
itself; who asked, or still waits, is gathered here, and renewed many at a time.
"""

import asyncio
import contextlib
import heapq
import math
from collections import Counter

import structlog

from broker.store import Store, assigner, leases
from broker.store.leases import Beat

log = structlog.get_logger(__name__)

# Two renewals may fail before a lease runs out.
_RENEWALS_PER_LEASE = 3
# When the shortest lease is renewed.
_SHORTEST_PLAN_SECONDS = 5 / _RENEWALS_PER_LEASE
# At most one round in this time: so that those who came meanwhile share it.
_ROUND_SECONDS = 0.5
_BATCH = 1_000
# How many plans, beside as many as are good, are kept though there is a sooner one.
_MOST_OUTDATED = 1_000
# How exactly it is known when an assigner last asked.
_SEEN_SECONDS = 10.0


class Presence:
    """Renews the leases of the tools that ask for work.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: Counter[Beat] = Counter()
        self._asked: set[Beat] = set()
        # When the next renewal of each tool is due, by the loop's clock; the heap has them in order.
        self._due: dict[Beat, float] = {}
        self._in_order: list[tuple[float, Beat]] = []
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def arrive(self, beat: Beat) -> None:
        """Count a tool as present, until it leaves."""
        self._waiting[beat] += 1
        self.hear(beat)

    def hear(self, beat: Beat) -> None:
        """Count a tool as present just now."""
        self._asked.add(beat)
        now = asyncio.get_running_loop().time()
        # That it asks is to be seen soon, and not only when its lease is to be renewed.
        if self._due.get(beat, math.inf) > now + _SHORTEST_PLAN_SECONDS:
            self._plan(beat, now)

    def expect(self, beat: Beat, lease_seconds: float) -> None:
        """Renew a lease in time, whatever length it has now."""
        self._plan(beat, asyncio.get_running_loop().time() + lease_seconds / _RENEWALS_PER_LEASE)

    def leave(self, beat: Beat) -> None:
        """Count it no longer."""
        self._waiting[beat] -= 1
        if not self._waiting[beat]:
            del self._waiting[beat]

    def start(self) -> None:
        """Begin, in the background."""
        self._task = asyncio.create_task(self._run(), name="presence")

    async def stop(self) -> None:
        """Stop; leases run on as they are."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _plan(self, beat: Beat, at: float) -> None:
        """Plan a renewal; one that is planned sooner stays."""
        if self._due.get(beat, math.inf) <= at:
            return
        self._due[beat] = at
        heapq.heappush(self._in_order, (at, beat))
        self._news.set()
        if len(self._in_order) > 2 * len(self._due) + _MOST_OUTDATED:
            self._in_order = [(at, beat) for beat, at in self._due.items()]
            heapq.heapify(self._in_order)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._until_due()
            await asyncio.sleep(_ROUND_SECONDS)
            due = self._take_due(loop.time())
            for first in range(0, len(due), _BATCH):
                await self._renew(due[first : first + _BATCH])

    async def _until_due(self) -> None:
        """Return when the first renewal is due, also where one is planned sooner meanwhile."""
        loop = asyncio.get_running_loop()
        while not self._in_order or self._in_order[0][0] > loop.time():
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._in_order[0][0] if self._in_order else None):
                    await self._news.wait()

    def _take_due(self, now: float) -> list[Beat]:
        """The tools whose renewal is due and that were heard of since the last one."""
        due = []
        while self._in_order and self._in_order[0][0] <= now:
            at, beat = heapq.heappop(self._in_order)
            if self._due.get(beat) != at:
                continue  # planned sooner since
            del self._due[beat]
            if beat in self._waiting or beat in self._asked:
                due.append(beat)
        self._asked.difference_update(due)
        return due

    async def _renew(self, beats: list[Beat]) -> None:
        now = asyncio.get_running_loop().time()
        try:
            kept = await self._store.each(leases.keep, beats)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
            log.warning("leases wait to be renewed", error=repr(error))
            for beat in beats:
                self._asked.add(beat)
                self._plan(beat, now + 2 * _ROUND_SECONDS)
            return
        for beat, seconds in zip(beats, kept, strict=True):
            if isinstance(seconds, float):  # else the tool was deleted, or the token is void
                self._plan(beat, now + seconds / _RENEWALS_PER_LEASE)


class Attendance:
    """Writes down, now and then, that an assigner asks.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written = -math.inf

    async def ask(self) -> None:
        """Count an assigner as asking now.

        Raises:
            Unavailable: The database did not answer.
        """
        now = asyncio.get_running_loop().time()
        if now - self._written < _SEEN_SECONDS:
            return
        before, self._written = self._written, now
        try:
            await self._store.one(assigner.seen, None)
        except BaseException:
            self._written = before
            raise
