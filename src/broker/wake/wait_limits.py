"""Limits on waiting requests: how many may wait at once, for one client and in all."""

from collections import Counter

from broker.errors import Overloaded, TooManyRequests


class WaitLimits:
    """Counts the requests of a process that wait, and refuses those above the limits.

    Args:
        for_each: How many requests of one client may wait.
        in_all: How many requests of all clients may wait.
    """

    def __init__(self, *, for_each: int, in_all: int) -> None:
        self._for_each = for_each
        self._in_all = in_all
        self._per_client: Counter[str] = Counter()
        #: How many requests wait.
        self.count = 0

    def acquire(self, client: str) -> None:
        """Count a request of a client as waiting, until `release`.

        Raises:
            TooManyRequests: As many requests of this client wait as may.
            Overloaded: As many requests wait as may in all.
        """
        if self._per_client[client] >= self._for_each:
            raise TooManyRequests
        if self.count >= self._in_all:
            raise Overloaded("More requests wait already than this service lets wait; send this one again.")
        self._per_client[client] += 1
        self.count += 1

    def release(self, client: str) -> None:
        """Count a request of a client as waiting no longer."""
        self.count -= 1
        self._per_client[client] -= 1
        if not self._per_client[client]:
            del self._per_client[client]
