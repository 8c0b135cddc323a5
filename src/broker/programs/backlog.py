"""What a program has said and the broker has not heard yet: bounded, in order, and nothing lost silently."""

import re
from collections import deque
from collections.abc import Sequence

from broker.client import sanitizing
from broker.texts import shorten

_PROGRESS = re.compile(r"progress:\s*(\d+\.?\d*|\.\d+)\s*(%?)(?:\s+(.*))?", re.ASCII | re.IGNORECASE)


def progress_of(line: str) -> tuple[float | None, str | None]:
    """The progress, 0 to 1, that a line tells of, and its other words; None for what is not there.

    `progress: 0.4 half of it` and `progress: 40% half of it` are such; all other lines are words.
    """
    if found := _PROGRESS.fullmatch(line):
        progress = sanitizing.progress(float(found[1]) / (100 if found[2] else 1))
        if progress is not None:
            return progress, found[3] or None
    return None, line


class Report:
    """A line to be reported; or several, when the broker is slower than the program.

    Args:
        longest: How many characters a message may have.
        lines: What was said; where that is too much, the newest is kept.
    """

    def __init__(self, longest: int, lines: Sequence[str]) -> None:
        self._longest = longest
        self._messages: deque[str] = deque()
        self._characters = 0
        #: How many lines were left out.
        self.left_out = 0
        #: How much is done, as the newest line that says so has it.
        self.progress: float | None = None
        self.join(lines)

    def join(self, lines: Sequence[str]) -> None:
        """Say this, too."""
        # A line and its end are two characters or more: what goes before these has no room.
        newest = lines[-(self._longest // 2) :]
        self.left_out += len(lines) - len(newest)
        for line in newest:
            progress, message = progress_of(line)
            self.progress = self.progress if progress is None else progress
            if message is not None:
                self._messages.append(message)
                self._characters += len(message) + 1
        while self._characters > self._room() and len(self._messages) > 1:
            self._characters -= len(self._messages.popleft()) + 1
            self.left_out += 1

    def _room(self) -> int:
        return self._longest + 1 - len(self._note())

    def _note(self) -> str:
        return f"({self.left_out} lines left out)\n" if self.left_out else ""

    @property
    def message(self) -> str | None:
        """The words."""
        return shorten(self._note() + "\n".join(self._messages), self._longest) or None


class Backlog:
    """Reports that wait for those before them.

    Args:
        most: How many wait; when there are as many, lines are joined to the last.
        longest: How many characters a message may have.
    """

    def __init__(self, most: int, longest: int) -> None:
        self._most = most
        self._longest = longest
        self._waiting: deque[Report] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, lines: Sequence[str]) -> None:
        """Take in lines."""
        room = max(0, self._most - len(self._waiting))
        self._waiting.extend(Report(self._longest, [line]) for line in lines[:room])
        if rest := lines[room:]:
            self._waiting[-1].join(rest)

    def take(self) -> Report:
        """The oldest report, which is then waiting no more."""
        return self._waiting.popleft()
