"""Write to a stream from a thread, so that a stopped terminal or a pager does not block work."""

import threading
from collections.abc import Callable
from typing import TextIO

_MOST_CHARACTERS = 2**20


class BackgroundWriter:
    """Writes to a stream from a thread. If too many characters wait, it drops lines and counts them.

    Args:
        stream: The stream to write to.
        convert: Converts each text before the thread writes it.
    """

    def __init__(self, stream: TextIO, convert: Callable[[str], str]) -> None:
        self._stream = stream
        self._convert = convert
        self._changed = threading.Condition()
        self._waiting: list[str] = []
        # The number of characters that wait or are being written.
        self._characters = 0
        self._dropped = 0
        threading.Thread(target=self._write_all, name="background writer", daemon=True).start()

    def write(self, text: str) -> None:
        """Write lines as soon as possible; return at once."""
        with self._changed:
            if self._characters > _MOST_CHARACTERS:
                self._dropped += text.count("\n")
                return
            if self._dropped:
                text = f"({self._dropped} lines are not shown)\n{text}"
                self._dropped = 0
            self._waiting.append(text)
            self._characters += len(text)
            self._changed.notify_all()

    def finish(self, within: float) -> None:
        """Wait until everything is written, for a number of seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._characters == 0, timeout=within)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                text = "".join(self._waiting)
                self._waiting.clear()
            try:
                self._stream.write(self._convert(text))
                self._stream.flush()
            except (OSError, ValueError):
                pass  # the terminal is closed
            with self._changed:
                self._characters -= len(text)
                self._changed.notify_all()
