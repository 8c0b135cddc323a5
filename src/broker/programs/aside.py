"""Writing that nobody has to read: a terminal that was halted, or a pager, holds up no work."""

import threading
from collections.abc import Callable
from typing import TextIO

_MOST_CHARACTERS = 2**20


class Aside:
    """Writes to a stream from a thread of its own; what has no room to wait is left out, and that is said.

    Args:
        stream: Where to.
        shown: What a text becomes before it is written.
    """

    def __init__(self, stream: TextIO, shown: Callable[[str], str]) -> None:
        self._stream = stream
        self._shown = shown
        self._changed = threading.Condition()
        self._waiting: list[str] = []
        # Of what waits, and of what is being written.
        self._characters = 0
        self._left_out = 0
        threading.Thread(target=self._write_all, name="aside", daemon=True).start()

    def write(self, text: str) -> None:
        """Write lines, some time."""
        with self._changed:
            if self._characters > _MOST_CHARACTERS:
                self._left_out += text.count("\n")
                return
            if self._left_out:
                text = f"({self._left_out} lines are not shown)\n{text}"
                self._left_out = 0
            self._waiting.append(text)
            self._characters += len(text)
            self._changed.notify_all()

    def finish(self, within: float) -> None:
        """Return when all is written, or so many seconds are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._characters == 0, timeout=within)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                text = "".join(self._waiting)
                self._waiting.clear()
            try:
                self._stream.write(self._shown(text))
                self._stream.flush()
            except (OSError, ValueError):
                pass  # there is no terminal any more
            with self._changed:
                self._characters -= len(text)
                self._changed.notify_all()
