"""The register of waiting requests, and the ways to wake them."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable


class Waiter:
    """One waiting request.

    If a notification wakes it while it does not wait, its next wait ends at once.
    """

    __slots__ = ("_future", "_woken")

    def __init__(self) -> None:
        self._woken = False
        self._future: asyncio.Future[None] | None = None

    def wake(self, _: object = None) -> None:
        """Let the request read again. Usable as the callback of a future."""
        self._woken = True
        if self._future is not None:
            _end(self._future)

    async def wait(self, seconds: float) -> bool:
        """Wait until woken, at most for some seconds, and return whether it was woken."""
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


WaitersByTopic = defaultdict[str, dict[str, set[Waiter]]]


class Waiters:
    """The waiting requests of a process, by topic (a channel) and key (an id, or empty)."""

    def __init__(self) -> None:
        # By topic first, so that waking a topic does not visit the waiters of other topics.
        self._by_topic: WaitersByTopic = defaultdict(dict)
        #: Whether requests may no longer wait, because the server stops.
        self.released = False

    def __len__(self) -> int:
        return sum(self.counts().values())

    def counts(self) -> Counter[str]:
        """Return the number of waiters of each topic."""
        return Counter({topic: sum(map(len, by_key.values())) for topic, by_key in self._by_topic.items()})

    def keys(self) -> dict[str, list[str]]:
        """Return the keys that requests wait for, by topic."""
        return {topic: list(by_key) for topic, by_key in self._by_topic.items()}

    def register(self, topic: str, key: str = "") -> "_Registered":
        """Return a context manager that registers a waiter for the length of its block."""
        return _Registered(self._by_topic, topic, key)

    def wake(self, topic: str, keys: Iterable[str]) -> None:
        """Wake the waiters of some keys of a topic."""
        by_key = self._by_topic.get(topic, {})
        for key in keys:
            for waiter in by_key.get(key, ()):
                waiter.wake()

    def wake_topic(self, topic: str) -> None:
        """Wake all waiters of a topic."""
        self.wake(topic, self._by_topic.get(topic, {}))

    def release(self) -> None:
        """Wake all waiters and let none wait from now on, because the server stops."""
        self.released = True
        for topic in self._by_topic:
            self.wake_topic(topic)


class _Registered:
    """A registered waiter. It is a class, because ten thousand generators would need more memory."""

    __slots__ = ("_by_topic", "_key", "_topic", "_waiter")

    def __init__(self, by_topic: "WaitersByTopic", topic: str, key: str) -> None:
        self._by_topic, self._topic, self._key = by_topic, topic, key
        self._waiter = Waiter()

    def __enter__(self) -> Waiter:
        self._by_topic[self._topic].setdefault(self._key, set()).add(self._waiter)
        return self._waiter

    def __exit__(self, *_: object) -> None:
        by_key = self._by_topic[self._topic]
        by_key[self._key].discard(self._waiter)
        if not by_key[self._key]:
            del by_key[self._key]
        if not by_key:
            del self._by_topic[self._topic]
