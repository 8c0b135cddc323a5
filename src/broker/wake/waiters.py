"""Who waits for what: a register of parked requests, and the ways to wake them."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable


class Waiter:
    """One parked request.

    A hint that comes while the request looks is kept: its next wait ends at once.
    """

    __slots__ = ("_future", "_woken")

    def __init__(self) -> None:
        self._woken = False
        self._future: asyncio.Future[None] | None = None

    def wake(self, _: object = None) -> None:
        """Let the request look again; also good for a callback."""
        self._woken = True
        if self._future is not None:
            _end(self._future)

    async def wait(self, seconds: float) -> bool:
        """Return when woken, at the latest after some seconds; whether it was woken."""
        if not self._woken and seconds > 0:
            loop = asyncio.get_running_loop()
            self._future = loop.create_future()
            timer = loop.call_later(seconds, _end, self._future)
            try:
                await self._future
            finally:
                timer.cancel()
                self._future = None
        woken, self._woken = self._woken, False
        return woken


def _end(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class Waiters:
    """The parked requests of a process, by topic (a channel) and key (an id, or none)."""

    def __init__(self) -> None:
        # Indexed by topic first, so that waking a topic does not visit the waiters of other topics.
        self._parked: defaultdict[str, dict[str, set[Waiter]]] = defaultdict(dict)
        self._released = False

    def __len__(self) -> int:
        return sum(self.counts().values())

    @property
    def released(self) -> bool:
        """Whether nobody shall wait any more, because the server stops."""
        return self._released

    def counts(self) -> Counter[str]:
        """For each topic how many wait."""
        return Counter({topic: sum(map(len, parked.values())) for topic, parked in self._parked.items()})

    def waiting(self) -> dict[str, list[str]]:
        """For each topic the keys that somebody waits for."""
        return {topic: list(parked) for topic, parked in self._parked.items()}

    def parked(self, topic: str, key: str = "") -> "Parked":
        """Be in the register for the length of a `with` block."""
        return Parked(self, (topic, key))

    def enter(self, at: tuple[str, str], waiter: Waiter) -> None:
        """Take a waiter in."""
        topic, key = at
        self._parked[topic].setdefault(key, set()).add(waiter)

    def leave(self, at: tuple[str, str], waiter: Waiter) -> None:
        """Let a waiter go."""
        topic, key = at
        parked = self._parked[topic]
        parked[key].discard(waiter)
        if not parked[key]:
            del parked[key]
        if not parked:
            del self._parked[topic]

    def wake(self, topic: str, keys: Iterable[str]) -> None:
        """Wake those who wait for one of the keys, and nobody else."""
        parked = self._parked.get(topic, {})
        for key in keys:
            for waiter in parked.get(key, ()):
                waiter.wake()

    def wake_topic(self, topic: str) -> None:
        """Wake everyone who waits for anything of a topic."""
        self.wake(topic, self._parked.get(topic, {}))

    def release(self) -> None:
        """Wake everyone for good: the server stops."""
        self._released = True
        for topic in self._parked:
            self.wake_topic(topic)


class Parked:
    """A waiter in its place in the register; a class, for ten thousand generators would be large."""

    __slots__ = ("_at", "_waiter", "_waiters")

    def __init__(self, waiters: Waiters, at: tuple[str, str]) -> None:
        self._waiters = waiters
        self._at = at
        self._waiter = Waiter()

    def __enter__(self) -> Waiter:
        self._waiters.enter(self._at, self._waiter)
        return self._waiter

    def __exit__(self, *_: object) -> None:
        self._waiters.leave(self._at, self._waiter)
