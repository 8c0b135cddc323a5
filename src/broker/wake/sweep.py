"""The sweep: makes up for hints that nobody heard, with one question for all who wait.

Were everyone who waits to look again now and then, ten thousand idle tools would keep the database busy
with nothing. So they are asked for together, and only who has something to hear is woken.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import structlog

from broker.wake.listener import Listener
from broker.wake.waiters import Waiters

log = structlog.get_logger(__name__)

# Tells which of the keys have something to hear.
News = Callable[[Sequence[str]], Awaitable[Iterable[str]]]

_DEAF_SECONDS = 1.0
# As many as one statement takes without holding anything up.
_MOST_KEYS = 5_000


class Sweep:
    """Wakes, now and then and whenever hints may have been missed, those who have something to hear.

    Args:
        waiters: Who waits.
        listener: Whose health says how far hints can be relied on: while it is down, every second.
        news: For a topic, which of its keys have something to hear; of other topics everyone is woken.
        seconds: The longest time between two sweeps; jitter takes up to half of it off.
    """

    def __init__(
        self, waiters: Waiters, listener: Listener, news: Mapping[str, News], *, seconds: float
    ) -> None:
        self._waiters = waiters
        self._listener = listener
        self._news = news
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the background."""
        self._task = asyncio.create_task(self._run(), name="sweep")

    async def stop(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await self._listener.turned.wait(self._patience())
            try:
                await self.sweep()
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits must not be forgotten
                log.warning("the sweep has to wait", error=repr(error))
                await asyncio.sleep(_DEAF_SECONDS)
                self._listener.turned.wake()

    async def sweep(self) -> None:
        """Wake everyone who has something to hear."""
        for topic, keys in self._waiters.waiting().items():
            if (news := self._news.get(topic)) is None:
                self._waiters.wake_topic(topic)
                continue
            for first in range(0, len(keys), _MOST_KEYS):
                self._waiters.wake(topic, await news(keys[first : first + _MOST_KEYS]))

    def _patience(self) -> float:
        if not self._listener.connected.is_set():
            return min(_DEAF_SECONDS, self._seconds)
        return self._seconds * random.uniform(0.5, 1)  # noqa: S311 - spreads load, keeps no secret
