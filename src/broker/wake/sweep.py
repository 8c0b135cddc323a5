"""The sweep: wake the waiting requests whose notification was lost, with one query for all of them.

If each of ten thousand waiting requests polled the database, they would keep it busy.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import structlog

from broker.wake.background_task import BackgroundTask, TroubleLog
from broker.wake.listener import Listener
from broker.wake.waiters import Waiters

log = structlog.get_logger(__name__)

#: Returns those of the keys whose waiting requests have something to return.
FindReadyKeys = Callable[[Sequence[str]], Awaitable[Collection[str]]]

# The time between two sweeps while the listener is down, and after an error.
_DEAF_SECONDS = 1.0
# A statement with more keys would delay other statements.
_MOST_KEYS = 5_000


class Sweep(BackgroundTask):
    """Regularly wakes requests that have something to return, in case a notification was lost.

    Args:
        waiters: The waiting requests.
        listener: While it is down, the sweep runs every second.
        ready_keys: The queries for ready keys, by topic. In other topics, the sweep wakes all waiters.
        seconds: The maximum time between two sweeps. Jitter shortens it by up to half.
    """

    def __init__(
        self,
        waiters: Waiters,
        listener: Listener,
        ready_keys: Mapping[str, FindReadyKeys],
        *,
        seconds: float,
    ) -> None:
        super().__init__("sweep")
        self._waiters = waiters
        self._listener = listener
        self._ready_keys = ready_keys
        self._seconds = seconds
        self._trouble = TroubleLog(log, "sweep failed; retrying")

    async def _run(self) -> None:
        while True:
            await self._listener.connection_changed.wait(self._pause_seconds())
            try:
                await self.sweep()
            except Exception as error:  # noqa: BLE001 - a waiting request must not be forgotten
                self._trouble.note(error)
                await asyncio.sleep(_DEAF_SECONDS)
                self._listener.connection_changed.wake()
            else:
                self._trouble.clear()

    async def sweep(self) -> None:
        """Wake all waiting requests that have something to return."""
        # A request that registers later, since an earlier moment, is in none of the queries.
        self._waiters.forget_moments()
        for topic, keys in self._waiters.keys().items():
            if (find_ready := self._ready_keys.get(topic)) is None:
                self._waiters.wake_topic(topic)
                continue
            for first in range(0, len(keys), _MOST_KEYS):
                self._waiters.wake(topic, await find_ready(keys[first : first + _MOST_KEYS]))

    def _pause_seconds(self) -> float:
        if not self._listener.connected.is_set():
            return min(_DEAF_SECONDS, self._seconds)
        return self._seconds * random.uniform(0.5, 1)  # noqa: S311 - spreads load, keeps no secret
