"""The long poll: register, look, wait, look again."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from broker.wake.listener import Listener
from broker.wake.waiters import Waiter, Waiters

Answer = TypeVar("Answer")
Look = Callable[[], Awaitable[Answer]]

_DEAF_SECONDS = 1.0


class LongPoll:
    """How requests wait: for a hint, and without one for a while, then they look again by themselves.

    Args:
        waiters: The register of who waits.
        listener: Whose health says how far hints can be relied on.
        fallback_seconds: The longest wait between two looks; jitter takes up to half of it off.
    """

    def __init__(self, waiters: Waiters, listener: Listener, *, fallback_seconds: float) -> None:
        self._waiters = waiters
        self._listener = listener
        self._fallback_seconds = fallback_seconds

    async def wait(
        self,
        look: Look[Answer],
        *,
        until: Callable[[Answer], bool],
        seconds: float,
        topic: str,
        key: str = "",
        gone: Callable[[], Awaitable[object]] | None = None,
    ) -> Answer:
        """Look until there is something to say, or the time is up.

        Args:
            look: Reads what is the case; holds nothing between two looks.
            until: Whether that is worth an answer.
            seconds: How long to wait; 0: one look.
            topic: The channel that gives the hints.
            key: The id they are about; none: any.
            gone: Returns when nobody waits for the answer any more.

        Returns:
            What the last look saw.
        """
        if seconds <= 0:
            return await look()
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        with self._waiters.parked(topic, key) as waiter, _watching(gone, waiter) as left:
            while True:
                answer = await look()
                remaining = end - loop.time()
                if until(answer) or remaining <= 0 or self._waiters.released:
                    return answer
                await waiter.wait(min(remaining, self._patience()))
                if left() or self._waiters.released:
                    return answer

    def _patience(self) -> float:
        if not self._listener.connected.is_set():
            return _DEAF_SECONDS
        return self._fallback_seconds * random.uniform(0.5, 1)  # noqa: S311 - spreads load, keeps no secret


@contextmanager
def _watching(gone: Callable[[], Awaitable[object]] | None, waiter: Waiter) -> Iterator[Callable[[], bool]]:
    """Wake the waiter when nobody waits for its answer any more; yields whether that is so."""
    if gone is None:
        yield lambda: False
        return
    watch = asyncio.ensure_future(gone())
    watch.add_done_callback(lambda _: waiter.wake())
    try:
        yield watch.done
    finally:
        watch.cancel()
