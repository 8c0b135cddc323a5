"""The departure of a client, which ends the wait of its request."""

from collections.abc import Callable


class Departure:
    """Records that the client of a request has disconnected, and calls a function then."""

    __slots__ = ("_callback", "has_left")

    def __init__(self) -> None:
        self.has_left = False
        self._callback: Callable[[], None] | None = None

    def watch(self, callback: Callable[[], None] | None) -> None:
        """Set the function to call, or None. If the client has already left, call the function now."""
        self._callback = callback
        if self.has_left and callback is not None:
            callback()

    def leave(self) -> None:
        """Record that the client has disconnected."""
        self.has_left = True
        if self._callback is not None:
            self._callback()
