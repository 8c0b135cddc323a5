"""Places to wait in: how many requests may wait at once, of one client and in all."""

from collections import Counter

from broker.errors import Overloaded, TooManyRequests


class Places:
    """The places of a process.

    Args:
        for_each: How many requests of one client may wait.
        in_all: How many of all clients.
    """

    def __init__(self, *, for_each: int, in_all: int) -> None:
        self._for_each = for_each
        self._in_all = in_all
        self._taken: Counter[str] = Counter()
        #: How many are taken.
        self.count = 0

    def take(self, client: str) -> None:
        """Take a place, until it is given back.

        Raises:
            TooManyRequests: The client has all that it may have.
            Overloaded: There is none left.
        """
        if self._taken[client] >= self._for_each:
            raise TooManyRequests
        if self.count >= self._in_all:
            raise Overloaded("More requests wait already than this service lets wait; send this one again.")
        self._taken[client] += 1
        self.count += 1

    def give_back(self, client: str) -> None:
        """Give a place back."""
        self.count -= 1
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]
