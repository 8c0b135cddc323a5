"""Upkeep: what time does, and nobody asks for.

One loop sleeps until the next thing is due, or until a notification says that something is due
earlier. It is safe in several processes at once: each batch takes what no other has locked.
"""

import asyncio
import contextlib

import structlog

from broker.store import Store, due
from broker.wake.listener import UPKEEP
from broker.wake.waiters import Waiters

log = structlog.get_logger(__name__)

_BATCH = 1_000
_LONGEST_SLEEP_SECONDS = 30.0
_RETRY_SECONDS = 1.0


class Upkeep:
    """Makes scheduled tasks available when they are due.

    Args:
        store: The database.
        waiters: Where to hear that something new is scheduled.
    """

    def __init__(self, store: Store, waiters: Waiters) -> None:
        self._store = store
        self._waiters = waiters
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the background."""
        self._task = asyncio.create_task(self._run(), name="upkeep")

    async def stop(self) -> None:
        """Stop; a batch under way is rolled back."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        with self._waiters.parked(UPKEEP) as waiter:
            while True:
                try:
                    seconds = await self._round()
                except Exception as error:  # noqa: BLE001 - whatever it is, time goes on
                    log.warning("upkeep has to wait", error=repr(error))
                    seconds = _RETRY_SECONDS
                await waiter.wait(seconds)

    async def _round(self) -> float:
        """Do what is due; how long there is nothing to do now."""
        while await self._store.run(due.make_available, batch=_BATCH) == _BATCH:
            pass
        seconds = await self._store.read(due.seconds_to_next)
        if seconds is None:
            return _LONGEST_SLEEP_SECONDS
        # Due, and still there: somebody else has locked it, and may roll back.
        return min(seconds, _LONGEST_SLEEP_SECONDS) if seconds > 0 else _RETRY_SECONDS
