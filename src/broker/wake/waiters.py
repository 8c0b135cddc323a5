"""The register of waiting requests, and the ways to wake them."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

from broker.wake.recent import RecentWakes


class Waiter:
    """One waiting request.

    If a notification wakes it while it does not wait, its next wait ends at once.
    """

    __slots__ = ("_future", "_handed", "_woken")

    def __init__(self, *, woken: bool = False) -> None:
        self._woken = woken
        self._handed: Any = None
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Let the request read again."""
        self._woken = True
        if self._future is not None:
            _end(self._future)

    def hand_over(self, state: object) -> None:
        """Wake the request with a new state, so that it need not read it.

        If the request does not wait just now, it may be reading a newer state. So it reads again.
        """
        if self._future is not None:
            self._handed = state
        self.wake()

    def pop_handed(self) -> Any:
        """Return the state that was handed over, only once. None if there is none."""
        state, self._handed = self._handed, None
        return state

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
        self._recent: defaultdict[str, RecentWakes] = defaultdict(RecentWakes)
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

    def waited_for(self, topic: str, keys: Collection[str]) -> set[str]:
        """Return those of the keys of a topic that requests wait for."""
        by_key = self._by_topic.get(topic)
        return by_key.keys() & keys if by_key else set()

    def moment(self, topic: str) -> int:
        """Return the present moment of a topic, for `register`."""
        return self._recent[topic].moment

    def register(self, topic: str, key: str = "", *, since: int | None = None) -> "_Registered":
        """Return a context manager that registers a waiter for the length of its block.

        Wakes since the moment `since` count as if the waiter had been registered then.
        """
        woken = since is not None and self._recent[topic].may_include(key, since)
        return _Registered(self._by_topic, topic, key, Waiter(woken=woken))

    def wake(self, topic: str, keys: Collection[str]) -> None:
        """Wake the waiters of some keys of a topic."""
        self._recent[topic].note(keys)
        by_key = self._by_topic.get(topic, {})
        for key in keys:
            for waiter in by_key.get(key, ()):
                waiter.wake()

    def hand_over(self, topic: str, key: str, state: object) -> None:
        """Wake the waiters of a key with a new state, so that they need not read it."""
        for waiter in self._by_topic.get(topic, {}).get(key, ()):
            waiter.hand_over(state)

    def wake_topic(self, topic: str) -> None:
        """Wake all waiters of a topic."""
        self._recent[topic].note_all()
        for waiters in self._by_topic.get(topic, {}).values():
            for waiter in waiters:
                waiter.wake()

    def forget_moments(self) -> None:
        """Let requests that register since a moment before this call count as woken."""
        for recent in self._recent.values():
            recent.note_all()

    def release(self) -> None:
        """Wake all waiters and let none wait from now on, because the server stops."""
        self.released = True
        for topic in self._by_topic:
            self.wake_topic(topic)


class _Registered:
    """A registered waiter. It is a class, because ten thousand generators would need more memory."""

    __slots__ = ("_by_topic", "_key", "_topic", "_waiter")

    def __init__(self, by_topic: "WaitersByTopic", topic: str, key: str, waiter: Waiter) -> None:
        self._by_topic, self._topic, self._key, self._waiter = by_topic, topic, key, waiter

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
