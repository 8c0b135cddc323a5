"""A bounded queue of reports to send, in order, with a note about dropped lines."""

import re
from collections import deque
from collections.abc import Sequence

from broker.client import sanitizing
from broker.texts import shorten

_PROGRESS = re.compile(r"progress:\s*(\d+\.?\d*|\.\d+)\s*(%?)(?:\s+(.*))?", re.ASCII | re.IGNORECASE)


def progress_of(line: str) -> tuple[float | None, str | None]:
    """Return the progress in a line, from 0 to 1, and its message. Each is None if the line has none.

    `progress: 0.4 half of it` and `progress: 40% half of it` have progress. Any other line is a message.
    """
    if match := _PROGRESS.fullmatch(line):
        progress = sanitizing.progress(float(match[1]) / (100 if match[2] else 1))
        if progress is not None:
            return progress, match[3] or None
    return None, line


class PendingReport:
    """A report of one line, or of several lines if the broker is slower than the program.

    If the lines exceed the maximum length of a message, in characters, the report keeps the newest lines.
    """

    def __init__(self, longest: int, lines: Sequence[str]) -> None:
        self._longest = longest
        self._messages: deque[str] = deque()
        self._characters = 0
        self.left_out = 0
        #: The progress of the newest line that has one.
        self.progress: float | None = None
        self.join(lines)

    def join(self, lines: Sequence[str]) -> None:
        """Add lines to the report."""
        # A line with its end has at least two characters, so older lines cannot fit.
        newest = lines[-(self._longest // 2) :]
        self.left_out += len(lines) - len(newest)
        for line in newest:
            progress, message = progress_of(line)
            self.progress = self.progress if progress is None else progress
            if message is not None:
                self._messages.append(message)
                self._characters += len(message) + 1
        while self._characters + len(self._note()) > self._longest + 1 and len(self._messages) > 1:
            self._characters -= len(self._messages.popleft()) + 1
            self.left_out += 1

    def _note(self) -> str:
        return f"({self.left_out} lines left out)\n" if self.left_out else ""

    @property
    def message(self) -> str | None:
        """The lines as one text, with a note about lines that were left out. None if there is no text."""
        return shorten(self._note() + "\n".join(self._messages), self._longest) or None


class PendingReports:
    """The reports that wait to be sent, the oldest first.

    Args:
        most: The maximum number of waiting reports. Further lines are added to the last one.
        longest: The maximum length of a message, in characters.
    """

    def __init__(self, most: int, longest: int) -> None:
        self._most = most
        self._longest = longest
        self._waiting: deque[PendingReport] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, lines: Sequence[str]) -> None:
        """Add lines."""
        room = max(0, self._most - len(self._waiting))
        self._waiting.extend(PendingReport(self._longest, [line]) for line in lines[:room])
        if rest := lines[room:]:
            self._waiting[-1].join(rest)

    def pop(self) -> PendingReport:
        """Remove and return the oldest report."""
        return self._waiting.popleft()
