"""The latest wakes, so that a request can wait as of a moment in the past."""

from collections import deque
from collections.abc import Collection
from itertools import islice

# A moment is used after one statement. If more wakes followed it, all keys count as woken.
_MOST_WAKES = 1_000


class RecentWakes:
    """The keys of the latest wakes of a topic, in order. A moment is the number of wakes before it."""

    def __init__(self) -> None:
        self._wakes: deque[Collection[str]] = deque(maxlen=_MOST_WAKES)
        #: The present moment.
        self.moment = 0

    def note(self, keys: Collection[str]) -> None:
        """Remember a wake of some keys."""
        self._wakes.append(keys)
        self.moment += 1

    def note_all(self) -> None:
        """Remember a wake of all keys."""
        self._wakes.clear()
        self.moment += 1

    def may_include(self, key: str, since: int) -> bool:
        """Return whether a key was woken since a moment, or may have been."""
        later = self.moment - since
        return later > len(self._wakes) or any(key in keys for keys in islice(reversed(self._wakes), later))
