"""The long poll: register, look, wait for a hint, look again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker.wake.waiters import Waiters

Answer = TypeVar("Answer")
Look = Callable[[], Awaitable[Answer]]


class LongPoll:
    """How requests wait. Should a hint be lost, the sweep wakes who missed it.

    Args:
        waiters: The register of who waits.
    """

    def __init__(self, waiters: Waiters) -> None:
        self._waiters = waiters

    async def wait(
        self,
        look: Look[Answer],
        *,
        until: Callable[[Answer], bool],
        seconds: float,
        topic: str,
        key: str = "",
        look_last: bool = True,
        gone: Callable[[], Awaitable[object]] | None = None,
    ) -> Answer:
        """Look until there is something to say, or the time is up.

        Args:
            look: Reads what is the case; holds nothing between two looks.
            until: Whether that is worth an answer.
            seconds: How long to wait; 0: one look.
            topic: The channel that gives the hints.
            key: The id they are about; none: any.
            look_last: Whether what is answered when the time is up may have changed without a hint.
            gone: Returns when nobody waits for the answer any more.

        Returns:
            What the last look saw.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        with self._waiters.parked(topic, key) as waiter:
            watch = None if gone is None else asyncio.ensure_future(gone())
            if watch is not None:
                watch.add_done_callback(waiter.wake)
            try:
                while True:
                    answer = await look()
                    remaining = end - loop.time()
                    if until(answer) or remaining <= 0 or self._waiters.released:
                        return answer
                    hinted = await waiter.wait(remaining)
                    left = watch is not None and watch.done()
                    if left or self._waiters.released or not (hinted or look_last):
                        return answer
            finally:
                if watch is not None:
                    watch.cancel()
