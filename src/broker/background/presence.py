"""Renew the leases of tools that ask for work, and record when an assigner asks for candidates.

A tool's requests about its work renew its lease in their own statements. A request for work writes nothing.
Instead, this module collects the tools that asked or are still waiting, and renews many leases at a time.
"""

import asyncio
import contextlib
import heapq
import math
from collections import Counter

import structlog

from broker.store import Store, assigner, leases
from broker.store.leases import Beat
from broker.wake.background_task import BackgroundTask, TroubleLog

log = structlog.get_logger(__name__)

# Two renewals may fail before a lease expires.
_RENEWALS_PER_LEASE = 3
# The time after which the shortest lease is renewed.
_SHORTEST_PLAN_SECONDS = 5 / _RENEWALS_PER_LEASE
# The time between two rounds. Tools that ask in between share the next round.
_ROUND_SECONDS = 0.5
_BATCH = 1_000
# The heap may have as many outdated plans as valid ones, and this many more.
_MOST_OUTDATED = 1_000
# The broker records the time of an assigner's last request at most this often.
_SEEN_SECONDS = 10.0


class Presence(BackgroundTask):
    """Renews the leases of the tools that ask for work."""

    def __init__(self, store: Store) -> None:
        super().__init__("presence")
        self._store = store
        self._waiting: Counter[Beat] = Counter()
        self._asked: set[Beat] = set()
        # The time of each tool's next renewal, by the loop's clock. The heap is ordered by this time.
        self._due: dict[Beat, float] = {}
        self._in_order: list[tuple[float, Beat]] = []
        self._planned = asyncio.Event()
        self._trouble = TroubleLog(log, "lease renewal failed; retrying")

    def arrive(self, beat: Beat) -> None:
        """Keep a tool's lease valid while its request waits, until `leave`."""
        self._waiting[beat] += 1
        self.note(beat)

    def note(self, beat: Beat) -> None:
        """Record a request of a tool, and renew its lease soon."""
        self._asked.add(beat)
        now = asyncio.get_running_loop().time()
        # Renew even if the lease does not need it, because the renewal also records when the tool last asked.
        if self._due.get(beat, math.inf) > now + _SHORTEST_PLAN_SECONDS:
            self._plan_at(beat, now)

    def plan_renewal(self, beat: Beat, lease_seconds: float) -> None:
        """Plan to renew a lease before it expires."""
        self._plan_at(beat, asyncio.get_running_loop().time() + lease_seconds / _RENEWALS_PER_LEASE)

    def leave(self, beat: Beat) -> None:
        """Record that a request of the tool no longer waits."""
        self._waiting[beat] -= 1
        if not self._waiting[beat]:
            del self._waiting[beat]

    def _plan_at(self, beat: Beat, at: float) -> None:
        """Plan a renewal, unless an earlier one is planned."""
        if self._due.get(beat, math.inf) <= at:
            return
        self._due[beat] = at
        heapq.heappush(self._in_order, (at, beat))
        self._planned.set()
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
        """Wait until the first renewal is due, including renewals that are planned in the meantime."""
        loop = asyncio.get_running_loop()
        while not self._in_order or self._in_order[0][0] > loop.time():
            self._planned.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._in_order[0][0] if self._in_order else None):
                    await self._planned.wait()

    def _take_due(self, now: float) -> list[Beat]:
        """Remove the due renewals from the plan, and return those of tools that asked since the last one."""
        due = []
        while self._in_order and self._in_order[0][0] <= now:
            at, beat = heapq.heappop(self._in_order)
            if self._due.get(beat) != at:
                continue  # an earlier renewal has replaced it
            del self._due[beat]
            if beat in self._waiting or beat in self._asked:
                due.append(beat)
        self._asked.difference_update(due)
        return due

    async def _renew(self, beats: list[Beat]) -> None:
        now = asyncio.get_running_loop().time()
        try:
            lease_seconds = await self._store.each(leases.keep, beats)
        except Exception as error:  # noqa: BLE001 - the next round retries, whatever the error
            self._trouble.note(error)
            for beat in beats:
                self._asked.add(beat)
                self._plan_at(beat, now + 2 * _ROUND_SECONDS)
            return
        self._trouble.clear()
        for beat, seconds in zip(beats, lease_seconds, strict=True):
            if isinstance(seconds, float):  # otherwise the tool was deleted, or its token is invalid
                self._plan_at(beat, now + seconds / _RENEWALS_PER_LEASE)


class Attendance:
    """Records, at most once every ten seconds, that an assigner asks for candidates."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recorded_at = -math.inf

    async def note(self) -> None:
        """Record that an assigner asks now."""
        now = asyncio.get_running_loop().time()
        if now - self._recorded_at < _SEEN_SECONDS:
            return
        before, self._recorded_at = self._recorded_at, now
        try:
            await self._store.one(assigner.seen, None)
        except BaseException:
            self._recorded_at = before
            raise
