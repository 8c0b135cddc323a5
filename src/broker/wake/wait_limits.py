"""Limit the number of waiting requests, per client and in total."""

from collections import Counter

from broker.errors import Overloaded, TooManyRequests


class WaitLimits:
    """Counts the waiting requests of a process, and refuses those above the limit per client or in total."""

    def __init__(self, *, for_each: int, in_all: int) -> None:
        self._for_each = for_each
        self._in_all = in_all
        self._per_client: Counter[str] = Counter()
        #: The number of waiting requests.
        self.count = 0

    def acquire(self, client: str) -> None:
        """Count a request of a client as waiting, until `release`.

        Raises:
            TooManyRequests: The client has reached its limit.
            Overloaded: The limit for all clients is reached.
        """
        if self._per_client[client] >= self._for_each:
            raise TooManyRequests
        if self.count >= self._in_all:
            raise Overloaded(
                "Too many requests are waiting already. Repeat this one after the time in `Retry-After`."
            )
        self._per_client[client] += 1
        self.count += 1

    def release(self, client: str) -> None:
        """Stop counting a request of a client."""
        self.count -= 1
        self._per_client[client] -= 1
        if not self._per_client[client]:
            del self._per_client[client]
